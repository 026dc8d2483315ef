"""quiet: transformers, imported when it is needed and without a word to the terminal."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def quiet_transformers() -> Iterator[ModuleType]:
    """The module, whose log and warnings are kept back meanwhile. The first import takes a second or two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        log = transformers.utils.logging
        before = log.get_verbosity()
        log.set_verbosity(log.CRITICAL + 1)
        try:
            yield transformers
        finally:
            log.set_verbosity(before)


def said(error: Exception, most: int) -> str:
    """What an error of a library says, in one line of at most `most` characters."""
    words = " ".join(str(error)[: 4 * most].split())[:most]
    return "".join(char if char.isprintable() else "?" for char in words) or type(error).__name__
