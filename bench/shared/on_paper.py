"""on_paper: what a new language of a family of Llama-3.1-8B's shapes takes on a GPU, from bytes and given speeds.

Counted is what `math+language` adds when `math` is there: the language's own layers and its stem. A layer that is the
language's alone, and the stem, come from the language; an averaged one comes from both. Packed codecs (int8, int4,
sign) go to the GPU as they are stored, and the stem exact; `exact` is decoded on the host and goes as a whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .report import Report
from .roofline import LLAMA_8B, Model, compose, delta_bytes

VOCABULARY, AVERAGED = 128256, 2
EXACT_SHARE = 0.227
"""Of the bytes of a checkpoint; README's table, of a random pair."""

SPEEDS = {"disk": 7.0, "decode": 6.0, "memory": 10.0, "PCIe": 55.0, "device": 3000.0}
"""GB/s: an NVMe drive, `exact` on two cores of the host, copies of the host's memory, 16 lanes of PCIe 5, and HBM."""


@dataclass(frozen=True)
class Moved:
    """GB of one new language by what has to move them: `disk` as stored, `decode` what `exact` is decoded to, `memory`
    from the page cache to where the GPU reads, `PCIe`, and `device` for composing."""

    pages: float
    disk: float
    decode: float
    memory: float
    PCIe: float
    device: float

    def seconds(self, speeds: Mapping[str, float]) -> dict[str, float]:
        """Of each by itself. What they share is time: with all at work at once, the longest is what it takes."""
        return {name: getattr(self, name) / speed for name, speed in speeds.items()}


def layer_bytes(model: Model, codec: str) -> float:
    """Bytes of an expert's layer as it is stored, norms dense."""
    if codec == "exact":
        return EXACT_SHARE * 2 * model.numbers
    if codec == "checkpoint":
        return 2.0 * model.numbers
    return sum(delta_bytes(codec, n, k) for n, k in model.matrices.values()) + 4 * model.hidden


def new_language(codec: str, model: Model = LLAMA_8B) -> Moved:
    """`codec`: checkpoint, exact, int8, int4 or sign."""
    whole, read = model.own * 2 * model.numbers, model.own + AVERAGED
    stem = 2 * 2 * VOCABULARY * model.hidden
    stored_stem = stem if codec == "checkpoint" else EXACT_SHARE * stem
    stored = read * layer_bytes(model, codec) + stored_stem
    dense = codec in ("checkpoint", "exact")
    sent = read * (2 * model.numbers if dense else layer_bytes(model, codec)) + stem
    decoded = 0.0 if codec == "checkpoint" else stem + (read * 2 * model.numbers if dense else 0.0)
    kind = "dense" if dense else codec
    composing = (model.own - AVERAGED) * compose(model, (kind,)).bytes + AVERAGED * compose(model, (kind,) * 2).bytes
    return Moved(*(bytes / 1e9 for bytes in (whole + stem, stored, decoded, sent, sent, composing + 2 * stem)))


def on_paper(report: Report, given: Sequence[str]) -> None:
    """Reports it of every codec; `given` are speeds in place of SPEEDS, as in disk=7."""
    speeds = {**SPEEDS, **{name: float(speed) for name, _, speed in (each.partition("=") for each in given)}}
    rows = []
    for codec in ("checkpoint", "exact", "int8", "int4", "sign"):
        moved = new_language(codec)
        seconds = moved.seconds(speeds)
        cached = {name: took for name, took in seconds.items() if name != "disk"}
        bounds = [max(each, key=each.__getitem__) for each in (seconds, cached)]
        rows.append((codec, *bounds, moved.pages, moved.disk, *seconds.values(), max(seconds.values())))
    report.table(
        f"A new language of Llama-3.1-8B on a GPU: GB and seconds, at GB/s of {json.dumps(speeds)[1:-1]}",
        ("source", "bound", "bound once in the page cache", "GB of pages", "GB stored", *speeds, "at best"),
        rows,
    )
