"""completing: the names that a shell may complete, read from family.yaml alone: nobody waits for torch here."""

from pathlib import Path

import typer


def names_of_family(ctx: typer.Context, incomplete: str) -> list[str]:
    """The compositions of the family that stands on the command line already; none where that cannot be told."""
    # Before an option's value the rest has not been told apart yet.
    given = ctx.params.get("family") or next(iter(ctx.args), None)
    if given is None:
        return []
    try:
        return [name for name in names_in(Path(given).expanduser()) if name.startswith(incomplete)]
    except Exception:
        # A shell has no place for complaints.
        return []


def names_in(path: Path) -> list[str]:
    import yaml

    entries = yaml.safe_load((path / "family.yaml" if path.is_dir() else path).read_text())
    experts = entries["experts"]
    tasks, languages = (
        [name for name, entry in experts.items() if entry["kind"] == kind] for kind in ("task", "language")
    )
    pairs = [f"{task}+{language}" for task in tasks for language in [*languages, *(["auto"] if languages else [])]]
    return ["base", *experts, *pairs, *entries.get("compositions", {})]
