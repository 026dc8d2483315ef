"""budget: how much memory compositions need so that none of them is ever without its pages."""

from collections.abc import Callable, Iterable

from .bank import Key, keys
from .plan import Plan


def needed(plans: Iterable[Plan], mixed: int, page: Callable[[Key], int], scratch: Callable[[Key], int]) -> int:
    """The bytes with which any `mixed` of the plans can be in memory at once, while one page of theirs is composed.

    That is what all of them take together, pages they share counted once, or what the `mixed` largest take when they
    share nothing, whichever is less. `page` gives a page's bytes, `scratch` those needed beside it to compose it.
    """
    pages = [{key for key in keys(plan) if key[1].uniform != ()} for plan in plans]
    together = set().union(*pages)
    largest = sorted((sum(map(page, own)) for own in pages), reverse=True)[:mixed]
    return min(sum(map(page, together)), sum(largest)) + max(map(scratch, together), default=0)
