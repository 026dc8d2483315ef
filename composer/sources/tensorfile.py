"""tensorfile: a safetensors file. What is read of it is in memory of its own, and is what was opened, or an error.

It is never mapped: a map's bytes change when the file is written to, and touching one past the end of a file that was
cut short ends the process. What is open is the inode, so deleting the file, or putting another in its place, changes
nothing. Writing into it does; that is told from the file's status and from what was read before:

- Size, time of modification and time of change are those at opening: nobody has written. To be sure of that, a file
  that changed a moment ago is opened only when the moment is over (`_settled`): a later write gets another time. (A
  network file system's status is as old as its cache, and what is written through a map shows in it late.)
- They are not, and the tensor was read before: its digest must be what it was. So a file that was touched, added to, or
  put back as it had been, goes on being read.
- They are not, and the tensor is read for the first time. With the old size and time of modification, of which the
  revision is made, its mode, owner or links have changed, or it was put back with its time. But that time can be set by
  hand: samples from all over the file must be what they were. With another size or time of modification nothing tells
  what the tensor was, and it is refused.
"""

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import naming, open_file
from layerloom.kernels.threads import shared

from .header import LONGEST, TYPES, parse
from .memory import memory

fingerprint: Callable[..., Any] = hashlib.sha256
with suppress(ImportError):
    # vLLM brings it. It hashes 6 GB/s where SHA-256 does 1.6 and CRC-32 2.4 (one core, AVX-512).
    from blake3 import blake3

    fingerprint = blake3

TICK, SECOND = 20_000_000, 1_000_000_000
"""Nanoseconds. Linux's clock for files ticks at least every 10 ms."""

PIECE = 1 << 20
"""Bytes that are read and hashed at a time: they stay in the L2 cache."""

ALONE = 1 << 22
"""Bytes that are worth a thread."""

SAMPLES, SAMPLE = 64, 4096
"""How many pieces of a file stand for it, and the bytes of each."""


class Status(NamedTuple):
    """What changes with a file: bytes, and the times in nanoseconds of its content's and of any change."""

    size: int
    modified: int
    changed: int

    def __str__(self) -> str:
        return f"{self.size:,} bytes of {np.datetime64(self.modified // 1_000_000, 'ms')}Z"


class TensorFile:
    """An open safetensors file. Raises ComposeError with the file's name; may be read by several threads.

    Its name, header, size and modification time go into the hash `revision`, if there is one.
    """

    def __init__(self, path: Path, revision: Any = None) -> None:
        self.path = path
        with naming(path):
            self._raw = open_file(path)
            self._opened = self._settled()
            header = self._header()
            self._samples = self._sampled()
            if self._status() != self._opened:
                raise ComposeError(f"{path}: changed while it was being opened")
            self.metadata, self.tensors = parse(header, self._opened.size)
        self._digests: dict[str, bytes] = {}
        if revision is not None:
            size, modified, _ = self._opened
            revision.update(f"{path.name} {size} {modified} {len(header)} ".encode() + header)

    def __del__(self) -> None:
        if hasattr(self, "_raw"):
            self._raw.close()

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU: in `out`, which is contiguous and of its dtype and shape, or in memory of its own."""
        entry = self.tensors[name]
        if entry.dtype not in TYPES:
            raise ComposeError(f"{self.path}: {name}: dtype {entry.dtype} is none of {', '.join(TYPES)}")
        content = memory(entry.end - entry.start) if out is None else out.view(-1).view(torch.uint8)
        with naming(self.path):
            if not self._reads_as_opened(name, content.numpy().data, entry.start):
                after = self._status()
                raise ComposeError(
                    f"{self.path}: was written to after it was opened ({self._opened} then, {after} now); what "
                    f"{quoted(name)} was is lost. Put the old file back, with its time (cp -p), or load the family anew"
                )
        return content.view(TYPES[entry.dtype]).view(entry.shape) if out is None else out

    def _reads_as_opened(self, name: str, into: memoryview, start: int) -> bool:
        """Reads a tensor; whether it is what the file held when it was opened."""
        known, before = self._digests.get(name), self._status()
        digests: list[bytes] | None = None if known is not None and before == self._opened else []
        if not self._fill(into, start, digests):
            return False
        after = self._status()
        same = before == after == self._opened
        if known is not None and same:
            return True
        digest = fingerprint(b"".join(digests or map(digest_of, pieces(into)))).digest()
        if known is not None:
            return bool(digest == known)
        if not same and (before != after or before[:2] != self._opened[:2] or self._sampled() != self._samples):
            return False
        self._digests[name] = digest
        return True

    def _fill(self, into: memoryview, start: int, digests: list[bytes] | None = None) -> bool:
        """Reads bytes from `start` on, by all threads, and digests their pieces; False where the file ends first."""
        found = pieces(into)
        if digests is not None:
            digests += [b""] * len(found)

        def some(share: slice) -> None:
            for number in range(len(found))[share]:
                piece, done = found[number], 0
                while done < len(piece):
                    got = os.preadv(self._raw.fileno(), [piece[done:]], start + number * PIECE + done)
                    if not got:
                        raise EOFError
                    done += got
                if digests is not None:
                    # While it is in the cache.
                    digests[number] = digest_of(piece)

        try:
            shared(some, len(found), len(into) // ALONE)
        except EOFError:
            return False
        return True

    def _header(self) -> bytes:
        """As much as there is of the header, and of its length before it."""
        head = os.pread(self._raw.fileno(), 8, 0)
        rest = bytearray(min(int.from_bytes(head, "little"), LONGEST, max(0, self._opened.size - 8)))
        return head + rest if self._fill(memoryview(rest), 8) else head

    def _sampled(self) -> bytes:
        """The digest of pieces from all over the file."""
        step = max(SAMPLE, (self._opened.size - SAMPLE) // (SAMPLES - 1))
        starts = range(0, self._opened.size, step)
        return hashlib.sha256(b"".join(os.pread(self._raw.fileno(), SAMPLE, start) for start in starts)).digest()

    def _status(self) -> Status:
        found = os.fstat(self._raw.fileno())
        return Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _settled(self) -> Status:
        """The status, when any later change would show in it."""
        status = self._status()
        # File systems without fractions of a second count in steps of one or two.
        step = TICK if status.changed % SECOND else 2 * SECOND
        wait = min(step, step - (time.time_ns() - status.changed))
        if wait > 0:
            time.sleep(wait / SECOND)
        return status


def pieces(content: memoryview) -> list[memoryview]:
    return [content[start : start + PIECE] for start in range(0, len(content), PIECE)]


def digest_of(piece: memoryview) -> bytes:
    return bytes(fingerprint(piece).digest())
