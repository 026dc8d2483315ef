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
    """A directory or file, relative to family.yaml."""
    hub: str | None = None
    """A repository on the Hugging Face Hub, as in Qwen/Qwen3-8B."""
    revision: str | None = None
    """The repository's commit, tag or branch; a commit names the same bytes for ever."""

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
    """What it is good at: a task, whose layers go in the middle, or a language, whose layers go around it."""
    code: str | None = None
    """The language's code, as in sw: another name for it, and what TASK+auto tells it by."""
    aliases: list[str] = Field(default=[])
    """More names that clients may use."""


class CompositionEntry(Strict):
    """A composition with a name of its own. Without a recipe it has the family's."""

    task: str | None = None
    """The expert that the recipe calls task."""
    language: str | None = None
    """The expert that the recipe calls language."""
    recipe: Recipe | None = None
    """How it is put together, in place of the family's recipe."""
    residency: Residency | None = None
    """How its layers are kept, in place of the family's residency."""
    chat: Chat | None = None
    """Whose voice it has, in place of the family's chat."""

    @model_validator(mode="after")
    def _something(self) -> "CompositionEntry":
        if self.task is None and self.language is None and self.recipe is None:
            raise ValueError("give a task, a language or a recipe")
        return self


class Fallback(Strict):
    """What TASK+auto is where no language of the family is told: a composition, or "error"; else the task's expert."""

    to: str | None = None
    """A composition, or error; by default the task's expert."""
    below: float = Field(default=0.5, ge=0, le=1)
    """The confidence that a language takes, as a share of all that the family has and English."""


NamedComposition = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[CompositionEntry, Tag("<entry>")],
    Discriminator(lambda value: "<entry>" if isinstance(value, dict | CompositionEntry) else "<name>"),
]


class Entries(Strict):
    """family.yaml. `base: DIRECTORY` is short for `base: {path: DIRECTORY}`, `fallback: NAME` for `{to: NAME}`."""

    base: Annotated[Location, BeforeValidator(lambda value: {"path": value} if isinstance(value, str) else value)]
    """The checkpoint that every expert is a fine-tune of."""
    experts: Annotated[dict[str, ExpertEntry], Field(min_length=1)]
    """The fine-tunes, by the names that clients use."""
    recipe: Recipe = LayerSwap()
    """How a pair of task and language is put together."""
    residency: Residency = "assembled"
    """How layers are kept in the engine: assembled, or delta: packed beside the base's where their files allow it."""
    chat: Chat = "language"
    """Whose chat template, end-of-turn tokens and sampling defaults a pair has."""
    fallback: Annotated[Fallback, BeforeValidator(lambda value: {"to": value} if isinstance(value, str) else value)] = (
        Fallback()
    )
    """What TASK+auto is where no language of the family is told."""
    compositions: dict[str, NamedComposition] = Field(default={})
    """Names of the family's own: another name of a composition, or a composition with a recipe of its own."""
    preload: list[str] = Field(default=[])
    """Compositions that are in memory before the first request."""
    pinned: list[str] = Field(default=[])
    """Compositions that are always in memory."""
    example: str | None = None
    """A question to try, which a server shows when it is up."""


MODELS: tuple[type[BaseModel], ...] = (Entries, ExpertEntry, CompositionEntry, Fallback, LayerSwap, Soup, Table, Kinds)
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
