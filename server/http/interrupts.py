"""interrupts: Ctrl-C, which a terminal sends to every process of a server at once."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread
from typing import NoReturn

import psutil

STATUS = 130
SOON = 0.3
"""Seconds that processes have to end by themselves, when there is nothing that they still have to do."""


def end_all(last: Callable[[], None] | None = None) -> NoReturn:
    """Ends every process that this one has started, and, after `last`, this one."""
    make_end(started())
    if last is not None:
        last()
    exit_now(STATUS)


def exit_now(status: int) -> NoReturn:
    """Ends this process without Python's own end, which can hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def started() -> list[psutil.Process]:
    """All processes that this one has started, but for Python's tracker, which cleans up when the others have ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "resource_tracker" not in " ".join(process.cmdline()):
                found.append(process)
    return found


def make_end(processes: Iterable[psutil.Process]) -> None:
    """Ends them, those that do not by themselves."""
    left = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with suppress(psutil.Error):
                process.send_signal(number)
        _, left = psutil.wait_procs(left, SOON)


def end_at_once(stop: Callable[[], None]) -> None:
    """Until something else takes Ctrl-C: it ends all that has been started. `stop` cleans up after it."""

    def said() -> None:
        stop()
        print("stopped", file=sys.stderr)

    signal.signal(signal.SIGINT, lambda *_: end_all(said))


def watch_for_second() -> None:
    """Where vLLM takes Ctrl-C, and pays no attention to a second one: ends all when that comes."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def watch() -> None:
        pressed = 0
        while True:
            now = os.read(heard, 1024).count(signal.SIGINT)
            if now and not pressed:
                print("\nstopping; Ctrl-C again ends it at once", file=sys.stderr, flush=True)
            pressed += now
            if pressed > 1:
                end_all()

    Thread(target=watch, name="layerloom-interrupts", daemon=True).start()
