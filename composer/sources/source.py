"""source: what the tensors of a base or an expert are read through, whatever files they are in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from layerloom.composer.errors import ComposeError, listed, quoted

from .adapter import Adapter
from .archive import Archive
from .checkpoint import Checkpoint, TensorInfo
from .lora_config import CONFIG as ADAPTER
from .lora_keys import PICKLED, WEIGHTS
from .manifest import METADATA
from .respelled import respelled
from .shards import INDEX, SINGLE
from .tensorfile import TensorFile
from .voice import Voice


class Source(Protocol):
    """A checkpoint, or an archive or adapter on its base: all tensors of a model by the base's names."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What there is; `file` is where a tensor, or its difference from the base's, is stored."""

    @property
    def revision(self) -> str:
        """The same for the same bytes on any host, new where one differs; of the base's, too, where it is read on that.

        It takes a pass over the files unless it is remembered. Raises ComposeError where they are not what was opened.
        """

    @property
    def depth(self) -> int:
        """How many decoder layers there are."""

    @property
    def stem(self) -> tuple[str, ...]:
        """The names of the language model's tensors outside its decoder layers, sorted."""

    @property
    def voice(self) -> Voice:
        """How it speaks, as far as its own files say. Raises ComposeError with the file that is wrong."""

    @property
    def note(self) -> str | None:
        """What those who gave the files should know of how they are read, in a line."""

    def layer(self, index: int) -> tuple[str, ...]:
        """The names of the tensors in decoder layer `index`, sorted."""

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU: in `out`, which is contiguous and of its dtype and shape, or in memory of its own."""


def open_source(path: Path, base: Checkpoint) -> Source:
    """An expert of this base, of the kind its files show. Raises ComposeError.

    A directory with model.safetensors (or its index) is a checkpoint, one with adapter_config.json a PEFT LoRA adapter,
    a .safetensors file a delta archive. So is a directory with such a file alone, which is how one comes from the hub,
    and one whose adapter is in a folder of it, where PEFT saves one that has a name.
    """
    if path.exists() and not path.is_dir():
        return Archive(path, base)
    if path.is_dir() and not any((path / name).exists() for name in (SINGLE, INDEX)):
        if (path / ADAPTER).exists():
            return Adapter(path, base)
        files = [file for file in path.glob("*.safetensors") if is_archive(file)]
        if len(files) == 1:
            return Archive(files[0], base)
        if files:
            raise ComposeError(f"{path}: has {len(files)} archives; name one of them")
        folders = sorted(file.parent for file in path.glob(f"*/{ADAPTER}"))
        if len(folders) == 1:
            return Adapter(folders[0], base)
        if folders:
            found = listed([quoted(folder.name)[1:-1] for folder in folders])
            raise ComposeError(f"{path}: has {len(folders)} adapters, in {found}; give the path of one")
        if any((path / name).exists() for name in (WEIGHTS, PICKLED)):
            raise ComposeError(f"{path}: has an adapter's weights and no {ADAPTER}; put that beside them")
    return respelled(Checkpoint(path, base), base)


def is_archive(file: Path) -> bool:
    """Whether a safetensors file says that it is a delta archive. Raises ComposeError when it cannot be read."""
    return METADATA in TensorFile(file).metadata
