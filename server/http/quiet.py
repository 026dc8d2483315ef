"""quiet: what the processes of a server say, without what nobody needs to read.

While a server starts everything goes to the log of its start, which whoever has started it follows (startup) and can be
asked for. Later what matters goes to stderr. Nothing here imports vLLM: it is the first that any of its processes does.
"""

import atexit
import json
import logging
import logging.config
import multiprocessing
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

FOLDER = "LAYERLOOM_START"
"""In the environment: the folder of a start, which is there as long as it lasts."""
LOG = "vllm.log"
CONFIG = "VLLM_LOGGING_CONFIG_PATH"
FILE = Path(__file__).with_name("quiet.json")
OURS = "vllm.layerloom"

NOISE = re.compile(
    "|".join(
        (
            r"\[shutdown\]",
            "Enforce eager set",
            "Inductor compilation was disabled",
            "Triton is (installed, but|not installed)",
            "Triton not installed",
            "Model Runner V2 requires Triton",
            "Reset SSM cache type",
            "lib(tcmalloc|iomp) is not found",
            "Found ulimit of",
            "The chat template requires system-first ordering",
            "vLLM has deprecated support for supporting different tokenizers",
            r"port \d+ is used by process psutil",
            "AsyncLLM created with api_server_count",
            "vllm:lora_requests_info",
            "LoRA dynamic loading & unloading is enabled",
            "Default vLLM sampling parameters have been overridden",
        )
    )
)
"""How warnings begin that say nothing of what somebody could do here."""


class Handler(logging.Handler):
    """Of vLLM's logger, in each of its processes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(name)s] %(message)s", "%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = of_process(self.format(record))
            if not keep(text) and matters(record.levelno, record.name, record.getMessage()):
                stream = sys.stderr
                getattr(stream, "beneath", stream).write(text)
        except Exception:
            self.handleError(record)


class Spooled:
    """A stream whose text goes to the log of the start, as long as there is one."""

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath

    def write(self, text: str) -> int:
        if not keep(text):
            self.beneath.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


def matters(level: int, logger: str, message: str) -> bool:
    """Whether somebody should see it who has not asked for vLLM's log."""
    if logger == OURS:
        return level >= logging.INFO
    return level >= logging.WARNING and not NOISE.match(message)


def of_process(text: str) -> str:
    """Lines that say which process they are of, as vLLM's do."""
    name = multiprocessing.current_process().name.replace("MainProcess", "Server")
    start = f"({name} pid={os.getpid()}) "
    return "".join(f"{start}{line}\n" for line in text.splitlines())


def keep(text: str) -> bool:
    """Adds to the log of the start; False where there is none, or none any more."""
    global going
    if not going:
        return False
    try:
        # Opened each time: whoever has started it takes it away when all is up.
        file = os.open(going, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(file, text.encode(errors="replace"))
        finally:
            os.close(file)
    except OSError:
        going = ""
    return bool(going)


def join(started: bool = False) -> None:
    """To be called first in each process of a server; with `started` in those that another of them starts."""
    global going
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    if started:
        # Ctrl-C reaches all processes of a terminal: the one that has started them says what happens.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say_nothing_at_the_end()
    if os.environ.get(CONFIG) != str(FILE):
        return
    going = str(Path(folder, LOG))
    logging.config.dictConfig(json.loads(FILE.read_text()))
    warnings.filterwarnings("ignore", category=FutureWarning)
    if os.path.exists(going) and not isinstance(sys.stderr, Spooled):
        sys.stdout, sys.stderr = Spooled(sys.stdout), Spooled(sys.stderr)  # type: ignore[assignment]


def say_nothing_at_the_end() -> None:
    """Triton's library complains in 40 lines when Python takes itself apart: nobody is to hear that."""
    # Called last, when it is registered first.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def leave() -> None:
    """Gives this process its own streams back."""
    global going
    going = ""
    sys.stdout, sys.stderr = (getattr(stream, "beneath", stream) for stream in (sys.stdout, sys.stderr))


going = ""
"""The log of the start, in a process that adds to one."""
