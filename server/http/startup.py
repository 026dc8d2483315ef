"""startup: the start of a server, as whoever types `layerloom serve` sees it.

On a terminal a line says what is being done, elsewhere a line with the time for each step. What vLLM's processes say
goes to a log in a folder of the start (quiet), from which the steps are read; the servers say there that they are up
(ready). Then the folder goes and a greeting comes. When the start fails it stays, and the error says where.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Thread
from types import TracebackType
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import quiet
from .causes import cause_in
from .interrupts import started

LOOK = 0.1
"""Seconds between looks at what the processes have said."""

RECORD = re.compile(r"\(.+? pid=\d+\) (WARNING|ERROR|CRITICAL|INFO) \S+ \S+ \[(\S+)\] (.*)")
STEPS = (
    (re.compile("Initializing a V1 LLM engine"), "starting the engine's workers"),
    (re.compile("Starting to load model"), "loading the base"),
    (
        re.compile("Loading (model )?weights took|Model loading took"),
        "making room for compositions and for the KV cache",
    ),
    (re.compile(r"\w+ KV cache size"), "warming up"),
    (re.compile("Using cache directory|Warming up model for the compilation"), "compiling, which takes long once"),
    (re.compile("Supported tasks"), "preparing the API"),
    (re.compile("layerloom: makes .* before"), "making the compositions that are to be there"),
)
"""What vLLM says when a step begins."""
ENGINE_IS_UP = "init engine (profile"

PLAIN = (ValueError, TypeError, LookupError, OSError)
"""Exceptions of what was given, to which a log adds nothing."""

LOGGING = ("VLLM_LOGGING_LEVEL", quiet.CONFIG, "VLLM_CONFIGURE_LOGGING")
LOG_OPTIONS = ("--log-level", "--log-config-file", "--logging-config")


SET = (quiet.FOLDER, quiet.CONFIG, "PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL")
"""Variables of the environment that are others while a server runs."""


class StartFailed(Exception):
    """The server did not start. `reason` is what another of its processes says, if that is why; `log` is vLLM's."""

    def __init__(self, reason: str | None, log: Path) -> None:
        super().__init__(reason or "the server did not start")
        self.reason = reason
        self.log = log


def wants_log(options: Sequence[str]) -> bool:
    """Whether the user has said how vLLM should log; then it does."""
    asked = any(option.replace("_", "-").startswith(LOG_OPTIONS) for option in options)
    return asked or any(name in os.environ for name in LOGGING)


class Startup:
    """Around the start of a server and its life. `show_log` leaves vLLM's log as it is.

    `greeting` makes the text that says what is served, of what the first of the servers says of itself.
    """

    def __init__(self, show_log: bool) -> None:
        self.show_log = show_log
        self.folder = Path(mkdtemp(prefix="layerloom-"))
        self.greeting: Callable[[dict[str, Any]], str] = str
        self.engines = 0
        """How many a process starts that has no server of its own."""
        self.processes: list[psutil.Process] = []
        """Those that all is made of, when it is up."""
        self._log = self.folder / quiet.LOG
        self._read = 0
        self._seen: set[str] = set()
        self._up = 0
        self._began = time.monotonic()
        self._over = Event()
        self._follower = Thread(target=self._follow, name="layerloom-startup", daemon=True)
        self._console = Console(file=sys.stderr)
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task("")

    def __enter__(self) -> "Startup":
        self._environment = dict(os.environ)
        os.environ[quiet.FOLDER] = str(self.folder)
        # Its tracker of shared memory cleans up after processes that were ended, and complains that it has to.
        filters = os.environ.get("PYTHONWARNINGS", "")
        os.environ["PYTHONWARNINGS"] = f"{filters}{',' if filters else ''}ignore:resource_tracker:UserWarning"
        if not self.show_log:
            self._log.touch()
            os.environ[quiet.CONFIG] = str(quiet.FILE)
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in SET:
            os.environ.pop(name, None)
        os.environ.update((name, self._environment[name]) for name in SET if name in self._environment)
        if not self.folder.exists():
            return
        self._end()
        # For what went wrong in another process, vLLM says that it did.
        elsewhere = "root cause" in str(error)
        if not self.show_log and isinstance(error, Exception) and (elsewhere or not isinstance(error, PLAIN)):
            reason = cause_in(self._log.read_text(errors="replace")) if elsewhere else None
            raise StartFailed(reason, self._log) from error
        shutil.rmtree(self.folder, ignore_errors=True)

    def step(self, text: str) -> None:
        """Says what is done from now on."""
        if self.show_log or self._over.is_set() or text in self._seen:
            return
        self._seen.add(text)
        if self._console.is_terminal:
            self._bar.update(self._task, description=text)
            self._bar.start()
        else:
            self._say(f"{time.strftime('%H:%M:%S')} {text}")

    def follow(self) -> None:
        """From now on what is said is of vLLM's."""
        quiet.join()
        self._follower.start()

    def stop(self) -> None:
        """Ends it from within: the process is about to end."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _follow(self) -> None:
        while not self._over.wait(LOOK):
            for line in self._lines():
                self._hear(line)
            said = self._said()
            if said is not None:
                return self._greet(said)

    def _lines(self) -> list[str]:
        """What is new in the log, whole lines alone."""
        with suppress(OSError), self._log.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(end)
            return whole.decode(errors="replace").splitlines()
        return []

    def _hear(self, line: str) -> None:
        record = RECORD.match(line)
        if record is None:
            return
        level, logger, message = record.groups()
        self._up += message.startswith(ENGINE_IS_UP)
        for words, text in STEPS:
            if words.match(message):
                self.step(text)
        # Errors of vLLM's come with what they are of, and end the start.
        shown = level == "WARNING" or (logger == quiet.OURS and level != "INFO")
        if shown and quiet.matters(30, logger, message) and message not in self._seen:
            self._seen.add(message)
            self._say(f"{level.lower()}: {message}")

    def _said(self) -> dict[str, Any] | None:
        """What the first server says, when all are up."""
        if self.engines:
            return {} if self._up >= self.engines else None
        found = []
        for file in self.folder.glob("ready-*.json"):
            with suppress(OSError, ValueError):
                found.append(json.loads(file.read_text()))
        if not found or len(found) < found[0]["servers"]:
            return None
        return {**min(found, key=lambda said: int(said["index"])), "seconds": time.monotonic() - self._began}

    def _greet(self, said: dict[str, Any]) -> None:
        self.processes = started()
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)
        print(self.greeting(said), flush=True)

    def _end(self) -> None:
        self._over.set()
        if self._console.is_terminal:
            self._bar.stop()
        quiet.leave()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
