"""fit: whether an expert is a fine-tune of the base, judged by headers, config and tokenizer."""

from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.source import Source

from .configs import config_problems
from .tokenizers import tokenizer_problems

DTYPES = ("BF16", "F16", "F32")


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
    problems = config_problems(base.path / "config.json", base.config, config, expert.config)
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
    return problems + tokenizer_problems(base.path, expert.path, base.config)
