"""entries: what family.yaml says, checked for its form alone."""

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from layerloom.composer.errors import FamilyError, quoted
from layerloom.composer.files import naming, read_bytes
from layerloom.composer.strict import Strict

from .names import nearest
from .plan import Residency
from .recipe import Kinds, LayerSwap, Recipe, Soup, Table

Chat = Literal["task", "language", "base"]
"""Whose voice a composition has: chat template, what ends an answer, and how it samples unless told otherwise."""


class Location(Strict):
    """A directory or file, relative to family.yaml, or a repository on the Hugging Face Hub at a revision."""

    path: str | None = None
    hub: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Location":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path, or hub and revision")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision (a commit, tag or branch) go together")
        return self


class ExpertEntry(Location):
    """An expert: what it is good at, what else it is called, and where it is."""

    kind: Literal["task", "language"]
    code: str | None = None
    aliases: list[str] = Field(default=[])


class CompositionEntry(Strict):
    """A composition with a name of its own. Without a recipe it has the family's."""

    task: str | None = None
    language: str | None = None
    recipe: Recipe | None = None
    residency: Residency | None = None
    chat: Chat | None = None

    @model_validator(mode="after")
    def _something(self) -> "CompositionEntry":
        if self.task is None and self.language is None and self.recipe is None:
            raise ValueError("give a task, a language or a recipe")
        return self


NamedComposition = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[CompositionEntry, Tag("<entry>")],
    Discriminator(lambda value: "<entry>" if isinstance(value, dict | CompositionEntry) else "<name>"),
]


class Entries(Strict):
    """family.yaml. `base: DIRECTORY` is short for `base: {path: DIRECTORY}`."""

    base: Annotated[Location, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]
    experts: Annotated[dict[str, ExpertEntry], Field(min_length=1)]
    recipe: Recipe = LayerSwap()
    residency: Residency = "assembled"
    chat: Chat = "language"
    compositions: dict[str, NamedComposition] = Field(default={})
    preload: list[str] = Field(default=[])
    pinned: list[str] = Field(default=[])


MODELS: tuple[type[BaseModel], ...] = (Entries, ExpertEntry, CompositionEntry, LayerSwap, Soup, Table, Kinds)
MOST = 1 << 24
"""Bytes of the largest family.yaml that is read."""

KEYS = sorted({key for model in MODELS for key in model.model_fields})


def read_entries(path: Path) -> Entries:
    """family.yaml. Raises FamilyError with every key that is wrong, or ComposeError when there is no such file."""
    content = read_yaml(path, Entries)
    try:
        return Entries.model_validate(content)
    except ValidationError as error:
        raise FamilyError(wrong_keys(path, error, KEYS)) from error


def read_yaml(path: Path, model: type[BaseModel]) -> dict[Any, Any]:
    """The mapping that a file in YAML holds; `model` says which keys it may have. Raises as `read_entries` does."""
    with naming(path):
        text = read_bytes(path, MOST).decode("utf-8")
    try:
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read as YAML"
        raise FamilyError([f"{path}: {place}{reason}"]) from error
    if not isinstance(content, dict):
        raise FamilyError([f"{path}: is not a mapping with the keys {', '.join(model.model_fields)}"])
    return content


def wrong_keys(path: Path, error: ValidationError, known: list[str]) -> list[str]:
    """A line for each key that is wrong; one that is not `known` is told what it may have meant."""
    return [f"{path}: {_problem(detail, known)}" for detail in error.errors()]


def _problem(detail: Any, known: list[str]) -> str:
    keys = [str(key) for key in detail["loc"] if not str(key).startswith("<")]
    where = ".".join(key if key.isprintable() and len(key) <= 64 else quoted(key) for key in keys)
    if detail["type"] == "extra_forbidden":
        close = nearest(keys[-1], known)
        hint = f" (did you mean {close!r}?)" if close and close != keys[-1] else ""
        return f"{where}: there is no such key{hint}"
    if detail["type"] == "missing":
        return f"{where}: is missing"
    shown = "" if isinstance(detail["input"], dict | list) else f", not {quoted(detail['input'])}"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}{shown if detail['type'] != 'value_error' else ''}"


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a key is given once and `no` is Norwegian."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{quoted(key.value)} is given twice", key.start_mark
                    )
                seen.add(key.value)
        content: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return content


BOOL = "tag:yaml.org,2002:bool"
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
