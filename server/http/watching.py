"""watching: what makes a server load its family anew: a change of family.yaml, and SIGHUP."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from vllm.logger import init_logger
from watchfiles import awatch

from layerloom.composer import ComposeError
from layerloom.composer.files import read_bytes

from .living import Living

logger = init_logger("vllm.layerloom")

CALL = signal.SIGURG
"""Between servers: a signal that a process which does not listen, yet, ignores."""

SERVER = "apiserver"
"""In the title of vLLM's server processes, where there are several."""


def watch(living: Living, signals: bool = True) -> set[asyncio.Task[None]]:
    """Reloads when it is time to: the first of several servers does, and the others follow it."""
    loop, tasks = asyncio.get_running_loop(), set()

    def begin(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if living.servers > 1:
        living.call = call_the_others
        begin(living.follow())
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
        if signals:
            loop.add_signal_handler(CALL, living.called.set)
            loop.add_signal_handler(signal.SIGHUP, lambda: begin(reload(living)) if living.index == 0 else None)
    if living.index == 0:
        begin(reload_on_change(living))
    return tasks


def call_the_others() -> None:
    signal_servers(psutil.Process(os.getppid()), CALL)


def signal_servers(parent: psutil.Process, number: int) -> None:
    """To all servers that a process has started, but to this one."""
    for process in parent.children():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and SERVER in " ".join(process.cmdline()).lower():
                process.send_signal(number)


async def reload(living: Living) -> None:
    """What is wrong is in the log and the metrics."""
    try:
        await living.reload()
    except ComposeError:
        pass
    except Exception:
        logger.exception("layerloom: the family could not be loaded")


async def reload_on_change(living: Living) -> None:
    """Looks at what family.yaml says, not at its name: where it is a link to a link, as in Kubernetes, those change."""
    file = living.family.path
    seen = content_of(file)
    async for _ in awatch(file.parent, recursive=False, debounce=200, step=50):
        found = content_of(file)
        if found not in (seen, None):
            seen = found
            logger.info("layerloom: %s has changed", file.name)
            await reload(living)


def content_of(file: Path) -> bytes | None:
    """None where there is nothing to read, as in between two versions."""
    try:
        return read_bytes(file)
    except ComposeError:
        return None


def forward_hangups() -> None:
    """Has this process pass SIGHUP on to the servers it has started. Where it is the server it will listen itself."""
    signal.signal(signal.SIGHUP, lambda *_: signal_servers(psutil.Process(), signal.SIGHUP))
