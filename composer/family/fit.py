"""fit: whether an expert is a fine-tune of the base, judged by headers, config and tokenizer."""

import hashlib
from pathlib import Path

from layerloom.composer.files import naming, open_file
from layerloom.composer.sources.checkpoint import Checkpoint
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
        if info.dtype not in DTYPES
    ]
    return problems


def expert_problems(base: Checkpoint, expert: Source) -> list[str]:
    """Every way in which the expert does not fit the base, with file and tensor; empty when it fits."""
    config = expert.path / "config.json"
    problems = [
        f"{config}: {key} is {expert.config[key]}, the base's is {base.config[key]}"
        for key in KEYS
        if key in base.config and key in expert.config and base.config[key] != expert.config[key]
    ]
    if "quantization_config" in expert.config:
        problems.append(f"{config}: the expert is quantized; give the unquantized model")
    if expert.depth != base.depth:
        problems.append(f"{expert.path}: has {expert.depth} layers, the base {base.depth}")
    for name in sorted(base.tensors.keys() | expert.tensors.keys()):
        ours, theirs = base.tensors.get(name), expert.tensors.get(name)
        if theirs is None:
            problems.append(f"{expert.path}: {name}: is missing; the base has it")
        elif ours is None:
            problems.append(f"{theirs.file}: {name}: the base has no such tensor")
        else:
            if theirs.shape != ours.shape:
                problems.append(f"{theirs.file}: {name}: shape {theirs.shape}, the base's is {ours.shape}")
            if theirs.dtype != ours.dtype:
                problems.append(f"{theirs.file}: {name}: dtype {theirs.dtype}, the base's is {ours.dtype}")
    for file in TOKENIZERS:
        first, second = base.path / file, expert.path / file
        if first.exists() and second.exists() and _digest(first) != _digest(second):
            problems.append(f"{second}: is not the base's tokenizer: token ids may mean other text")
    return problems


def _digest(file: Path) -> str:
    with naming(file), open_file(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
