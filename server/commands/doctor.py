"""doctor: what stands in the way of serving, and what to do about it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from .console import err, out
from .failures import Told
from .findings import FINE, NOTE, STOP, Finding
from .progress import load_family

MARKS = {FINE: ("ok", "green"), NOTE: ("--", "yellow"), STOP: ("!!", "red")}


def doctor(
    family: Annotated[
        Path | None, typer.Argument(metavar="FAMILY", help="family.yaml, or the directory that holds it")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="one JSON object: ok, versions, device, memory (bytes: total, free), family (bytes, or null), and "
            "findings, each with level (fine, note, stop), about, text and next",
        ),
    ] = False,
) -> None:
    """Look for what would keep a family from being served.

    Versions, vLLM, the device, memory and files; of a family also whether its files fit each other, and how many of
    its compositions fit into memory at once. Exit status 1 says that something would stop it; each finding says what
    to do next.
    """
    from .machine import look_at_machine, memory
    from .software import look_at_software, versions

    with err.status("looking at what is installed (vLLM takes some seconds)"):
        found, vllm = look_at_software()
        found += look_at_machine(vllm)
        total, free = memory()
    room = None
    if family is not None:
        more, room = look_at_family(family, vllm, free)
        found += more
    stops = any(finding.level == STOP for finding in found)
    if as_json:
        said = {
            "ok": not stops,
            "versions": versions(),
            "device": vllm.get("device"),
            "memory": {"total": total, "free": free},
            "family": room,
            "findings": [asdict(finding) for finding in found],
        }
        print(json.dumps(said))
    else:
        for finding in found:
            show_finding(finding)
    if stops:
        raise typer.Exit(1)


def look_at_family(path: Path, vllm: dict[str, Any], free: int) -> tuple[list[Finding], dict[str, int] | None]:
    from layerloom.composer import ComposeError, FamilyError

    try:
        loaded = load_family(path)
    except (ComposeError, Told) as error:
        problems = error.problems if isinstance(error, FamilyError) else [str(error)]
        return [Finding(STOP, "family", problem, "mend the file that is named") for problem in problems], None
    from .room import look_at_room

    found = []
    if loaded.base.layout.nested:
        from layerloom.server.versions import installed

        if installed("torchvision") is None:
            text = "vLLM needs torchvision for a model with a vision tower, even for text alone"
            next = f"install the torchvision that goes with torch {installed('torch')}"
            found.append(Finding(STOP, "family", text, next))
    gpus = vllm.get("gpus", [])
    more, room = look_at_room(loaded, min(gpu["bytes"] for gpu in gpus) if gpus else free, bool(gpus))
    return [*found, *more], asdict(room)


def show_finding(finding: Finding) -> None:
    mark, colour = MARKS[finding.level]
    arrow = f"  ->  {finding.next}" if finding.next and finding.level != FINE else ""
    line = Text.assemble((mark, colour), f"  {finding.about:<11} {finding.text}{arrow}")
    out.print(line, highlight=False, soft_wrap=True)
