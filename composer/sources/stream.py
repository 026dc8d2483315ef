"""stream: the order in which whole checkpoints are gone through, and the digest that tells one base from another."""

import hashlib

import torch

from .checkpoint import Checkpoint
from .remembered import recall, remember


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
    """The `Digest` of a checkpoint. It takes a pass over the files, and is remembered for as long as they stay."""
    found = recall(key_of(checkpoint), hashlib.sha256().digest_size)
    if found is not None:
        return found.hex()
    hashed = Digest()
    for name in in_order(checkpoint):
        hashed.add(name, checkpoint.tensors[name].dtype, checkpoint.read(name))
    keep(checkpoint, hashed.hexdigest())
    return hashed.hexdigest()


def keep(checkpoint: Checkpoint, digest: str) -> None:
    """Remembers it for the next `digest` of these files."""
    remember(key_of(checkpoint), bytes.fromhex(digest))


def key_of(checkpoint: Checkpoint) -> str:
    """Not the revision, which takes a pass of its own. Which tensors count is not in the shards alone."""
    return hashlib.sha256("\n".join([*checkpoint.keys, *sorted(checkpoint.tensors)]).encode()).hexdigest()
