"""tensorfile: a safetensors file. What is read of it is in memory of its own, and is what was opened, or an error.

It is never mapped: a map's bytes change when the file is written to, and touching one past the end of a file that was
cut short ends the process. What is open is the inode, so deleting the file, or putting another in its place, changes
nothing. Writing into it does; that is told from the file's status and from its content's digests:

- Size, time of modification and time of change are those at opening: nobody has written. To be sure of that, a file
  that changed a moment ago is opened only when the moment is over (`_settled`): a later write gets another time. (A
  network file system's status is as old as its cache, and what is written through a map shows in it late.)
- They are not: each piece that is read must have the digest that it had. So a file that was touched, added to, or put
  back as it had been, goes on being read, and one that was written over as far as it is as it was.
- They are not, and the digests are not known, as nobody has asked for the revision yet, in this process or before: they
  are taken now, if the size and the time of modification are those at opening. Then its mode, owner or links have
  changed, or it was put back with its time. But that time can be set by hand: samples from all over the file must be
  what they were, too. Else nothing tells what the file was, and it is refused.

What is read before the digests are known is what was opened, and what is read later is what they are of: no other bytes
are read under a revision.
"""

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import naming, open_file
from layerloom.kernels.threads import shared

from .header import LONGEST, TYPES, Entry, parse
from .memory import memory
from .remembered import recall, remember

TICK, SECOND = 20_000_000, 1_000_000_000
"""Nanoseconds. Linux's clock for files ticks at least every 10 ms."""

PIECE = 1 << 20
"""Bytes of a tensor that have a digest of their own: they stay in the L2 cache while it is taken."""

ALONE = 1 << 22
"""Bytes that are worth a thread."""

DIGEST = hashlib.sha256().digest_size

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
    """An open safetensors file. Raises ComposeError with the file's name; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            self._raw = open_file(path)
            self._opened = self._settled()
            header = self._head()
            self._samples = self._sampled()
            if self._status() != self._opened:
                raise ComposeError(f"{path}: changed while it was being opened")
            self.metadata, self.tensors = parse(header, self._opened.size)
        self._header = hashlib.sha256(header).digest()
        self._pieces: bytes | None = None
        self._hashing = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_raw"):
            self._raw.close()

    @cached_property
    def key(self) -> str:
        """A hexadecimal number: what tells cheaply that this is the file that it was, and nobody has written to it."""
        found = os.fstat(self._raw.fileno())
        status = f"{found.st_dev} {found.st_ino} {tuple(self._opened)} {os.path.realpath(self.path)}"
        return hashlib.sha256(self._header + self._samples + os.fsencode(status)).hexdigest()

    @property
    def digest(self) -> str:
        """sha256 over the SHA-256 of the header and of each tensor's pieces of PIECE bytes, in the file's order.

        It takes a pass over the file, by all threads, and is remembered for the next process. Raises ComposeError where
        the file is not what was opened any more.
        """
        with naming(self.path):
            pieces = self._content()
        if pieces is None:
            raise self._lost("it")
        return hashlib.sha256(self._header + pieces).hexdigest()

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU: in `out`, which is contiguous and of its dtype and shape, or in memory of its own."""
        entry = self.tensors[name]
        if entry.dtype not in TYPES:
            raise ComposeError(f"{self.path}: {name}: dtype {entry.dtype} is none of {', '.join(TYPES)}")
        content = memory(entry.end - entry.start) if out is None else out.view(-1).view(torch.uint8)
        with naming(self.path):
            if not self._reads_as_opened(name, content.numpy().data):
                raise self._lost(quoted(name))
        return content.view(TYPES[entry.dtype]).view(entry.shape) if out is None else out

    def _lost(self, what: str) -> ComposeError:
        return ComposeError(
            f"{self.path}: was written to after it was opened ({self._opened} then, {self._status()} now); what "
            f"{what} was is lost. Put the old file back, with its time (cp -p), or load the family anew"
        )

    def _reads_as_opened(self, name: str, into: memoryview) -> bool:
        """Reads a tensor; whether it is what the file held when it was opened."""
        entry = self.tensors[name]
        if self._status() == self._opened and self._fill(into, entry.start) and self._status() == self._opened:
            return True
        pieces = self._content()
        return pieces is not None and self._digests(pieces_of(entry), into) == pieces[self._places[name]]

    def _content(self) -> bytes | None:
        """The digests of all pieces of the file as it was opened; None where nothing tells them any more."""
        with self._hashing:
            if self._pieces is None:
                count = sum(map(count_of, self.tensors.values()))
                self._pieces = recall(self.key, DIGEST * count) or self._hashed()
            return self._pieces

    def _hashed(self) -> bytes | None:
        before = self._settled()
        if before != self._opened and (before[:2] != self._opened[:2] or self._sampled() != self._samples):
            return None
        pieces = self._digests([piece for entry in self.tensors.values() for piece in pieces_of(entry)])
        if pieces is None or self._status() != before:
            return None
        if before == self._opened:
            remember(self.key, pieces)
        return pieces

    @cached_property
    def _places(self) -> dict[str, slice]:
        """Where the digests of a tensor's pieces are among those of all."""
        ends = np.cumsum([DIGEST * count_of(entry) for entry in self.tensors.values()]).tolist()
        return dict(zip(self.tensors, map(slice, [0, *ends], ends), strict=True))

    def _digests(self, places: Sequence[range], into: memoryview | None = None) -> bytes | None:
        """Those of pieces, one after the other, which are read into `into` where it is given; by all threads.

        None where the file ends first.
        """
        found = [b""] * len(places)

        def some(share: slice) -> None:
            spare = memoryview(bytearray(PIECE if into is None else 0))
            for number in range(len(places))[share]:
                place = places[number]
                at = 0 if into is None else place.start - places[0].start
                piece = (spare if into is None else into)[at : at + len(place)]
                self._get(piece, place.start)
                found[number] = hashlib.sha256(piece).digest()

        try:
            shared(some, len(places), sum(map(len, places)) // ALONE)
        except EOFError:
            return None
        return b"".join(found)

    def _fill(self, into: memoryview, start: int) -> bool:
        """Reads bytes from `start` on, by all threads; False where the file ends first."""

        def some(share: slice) -> None:
            self._get(into[share.start * PIECE : share.stop * PIECE], start + share.start * PIECE)

        try:
            shared(some, -(-len(into) // PIECE), len(into) // ALONE)
        except EOFError:
            return False
        return True

    def _get(self, into: memoryview, start: int) -> None:
        done = 0
        while done < len(into):
            got = os.preadv(self._raw.fileno(), [into[done:]], start + done)
            if not got:
                raise EOFError
            done += got

    def _head(self) -> bytes:
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


def pieces_of(entry: Entry) -> list[range]:
    """The places in the file."""
    return [range(at, min(at + PIECE, entry.end)) for at in range(entry.start, entry.end, PIECE)]


def count_of(entry: Entry) -> int:
    return -(-(entry.end - entry.start) // PIECE)


def revision_of(*files: TensorFile) -> str:
    """sha256 over a line "name digest" for each file, which is the same for the same bytes, wherever they are."""
    return hashlib.sha256("".join(f"{file.path.name} {file.digest}\n" for file in files).encode()).hexdigest()
