"""models: where the models of a mergekit configuration are, and what they are called in a family."""

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.family.entries import Location
from layerloom.composer.family.names import RESERVED
from layerloom.composer.sources.checkpoint import Checkpoint

from .configuration import Configuration, ModelPath, Reference
from .refused import references


class Models:
    """The models of a configuration: where each is, and its name. What is nowhere goes to `problems`."""

    def __init__(self, config: Configuration, base: Reference, roots: Sequence[Path], problems: list[str]) -> None:
        self._places: dict[Reference, Location] = {}
        self.written: dict[Location, ModelPath] = {}
        stated = [config.base_model] if config.base_model else []
        for reference in dict.fromkeys([base, *references(config), *stated]):
            try:
                place = locate(reference.model, roots)
                self.written.setdefault(place, reference.model)
                if reference.lora is not None:
                    if place != self._places.get(base):
                        raise ComposeError(
                            f"{quoted(reference)}: is an adapter on another model than the base, {quoted(base)}; merge "
                            "it with PEFT first"
                        )
                    place = locate(reference.lora, roots)
                    self.written.setdefault(place, reference.lora)
                self._places[reference] = place
            except ComposeError as error:
                problems.append(str(error))
        if base not in self._places:
            return
        self.base = self._places[base]
        used = [self._places[reference] for reference in references(config) if reference in self._places]
        self.names = names(place for place in dict.fromkeys(used) if place != self.base)

    def where(self, reference: Reference) -> Location:
        return self._places[reference]

    def name(self, place: Location) -> str:
        return "base" if place == self.base else self.names[place]


def locate(model: ModelPath, roots: Iterable[Path]) -> Location:
    """A directory below one of `roots`, as an absolute path, or else a repository on the hub. Raises ComposeError."""
    written = os.path.expanduser(model.path)
    found = [path for path in (Path(os.path.abspath(root / written)) for root in roots) if path.exists()]
    if found:
        if not found[0].is_dir():
            raise ComposeError(f"{quoted(model.path)} is a file, not the directory of a model")
        return Location(path=str(found[0]))
    try:
        validate_repo_id(model.path)
    except HFValidationError:
        named = False
    else:
        named = model.path.count("/") == 1
    if not named:
        raise ComposeError(f"{quoted(model.path)}: no such directory, and no name of the hub's, as in org/name")
    return Location(hub=model.path, revision=model.revision or "main")


def written(location: Location, directory: Path, model: ModelPath) -> dict[str, str]:
    """The location as family.yaml in `directory` has it: relative where `model` is, or where it lies below."""
    if location.path is None:
        return {"hub": str(location.hub), "revision": str(location.revision)}
    path = Path(location.path)
    if path.is_relative_to(directory) or not os.path.isabs(os.path.expanduser(model.path)):
        return {"path": os.path.relpath(path, directory)}
    return {"path": str(path)}


def opened(location: Location) -> Checkpoint | None:
    """The checkpoint, or None when it is the hub's and not on this machine. Raises ComposeError where it is broken."""
    if location.path is not None:
        return Checkpoint(Path(location.path))
    try:
        snapshot = huggingface_hub.snapshot_download(location.hub, revision=location.revision, local_files_only=True)
        return Checkpoint(Path(snapshot))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError):
        return None


def names(locations: Iterable[Location], taken: Iterable[str] = RESERVED) -> dict[Location, str]:
    """A name for each: of the last part of its path, with the one before it, or a number, where that is taken."""
    used = set(taken)
    found: dict[Location, str] = {}
    for location in locations:
        parts = [part for part in str(location.path or location.hub).split("/") if part]
        short, longer = (word("-".join(parts[-most:])) for most in (1, 2))
        numbered = (f"{short[:56]}-{number}" for number in count(2))
        found[location] = next(name for name in chain((short, longer), numbered) if name not in used)
        used.add(found[location])
    return found


def word(text: str) -> str:
    """The text as a name: lowercase, with a hyphen in place of what no name has."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64] or "model"
