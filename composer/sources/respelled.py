"""respelled: a checkpoint under the names that another one, its base, has for the same tensors."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoint, TensorInfo
from .codecs.codec import same
from .voice import Voice

SAMPLED = 1 << 25
"""Numbers of the largest tensor that is read to see whether a part is the base's."""


class Respelled:
    """An expert's checkpoint read by its base's names, whichever version of transformers, or class, wrote the two.

    What the base has outside its language model is the base's, and what the expert has there is passed over. With
    `whole` it is the checkpoint's own, and a tensor that it lacks is missing.
    """

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint, whole: bool = False) -> None:
        self.checkpoint = checkpoint
        self.base = base
        self.path: Path = checkpoint.path
        self.config: dict[str, Any] = checkpoint.config
        self.depth = checkpoint.depth
        own = {checkpoint.layout.common(name): name for name in checkpoint.tensors}
        common = {name: base.layout.common(name) for name in base.tensors}
        self._own = {name: own[key] for name, key in common.items() if key in own}
        """Its own name of each of the base's tensors."""
        self._base = frozenset(() if whole else base.outside)
        passed_over = {*self._own.values(), *(() if whole else checkpoint.outside)}
        extra = [name for name in checkpoint.tensors if name not in passed_over]
        self._own |= {name: name for name in extra if name not in base.tensors}

    @property
    def revision(self) -> str:
        return self.checkpoint.revision

    @property
    def voice(self) -> Voice:
        return self.checkpoint.voice

    @cached_property
    def note(self) -> str | None:
        """What is said of the checkpoint, and of parts that are not composed."""
        said = [self.checkpoint.note, outside_differs(self.path, self.unused)]
        return "; ".join(filter(None, said)) or None

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """By the base's name; those that the base does not have under their own."""
        found = {name: self.checkpoint.tensors[own] for name, own in self._own.items()}
        return found | {name: self.base.tensors[name] for name in self._base}

    @cached_property
    def stem(self) -> tuple[str, ...]:
        return tuple(name for name in self.base.stem if name in self._own)

    def layer(self, index: int) -> tuple[str, ...]:
        return tuple(name for name in self.base.layer(index) if name in self._own)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU, of the stored dtype and shape: in `out`, which is such a one, or in its own memory."""
        if name in self._base:
            return self.base.read(name, out)
        return self.checkpoint.read(self._own.get(name, name), out)

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """The parts outside the language model in which it is seen to differ from its base, as in vision_tower.

        Of each part the largest tensor is compared: what was trained differs in it.
        """
        largest: dict[str, str] = {}
        for name in self.base.outside:
            info = self.base.tensors[name]
            part, size = self.base.layout.common(name).partition(".")[0], info.shape
            if name in self._own and torch.Size(size).numel() <= SAMPLED:
                known = largest.get(part)
                if known is None or torch.Size(self.base.tensors[known].shape).numel() < torch.Size(size).numel():
                    largest[part] = name
        return tuple(part for part, name in sorted(largest.items()) if self._differs(name))

    def _differs(self, name: str) -> bool:
        ours, theirs = self.checkpoint.read(self._own[name]), self.base.read(name)
        return ours.dtype != theirs.dtype or ours.shape != theirs.shape or not same(ours, theirs)


def outside_differs(path: Path, parts: Sequence[str]) -> str | None:
    """What is to be said of an expert that has other weights than its base in parts that are not composed."""
    if not parts:
        return None
    differs = f"{path}: differs from the base outside its language model, in {', '.join(parts)}"
    return f"{differs}: that is not composed, and every composition has the base's"


def respelled(checkpoint: Checkpoint, base: Checkpoint, whole: bool = False) -> "Checkpoint | Respelled":
    """The checkpoint under its base's names; itself where both have a language model alone, under the same names."""
    nested = base.layout.nested or checkpoint.layout.nested
    if not nested and base.layout.prefix == checkpoint.layout.prefix:
        return checkpoint
    for source in (checkpoint, base):
        if len({source.layout.common(name) for name in source.tensors}) < len(source.tensors):
            return checkpoint
    return Respelled(checkpoint, base, whole)
