"""lifetime: how a server ends: after its requests when asked to, soon and with an error when its engine has died."""

import asyncio
import faulthandler
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Thread, Timer

import psutil
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.logger import init_logger
from vllm.v1.engine.exceptions import EngineDeadError

from .interrupts import exit_now
from .leases import Leases

logger = init_logger("vllm.layerloom")

LOOK = 0.25
GRACE = 3
"""Seconds that connections may take to end when there is nothing left to say."""

AT_ONCE = 5.0
"""Seconds from the engine's death to the server's, whatever still hangs."""

WITHOUT_ENGINES = AT_ONCE + GRACE
"""Seconds that a process may take to end whose servers have `AT_ONCE`."""

serves = False
"""Whether this process is a server: then its Lifetime sees to its end."""

failed = False
"""Whether this process' engine has died: then its exit status must say so."""


class Lifetime:
    """Watches one server's engine, and takes the place of its engine client's `shutdown`.

    What is `embedded` in somebody else's process never ends it: without an engine there is nothing but 503.
    """

    def __init__(self, client: EngineClient, leases: Leases, state: State, embedded: bool = False) -> None:
        global serves
        serves = True
        self.client = client
        self.embedded = embedded
        self.leases = leases
        self.state = state
        self._ending = ""
        self._loop = asyncio.get_running_loop()
        self._shutdown = client.shutdown
        client.shutdown = self.shutdown
        # Where one process has started several servers vLLM tells these of no death.
        alone = client.engine_core.resources.engine_manager is not None
        self._engines = [] if alone else engines_among(psutil.Process(os.getppid()).children())
        # On a thread: a loop that is behind with its streams must not keep the server from ending.
        Thread(target=self._watch_engine, name="layerloom-engine", daemon=True).start()

    @property
    def ending(self) -> str:
        """Why no request is taken any more."""
        return self._ending or ("the engine has ended" if self.client.errored else "")

    def _watch_engine(self) -> None:
        while not self.client.errored:
            time.sleep(LOOK)
            if any(map(has_ended, self._engines)):
                self.client.engine_core.resources.engine_dead = True
        if not self._ending:
            self._fail()
            self._loop.call_soon_threadsafe(self._end_streams)
            if not self.embedded:
                self.state.server.should_exit = True

    def _fail(self) -> None:
        global failed
        self._end("the engine has ended")
        if self.embedded:
            return logger.error("layerloom: the engine has ended: from now on the app answers 503")
        failed = True
        logger.error("layerloom: the engine has ended, and so does the server")
        exit_after(AT_ONCE, 1)

    def shutdown(self, timeout: float | None = None) -> None:
        """Lets requests end for `timeout` seconds, and then ends those that have not, with an error."""
        if not self._ending:
            if self.client.errored:
                # vLLM's own watchdog was first.
                self._fail()
            else:
                self._end("the server is shutting down")
                if not self.embedded:
                    exit_after((timeout or 0.0) + AT_ONCE, 0)
            # Whoever started several servers waits for them as long, and then kills them.
            until = time.monotonic() + max(0.0, (timeout or 0.0) - GRACE)
            while time.monotonic() < until and not self.client.errored and self._unfinished():
                time.sleep(LOOK)
        self._shutdown(timeout=min(timeout or 0.0, GRACE))
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end_streams)

    def _unfinished(self) -> bool:
        return bool(self.client.output_processor.has_unfinished_requests())

    def _end(self, reason: str) -> None:
        self._ending = reason
        server = getattr(self.state, "server", None)
        if server is not None:
            server.config.timeout_graceful_shutdown = GRACE

    def _end_streams(self) -> None:
        self.leases.closed = True
        self.client.output_processor.propagate_error(EngineDeadError())


def end_after_engines(started: Callable[[], list[psutil.Process]]) -> None:
    """Ends a process that is no server soon after the last engine it has started, whatever it still waits for.

    `started` are its processes, none before all of them are up.
    """

    def watch() -> None:
        while not started():
            time.sleep(LOOK)
        engines = [] if serves else engines_among(started())
        while not all(map(has_ended, engines)):
            time.sleep(LOOK)
        if engines:
            # Not a Timer: it needs no Python, whose own end can hang.
            faulthandler.dump_traceback_later(WITHOUT_ENGINES, exit=True)

    Thread(target=watch, name="layerloom-engines", daemon=True).start()


def engines_among(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if "EngineCore" in " ".join(process.cmdline()):
                found.append(process)
    return found


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def exit_after(seconds: float, status: int) -> None:
    """Ends this process then, if nothing else has: a connection that nobody reads must not keep it."""
    timer = Timer(seconds, exit_now, [status])
    timer.daemon = True
    timer.start()
