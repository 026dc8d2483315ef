"""importing: fewer looks for garbage while vLLM is imported, and none when the process ends.

That makes a million objects that stay. Python goes through the young ones after every 700, and through all of them now
and then, which is a sixth of the import in each of a server's processes. At its end it goes through all of them several
times, for two seconds.
"""

import atexit
import gc

BEFORE = gc.get_threshold()
RARELY = (50_000, 20, 20)


def begin() -> None:
    gc.set_threshold(*RARELY)


def spare_the_end() -> None:
    """What is frozen is not looked at. Triton's library then complains, which is for the caller to hide."""
    atexit.register(gc.freeze)


def end() -> None:
    """As before. Does nothing in a process that has not begun it, whose thresholds may be its own."""
    if gc.get_threshold() == RARELY:
        gc.set_threshold(*BEFORE)
