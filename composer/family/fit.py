"""fit: whether an expert is a fine-tune of the base, judged by headers, config and tokenizer."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from layerloom.composer.errors import ComposeWarning, quoted
from layerloom.composer.sources.checkpoint import TABLE, Checkpoint
from layerloom.composer.sources.codecs import DTYPES
from layerloom.composer.sources.layout import is_nested
from layerloom.composer.sources.source import Source

from .configs import config_problems
from .plan import kind_of
from .tokenizers import tokenizer_problems

SHOWN = 2
"""How many tensors are named where many are wrong in the same way."""

Problem = tuple[Path, str, str]
"""A file, the tensor (or the place) in it, and what is wrong with that."""


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
    problems += _grouped(
        (info.file, name, f"dtype {info.dtype} is none of {', '.join(DTYPES)}")
        for name, info in base.tensors.items()
        if info.dtype not in DTYPES and not base.layout.is_outside(name)
    )
    has_table = any(name.endswith(TABLE) for name in base.tensors)
    if has_table and not any("head" in name for name in base.tensors) and not base.ties_embeddings:
        problems.append(
            f"{base.path}: has no lm_head.weight, and config.json does not tie it to the embedding; set "
            "tie_word_embeddings to true if it is tied, or fetch the file that is missing"
        )
    return problems + _grouped(_mixed(base))


def _mixed(base: Checkpoint) -> Iterator[Problem]:
    """Where tensors of one kind, which are rounded as one, are of more than one dtype."""
    for part in range(base.depth + 1):
        of: dict[str, dict[str, str]] = {}
        for name in base.stem if part == base.depth else base.layer(part):
            of.setdefault(kind_of(name), {}).setdefault(base.tensors[name].dtype, name)
        for kind, dtypes in of.items():
            if len(dtypes) > 1:
                place = "outside the layers" if part == base.depth else f"layer {part}"
                yield base.path, place, f"{kind} tensors are of {' and '.join(sorted(dtypes))}; save them in one dtype"


def expert_problems(base: Checkpoint, expert: Source) -> list[str]:
    """Every way in which the expert does not fit the base, with file and tensor; empty when it fits."""
    config = expert.path / "config.json"
    problems = config_problems(base.path / "config.json", base.config, config, expert.config)
    if "quantization_config" in expert.config:
        problems.append(f"{config}: the expert is quantized; give the unquantized model")
    if expert.depth != base.depth:
        problems.append(f"{expert.path}: has {expert.depth} layers, the base {base.depth}")
    else:
        problems += _grouped(_tensor_problems(base, expert))
    if problems and is_nested(base.config) != is_nested(expert.config):
        classes = f"a {class_of(expert.config)}, the base a {class_of(base.config)}"
        problems.insert(0, f"{config}: the expert is {classes}, and they do not hold the same language model:")
    return problems + tokenizer_problems(base.path, expert.path, base.config)


def _tensor_problems(base: Checkpoint, expert: Source) -> Iterator[Problem]:
    for name in sorted(base.tensors.keys() | expert.tensors.keys()):
        ours, theirs = base.tensors.get(name), expert.tensors.get(name)
        if theirs is None:
            yield expert.path, name, "is missing; the base has it"
        elif ours is None:
            yield theirs.file, name, "the base has no such tensor"
        else:
            if theirs.shape != ours.shape:
                yield theirs.file, name, f"shape {theirs.shape}, the base's is {ours.shape}"
            if theirs.dtype != ours.dtype:
                yield theirs.file, name, f"dtype {theirs.dtype}, the base's is {ours.dtype}"


def _grouped(problems: Iterable[Problem]) -> list[str]:
    """A line for each cause: the file, the first tensors and how many more there are, and the reason."""
    places: dict[tuple[str, str], tuple[Path, list[str]]] = {}
    for file, place, reason in problems:
        places.setdefault((str(file.parent), reason), (file, []))[1].append(place)
    lines = []
    for (_, reason), (file, found) in places.items():
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        lines.append(f"{file}: {', '.join(found[:SHOWN])}{more}: {reason}")
    return lines


def voice_problems(base: Checkpoint, source: Source) -> list[str]:
    """Tokens that end answers and that the model does not have: an engine would look for them, and end."""
    said = (source.voice.generation or {}).get("eos_token_id")
    ids = said if isinstance(said, list) else [] if said is None else [said]
    tables = [info.shape[0] for name, info in base.tensors.items() if name.endswith(TABLE) and info.shape]
    too_large = [each for each in ids if tables and each >= max(tables)]
    if not too_large:
        return []
    return [f"{source.path}: eos_token_id {max(too_large)} is no token: the base has {max(tables)}, counted from 0"]


def warn_of(expert: Source) -> None:
    """Says what a person should know of how an expert is read."""
    if expert.note:
        warnings.warn(expert.note, ComposeWarning, stacklevel=3)


def class_of(config: Mapping[str, Any]) -> str:
    """The class a config names, for people."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else config.get("model_type")
    return quoted(first)[1:-1]
