"""archive: an expert as its differences from the base, in one safetensors file."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from layerloom.composer.errors import ComposeError, quoted

from .checkpoint import Checkpoint, TensorInfo
from .codecs import DTYPES, Codec, Parts
from .layout import Layout
from .manifest import METADATA, Manifest, Stored, read_manifest
from .stream import digest
from .tensorfile import TensorFile, revision_of
from .voice import Voice, checked
from .writer import WORDS

VOICE = "layerloom.voice"
"""The key of `__metadata__` under which an archive has what its expert's `Voice` says that the base's does not."""

SAID = TypeAdapter(Voice)


class ArchiveFile:
    """An archive without its base: what it says, and the stored parts. Raises ComposeError with file and tensor.

    All that the header shows is checked here; a part's content is checked when it is decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = TensorFile(path)
        text = self._file.metadata.get(METADATA)
        if text is None:
            raise ComposeError(f"{path}: is no delta archive: its metadata has no {METADATA!r}")
        with placing(str(path)):
            self.manifest: Manifest = read_manifest(text)
            self.voice = voice_of(self._file.metadata.get(VOICE), path)
        self._check_parts()

    @cached_property
    def revision(self) -> str:
        """As a checkpoint's."""
        return revision_of(self._file)

    @property
    def layout(self) -> Layout:
        """Of what it stores, as far as that shows it. Raises ComposeError."""
        try:
            return Layout(self.manifest.tensors)
        except ValueError as error:
            raise ComposeError(f"{self.path}: {error}") from error

    def parts(self, name: str) -> dict[str, torch.Tensor]:
        """The stored parts of a tensor."""
        stored = self.manifest.tensors[name]
        return {part: self._file.read(f"{name}:{part}") for part in shapes(stored)}

    def bytes_of(self, name: str) -> int:
        """What a tensor takes in the file."""
        return sum(
            torch.Size(shape).numel() * dtype.itemsize for dtype, shape in shapes(self.manifest.tensors[name]).values()
        )

    def _check_parts(self) -> None:
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, stored in self.manifest.tensors.items():
            with placing(f"{self.path}: {name}"):
                wanted |= {f"{name}:{part}": (WORDS[dtype], shape) for part, (dtype, shape) in shapes(stored).items()}
        held = self._file.tensors.keys()
        for part in sorted(wanted.keys() ^ held):
            reason = "is not in the metadata" if part in held else "is missing"
            raise ComposeError(f"{self.path}: {part if part in wanted else quoted(part)} {reason}")
        for part, (dtype, shape) in wanted.items():
            found = self._file.tensors[part]
            if (found.dtype, found.shape) != (dtype, shape):
                wanted_shape = quoted(shape)[1:-1]
                reason = f"is {found.dtype} {found.shape}, and must be {dtype} {wanted_shape}"
                raise ComposeError(f"{self.path}: {part} {reason}")


class Archive:
    """An archive on its base, read like a `Checkpoint`: a tensor that is not stored is the base's.

    Raises ComposeError, naming both, when the base is not the one the archive was taken from.
    """

    def __init__(self, path: Path, base: Checkpoint) -> None:
        self.path = path
        self.base = base
        self.file = ArchiveFile(path)
        self.manifest = self.file.manifest
        self.voice = self.file.voice
        self._check_base()
        self.config: dict[str, Any] = base.config
        self.depth = base.depth
        self.stem = base.stem
        self.layer = base.layer
        self.note: str | None = None
        self.tensors: dict[str, TensorInfo] = {
            **base.tensors,
            **{name: TensorInfo(path, stored.dtype, stored.shape) for name, stored in self.manifest.tensors.items()},
        }

    @cached_property
    def revision(self) -> str:
        """Of the file's and the base's."""
        return hashlib.sha256(f"{self.file.revision} {self.base.revision}".encode()).hexdigest()

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor on the CPU, of the base's dtype and shape: in `out`, which is such a one, or in its own memory."""
        stored = self.manifest.tensors.get(name)
        under = self.base.read(name, out)
        if stored is None:
            return under
        parts = self.file.parts(name)
        with placing(f"{self.path}: {name}"):
            return stored.codec.decode(parts, under, under)

    def packing(self, names: Sequence[str]) -> Codec | None:
        """The one packed codec (see `Codec.packed`) of all the matrices of `names` that differ from the base's."""
        matrices = [self.manifest.tensors[name] for name in names if name in self.manifest.tensors]
        codecs = {stored.codec for stored in matrices if len(stored.shape) > 1}
        return next(iter(codecs)) if len(codecs) == 1 and all(codec.packed for codec in codecs) else None

    def packed(self, name: str, codec: Codec) -> Parts:
        """The parts of a matrix under `codec`, which is `packing` of it; a zero difference where it is the base's."""
        if name in self.manifest.tensors:
            return self.file.parts(name)
        info = self.base.tensors[name]
        wanted = codec.shapes(info.shape, DTYPES[info.dtype])
        return {part: torch.zeros(shape, dtype=dtype) for part, (dtype, shape) in wanted.items()}

    def _check_base(self) -> None:
        ours, theirs = self.manifest.base, self.base
        if ours.depth != theirs.depth:
            refused = f"{ours.depth} layers, and {theirs.path} has {theirs.depth}"
            raise ComposeError(f"{self.path}: its base {quoted(ours.name)} has {refused}")
        for name, stored in self.manifest.tensors.items():
            info = theirs.tensors.get(name)
            if info is None:
                raise ComposeError(f"{self.path}: {name}: the base {theirs.path} has no such tensor")
            if theirs.layout.is_outside(name):
                raise ComposeError(f"{self.path}: {name}: is outside the language model, which alone is composed")
            if (info.dtype, info.shape) != (stored.dtype, stored.shape):
                found = f"{info.dtype} {info.shape} in the base {theirs.path}"
                raise ComposeError(f"{self.path}: {name}: is {stored.dtype} {stored.shape}, and {found}")
        found = digest(theirs)
        if found != ours.digest:
            given = f"{theirs.path} (sha256 {found[:12]}…)"
            raise ComposeError(
                f"{self.path}: is for the base {quoted(ours.name)} (sha256 {ours.digest[:12]}…), not for {given}"
            )


def shapes(stored: Stored) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The parts a tensor must have. Raises ComposeError when its codec cannot store such a tensor."""
    if not stored.codec.suits(stored.shape):
        raise ComposeError(f"{stored.codec.codec} does not store tensors of shape {stored.shape}")
    return stored.codec.shapes(stored.shape, DTYPES[stored.dtype])


def voice_of(text: str | None, path: Path) -> Voice:
    """What an archive says of how its expert speaks. Raises ComposeError."""
    try:
        return Voice() if text is None else checked(SAID.validate_json(text), path)
    except ValidationError as error:
        raise ComposeError(f"metadata: {VOICE}: {quoted(error.errors(include_url=False)[0]['msg'])}") from error


class placing:
    """Puts a place before the message of a ComposeError."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ComposeError):
            raise ComposeError(f"{self.place}: {error}") from error
