"""lora_keys: the tensors of a PEFT adapter's file, by the base's tensor that each changes."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from layerloom.composer.errors import ComposeError, quoted

from .checkpoint import Checkpoint
from .tensorfile import TensorFile

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
SUFFIXES = {
    ".lora_A.weight": ("A", ".weight"),
    ".lora_B.weight": ("B", ".weight"),
    ".lora_embedding_A": ("embedding A", ".weight"),
    ".lora_embedding_B": ("embedding B", ".weight"),
    ".lora_B.bias": ("bias", ".bias"),
    ".token_adapter.trainable_tokens_delta": ("rows", ".weight"),
}
BASE_LAYER = ".base_layer."
# Where PEFT's wrappers keep what stands for the base's own tensor. PEFT leaves "modules_to_save" and the adapter's name
# out when it saves; a trainer's state has them.
WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save\.default|modules_to_save)\.")
# A copy of the base's tensor, which the adapter does not use.
UNUSED = ".original_module."
SAVE = "save the adapter with PEFT's save_pretrained"
LONGEST_KEY = 200


def shown(key: str) -> str:
    """A key as it is, so that it can be looked for, or quoted when it is no name at all."""
    return key if len(key) <= LONGEST_KEY and key.isprintable() else quoted(key)


@dataclass(frozen=True)
class Pair:
    """The keys of two factors. Those of an embedding are the other way round: its Δ is (B @ A)ᵀ."""

    a: str
    b: str
    embedding: bool


@dataclass
class LoraKeys:
    """Keys of the file by the base's tensor: factors, biases to add (lora_bias), whole tensors, rows to replace.

    `lone` are factors without a partner.
    """

    pairs: dict[str, Pair] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    lone: dict[str, str] = field(default_factory=dict)
    outside: list[tuple[str, str]] = field(default_factory=list)
    """(the base's tensor, key) of parts outside the language model, which are not composed."""
    own: dict[str, str] = field(default_factory=dict)
    """What the adapter's trainer called a tensor that the base calls otherwise."""

    @property
    def changed(self) -> dict[str, str]:
        """A key for every tensor of the base that the adapter changes."""
        pairs = {name: pair.a for name, pair in self.pairs.items()}
        return {**pairs, **self.biases, **self.whole, **self.rows, **self.lone}


def open_weights(directory: Path) -> TensorFile:
    """The adapter's tensors. Raises ComposeError."""
    file = directory / WEIGHTS
    if not file.exists():
        pickled = directory / PICKLED
        found = f"{pickled}: is a pickle, and there is no {WEIGHTS}" if pickled.exists() else f"{file}: No such file"
        raise ComposeError(f"{found}; {PICKLED} is turned into {WEIGHTS} with: layerloom convert {directory}")
    return TensorFile(file)


def sort_keys(file: TensorFile, base: Checkpoint) -> LoraKeys:
    """What each tensor of the file is. Raises ComposeError for one that is of no known kind, or there twice."""
    keys = LoraKeys()
    sides: dict[str, dict[str, str]] = {}
    for key in sorted(file.tensors):
        if not key.startswith(PREFIX):
            raise ComposeError(f"{file.path}: {shown(key)}: does not start with {PREFIX}, as PEFT's do; {SAVE}")
        name = key.removeprefix(PREFIX)
        if UNUSED in name:
            continue
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
        if suffix is not None:
            side, own = SUFFIXES[suffix]
            if (found := _place(keys, base, name.removesuffix(suffix) + own, key)) is not None:
                sides.setdefault(found, {})[side] = key
            continue
        if "lora_" in name or ".token_adapter." in name:
            raise ComposeError(f"{file.path}: {shown(key)}: {_kind(name)}")
        place = _place(keys, base, WRAPPED.sub(".", name), key)
        if place in keys.whole:
            raise ComposeError(f"{file.path}: {shown(key)} and {shown(keys.whole[place])} are of one tensor")
        if place is not None:
            keys.whole[place] = key
    for name, of_name in sides.items():
        _sort(keys, name, of_name)
    return keys


def _place(keys: LoraKeys, base: Checkpoint, own: str, key: str) -> str | None:
    """The base's name of a tensor that the trainer called `own`; None where it is not composed."""
    name = base.named(own)
    if name in base.tensors and base.layout.is_outside(name):
        keys.outside.append((name, key))
        return None
    if name != own:
        keys.own[name] = own
    return name


def _sort(keys: LoraKeys, name: str, sides: dict[str, str]) -> None:
    for side, of in (("bias", keys.biases), ("rows", keys.rows)):
        if side in sides:
            of[name] = sides.pop(side)
    for prefix in ("", "embedding "):
        if sides.keys() == {f"{prefix}A", f"{prefix}B"}:
            keys.pairs[name] = Pair(sides[f"{prefix}A"], sides[f"{prefix}B"], bool(prefix))
            return
    if sides:
        keys.lone[name] = next(iter(sides.values()))


def _kind(name: str) -> str:
    """Why a tensor of this name is not one that can be read."""
    named = re.search(r"lora_(?:embedding_)?[AB]\.([^.]+)(?:\.(?:weight|bias))?$", name)
    if named:
        return f"has an adapter's name in it ({quoted(named[0])}), as in a training state; {SAVE}, which leaves it out"
    if "lora_magnitude_vector" in name:
        return "is of no kind that can be read: it is DoRA's; merge the adapter with PEFT first"
    return "is of no kind that can be read; merge the adapter with PEFT first"
