"""compositions: the commands that show, write and compare a composition."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from layerloom import composer
from layerloom.composer import Family

from .console import FamilyPath, Name, clear_errors, out


def merge(
    family: FamilyPath,
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="directory to write; must not exist or be empty")],
) -> None:
    """Writes a composition as an ordinary Hugging Face checkpoint."""
    with clear_errors():
        path = composer.merge(Family.load(family), name, output)
    out.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def verify(
    family: FamilyPath,
    name: Name,
    against: Annotated[Path, typer.Option(help="a checkpoint directory to compare with")],
) -> None:
    """Compares a composition with a checkpoint bit by bit; exit status 1 lists the tensors that differ."""
    with clear_errors():
        differences = composer.verify(Family.load(family), name, against)
    if not differences:
        out.print("equal, bit by bit", highlight=False)
        return
    table = Table(Column("tensor", overflow="fold"), "difference", title=f"{len(differences)} tensors differ")
    for difference in differences:
        table.add_row(escape(difference.tensor), escape(difference.reason))
    out.print(table)
    raise typer.Exit(1)


def plan(family: FamilyPath, name: Name) -> None:
    """Shows which expert, or blend of experts, each layer of a composition comes from."""
    with clear_errors():
        loaded = Family.load(family)
        planned, speaker = loaded.plan(name), loaded.speaker(name)
    title = f"{planned.name}   digest {planned.digest[:12]}"
    table = Table("layer", "from", title=title, caption=escape(f"chat template, eos and sampling: {speaker}"))
    rows = [(str(index), blend.describe()) for index, blend in enumerate(planned.layers)]
    rows.append(("stem", composer.describe_blend(planned.stem)))
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index][1] != rows[start][1] or rows[index][0] == "stem":
            first, last = rows[start][0], rows[index - 1][0]
            table.add_row(first if first == last else f"{first}-{last}", escape(rows[start][1]))
            start = index
    out.print(table)
