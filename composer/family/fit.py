"""fit: whether an expert is a fine-tune of the base, judged by headers, config and tokenizer."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerloom.composer.errors import ComposeWarning, quoted
from layerloom.composer.files import naming, open_file
from layerloom.composer.sources.adapter import Adapter
from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.layout import is_nested, language_config
from layerloom.composer.sources.respelled import Respelled
from layerloom.composer.sources.source import Source

DTYPES = ("BF16", "F16", "F32")
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# What the forward pass does with the weights. Only values that both configs state are compared: a config
# written by another version of transformers leaves some out.
KEYS = (
    "architectures", "model_type", "num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "hidden_activation", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "partial_rotary_factor",
    "tie_word_embeddings", "sliding_window", "use_sliding_window", "layer_types", "attention_bias", "mlp_bias",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip


def base_problems(base: Checkpoint) -> list[str]:
    """Why nothing can be composed on this base; empty when all is well."""
    problems = []
    if "quantization_config" in base.config:
        method = base.config["quantization_config"]
        name = method.get("quant_method", "unknown method") if isinstance(method, dict) else "unknown method"
        problems.append(f"{base.path / 'config.json'}: the base is quantized ({name}); give the unquantized model")
    # vLLM opens what else lies there, and would wait for a FIFO for ever.
    problems += [
        f"{file}: is neither a file nor a directory"
        for file in sorted(base.path.iterdir())
        if file.exists() and not file.is_file() and not file.is_dir()
    ]
    problems += [
        f"{info.file}: {name}: dtype {info.dtype} is none of {', '.join(DTYPES)}"
        for name, info in sorted(base.tensors.items())
        if info.dtype not in DTYPES and not base.layout.is_outside(name)
    ]
    return problems


def expert_problems(base: Checkpoint, expert: Source) -> list[str]:
    """Every way in which the expert does not fit the base, with file and tensor; empty when it fits."""
    config = expert.path / "config.json"
    ours, theirs = language_configs(base.config, expert.config)
    problems = [
        f"{config}: {key} is {theirs[key]}, the base's is {ours[key]}"
        for key in KEYS
        if key in ours and key in theirs and ours[key] != theirs[key]
    ]
    if "quantization_config" in expert.config:
        problems.append(f"{config}: the expert is quantized; give the unquantized model")
    if expert.depth != base.depth:
        problems.append(f"{expert.path}: has {expert.depth} layers, the base {base.depth}")
    for name in sorted(base.tensors.keys() | expert.tensors.keys()):
        own, other = base.tensors.get(name), expert.tensors.get(name)
        if other is None:
            problems.append(f"{expert.path}: {name}: is missing; the base has it")
        elif own is None:
            problems.append(f"{other.file}: {name}: the base has no such tensor")
        else:
            if other.shape != own.shape:
                problems.append(f"{other.file}: {name}: shape {other.shape}, the base's is {own.shape}")
            if other.dtype != own.dtype:
                problems.append(f"{other.file}: {name}: dtype {other.dtype}, the base's is {own.dtype}")
    if problems and is_nested(base.config) != is_nested(expert.config):
        classes = f"a {class_of(expert.config)}, the base a {class_of(base.config)}"
        problems.insert(0, f"{config}: the expert is {classes}, and they do not hold the same language model:")
    for file in TOKENIZERS:
        first, second = base.path / file, expert.path / file
        if first.exists() and second.exists() and _digest(first) != _digest(second):
            problems.append(f"{second}: is not the base's tokenizer: token ids may mean other text")
    return problems


def warn_of(expert: Source) -> None:
    """Says that an expert has other weights than its base in parts that are not composed."""
    if isinstance(expert, Respelled | Adapter) and expert.unused:
        parts = ", ".join(expert.unused)
        warnings.warn(
            f"{expert.path}: differs from the base outside its language model, in {parts}: that is not composed, and "
            "every composition has the base's",
            ComposeWarning,
            stacklevel=3,
        )


def language_configs(base: Mapping[str, Any], expert: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two configs say of their language models, to compare."""
    ours, theirs = language_config(base), language_config(expert)
    if is_nested(base) == is_nested(expert):
        # Their language models may be described by a part of the config in one version, and by the whole in another.
        whole = {"model_type"}
        return {**ours, **only(base, whole)}, {**theirs, **only(expert, whole)}
    return {**ours, "architectures": None}, {**theirs, "architectures": None}


def only(config: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


def class_of(config: Mapping[str, Any]) -> str:
    """The class a config names, for people."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    return quoted(first)[1:-1]


def _digest(file: Path) -> str:
    with naming(file), open_file(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
