"""checkpoint: a Hugging Face checkpoint on disk, its tensors read lazily."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import read_json

from .codecs.codec import DTYPES, same
from .layout import Layout, is_nested, language_config
from .shards import INDEX, shards
from .tensorfile import TensorFile, revision_of
from .voice import Voice, read_voice

HEAD, TABLE = "lm_head.weight", "embed_tokens.weight"


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
    missing or malformed. Two things are passed over: rotary `inv_freq` buffers, which are computed, and an
    `lm_head.weight` that is stored although the config ties it and equals the embedding; another one is an error.

    A fine-tune of `base` may be stored in another float dtype (fp32 beside bf16): its tensors are rounded to the base's
    as they are read, once and to nearest even, and `note` says so.
    """

    def __init__(self, path: Path, base: "Checkpoint | None" = None) -> None:
        self.path = path
        if not path.is_dir():
            raise ComposeError(f"{path}: no such directory")
        self.config: dict[str, Any] = read_json(path / "config.json")
        self._files: dict[Path, TensorFile] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._rounded: set[str] = set()
        head = ""
        for file, wanted in sorted(shards(path).items()):
            opened = self._files[file] = TensorFile(file)
            held = opened.tensors.keys()
            if wanted is not None and not wanted <= held:
                raise ComposeError(f"{file}: lacks {min(wanted - held)}, which {INDEX} says it has")
            for name in sorted(held if wanted is None else wanted):
                if not name.endswith("rotary_emb.inv_freq"):
                    self.tensors[name] = TensorInfo(file, opened.tensors[name].dtype, opened.tensors[name].shape)
                    head = name if name.endswith(HEAD) else head
        try:
            self.layout = Layout(self.tensors, is_nested(self.config))
        except ValueError as error:
            raise ComposeError(f"{path}: {error}") from error
        if head and self.ties_embeddings:
            self._pass_over(head)
        self.note = None if base is None else self._round_to(base)
        self._check_depth()

    @cached_property
    def revision(self) -> str:
        """sha256 over each shard's name and `TensorFile.digest`: the same for copies, new where a byte differs.

        Raises ComposeError where a file is not what was opened any more.
        """
        return revision_of(*self._files.values())

    @property
    def keys(self) -> list[str]:
        """The shards' `TensorFile.key`."""
        return [file.key for file in self._files.values()]

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

    @cached_property
    def voice(self) -> Voice:
        """How the model speaks, as far as its files say. Raises ComposeError with the file that is wrong."""
        return read_voice(self.path)

    @property
    def ties_embeddings(self) -> bool:
        """Whether lm_head is embed_tokens; where the config does not say, what transformers takes it to mean."""
        config = language_config(self.config)
        said = config.get("tie_word_embeddings")
        return ties_by_default(str(config.get("model_type"))) if said is None else bool(said)

    def named(self, name: str) -> str:
        """Its own name of a tensor that other versions and classes call `name`; that itself where it has none."""
        return name if name in self.tensors else self._names.get(self.layout.common(name), name)

    @cached_property
    def _names(self) -> dict[str, str]:
        return {self.layout.common(name): name for name in self.tensors}

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU, of `tensors`' dtype and shape: in `out`, which is such a one, or in its own memory."""
        info = self.tensors.get(name)
        if info is None:
            raise ComposeError(f"{self.path}: has no tensor {quoted(name)}")
        if name not in self._rounded:
            return self._files[info.file].read(name, out)
        stored = self._files[info.file].read(name)
        rounded = stored.to(DTYPES[info.dtype]) if out is None else out.copy_(stored)
        if bool((rounded.isinf() & stored.isfinite()).any()):
            raise ComposeError(f"{info.file}: {name}: has numbers that are too large for the base's {info.dtype}")
        return rounded

    @cached_property
    def _layers(self) -> dict[int, tuple[str, ...]]:
        layers: dict[int, list[str]] = {}
        for name in sorted(self.tensors):
            index = self.layout.layer_of(name)
            if index is not None:
                layers.setdefault(index, []).append(name)
        return {index: tuple(names) for index, names in layers.items()}

    def _pass_over(self, head: str) -> None:
        """Leaves out a head that is the embedding once more. Raises ComposeError when it is another matrix."""
        table = f"{self.layout.prefix}{TABLE}"
        if table not in self.tensors or not same(self.read(head), self.read(table)):
            raise ComposeError(
                f"{self.tensors[head].file}: {head}: is another matrix than {table}, and "
                "config.json ties the two (tie_word_embeddings): libraries differ in which they use. Set it to false, "
                "here and in the base, if the head is meant; if not, remove the head"
            )
        del self.tensors[head]

    def _round_to(self, base: "Checkpoint") -> str | None:
        """Gives each tensor the base's dtype, where both are of floats; returns what is to be said of it."""
        seen: set[tuple[str, str]] = set()
        for name, info in self.tensors.items():
            own = base.named(name)
            wanted = base.tensors[own].dtype if own in base.tensors else info.dtype
            if wanted != info.dtype and {wanted, info.dtype} <= DTYPES.keys():
                self._rounded.add(name)
                self.tensors[name] = replace(info, dtype=wanted)
                seen.add((info.dtype, wanted))
        if not seen:
            return None
        pairs = ", ".join(f"{stored} tensors are read as {wanted}" for stored, wanted in sorted(seen))
        return f"{self.path}: {pairs}, the base's, each number rounded once"

    def _check_depth(self) -> None:
        if not self._layers:
            raise ComposeError(f"{self.path}: has no tensors of decoder layers (…layers.0.…)")
        depth = language_config(self.config).get("num_hidden_layers", len(self._layers))
        if sorted(self._layers) != list(range(len(self._layers))) or depth != len(self._layers):
            indices = f"{len(self._layers)} layers numbered {min(self._layers)} to {max(self._layers)}"
            raise ComposeError(f"{self.path}: has {indices}, but config.json says num_hidden_layers {quoted(depth)}")


def ties_by_default(model_type: str) -> bool:
    """Whether models of this type tie their embeddings unless the config says otherwise."""
    if model_type.startswith("gemma"):
        return True
    # It takes seconds to import, and nearly all configs say.
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return False
    return bool(getattr(CONFIG_MAPPING[model_type](), "tie_word_embeddings", False))
