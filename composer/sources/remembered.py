"""remembered: what took long to find out about files, kept for the next process in the user's cache directory.

A file of it is named by a key and begins with the SHA-256 of key and content: what was cut short, or is something else,
is not believed. Nothing here raises, or waits for other processes: what cannot be kept is found out again.
"""

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from layerloom.composer.errors import ComposeError
from layerloom.composer.files import read_bytes

MOST = 4096
"""Files that are kept. Each is small: 32 bytes for a MiB of a checkpoint."""

# RuntimeError: there is no home directory.
NO_PLACE = OSError, RuntimeError


def recall(key: str, size: int) -> bytes | None:
    """The `size` bytes that were kept under a key, which is a hexadecimal number; None where there are none."""
    with suppress(ComposeError, *NO_PLACE):
        file = cache_directory() / key
        found = read_bytes(file, size + hashlib.sha256().digest_size)
        content = found[hashlib.sha256().digest_size :]
        if len(content) == size and found == sealed(key, content):
            with suppress(OSError):
                os.utime(file)
            return content
    return None


def remember(key: str, content: bytes) -> None:
    """Keeps it, where there is a place. What has not been used for longest makes room."""
    with suppress(*NO_PLACE):
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        make_room(directory)
        # Process ids are no names of their own: containers may share the directory.
        with NamedTemporaryFile(dir=directory, prefix=".", delete=False) as partial:
            try:
                partial.write(sealed(key, content))
                partial.close()
                os.replace(partial.name, directory / key)
            except BaseException:
                os.unlink(partial.name)
                raise


@cache
def make_room(directory: Path) -> None:
    """Halves what is there, if that is too much; once in a process, as listing thousands of files takes a while."""
    with suppress(OSError):
        files = [file for file in os.scandir(directory) if file.is_file(follow_symlinks=False)]
        if len(files) > MOST:
            for file in sorted(files, key=lambda file: file.stat().st_mtime)[: len(files) - MOST // 2]:
                os.unlink(file)


def sealed(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest() + content


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/layerloom/digests, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerloom" / "digests"
