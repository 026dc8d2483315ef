"""terminal: a command on a terminal of its own, as somebody types it."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from pathlib import Path

COMMAND = Path(sys.executable).with_name("layerloom")
CONTROL_C, CONTROL_D = "\x03", "\x04"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """`process` is the leader of the terminal's session; `text` is all that has been shown, without what moves."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self._end = end
        self._shown = b""

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self._shown.decode(errors="replace"))

    def read(self) -> bool:
        """Takes what is shown by now; False when there will be no more."""
        return self._read(time.monotonic())

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def wait_for(self, words: str, limit: float) -> str:
        """What is shown when `words` are. Raises TimeoutError."""
        until = time.monotonic() + limit
        while words not in self.text:
            if time.monotonic() > until or not self._read(until):
                raise TimeoutError(f"no {words!r} in:\n{self.text}")
        return self.text

    def wait(self, limit: float) -> int:
        """The exit status, when everything has been read. Raises TimeoutError."""
        until = time.monotonic() + limit
        while self._read(until):
            if time.monotonic() > until:
                raise TimeoutError(f"it goes on:\n{self.text}")
        return self.process.wait(max(0.1, until - time.monotonic()))

    def _read(self, until: float) -> bool:
        """False when there will be no more."""
        if not select.select([self._end], [], [], max(0.0, until - time.monotonic()))[0]:
            return True
        try:
            more = os.read(self._end, 1 << 16)
        except OSError:  # what Linux says when nobody has the other end any more
            return False
        self._shown += more
        return bool(more)


def ordinary() -> dict[str, str]:
    """This process' environment without what tests have set in it for vLLM and for the width of tables."""
    ours = ("VLLM_", "COLUMNS", "LINES")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def _take_terminal() -> None:
    ioctl(0, termios.TIOCSCTTY, 0)
    # Whoever has started the tests in the background of a script has had it ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminal(*words: object, size: tuple[int, int] = (80, 24), **environment: str) -> Iterator[Terminal]:
    """The command on a terminal of so many columns and lines; its processes are gone afterwards."""
    ours, theirs = pty.openpty()
    columns, lines = size
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        [COMMAND, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
        env={**ordinary(), "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
