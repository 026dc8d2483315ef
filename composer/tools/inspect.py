"""inspect: what an expert changes and what that takes, tensor by tensor and layer by layer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from layerloom.composer.errors import ComposeError, FamilyError
from layerloom.composer.family.family import Expert, Family
from layerloom.composer.family.fit import base_problems, expert_problems, warn_of
from layerloom.composer.sources.adapter import Adapter
from layerloom.composer.sources.archive import Archive, ArchiveFile
from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.codecs import DTYPES, change, same
from layerloom.composer.sources.layout import Layout
from layerloom.composer.sources.manifest import Stored
from layerloom.composer.sources.source import Source, open_source


@dataclass(frozen=True)
class Row:
    """One tensor that is not the base's.

    `layer` is None in the stem; `module` is the name within the layer. `bytes` is what it takes on disk, `plain`
    what the tensor itself takes. `change` is ‖E - B‖ / ‖B‖ and `error` ‖Ê - E‖ / ‖E - B‖, None where
    not finite.
    """

    tensor: str
    layer: int | None
    module: str
    codec: str
    bytes: int
    plain: int
    change: float | None
    error: float | None


@dataclass(frozen=True)
class Report:
    """An expert: `kind` is "archive", "checkpoint" or "adapter"; `base` says on which base, for people.

    `depth` is the number of decoder layers, those without a row included.
    """

    path: Path
    kind: str
    expert: str
    base: str
    depth: int
    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def plain(self) -> int:
        return sum(row.plain for row in self.rows)


def inspect(
    path: str | Path, progress: Callable[[str], None] = lambda name: None, base: str | Path | None = None
) -> list[Report]:
    """The report of an archive, of every expert of a family, or of any expert on `base`. Raises ComposeError.

    Of an archive only the header is read; checkpoints and adapters are compared with the base, tensor by tensor.
    """
    path = Path(path).expanduser().absolute()
    if base is not None:
        on = Checkpoint(Path(base).expanduser().absolute())
        source = open_source(path, on)
        if problems := base_problems(on) + expert_problems(on, source):
            raise FamilyError(problems)
        warn_of(source)
        return [of_source(source, on, path.stem if path.is_file() else path.name, progress)]
    if path.is_file() and path.suffix == ".safetensors":
        return [of_archive(ArchiveFile(path))]
    if path.is_dir() and not (path / "family.yaml").exists():
        raise ComposeError(f"{path}: has no family.yaml; to see what a checkpoint or adapter changes, give --base too")
    family = Family.load(path)
    return [of_expert(family, expert, progress) for expert in family.experts.values()]


def of_expert(family: Family, expert: Expert, progress: Callable[[str], None] = lambda name: None) -> Report:
    """The report of one expert of a family."""
    return of_source(expert.checkpoint, family.base, expert.name, progress)


def of_archive(file: ArchiveFile, name: str | None = None, layout: Layout | None = None) -> Report:
    """The report an archive gives of itself; `layout` is its base's where that is known. Raises ComposeError."""

    layout = layout or file.layout

    def row(tensor: str, stored: Stored) -> Row:
        plain = math.prod(stored.shape) * DTYPES[stored.dtype].itemsize
        size = file.bytes_of(tensor)
        return Row(
            tensor,
            layout.layer_of(tensor),
            module_of(layout, tensor),
            stored.codec.codec,
            size,
            plain,
            stored.change,
            stored.error,
        )

    manifest = file.manifest
    rows = in_order(row(tensor, stored) for tensor, stored in manifest.tensors.items())
    base = f"{manifest.base.name} (sha256 {manifest.base.digest[:12]}…)"
    return Report(file.path, "archive", name or manifest.expert, base, manifest.base.depth, rows)


def of_source(source: Source, base: Checkpoint, name: str, progress: Callable[[str], None]) -> Report:
    """The report of an expert on its base. But in an archive tensors are as they are: no codec, no error."""
    if isinstance(source, Archive):
        return of_archive(source.file, name, base.layout)
    kind = "adapter" if isinstance(source, Adapter) else "checkpoint"
    layout = base.layout
    rows = []
    for tensor, info in source.tensors.items():
        if kind == "checkpoint" or info.file != base.tensors[tensor].file:
            e, b = source.read(tensor), base.read(tensor)
            if not same(e, b):
                moved = change(e, b)
                shown = moved if math.isfinite(moved) else None
                layer, module = layout.layer_of(tensor), module_of(layout, tensor)
                rows.append(Row(tensor, layer, module, kind, e.nbytes, e.nbytes, shown, 0.0))
        progress(tensor)
    return Report(source.path, kind, name, str(base.path), base.depth, in_order(rows))


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The stem, then layer by layer."""
    return tuple(sorted(rows, key=lambda row: (-1 if row.layer is None else row.layer, row.tensor)))


def module_of(layout: Layout, tensor: str) -> str:
    """The name within the layer, "self_attn.q_proj", or in the stem, "model.norm"; a bias keeps its last word."""
    return layout.within(tensor).removesuffix(".weight")
