"""lora_config: what PEFT's adapter_config.json says of the weights beside it."""

import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import read_json

from .expression import Expression, ExpressionError, Patterns, Watch

CONFIG = "adapter_config.json"
MERGE = "merge the adapter with PEFT first"
ALL_LINEAR = "all-linear"
EMBEDDINGS = ("embed_tokens", "lm_head")

# These say where the adapter comes from, or how it was trained. The settings of an initialization or a variant count
# only beside the key that asks for it (init_lora_weights, use_qalora, megatron_config). PEFT itself drops
# runtime_config, and sets fan_in_fan_out by the kind of layer: every layer here is a Linear.
HARMLESS = frozenset({
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "runtime_config", "fan_in_fan_out", "eva_config", "corda_config", "lora_ga_config", "loftq_config",
    "qalora_group_size", "megatron_core", "merge_weights", "unsloth_fixed", "unsloth_version", "lora_dtype",
    "lorap_lr_ratio", "lorap_emb_lr",
})  # fmt: skip
HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "true", "false")
CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")

NO_SUM = {
    "use_dora": "DoRA rescales the base's weights and is no sum with them",
    "use_qalora": "QA-LoRA's factors are of pooled inputs and are no sum with the base's weights",
    "use_bdlora": "BD-LoRA stores blocks of its factors",
    "kasa_config": "KaSA cuts the base's weights too",
    "monteclora_config": "MonteCLoRA draws its factors at random",
    "velora_config": "VeLoRA's adapters are not read",
    "megatron_config": "adapters of Megatron's layers are not read",
    "target_parameters": "factors of parameters that are no layer's weight are not read",
    "enable_lora": "factors of parts of a fused layer are not read",
}
# What PEFT cannot merge either.
NO_MERGE = {
    "layer_replication": "the adapter is of a model with layers of the base repeated, so of another depth",
    "alora_invocation_tokens": "aLoRA acts only after these tokens, which no merged weight can; train a plain LoRA",
    "arrow_config": "Arrow chooses between adapters token by token, which no merged weight can; give one of them",
}

Rank = Annotated[int, Field(ge=1, le=1 << 16)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraConfig(BaseModel):
    """PEFT's LoraConfig, as far as it says what the stored tensors mean. A name is a module's, `model.norm` say.

    What matches a name may raise ExpressionError, when that takes too long.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    r: Rank
    lora_alpha: Alpha
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] = Field(default={})
    alpha_pattern: dict[str, Alpha] = Field(default={})
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    lora_bias: bool = False
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False

    def rank(self, name: str) -> int:
        found = self._compiled.ranks.first(name)
        return self.r if found is None else found

    def scale(self, name: str) -> float:
        """alpha / r, or alpha / √r with rslora."""
        found = self._compiled.alphas.first(name)
        rank, alpha = self.rank(name), self.lora_alpha if found is None else found
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def lists_targets(self) -> bool:
        """Whether every module that `targets` names has factors."""
        return self.target_modules is not None and not self._all_linear

    def targets(self, name: str) -> bool:
        """Whether PEFT puts factors on a module of this name."""
        if self._compiled.excluded.has(name):
            return False
        if any(f".{saved}." in f".{name}." for saved in self.modules_to_save or []):
            return False
        if self.target_modules is None:
            return True
        if self._all_linear:
            return name.rpartition(".")[2] not in EMBEDDINGS
        if not self._compiled.targets.has(name):
            return False
        # PEFT has the layers count only where the end of a name is given.
        return isinstance(self.target_modules, str) or name in self.target_modules or self._in_layers(name)

    def saves(self, name: str) -> bool:
        """Whether a module of this name, or one around it, is stored whole.

        PEFT goes by the end of the name, wherever that begins: "norm" is also input_layernorm.
        """
        ends = tuple(self.modules_to_save or ())
        parts = name.split(".")
        return any(".".join(parts[: count + 1]).endswith(ends) for count in range(len(parts)))

    def token_indices(self, name: str) -> list[int] | None:
        """Which rows of an embedding of this name are stored, in their order."""
        indices = self.trainable_token_indices
        if isinstance(indices, dict):
            return next((listed for end, listed in indices.items() if name.endswith(end)), None)
        return indices if name.rpartition(".")[2] == EMBEDDINGS[0] else None

    @property
    def _all_linear(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def _in_layers(self, name: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        found = next((match for pattern in self._compiled.layers if (match := pattern.match(name))), None)
        # An expression with an alternative outside brackets may match without the number.
        index = found["idx"] if found is not None else None
        return index is not None and int(index) in (layers if isinstance(layers, list) else [layers])

    @cached_property
    def _compiled(self) -> "Compiled":
        return Compiled(self)


class Compiled:
    """The expressions of a config."""

    def __init__(self, config: LoraConfig) -> None:
        watch = Watch()
        self.targets = Names("target_modules", config.target_modules, watch)
        self.excluded = Names("exclude_modules", config.exclude_modules, watch)
        self.ranks = Patterns("rank_pattern", config.rank_pattern, watch)
        self.alphas = Patterns("alpha_pattern", config.alpha_pattern, watch)
        patterns = config.layers_pattern or []
        self.layers = [
            Expression("layers_pattern", pattern, watch, rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.")
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        ] or [Expression("layers_to_transform", r".*?\.[^.]*\.(?P<idx>\d+)\.", watch)]


class Names:
    """Names of modules: those that an expression matches whole, or that end, from a dot on, with one of a list."""

    def __init__(self, key: str, wanted: str | list[str] | None, watch: Watch) -> None:
        expression = isinstance(wanted, str) and wanted != "" and wanted.lower() != ALL_LINEAR
        self._expression = Expression(key, str(wanted), watch) if expression else None
        self._ends = frozenset(wanted if isinstance(wanted, list) else ())

    def has(self, name: str) -> bool:
        if self._expression is not None:
            return self._expression.fullmatch(name)
        if not self._ends:
            return False
        parts = name.split(".")
        return any(".".join(parts[start:]) in self._ends for start in range(len(parts)))


def read_lora_config(file: Path) -> LoraConfig:
    """A LoRA adapter's config. Raises ComposeError that names the file, and the key that is refused with its value."""
    content = read_json(file)
    kind = content.get("peft_type")
    if kind != "LORA":
        advice = "merge the adapter with the library that made it"
        raise ComposeError(f"{file}: peft_type is {quoted(kind)}; only LORA can be read: {advice}")
    for key, value in content.items():
        if reason := _refused(key, value):
            raise ComposeError(f"{file}: {reason}")
    try:
        # PEFT has None where a key is not given; older versions of it leave the key out.
        config = LoraConfig.model_validate({key: value for key, value in content.items() if value is not None})
        # Here for its errors.
        _ = config._compiled
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(map(str, detail["loc"]))
        found = "" if detail["type"] == "missing" else f", not {quoted(detail['input'])}"
        raise ComposeError(f"{file}: {quoted(place)[1:-1]}: {detail['msg']}{found}") from error
    except ExpressionError as error:
        raise ComposeError(f"{file}: {error}") from error
    return config


def _refused(key: str, value: Any) -> str | None:
    """Why an adapter with this in its config is not a sum of the base and two factors, as far as is known."""
    if value is None or value is False or value in ("", [], {}) or key in HARMLESS or key == "peft_type":
        return None
    if key == "init_lora_weights":
        start = str(value).lower()
        if start in HARMLESS_INITS:
            return None
        known = start.startswith(CHANGING_INITS)
        changes = "changes the base too" if known else "is not known, and may change the base"
        return f"init_lora_weights {quoted(value)} {changes}; save the adapter converted to LoRA, or {MERGE}"
    if key in LoraConfig.model_fields:
        return None
    shown = f"(it is {quoted(value)})"
    if key in NO_MERGE:
        return f"{key}: {NO_MERGE[key]} {shown}"
    if key in NO_SUM:
        return f"{key}: {NO_SUM[key]} {shown}; {MERGE}"
    return (
        f"{quoted(key)[1:-1]} is {quoted(value)}: the key is not known, and may change what the weights mean; {MERGE}"
    )
