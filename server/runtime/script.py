"""script: says in one line what a script lacks that the engine's processes import once more."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from vllm.utils.system_utils import set_env_var

MARK = "LAYERLOOM_IMPORTED_AGAIN"

MESSAGE = (
    "layerloom: the engine's processes import this script again. Put what starts the runtime under "
    'if __name__ == "__main__":'
)


@contextmanager
def imported_once() -> Iterator[None]:
    """For the time in which an engine is built: ends the script with that line where it has no guard.

    The processes leave a mark and go without a word, as only this one can tell it once.
    """
    # Set while a spawned process imports the main module.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        if MARK in os.environ:
            Path(os.environ[MARK]).touch()
            os._exit(1)
        raise SystemExit(MESSAGE)
    with TemporaryDirectory(prefix="layerloom-") as scratch:
        mark = Path(scratch, "mark")
        try:
            with set_env_var(MARK, str(mark)):
                yield
        except Exception:
            if mark.exists():
                raise SystemExit(MESSAGE) from None
            raise
