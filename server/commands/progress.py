"""progress: how far something is, on stderr and only where that is a terminal; it is gone when it ends."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from .console import err
from .failures import Told

if TYPE_CHECKING:
    from layerloom.composer import Family

Advance = Callable[[str, float], None]
"""What is done now, and how much of the total that is."""


@contextmanager
def progress(label: str, total: float, in_bytes: bool = True) -> Iterator[Advance]:
    counts: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(label, total=total)

        def advance(now: str, done: float) -> None:
            bar.update(task, advance=done, description=f"{label} {now}" if now else label)

        yield advance


def load_family(path: Path, name: str | None = None) -> "Family":
    """Opens a family, and reads those of its files, or of those that `name` is made of, whose fingerprints are new.

    Raises ComposeError and Told.
    """
    if not path.exists():
        raise Told(f"{path}: there is no such file or directory: FAMILY is family.yaml, or where it is")
    if path.is_dir() and not (path / "family.yaml").exists():
        raise Told(f"{path}: has no family.yaml, which says what base and experts there are")
    with err.status("reading the family"):
        from layerloom.composer import Family

        family = Family.load(path)
        roles = family.parse(name).roles.values() if name is not None else ()
    fingerprints(family, set(roles) & family.experts.keys() or family.experts)
    return family


def fingerprints(family: "Family", experts: Iterable[str]) -> None:
    sources = ["base", *experts]
    sizes = {source: size_of(files_of(family, source)) for source in sources}
    with progress("reading", sum(sizes.values())) as advance:
        for source in sources:
            advance(source, 0)
            family.checkpoint(source).revision  # noqa: B018  (a property that takes long)
            advance(source, sizes[source])


def files_of(family: "Family", source: str) -> set[Path]:
    """An expert's own, without those of the base."""
    files, base = ({info.file for info in family.checkpoint(name).tensors.values()} for name in (source, "base"))
    return files if source == "base" else files - base


def size_of(files: Iterable[Path]) -> int:
    """Bytes."""
    return sum(file.stat().st_size for file in files)
