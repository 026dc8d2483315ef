"""notes: where what mergekit writes may be another thing than what layerloom serves and merges."""

import math
from collections.abc import Callable, Iterator

import torch

from layerloom.composer.errors import listed
from layerloom.composer.family.entries import Location
from layerloom.composer.sources.checkpoint import Checkpoint

from .configuration import Configuration
from .refused import DTYPES, references
from .sums import Sum, Sums

DIGITS = {"BF16": 8, "F16": 11, "F32": 24}
"""Significant bits."""
EXACT = 24


def numeric_notes(sums: Sums, name: Callable[[Location], str], base: Checkpoint | None) -> Iterator[str]:
    """What makes bits differ: mergekit's linear adds with fused multiply-add where the processor has it."""
    dtype = dtype_of(base) or "BF16"
    blends = [total for total in sums.all() if len(total.terms) > 1]
    long = [total for total in blends if any(too_long(weight, dtype) for _, weight in total.terms)]
    rounded = next(iter(long), None)
    divided = next((total for total in (sums.all() if dtype == "F32" else blends) if total.divided), None)
    # Few digits in all weights make the order all but meaningless.
    candidates = blends if dtype == "F32" else long
    ordered = next((t for t in candidates if not in_order([name(place) for place, _ in t.terms])), None)
    if rounded:
        yield (
            f"{shown(rounded, name)}: products with such weights do not fit float32. layerloom rounds each; mergekit "
            "does where the processor has no fused multiply-add. A few numbers in a thousand may differ by one rounding"
        )
    if divided:
        yield f"{shown(divided, name)}: mergekit adds up first and then divides, with one more rounding"
    if ordered:
        yield f"{shown(ordered, name)}: mergekit adds up in the order of the file, layerloom by name after the base"


def other_notes(config: Configuration, base: Checkpoint | None) -> Iterator[str]:
    """What else of a configuration is not taken as it says."""
    ours, out = dtype_of(base), config.out_dtype or config.dtype
    if config.dtype is not None and DTYPES[plain(config.dtype)] != "F32":
        yield (
            f"dtype: {config.dtype}: layerloom sums in float32 and rounds once, to the base's dtype; mergekit 0.1.5 "
            "reads the models as this dtype, and other versions sum in it too"
        )
    if ours is not None and out is not None and DTYPES[plain(out)] != ours:
        word = next(word for word, short in DTYPES.items() if short == ours)
        yield f"mergekit would write {plain(out)}; a composition has the dtype of the base, {word}"
    if config.chat_template is not None:
        yield "chat_template is not taken: a composition has the base's"
    source = config.tokenizer.source if config.tokenizer else config.tokenizer_source
    if source is not None:
        if str(source) != "base" and source != config.base_model:
            yield f"the tokenizer of {source} is not taken: a composition has the base's"
        yield "where embeddings have more rows than the tokenizer has tokens, mergekit cuts them; nothing is cut here"
    adapters = [str(reference) for reference in references(config) if reference.lora is not None]
    if adapters:
        yield f"{listed(adapters)}: merged in the dtype of the base; mergekit does so without --lora-merge-dtype"
    taken = {"linear": ("weight", "normalize"), "passthrough": ("scale",)}[config.merge_method]
    unused = sorted(set(parameters(config)) - set(taken))
    if unused:
        yield f"{', '.join(unused)}: mean nothing to {config.merge_method}, in mergekit too"


def parameters(config: Configuration) -> Iterator[str]:
    """The names of all parameters, wherever they are given."""
    for part in config.parts:
        yield from part.parameters or ()
        for model in part.models or ():
            yield from model.parameters or ()
        for item in part.slices or ():
            yield from item.parameters or ()
            for source in item.sources:
                yield from source.parameters or ()


def dtype_of(base: Checkpoint | None) -> str | None:
    """The base's one dtype, or None where it is not known or not one that is composed."""
    found = {info.dtype for info in base.tensors.values()} if base else set()
    return dtype if len(found) == 1 and (dtype := found.pop()) in DIGITS else None


def too_long(weight: float, dtype: str) -> bool:
    """Whether a weight, as fp32, times a number of this dtype may have more digits than fp32 keeps."""
    number = int(math.ldexp(math.frexp(float(torch.tensor(weight, dtype=torch.float32)))[0], EXACT))
    digits = EXACT - ((number & -number).bit_length() - 1)
    return digits > 1 and digits + DIGITS[dtype] > EXACT


def in_order(names: list[str]) -> bool:
    """Whether a sum in this order is the one in order of name, the base first; the first two may change places."""
    wanted = sorted(names, key=lambda name: (name != "base", name))
    return names[2:] == wanted[2:]


def shown(total: Sum, name: Callable[[Location], str]) -> str:
    return " + ".join(f"{weight:g} {name(place)}" for place, weight in total.terms)


def plain(dtype: str) -> str:
    return dtype.removeprefix("torch.")
