"""files: opening what must be an ordinary file, so that nothing that is read can block or go on without end."""

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from .errors import ComposeError

MOST = 1 << 28
"""Bytes of the largest JSON file that is read; the index of a model with 10^6 tensors has a third of that."""

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns what reading `file` raises into a ComposeError that names it."""
    try:
        yield
    except ComposeError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ComposeError(f"{file}: {reason or type(error).__name__}") from error


def open_file(file: Path) -> FileIO:
    """A regular file, unbuffered, for reading. Raises ComposeError, and OSError as `open` does; it never waits."""
    try:
        number = _open(file)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise ComposeError(f"{file}: is a socket, not a regular file") from error
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(number, "rb", buffering=0)
    os.close(number)
    raise ComposeError(f"{file}: is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


def _open(file: Path) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(file, flags)
    except OSError as error:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if error.errno != errno.EMFILE or soft == hard:
            raise
        # A family of a thousand adapters has as many files open; 1024 is the usual soft limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return os.open(file, flags)


def read_bytes(file: Path, most: int = MOST) -> bytes:
    """What a regular file of at most `most` bytes holds. Raises ComposeError with the file's name."""
    with naming(file), open_file(file) as raw:
        content = bytearray()
        while len(content) <= most and (more := raw.read(min(1 << 20, most + 1 - len(content)))):
            content += more
    if len(content) > most:
        raise ComposeError(f"{file}: has more than {most:,} bytes")
    return bytes(content)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ComposeError with the file's name."""
    with naming(file):
        content = json.loads(read_bytes(file))
    if not isinstance(content, dict):
        raise ComposeError(f"{file}: is not a JSON object")
    return content
