"""imported: a mergekit configuration written as a family.yaml."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from layerloom.composer.errors import ComposeError, FamilyError, listed, quoted
from layerloom.composer.family.entries import Entries, Location
from layerloom.composer.family.names import RESERVED, nearest
from layerloom.composer.family.plan import KINDS

from .configuration import Configuration, Model, Reference, read_configuration
from .models import Models, opened, word, written
from .notes import numeric_notes, other_notes
from .refused import references, refusals
from .sums import Findings, Sum, Summing, Sums

Source = str | dict[str, float]


@dataclass(frozen=True)
class Imported:
    """A family.yaml that was written. `experts` has their kinds; `notes` says where mergekit's result may differ."""

    path: Path
    name: str
    experts: dict[str, str]
    notes: tuple[str, ...]


def import_mergekit(
    file: Path,
    out: Path,
    base: str | None = None,
    name: str | None = None,
    tasks: Sequence[str] = (),
    languages: Sequence[str] = (),
) -> Imported:
    """Writes the family.yaml in which a mergekit configuration of method linear or passthrough is a composition.

    `base` is a directory or a repository of the hub's ("org/name@revision"), for configurations that do not state a
    base_model; `name` is the composition's, by default the file's. An expert is a language where it weighs more in the
    first and last layer than elsewhere, and a task otherwise, or what `tasks` and `languages` say. A path in the file
    is looked for from the working directory, as mergekit does, and then beside the file. Raises FamilyError with all
    that no composition is, and ComposeError, also when `out` exists.
    """
    file, out = (Path(os.path.abspath(Path(path).expanduser())) for path in (file, out))
    if out.is_dir():
        out = out / "family.yaml"
    if out.exists():
        raise ComposeError(f"{out}: exists")
    config = read_configuration(file)
    problems = list(refusals(config))
    if problems:
        raise FamilyError([f"{file}: {problem}" for problem in problems])
    chosen = base_of(file, config, base)
    models = Models(config, chosen, (Path.cwd(), file.parent), problems)
    if problems:
        raise FamilyError([f"{file}: {problem}" for problem in problems])
    if not models.names:
        raise ComposeError(f"{file}: takes all layers from the base")
    checkpoint = opened(models.base)
    findings = Findings()
    sums = Summing(config, models.where, checkpoint, findings).sums()
    if sums is None:
        raise FamilyError([f"{file}: {problem}" for problem in findings.problems.values()])
    kinds = kinds_of(sums, models, tasks, languages)
    label = next(
        label for label in (word(name or config.name or file.stem), "merged", "composition")
        if label not in RESERVED and label not in kinds
    )  # fmt: skip
    entries: dict[str, Any] = {
        "base": location(models, models.base, out.parent),
        "experts": {
            expert: {"kind": kinds[expert], **location(models, place, out.parent)}
            for place, expert in models.names.items()
        },
        "compositions": {label: {"recipe": recipe(sums, models)}},
    }
    if len(sums.layers) < 4:
        # The family's own recipe is for its pairs, and the default has four zones.
        entries["recipe"] = {"transition": 0}
    notes = [*findings.notes.values(), *numeric_notes(sums, models.name, checkpoint), *other_notes(config, checkpoint)]
    hubs = [place.hub for place in models.written if place.hub]
    if hubs:
        notes.append(f"from the hub, as there is no such directory: {listed(hubs)}")
    write(out, entries, f"From {quoted(file.name)}, a configuration of mergekit.")
    return Imported(out, label, kinds, tuple(notes))


def base_of(file: Path, config: Configuration, base: str | None) -> Reference:
    """What is given, or stated, or that on which all adapters are. Raises ComposeError."""
    if base is not None:
        try:
            return TypeAdapter[Reference](Model).validate_python(base)
        except ValidationError as error:
            raise ComposeError(
                f"--base {quoted(base)}: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
            ) from error
    slices = [item for part in config.parts for item in part.slices or ()]
    stated = config.base_model or next((item.base_model for item in slices if item.base_model), None)
    if stated is not None:
        if stated.lora is not None:
            raise ComposeError(f"{file}: {quoted(stated)}: a base is no adapter; merge it with PEFT first")
        return stated
    used = references(config)
    under = {reference.model for reference in used}
    if len(under) == 1 and any(reference.lora for reference in used):
        return Reference(model=under.pop())
    raise ComposeError(
        f"{file}: has no base_model: give --base DIRECTORY, or --base org/name, the model of which "
        f"{listed([str(reference) for reference in used])} are fine-tunes"
    )


def kinds_of(sums: Sums, models: Models, tasks: Sequence[str], languages: Sequence[str]) -> dict[str, str]:
    """{expert: "task" or "language"}."""
    told = {**dict.fromkeys(tasks, "task"), **dict.fromkeys(languages, "language")}
    for expert in told:
        if expert not in models.names.values():
            close = nearest(expert, models.names.values())
            hint = f" (did you mean {close!r}?)" if close else ""
            raise ComposeError(f"there is no expert {quoted(expert)}{hint}. Valid: {listed([*models.names.values()])}")
        if expert in tasks and expert in languages:
            raise ComposeError(f"{expert} is told to be both a task and a language")
    kinds = {}
    for place, expert in models.names.items():
        shares = [math.fsum(dict(layer[kind].terms).get(place, 0.0) for kind in KINDS) for layer in sums.layers]
        outer = (shares[0] + shares[-1]) / 2 > math.fsum(shares) / len(shares) + 1e-9
        kinds[expert] = told.get(expert, "language" if outer else "task")
    return kinds


def recipe(sums: Sums, models: Models) -> dict[str, Any]:
    """A soup where all is one blend, else a table."""
    stem = source(sums.stem, models)
    layers = [{kind: source(layer[kind], models) for kind in KINDS} for layer in sums.layers]
    if all(blend == stem for layer in layers for blend in layer.values()):
        return {"method": "soup", "weights": stem if isinstance(stem, dict) else {stem: 1.0}, "stem": "average"}
    whole = [layer if len({repr(blend) for blend in layer.values()}) > 1 else layer["mlp"] for layer in layers]
    table: dict[str, Any] = {}
    start = 0
    for index in range(1, len(whole) + 1):
        if index == len(whole) or whole[index] != whole[start]:
            table[f"{start}-{index - 1}" if index - 1 > start else str(start)] = whole[start]
            start = index
    return {"method": "table", "layers": table, "stem": stem}


def source(total: Sum, models: Models) -> Source:
    """As a recipe has it: a name, or {name: weight} in order of name, which is that of the sum."""
    weights = {name: weight for name, weight in sorted((models.name(place), weight) for place, weight in total.terms)}
    if len(weights) == 1:
        return next(iter(weights))
    *others, last = weights
    if "base" not in weights and sum(weights.values()) != 1.0:
        # A sum that misses 1 by the last bit would let in that much of the base.
        weights[last] = 1.0 - sum(weights[other] for other in others)
    return weights


def location(models: Models, place: Location, directory: Path) -> dict[str, str]:
    return written(place, directory, models.written[place])


def write(out: Path, entries: Mapping[str, Any], comment: str) -> None:
    """Writes what `read_entries` reads. Raises ComposeError when `out` exists or cannot be written."""
    Entries.model_validate(entries)
    text = f"# {comment}\n{yaml.safe_dump(entries, sort_keys=False, default_flow_style=None, width=120)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ComposeError(f"{out}: cannot be written: {error.strerror or error}") from error
