"""compositions: the commands that show, write and compare a composition."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import FamilyPath, Name, show
from .progress import files_of, load_family, progress, size_of
from .tables import show_table

if TYPE_CHECKING:
    from layerloom.composer import Plan


def merge(
    family: FamilyPath,
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="directory to write; must not exist or be empty")],
) -> None:
    """Write a composition as an ordinary checkpoint.

    In Hugging Face's format, with tokenizer and chat template, for any program that loads one. As in: layerloom merge
    demo math+swahili -o merged
    """
    loaded = load_family(family, name)
    from layerloom import composer

    with progress("merging", size_of(files_of(loaded, "base"))) as advance:
        path = composer.merge(loaded, name, output, progress=advance)
    show(f"wrote {path}")


def verify(
    family: FamilyPath,
    name: Name,
    against: Annotated[Path, typer.Option(help="the checkpoint's directory")],
    as_json: Annotated[
        bool,
        typer.Option("--json", help="one JSON object: name, against, equal, differences (tensor, reason, count)"),
    ] = False,
) -> None:
    """Compare a composition with a checkpoint, bit by bit.

    Exit status 1 says that they differ, and which tensors do. As in: layerloom verify demo math+sw --against merged
    """
    loaded = load_family(family, name)
    from layerloom import composer

    with progress("comparing", size_of(files_of(loaded, "base"))) as advance:
        differences = composer.verify(loaded, name, against, advance)
    if as_json:
        found = {
            "name": loaded.parse(name).name,
            "against": str(against),
            "equal": not differences,
            "differences": [asdict(difference) for difference in differences],
        }
        print(json.dumps(found))
    elif not differences:
        show("equal, bit by bit")
    else:
        rows = [(difference.tensor, difference.reason) for difference in differences]
        show_table(f"{len(rows)} tensors differ", ("tensor", "difference"), rows)
    if differences:
        raise typer.Exit(1)


def plan(
    family: FamilyPath,
    name: Name,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="one JSON object: name, digest, speaker, residency, layers and stem, with the weight of each expert; "
            "of a layer by attention, mlp and norm. The base has what is left of 1",
        ),
    ] = False,
) -> None:
    """Show which expert each layer of a composition comes from.

    And whose chat template it has. As in: layerloom plan demo math+swahili
    """
    loaded = load_family(family, name)
    planned, speaker = loaded.plan(name), loaded.speaker(name)
    if as_json:
        print(json.dumps(in_json(planned, speaker)))
        return
    from layerloom.composer import describe_blend

    rows = [(str(index), blend.describe()) for index, blend in enumerate(planned.layers)]
    rows.append(("stem", describe_blend(planned.stem)))
    together: list[tuple[str, str]] = []
    for label, said in rows:
        if together and label != "stem" and together[-1][1] == said:
            label = f"{together.pop()[0].partition('-')[0]}-{label}"
        together.append((label, said))
    title = f"{planned.name}   digest {planned.digest[:12]}"
    show_table(title, ("layer", "from"), together, caption=f"chat template, eos and sampling: {speaker}")


def in_json(planned: "Plan", speaker: str) -> dict[str, Any]:
    from layerloom.composer import KINDS

    return {
        "name": planned.name,
        "digest": planned.digest,
        "speaker": speaker,
        "residency": planned.residency,
        "layers": [{kind: dict(layer.of(kind)) for kind in KINDS} for layer in planned.layers],
        "stem": dict(planned.stem),
    }
