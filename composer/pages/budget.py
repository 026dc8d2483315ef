"""budget: how much memory compositions need so that none of them is ever without its pages."""

from collections.abc import Iterable

from layerloom.composer.family.plan import Plan

from .bank import Bank


def needed(plans: Iterable[Plan], mixed: int, bank: Bank, pinned: Iterable[Plan] = ()) -> int:
    """The bytes with which any `mixed` of the plans can be in memory at once, while one page of theirs is composed.

    That is what all of them take together, pages they share counted once, or what the `mixed` largest take when they
    share nothing, whichever is less; `pinned` ones are there in any case.
    """
    always = set().union(*map(bank.own, pinned))
    pages = [bank.own(plan) - always for plan in plans]
    together = set().union(*pages)
    largest = sorted((sum(map(bank.bytes, own)) for own in pages), reverse=True)[:mixed]
    rest = min(sum(map(bank.bytes, together)), sum(largest))
    return sum(map(bank.bytes, always)) + rest + bank.scratch(always | together)
