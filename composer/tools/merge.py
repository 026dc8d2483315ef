"""merge: a composition written as a checkpoint, and compared with one. The reference for everything served."""

import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from layerloom.composer.errors import ComposeError
from layerloom.composer.family.family import Family
from layerloom.composer.family.plan import Blend, Plan, kind_of
from layerloom.composer.sources.checkpoint import Checkpoint, TensorInfo
from layerloom.composer.sources.header import BITS
from layerloom.composer.sources.respelled import Respelled, respelled
from layerloom.composer.sources.shards import INDEX, SINGLE
from layerloom.kernels import compose
from layerloom.kernels.compose import left_by

from .sidecars import write_sidecars

MAX_SHARD_BYTES = 5_000_000_000
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Difference:
    """A tensor in which a checkpoint is not the composition, and how many of its elements differ."""

    tensor: str
    reason: str
    count: int


def tensors(family: Family, plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the composition by name, of the base's shape and dtype. Not to be written to."""
    for name in family.base.tensors:
        yield name, tensor(family, plan, name)


def tensor(family: Family, plan: Plan, name: str) -> torch.Tensor:
    """One tensor of the composition, of the base's shape and dtype."""
    return blended(blend_for(family, plan, name), lambda source: family.checkpoint(source).read(name))


def blended(blend: Blend, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """One tensor of a composition from those that `read` gives for an expert's name, or "base"."""
    if not blend:
        return read("base")
    sources = [read(expert) for expert, _ in blend]
    weights = [weight for _, weight in blend]
    if weights == [1.0]:
        return sources[0]
    base = read("base") if left_by(weights) else None
    return compose(torch.empty_like(sources[0]), base, sources, weights)


def blend_for(family: Family, plan: Plan, name: str) -> Blend:
    """The blend of one of the base's tensors, by name; what is outside its language model is the base's."""
    layout = family.base.layout
    if layout.is_outside(name):
        return ()
    layer = layout.layer_of(name)
    return plan.stem if layer is None else plan.layers[layer].of(kind_of(name))


def no_progress(tensor: str, size: int) -> None:
    """Called with the name and the bytes of each tensor that is done."""


def merge(
    family: Family,
    name: str,
    out: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[str, int], None] = no_progress,
) -> Path:
    """Writes a composition as an ordinary Hugging Face checkpoint and returns its directory.

    At most a shard is in memory; `progress` hears of each tensor, as it is made, its name and bytes. The directory
    appears when it is complete. Raises ComposeError when `out` exists and is not an empty directory, or cannot be
    written.
    """
    plan = family.plan(name)
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ComposeError(f"{out}: exists and is not an empty directory: name another, or empty it")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        write_sidecars(family.base, family.voice(name), partial)
        _write_shards(family, plan, partial, max_shard_bytes, progress)
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise ComposeError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def verify(
    family: Family, name: str, against: Path, progress: Callable[[str, int], None] = no_progress
) -> list[Difference]:
    """Compares a composition with a checkpoint, bit by bit; empty when they are equal. Raises ComposeError."""
    plan = family.plan(name)
    checkpoint = respelled(Checkpoint(Path(against).expanduser().absolute()), family.base, whole=True)
    found = []
    for tensor_name, info in family.base.tensors.items():
        found.append(_difference(family, plan, checkpoint, tensor_name))
        progress(tensor_name, _bytes(info))
    extra = sorted(checkpoint.tensors.keys() - family.base.tensors.keys())
    return [difference for difference in found if difference is not None] + [
        Difference(tensor_name, "extra: the composition has no such tensor", _numel(checkpoint.tensors[tensor_name]))
        for tensor_name in extra
    ]


def _difference(family: Family, plan: Plan, checkpoint: Checkpoint | Respelled, name: str) -> Difference | None:
    ours, theirs = family.base.tensors[name], checkpoint.tensors.get(name)
    if theirs is None:
        return Difference(name, "missing", _numel(ours))
    for field in ("dtype", "shape"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            return Difference(name, f"{field} {other}, the composition's is {mine}", _numel(ours))
    wanted, stored = tensor(family, plan, name), checkpoint.read(name)
    # As integers, because a NaN is not equal to itself and 0.0 is equal to -0.0.
    integer = INTEGERS[wanted.element_size()]
    differing = wanted.view(integer) != stored.view(integer)
    count = int(differing.sum())
    if not count:
        return None
    first = tuple(int(i) for i in differing.nonzero()[0])
    return Difference(name, f"{count} of {wanted.numel()} elements differ, the first at {first}", count)


def _write_shards(
    family: Family, plan: Plan, directory: Path, max_shard_bytes: int, progress: Callable[[str, int], None]
) -> None:
    def made(name: str) -> torch.Tensor:
        found = tensor(family, plan, name)
        progress(name, found.nbytes)
        return found

    shards = _shards(family.base, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: made(name) for name in names}, directory / file, {"format": "pt"})
        # safetensors makes a file that only its owner can read.
        (directory / file).chmod((directory / "config.json").stat().st_mode)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_bytes(info) for info in family.base.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(checkpoint: Checkpoint, max_bytes: int) -> list[list[str]]:
    """The tensors in the order of the layers, cut so that no shard is larger, unless one tensor alone is."""

    def place(name: str) -> tuple[int, str]:
        layer = checkpoint.layout.layer_of(name)
        return (-1 if layer is None else layer, name)

    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(checkpoint.tensors, key=place):
        more = _bytes(checkpoint.tensors[name])
        if shards[-1] and size + more > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards


def _numel(info: TensorInfo) -> int:
    return math.prod(info.shape)


def _bytes(info: TensorInfo) -> int:
    return _numel(info) * BITS[info.dtype] // 8
