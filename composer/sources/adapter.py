"""adapter: a PEFT LoRA adapter on disk, read as if it were merged into its base."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from layerloom.composer.errors import ComposeError

from .checkpoint import Checkpoint, TensorInfo
from .codecs import DTYPES, Lowrank, Parts
from .codecs.lowrank import plus_product
from .lora_config import CONFIG, read_lora_config
from .lora_fit import LoraFit
from .lora_keys import WEIGHTS, open_weights, shown, sort_keys
from .respelled import outside_differs
from .tensorfile import revision_of
from .voice import Voice, read_voice


class Adapter:
    """A LoRA adapter on its base, read like a `Checkpoint`: W = round(B + scale · lora_B @ lora_A), in fp32.

    A bias becomes round(b + scale · lora_B.bias) with lora_bias. What is stored whole (modules_to_save, trained biases,
    embeddings), or by rows (trainable_token_indices), replaces the base's, rounded to its dtype. All other tensors are
    the base's; so are parts outside the language model, whatever the adapter has for them. Raises ComposeError with
    file, and tensor or key, when the adapter is of a kind that cannot be read, or of another model.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        self.base = base
        self.lora = read_lora_config(path / CONFIG)
        self._file = open_weights(path)
        self._keys = sort_keys(self._file, base)
        fit = LoraFit(self.lora, self._keys, self._file, base)
        self._scales, self._ranks, self._indices = fit.scales, fit.ranks, fit.indices
        self._changed = frozenset(self._keys.changed)
        self.config: dict[str, Any] = base.config
        self.depth = base.depth
        self.stem = base.stem
        self.layer = base.layer

    @cached_property
    def revision(self) -> str:
        """Of the file's, what its config says, and the base's."""
        content = f"{revision_of(self._file)} {self.lora.model_dump_json()} {self.base.revision}"
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def note(self) -> str | None:
        """What is said of parts that it changes and that are not composed."""
        # A factor that was not trained is zero.
        changed = [n for n, key in self._keys.outside if ".lora_A" not in key and bool(self._file.read(key).any())]
        return outside_differs(self.path, sorted({self.base.layout.common(n).partition(".")[0] for n in changed}))

    @cached_property
    def voice(self) -> Voice:
        """How the model speaks, as far as files beside the adapter say."""
        return read_voice(self.path)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The base's tensors; those the adapter changes are in its file."""
        file = self.path / WEIGHTS
        return {
            name: TensorInfo(file, info.dtype, info.shape) if name in self._changed else info
            for name, info in self.base.tensors.items()
        }

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU, of the base's dtype and shape: in `out`, which is such a one, or in its own memory."""
        if name not in self._changed:
            return self.base.read(name, out)
        merged = self._merged(name)
        return merged if out is None else out.copy_(merged)

    def _merged(self, name: str) -> torch.Tensor:
        keys = self._keys
        found = self.base.read(name)
        if name in keys.whole:
            found = self._get(keys.whole[name]).to(found.dtype)
        if name in keys.rows:
            return found.index_copy(0, torch.tensor(self._indices[name]), self._get(keys.rows[name]).to(found.dtype))
        if name in keys.biases:
            added = self._get(keys.biases[name]).float() * self._scales[f"{name.removesuffix('.bias')}.weight"]
            found = (found.float() + added).to(found.dtype)
        elif name in keys.pairs:
            pair = keys.pairs[name]
            a, b = self._get(pair.a), self._get(pair.b)
            left, right = (a.T, b.T) if pair.embedding else (b, a)
            found = plus_product(found, left, right, self._scales[name])
        return self._finite(found, f"{name}: its sum with the base")

    def packing(self, names: Sequence[str]) -> Lowrank | None:
        """The codec with which the matrices of `names` can stay factors; None where one of them is stored otherwise."""
        for name in names:
            kept = name in self._keys.pairs and not self._keys.pairs[name].embedding and name not in self._keys.whole
            if name in self._changed and len(self.base.tensors[name].shape) > 1 and not kept:
                return None
        return self._lowrank

    @cached_property
    def _lowrank(self) -> Lowrank | None:
        """Of the layers: the stem is never packed."""
        ranks = [rank for name, rank in self._ranks.items() if self.base.layout.layer_of(name) is not None]
        return Lowrank(rank=max(ranks)) if ranks else None

    def packed(self, name: str, codec: Lowrank) -> Parts:
        """The factors of a matrix in the base's dtype, the scale in lora_B; of rank 0 where the adapter has none.

        Only for what `packing` has a codec for.
        """
        info = self.base.tensors[name]
        dtype = DTYPES[info.dtype]
        pair = self._keys.pairs.get(name)
        if pair is None:
            rows, k = info.shape
            return {"lora_A": torch.zeros(0, k, dtype=dtype), "lora_B": torch.zeros(rows, 0, dtype=dtype)}
        b = (self._get(pair.b).float() * self._scales[name]).to(dtype)
        a = self._get(pair.a).to(dtype)
        return {"lora_A": self._finite(a, f"{shown(pair.a)} in {dtype}"), "lora_B": self._finite(b, shown(pair.b))}

    def _get(self, key: str) -> torch.Tensor:
        return self._finite(self._file.read(key), shown(key))

    def _finite(self, tensor: torch.Tensor, what: str) -> torch.Tensor:
        if not bool(tensor.isfinite().all()):
            raise ComposeError(f"{self.path / WEIGHTS}: {what}: has numbers that are not finite")
        return tensor
