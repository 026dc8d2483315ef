"""checkpoint: a Hugging Face checkpoint on disk, its tensors read lazily."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import read_json

from .layout import Layout, is_nested, language_config
from .tensorfile import TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what it is, known from the file's header. `dtype` is safetensors' word: "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """Tensors by name: `tensors` says what there is, `read` gets one.

    The files are opened here and stay open: one that is replaced later does not change what is read, and one that is
    written to cannot be read any more (see `tensorfile`). Raises ComposeError, with the file's name, when something is
    missing or malformed. Two things are passed over:
    rotary `inv_freq` buffers, which are computed, and an `lm_head.weight` stored although the config ties it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise ComposeError(f"{path}: no such directory")
        self.config: dict[str, Any] = read_json(path / "config.json")
        shards = self._shards()
        revision = hashlib.sha256()
        self._files: dict[Path, TensorFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for file, wanted in sorted(shards.items()):
            opened = self._files[file] = TensorFile(file, revision)
            held = opened.tensors.keys()
            if wanted is not None and not wanted <= held:
                raise ComposeError(f"{file}: lacks {min(wanted - held)}, which {INDEX} says it has")
            for name in sorted(held if wanted is None else wanted):
                if not self._passed_over(name):
                    self.tensors[name] = TensorInfo(file, opened.tensors[name].dtype, opened.tensors[name].shape)
        self.revision: str = revision.hexdigest()
        """sha256 over each shard's name, header, size and modification time: new when a file is rewritten."""
        try:
            self.layout = Layout(self.tensors, is_nested(self.config))
        except ValueError as error:
            raise ComposeError(f"{path}: {error}") from error
        self._check_depth()

    @property
    def depth(self) -> int:
        """How many decoder layers there are."""
        return len(self._layers)

    def layer(self, index: int) -> tuple[str, ...]:
        """The names of the tensors in decoder layer `index`, sorted."""
        return self._layers[index]

    @cached_property
    def stem(self) -> tuple[str, ...]:
        """The names of the language model's tensors outside its decoder layers, sorted."""
        layout = self.layout
        return tuple(
            sorted(name for name in self.tensors if layout.layer_of(name) is None and not layout.is_outside(name))
        )

    @cached_property
    def outside(self) -> tuple[str, ...]:
        """The names of the tensors of other parts than the language model, which are composed of nothing, sorted."""
        return tuple(sorted(filter(self.layout.is_outside, self.tensors)))

    @property
    def ties_embeddings(self) -> bool:
        """Whether lm_head is embed_tokens. Gemma's configs leave the key out, and it is true there."""
        config = language_config(self.config)
        gemma = str(config.get("model_type", "")).startswith("gemma")
        return bool(config.get("tie_word_embeddings", gemma))

    def named(self, name: str) -> str:
        """Its own name of a tensor that other versions and classes call `name`; that itself where it has none."""
        return name if name in self.tensors else self._names.get(self.layout.common(name), name)

    @cached_property
    def _names(self) -> dict[str, str]:
        return {self.layout.common(name): name for name in self.tensors}

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, of the stored dtype and shape, in memory of its own."""
        info = self.tensors.get(name)
        if info is None:
            raise ComposeError(f"{self.path}: has no tensor {quoted(name)}")
        return self._files[info.file].read(name)

    @cached_property
    def _layers(self) -> dict[int, tuple[str, ...]]:
        layers: dict[int, list[str]] = {}
        for name in sorted(self.tensors):
            index = self.layout.layer_of(name)
            if index is not None:
                layers.setdefault(index, []).append(name)
        return {index: tuple(names) for index, names in layers.items()}

    def _shards(self) -> Mapping[Path, set[str] | None]:
        """The files, each with the tensors the index wants from it, or None for all."""
        if (self.path / SINGLE).exists():
            return {self.path / SINGLE: None}
        index = self.path / INDEX
        if not index.exists():
            raise ComposeError(f"{self.path}: has neither {SINGLE} nor {INDEX}")
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ComposeError(f"{index}: has no weight_map")
        shards: dict[Path, set[str]] = {}
        for tensor, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ComposeError(f"{index}: {quoted(file)} is not the name of a file beside it")
            shards.setdefault(self.path / file, set()).add(tensor)
        return shards

    def _passed_over(self, name: str) -> bool:
        return name.endswith("rotary_emb.inv_freq") or (name.endswith("lm_head.weight") and self.ties_embeddings)

    def _check_depth(self) -> None:
        if not self._layers:
            raise ComposeError(f"{self.path}: has no tensors of decoder layers (…layers.0.…)")
        depth = language_config(self.config).get("num_hidden_layers", len(self._layers))
        if sorted(self._layers) != list(range(len(self._layers))) or depth != len(self._layers):
            indices = f"{len(self._layers)} layers numbered {min(self._layers)} to {max(self._layers)}"
            raise ComposeError(f"{self.path}: has {indices}, but config.json says num_hidden_layers {quoted(depth)}")
