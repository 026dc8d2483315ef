"""adapter: a PEFT LoRA adapter on disk, read as if it were merged into its base."""

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import read_json

from .checkpoint import Checkpoint, TensorInfo
from .codecs import DTYPES, Lowrank, Parts
from .codecs.lowrank import plus_product
from .tensorfile import TensorFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = {
    ".lora_A.weight": ("A", ".weight"),
    ".lora_B.weight": ("B", ".weight"),
    ".lora_embedding_A": ("A", ".weight"),
    ".lora_embedding_B": ("B", ".weight"),
}


class LoraConfig(BaseModel):
    """What PEFT's adapter_config.json says about the weights. Keys that only matter in training are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: Literal["LORA"]
    r: int = Field(ge=1)
    lora_alpha: float = Field(allow_inf_nan=False)
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, int] = Field(default={})
    alpha_pattern: dict[str, float] = Field(default={})
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    bias: str = "none"
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    trainable_token_indices: Any = None
    target_parameters: Any = None

    def refused(self) -> str | None:
        """Why an adapter of this kind is not a sum of the base and two factors that we can make."""
        if self.use_dora:
            return (
                "use_dora: DoRA rescales the base's weights and is no sum with them; merge the adapter with PEFT first"
            )
        start = str(self.init_lora_weights).lower()
        if start.startswith(("pissa", "olora", "corda", "loftq")):
            return f"init_lora_weights {start} changes the base too; save the adapter converted to LoRA"
        if self.bias != "none":
            return f"bias {quoted(self.bias)}: trained biases are not read; merge the adapter with PEFT first"
        for key in ("lora_bias", "fan_in_fan_out", "trainable_token_indices", "target_parameters"):
            if getattr(self, key):
                return f"{key} is not read; merge the adapter with PEFT first"
        return None

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / √r with rslora, of one module."""
        rank, alpha = self.rank(module), _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def targets(self, module: str) -> bool:
        """Whether PEFT puts factors on a module of this name. An expression that cannot be compiled raises re.error."""
        if self._named(self.exclude_modules, module):
            return False
        if self.target_modules is None or self.target_modules == "all-linear":
            return True
        if not self._named(self.target_modules, module):
            return False
        if self.layers_to_transform is None or isinstance(self.target_modules, str):
            return True
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or [r"[^.]*"]
        layers = self.layers_to_transform if isinstance(self.layers_to_transform, list) else [self.layers_to_transform]
        found = (re.match(rf".*\.{pattern}\.(\d+)\.", module) for pattern in patterns)
        index = next((int(match.group(1)) for match in found if match), None)
        return index in layers

    def saves(self, module: str) -> bool:
        """Whether a module of this name is stored whole."""
        return self._named(self.modules_to_save, module)

    @staticmethod
    def _named(wanted: str | list[str] | None, module: str) -> bool:
        if isinstance(wanted, str):
            return re.fullmatch(wanted, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in wanted or [])


def _by_pattern(values: dict[str, Any], module: str, default: float) -> float:
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module)), default)


class Adapter:
    """A LoRA adapter on its base, read like a `Checkpoint`: W = round(B + scale · lora_B @ lora_A), in fp32.

    `modules_to_save` replace the base's tensors, rounded to its dtype; all other tensors are the base's. Raises
    ComposeError with file and tensor when the adapter is of a kind that cannot be read, or of another model. What it
    has for parts outside the language model is passed over: they are the base's.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        self.base = base
        self.lora = self._read_config(path / CONFIG)
        file = path / WEIGHTS
        revision = hashlib.sha256()
        self._file = TensorFile(file, revision)
        revision.update(self.lora.model_dump_json().encode() + base.revision.encode())
        self.revision: str = revision.hexdigest()
        self._factors: dict[str, dict[str, str]] = {}
        self._saved: dict[str, str] = {}
        self._outside: list[tuple[str, str]] = []
        self._modules: dict[str, str] = {}
        """The names that modules with factors had where it was trained."""
        for key in sorted(self._file.tensors):
            self._place(file, key)
        self._check(file)
        self.config: dict[str, Any] = base.config
        self.depth = base.depth
        self.stem = base.stem
        self.layer = base.layer

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The base's tensors; those the adapter changes are in its file."""
        changed = self._factors.keys() | self._saved.keys()
        file = self.path / WEIGHTS
        return {
            name: TensorInfo(file, info.dtype, info.shape) if name in changed else info
            for name, info in self.base.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, of the base's dtype and shape."""
        base = self.base.read(name)
        if name in self._saved:
            base = self._get(self._saved[name]).to(base.dtype)
        if name not in self._factors:
            return base
        a, b = (self._get(self._factors[name][side]) for side in "AB")
        scale = self.lora.scale(name.removesuffix(".weight"))
        # PEFT has the factors of an embedding the other way round: its Δ is (B @ A)ᵀ.
        left, right = (a.T, b.T) if self._is_embedding(name) else (b, a)
        return plus_product(base, left, right, scale)

    def packing(self, names: Sequence[str]) -> Lowrank | None:
        """The codec with which the matrices of `names` can stay factors; None where one of them is stored whole."""
        if any(name in self._saved and len(self.base.tensors[name].shape) > 1 for name in names):
            return None
        return self._lowrank

    @cached_property
    def _lowrank(self) -> Lowrank | None:
        ranks = [self.lora.rank(name.removesuffix(".weight")) for name in self._factors]
        return Lowrank(rank=max(ranks)) if ranks else None

    def packed(self, name: str, codec: Lowrank) -> Parts:
        """The factors of a matrix in the base's dtype, the scale in lora_B; of rank 0 where the adapter has none."""
        info = self.base.tensors[name]
        dtype = DTYPES[info.dtype]
        if name not in self._factors:
            rows, k = info.shape
            return {"lora_A": torch.zeros(0, k, dtype=dtype), "lora_B": torch.zeros(rows, 0, dtype=dtype)}
        a, b = (self._get(self._factors[name][side]) for side in "AB")
        return {"lora_A": a.to(dtype), "lora_B": (b.float() * self.lora.scale(name.removesuffix(".weight"))).to(dtype)}

    def _get(self, key: str) -> torch.Tensor:
        tensor = self._file.read(key)
        if not bool(tensor.isfinite().all()):
            raise ComposeError(f"{self.path / WEIGHTS}: {key}: has numbers that are not finite")
        return tensor

    def _is_embedding(self, name: str) -> bool:
        return ".lora_embedding_" in self._factors[name]["A"]

    @staticmethod
    def _read_config(file: Path) -> LoraConfig:
        content = read_json(file)
        kind = content.get("peft_type")
        if kind != "LORA":
            raise ComposeError(f"{file}: peft_type is {quoted(kind)}; only LORA can be read")
        try:
            config = LoraConfig.model_validate(content)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            raise ComposeError(f"{file}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}") from error
        reason = config.refused()
        if reason:
            raise ComposeError(f"{file}: {reason}")
        return config

    def _place(self, file: Path, key: str) -> None:
        """Finds the base's tensor that a stored one is about."""
        if not key.startswith(PREFIX):
            raise ComposeError(f"{file}: {quoted(key)}: does not start with {PREFIX}")
        name = key.removeprefix(PREFIX)
        for suffix, (side, own) in FACTORS.items():
            if name.endswith(suffix):
                theirs = name.removesuffix(suffix) + own
                name = self.base.named(theirs)
                if self._is_outside(name):
                    self._outside.append((name, key))
                else:
                    self._factors.setdefault(name, {})[side] = key
                    self._modules[name] = theirs.removesuffix(own)
                return
        if "lora_" in name:
            raise ComposeError(f"{file}: {quoted(key)}: is of no kind that can be read")
        name = self.base.named(re.sub(r"\.(modules_to_save|base_layer)\.", ".", name))
        if self._is_outside(name):
            self._outside.append((name, key))
        else:
            self._saved[name] = key

    def _is_outside(self, name: str) -> bool:
        return name in self.base.tensors and self.base.layout.is_outside(name)

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """The parts outside the language model that it changes, as in vision_tower."""
        # A factor that was not trained is zero.
        changed = [name for name, key in self._outside if ".lora_A" not in key and bool(self._file.read(key).any())]
        return tuple(sorted({self.base.layout.common(name).partition(".")[0] for name in changed}))

    def _check(self, file: Path) -> None:
        """That every stored tensor is one the config speaks of, and fits the base; and the other way round."""
        for name, key in [(n, next(iter(f.values()))) for n, f in self._factors.items()] + [*self._saved.items()]:
            if name not in self.base.tensors:
                tied = "; it ties its embeddings" if name == "lm_head.weight" and self.base.ties_embeddings else ""
                raise ComposeError(f"{file}: {key}: the base {self.base.path} has no {quoted(name)}{tied}")
        try:
            for name in self._factors:
                self._check_factors(file, name)
            paged = self.base.tensors.keys() - self.base.outside
            for module in {name.removesuffix(".weight") for name in paged if name.endswith(".weight")}:
                wanted = isinstance(self.lora.target_modules, list) and self.lora.targets(module)
                if wanted and f"{module}.weight" not in self._factors:
                    raise ComposeError(f"{file}: {module}: has no factors, and {CONFIG} names it as a target")
                if self.lora.saves(module) and f"{module}.weight" not in self._saved:
                    raise ComposeError(f"{file}: {module}: is missing, and {CONFIG} has it in modules_to_save")
        except (re.error, RecursionError) as error:
            raise ComposeError(f"{file.with_name(CONFIG)}: is no regular expression: {error}") from error
        for name, key in self._saved.items():
            found = self._file.tensors[key]
            if found.dtype not in DTYPES:
                raise ComposeError(f"{file}: {key}: dtype {found.dtype} is none of {', '.join(DTYPES)}")
            if found.shape != self.base.tensors[name].shape:
                shown = f"{found.shape}, the base's is {self.base.tensors[name].shape}"
                raise ComposeError(f"{file}: {key}: shape {shown}: this is the adapter of another model")

    def _check_factors(self, file: Path, name: str) -> None:
        module, sides, info = name.removesuffix(".weight"), self._factors[name], self.base.tensors[name]
        if len(sides) < 2:
            raise ComposeError(f"{file}: {next(iter(sides.values()))}: has no partner")
        if not self.lora.targets(self._modules[name]):
            raise ComposeError(f"{file}: {sides['A']}: {CONFIG} does not name it as a target")
        if len(info.shape) != 2:
            raise ComposeError(f"{file}: {sides['A']}: {name} is no matrix in the base")
        rank = self.lora.rank(module)
        rows, columns = info.shape[::-1] if self._is_embedding(name) else info.shape
        for side, shape in (("A", (rank, columns)), ("B", (rows, rank))):
            found = self._file.tensors[sides[side]]
            if found.dtype not in DTYPES:
                raise ComposeError(f"{file}: {sides[side]}: dtype {found.dtype} is none of {', '.join(DTYPES)}")
            if found.shape != shape:
                shown = f"{found.shape}, and rank {rank} on this base needs {shape}"
                raise ComposeError(f"{file}: {sides[side]}: shape {shown}")
