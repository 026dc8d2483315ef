"""stream: a checkpoint's tensors one after the other, and the digest that tells one base from another."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, layer_of, naming
from .codecs import DTYPES
from .errors import ComposeError


class Stream:
    """Reads tensors into memory of their own.

    What `Checkpoint.read` touches stays mapped and counts as memory of this process until the file is closed; whoever
    goes through a whole model wants its pages gone.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def names(self) -> list[str]:
        """All tensors: the stem's, then layer by layer."""
        return sorted(self.checkpoint.tensors, key=lambda name: (-1 if (i := layer_of(name)) is None else i, name))

    def read(self, name: str) -> torch.Tensor:
        """A contiguous tensor of the stored dtype and shape. Raises ComposeError."""
        info = self.checkpoint.tensors[name]
        if info.dtype not in DTYPES:
            raise ComposeError(f"{info.file}: {name}: dtype {info.dtype} is none of {', '.join(DTYPES)}")
        start, header = _header(info.file, self.checkpoint.revision)
        tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        flat = tensor.view(-1).view(torch.uint8).numpy()
        with naming(info.file), info.file.open("rb", buffering=0) as raw:
            raw.seek(start + header[name]["data_offsets"][0])
            done = 0
            while done < flat.nbytes:
                got = raw.readinto(flat[done:].data)
                if not got:
                    raise ComposeError(f"{name}: the file ends in the middle of it")
                done += got
        return tensor

    def check_unchanged(self) -> None:
        """Raises ComposeError if the files are no longer those that the checkpoint was opened from."""
        if Checkpoint(self.checkpoint.path).revision != self.checkpoint.revision:
            raise ComposeError(f"{self.checkpoint.path}: changed while it was being read")


@cache
def _header(file: Path, revision: str) -> tuple[int, dict[str, Any]]:
    """Where the file's data starts, and its header. A checkpoint has been opened from it, so it is well formed."""
    with naming(file), file.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        return 8 + size, json.loads(raw.read(size))


class Digest:
    """sha256 over a line "name dtype shape sha256-of-bytes" for each tensor, in order of name; shape is as in 8x16."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, name: str, dtype: str, tensor: torch.Tensor) -> None:
        content = hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().data).hexdigest()
        self._lines[name] = f"{name} {dtype} {'x'.join(map(str, tensor.shape))} {content}\n"

    def hexdigest(self) -> str:
        return hashlib.sha256("".join(self._lines[name] for name in sorted(self._lines)).encode()).hexdigest()


def digest(checkpoint: Checkpoint) -> str:
    """The `Digest` of a checkpoint. It takes one pass over the files, and is remembered for their revision."""
    remembered = cache_directory() / checkpoint.revision
    try:
        found = remembered.read_text()
        if len(found) == 64:
            return found
    except OSError:
        pass
    stream, hashed = Stream(checkpoint), Digest()
    for name in stream.names():
        hashed.add(name, checkpoint.tensors[name].dtype, stream.read(name))
    stream.check_unchanged()
    remember(checkpoint, hashed.hexdigest())
    return hashed.hexdigest()


def remember(checkpoint: Checkpoint, digest: str) -> None:
    """Keeps a digest for the next `digest` of these files, where there is a place to keep it."""
    file = cache_directory() / checkpoint.revision
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(digest)
        partial.replace(file)
    except OSError:
        pass


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/layerloom/digests, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerloom" / "digests"
