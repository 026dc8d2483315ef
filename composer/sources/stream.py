"""stream: the order in which whole checkpoints are gone through, and the digest that tells one base from another."""

import hashlib
import os
from pathlib import Path

import torch

from .checkpoint import Checkpoint


def in_order(checkpoint: Checkpoint) -> list[str]:
    """The names of all tensors: those outside the layers, then layer by layer."""
    layer_of = checkpoint.layout.layer_of
    return sorted(checkpoint.tensors, key=lambda name: (-1 if (i := layer_of(name)) is None else i, name))


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
    hashed = Digest()
    for name in in_order(checkpoint):
        hashed.add(name, checkpoint.tensors[name].dtype, checkpoint.read(name))
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
