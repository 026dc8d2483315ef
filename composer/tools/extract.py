"""extract: an expert's checkpoint made into an archive."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from layerloom.composer.errors import ComposeError, FamilyError
from layerloom.composer.family.fit import base_problems, expert_problems, warn_of
from layerloom.composer.sources.archive import SAID, VOICE
from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.codecs import DTYPES, Codec, Exact, Parts, change, error, same, smallest
from layerloom.composer.sources.manifest import METADATA, Base, Manifest, Stored
from layerloom.composer.sources.respelled import respelled
from layerloom.composer.sources.source import Source
from layerloom.composer.sources.stream import Digest, in_order, keep
from layerloom.composer.sources.voice import Voice, difference
from layerloom.composer.sources.writer import WORDS, Writer, new_file

Progress = Callable[[str, int], None]
"""Called with each tensor's name and size in bytes when it is done."""


AHEAD = 1 << 27
"""Bytes of two pairs of tensors that may be in memory at a time."""


def extract(
    base: Path,
    expert: Path,
    out: Path,
    codec: Codec | None = None,
    error_bound: float | None = None,
    everything: bool = False,
    progress: Progress = lambda name, size: None,
) -> Manifest:
    """Writes the differences of one checkpoint from another as an archive, and returns what it says of itself.

    `codec` stores the matrices in the decoder layers; norms, biases and the stem are stored exact, unless
    `everything` is set. An `error_bound` in place of a codec takes, tensor by tensor, the smallest codec whose error
    ‖Ê - E‖ / ‖E - B‖ is within it; with neither all is exact. Tensors equal to the base's are not stored. A few
    tensors are in memory at a time. The file appears when it is complete. Raises FamilyError when the two do not fit
    each other, and ComposeError.
    """
    if codec is not None and error_bound is not None:
        raise ComposeError("give either a codec or an error bound")
    if error_bound is not None and not (math.isfinite(error_bound) and error_bound >= 0.0):
        raise ComposeError(f"the error bound must be finite and not negative, not {error_bound}")
    theirs = Checkpoint(Path(base).expanduser().absolute())
    ours = respelled(Checkpoint(Path(expert).expanduser().absolute(), theirs), theirs)
    problems = base_problems(theirs) + expert_problems(theirs, ours)
    if problems:
        raise FamilyError(problems)
    warn_of(ours)
    out = Path(out).expanduser().absolute()
    if out.suffix != ".safetensors":
        raise ComposeError(f"{out}: the name must end in .safetensors")
    voice = difference(ours.voice, theirs.voice)
    said = {} if voice == Voice() else {VOICE: SAID.dump_json(voice).decode()}
    digest = Digest()
    tensors: dict[str, Stored] = {}
    with new_file(out) as (writer, partial):
        for name, e, b in pairs(ours, theirs, digest):
            if not same(e, b):
                plain = not everything and is_plain(theirs, name)
                try:
                    tensors[name] = store(
                        writer, name, e, b, Exact() if plain else codec, None if plain else error_bound
                    )
                except ComposeError as reason:
                    raise ComposeError(f"{ours.tensors[name].file}: {name}: {reason}") from reason
            progress(name, e.nbytes)
            del e, b  # before the next two are read
        keep(theirs, digest.hexdigest())
        manifest = Manifest(
            version=2 if any(stored.codec.version == 2 for stored in tensors.values()) else 1,
            tool=f"layerloom {tool_version()}",
            expert=ours.path.name,
            base=Base(name=theirs.path.name, digest=digest.hexdigest(), depth=theirs.depth),
            tensors=tensors,
        )
        with partial.open("wb") as file:
            writer.finish(file, {METADATA: manifest.model_dump_json(), **said})
    return manifest


def pairs(ours: Source, theirs: Checkpoint, digest: Digest) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, E, B) of each tensor; the next are read and hashed meanwhile, where the four take little memory."""

    def read(name: str) -> tuple[str, torch.Tensor, torch.Tensor]:
        e, b = ours.read(name), theirs.read(name)
        digest.add(name, theirs.tensors[name].dtype, b)
        return name, e, b

    def size(name: str) -> int:
        info = theirs.tensors[name]
        return 2 * math.prod(info.shape) * DTYPES[info.dtype].itemsize if info.dtype in DTYPES else AHEAD

    names = in_order(theirs)
    with ThreadPoolExecutor(1) as reader:
        coming: Future[tuple[str, torch.Tensor, torch.Tensor]] | None = None
        for name, after in zip(names, [*names[1:], None], strict=True):
            found = read(name) if coming is None else coming.result()
            coming = None if after is None or size(name) + size(after) > AHEAD else reader.submit(read, after)
            yield found
            del found


def store(
    writer: Writer, name: str, e: torch.Tensor, b: torch.Tensor, codec: Codec | None, bound: float | None
) -> Stored:
    """Writes the parts of one tensor, and returns what the manifest says of it."""
    used, parts = encoded(e, b, codec, bound)
    lost = 0.0 if used.lossless else error(used.decode(parts, b), e, b)
    if not math.isfinite(lost):
        raise ComposeError(f"{used.codec} makes numbers that are not finite; use exact")
    for part, content in parts.items():
        writer.add(f"{name}:{part}", content)
    moved = change(e, b)
    return Stored(
        codec=used,  # type: ignore[arg-type]
        dtype=WORDS[e.dtype],  # type: ignore[arg-type]
        shape=tuple(e.shape),
        change=moved if math.isfinite(moved) else None,
        error=lost,
    )


def is_plain(base: Checkpoint, name: str) -> bool:
    """Whether a tensor is stored exact unless asked otherwise: a norm, a bias, or one outside the layers."""
    return base.layout.layer_of(name) is None or len(base.tensors[name].shape) < 2


def encoded(e: torch.Tensor, b: torch.Tensor, codec: Codec | None, bound: float | None) -> tuple[Codec, Parts]:
    """A tensor under a codec, or under the smallest within a bound; exact where the codec cannot store its shape."""
    if bound is not None:
        return smallest(e, b, bound)
    codec = codec or Exact()
    return (codec if codec.suits(e.shape) else Exact()).encode(e, b)


def tool_version() -> str:
    try:
        return version("layerloom")
    except PackageNotFoundError:
        return "0"
