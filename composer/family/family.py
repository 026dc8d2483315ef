"""family: a base, its experts and the recipe between them."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from layerloom.composer.errors import ComposeError, FamilyError, quoted
from layerloom.composer.sources.adapter import Adapter
from layerloom.composer.sources.archive import Archive
from layerloom.composer.sources.checkpoint import Checkpoint
from layerloom.composer.sources.codecs import Codec
from layerloom.composer.sources.source import Source, open_source
from layerloom.composer.sources.voice import Voice

from .entries import CompositionEntry, Entries, read_entries
from .fit import base_problems, expert_problems, voice_problems, warn_of
from .locations import directory
from .names import RESERVED, WORD, Composition, Names, nearest
from .plan import Blend, LayerBlend, Plan, Residency, make_blend, make_plan, used_experts
from .recipe import AnyRecipe, LayerSwap, with_options


@dataclass(frozen=True)
class Expert:
    """A fine-tune of the base; `kind` is "task" or "language"."""

    name: str
    kind: str
    code: str | None
    aliases: tuple[str, ...]
    checkpoint: Source


class Family:
    """A base, its experts, and the names of all that can be composed from them."""

    def __init__(self, path: Path, entries: Entries, base: Checkpoint, experts: dict[str, Expert], names: Names):
        self.path = path
        self.root = path.parent
        self.base = base
        self.experts = experts
        self.recipe = entries.recipe
        self.residency: Residency = entries.residency
        self.fallback = entries.fallback
        self.example = entries.example
        self._entries = entries
        self._names = names

    @classmethod
    def load(cls, path: str | Path, warn: bool = True) -> "Family":
        """Reads family.yaml, given as the file or its directory, and opens the checkpoints; no weight is read,
        but the embeddings of an adapter that stores both sides of tied ones.

        Raises FamilyError with every problem found: in the file, in the names, and where an expert's tensors,
        dtypes, config or tokenizer do not fit the base.
        """
        path = Path(path).expanduser().absolute()
        if path.is_dir():
            path = path / "family.yaml"
        entries = read_entries(path)
        problems: list[str] = []
        names = read_names(path, entries, problems)
        base: Checkpoint | None = None
        with collecting(problems, "base"):
            base = Checkpoint(directory(path.parent, entries.base))
            problems += [f"base: {problem}" for problem in base_problems(base)]
        checkpoints: dict[str, Source] = {}
        for name, location in entries.experts.items():
            with collecting(problems, name):
                where = directory(path.parent, location)
                # Without a base nothing but a checkpoint can be opened; its problems are worth knowing all the same.
                if base is not None:
                    checkpoints[name] = open_source(where, base)
                elif not where.is_file():
                    checkpoints[name] = Checkpoint(where)
        if base is not None:
            for name, source in {"base": base, **checkpoints}.items():
                with collecting(problems, name):
                    found = voice_problems(base, source)
                    found += expert_problems(base, source) if source is not base else []
                    problems += [f"{name}: {problem}" for problem in found]
        experts = {
            name: Expert(name, entry.kind, entry.code, tuple(entry.aliases), checkpoints[name])
            for name, entry in entries.experts.items()
            if name in checkpoints
        }
        if base is None or problems:
            raise FamilyError(problems)
        family = cls(path, entries, base, experts, names)
        for key, name in family._to_check():
            with collecting(problems, f"{path}: {key}"):
                family._blends(family.parse(name))
        if problems:
            raise FamilyError(problems)
        for checkpoint in checkpoints.values() if warn else ():
            warn_of(checkpoint)
        return family

    @property
    def depth(self) -> int:
        """How many decoder layers the base, and so every composition, has."""
        return self.base.depth

    @property
    def languages(self) -> list[str]:
        """The experts that are languages."""
        return [name for name, expert in self.experts.items() if expert.kind == "language"]

    def names(self) -> list[str]:
        """Canonical names: base, every expert, every task+language pair, then the family's compositions."""
        return self._names.all()

    def parse(self, name: str, allow_options: bool = True) -> Composition:
        """What a name means. Raises UnknownName, or ComposeError for known words wrongly put together."""
        return self._names.parse(name, allow_options)

    def checkpoint(self, name: str) -> Source:
        """What an expert, or "base", is read from. Raises ComposeError."""
        if name == "base":
            return self.base
        if name not in self.experts:
            meant = nearest(name, [*self.experts, "base"])
            hint = f" (did you mean {meant!r}?)" if meant else ""
            raise ComposeError(f"there is no expert {quoted(name)}{hint}. Valid: {', '.join(self.experts)}")
        return self.experts[name].checkpoint

    def plan(self, name: str | Composition) -> Plan:
        """The blend of every layer and of the stem. Raises ComposeError when the recipe does not fit the model.

        Its digest needs the `revision` of the base and of the experts used.
        """
        composition = self.parse(name) if isinstance(name, str) else name
        layers, stem, sources = self._blends(composition)
        revisions = {source: opened.revision for source, opened in sources.items()}
        entry = self._entries.compositions.get(composition.label or "")
        own = entry.residency if isinstance(entry, CompositionEntry) else None
        return make_plan(composition.name, layers, stem, revisions, own or self.residency)

    def packings(self) -> set[Codec]:
        """The codecs under which compositions may keep layers as deltas; none when all are assembled."""
        entries = self._entries.compositions.values()
        kept = {self.residency, *(entry.residency for entry in entries if isinstance(entry, CompositionEntry))}
        sources = [expert.checkpoint for expert in self.experts.values()]
        found = {
            source.packing(source.layer(index))
            for source in sources
            if isinstance(source, Archive | Adapter)
            for index in range(self.depth)
        }
        return {codec for codec in found if codec is not None} if "delta" in kept else set()

    def speaker(self, name: str | Composition) -> str:
        """Whose voice a composition has: an expert's name, or "base".

        An expert has its own. Of a pair the family's `chat`, or the composition's, says whose it is. A composition of
        no roles speaks as the expert whose stem it has.
        """
        composition = self.parse(name) if isinstance(name, str) else name
        entry = self._entries.compositions.get(composition.label or "")
        own = entry.chat if isinstance(entry, CompositionEntry) else None
        roles, chat = composition.roles, own or self._entries.chat
        if own == "base" or (chat == "base" and len(roles) == 2):
            return "base"
        if roles:
            return roles.get(chat) or next(iter(roles.values()))
        _, stem, _ = self._blends(composition)
        return stem[0][0] if len(stem) == 1 else "base"

    def voice(self, name: str | Composition) -> Voice:
        """How a composition speaks: as its speaker's files say, and for the rest as the base's."""
        return self.checkpoint(self.speaker(name)).voice.over(self.base.voice)

    def describe(self, name: str | Composition) -> dict[str, Any]:
        """{"parent": "base", "recipe": {…}}, ready for JSON. Raises as `parse` and `plan` do."""
        composition = self.parse(name) if isinstance(name, str) else name
        recipe = self._recipe(composition)
        if recipe is None:
            (expert, *_) = *composition.roles.values(), None
            return {"parent": "base", "recipe": {"expert": expert}} if expert else {"parent": None, "recipe": {}}
        shown = recipe.model_dump(exclude_none=True)
        if isinstance(recipe, LayerSwap):
            bottom, after, before, top = recipe.zones(self.depth)
            for key in ("preset", "transition"):
                shown.pop(key, None)
            shown |= {"bottom": bottom, "after_bottom": after, "before_top": before, "top": top}
        return {"parent": "base", "recipe": {**composition.roles, **shown}}

    def _blends(self, composition: Composition) -> tuple[list[LayerBlend], Blend, dict[str, Source]]:
        """Of the layers and of the stem, and the base and the experts that they are of. Raises as `plan` does."""
        if composition.is_auto:
            raise ComposeError(
                f"{composition.name} is in the language of what is asked, which is not known here: name one, as in "
                f"{self.parse(composition.speaking(self.languages[0])).name}"
            )
        recipe = self._recipe(composition)
        if recipe is not None:
            layers, stem = recipe.blends(self.depth, composition.roles)
        else:
            stem = make_blend({expert: 1.0 for expert in composition.roles.values()})
            layers = [LayerBlend.all(stem)] * self.depth
        return layers, stem, {source: self.checkpoint(source) for source in ("base", *used_experts(layers, stem))}

    def _recipe(self, composition: Composition) -> AnyRecipe | None:
        """None for the base or an expert as it is."""
        entry = self._entries.compositions.get(composition.label or "")
        if isinstance(entry, CompositionEntry) and entry.recipe is not None:
            return entry.recipe
        if composition.task is None or composition.language is None:
            return None
        return with_options(self.recipe, dict(composition.options), self.depth)

    @property
    def pinned(self) -> list[Plan]:
        """The compositions that are to be in memory always."""
        return list({plan.digest: plan for plan in map(self.plan, self._entries.pinned)}.values())

    @property
    def preload(self) -> list[Plan]:
        """Those that are to be there before the first request, the pinned ones among them."""
        plans = map(self.plan, [*self._entries.pinned, *self._entries.preload])
        return list({plan.digest: plan for plan in plans}.values())

    def revisions(self) -> dict[str, str]:
        """Of the base and of every expert. Files that are new take a pass, by all threads; later it is remembered.

        Raises ComposeError where a file has been written to since it was opened.
        """
        return {name: self.checkpoint(name).revision for name in ("base", *self.experts)}

    @cached_property
    def digest(self) -> str:
        """sha256 over what family.yaml says and all revisions: two hosts with the same one serve the same."""
        content = [self._entries.model_dump(mode="json"), self.residency, self.revisions()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _to_check(self) -> Iterator[tuple[str, str]]:
        """(key, name) of plans that stand for all: one pair, because the recipe is the same for every pair."""
        pair = next((name for name in self.names() if "+" in name), None)
        if pair:
            yield "recipe", pair
        for name in self._entries.compositions:
            if not self.parse(name).is_auto:
                yield f"compositions.{name}", name
        if self.fallback.to not in (None, "error"):
            yield "fallback", str(self.fallback.to)
        for key, names in (("preload", self._entries.preload), ("pinned", self._entries.pinned)):
            yield from ((key, name) for name in names)


def read_names(path: Path, entries: Entries, problems: list[str]) -> Names:
    """The family's names; adds to `problems` those that are malformed, reserved or given twice."""
    owners: dict[str, str] = {}

    def claim(word: str, owner: str) -> None:
        if not WORD.fullmatch(word):
            problems.append(f"{path}: {owner}: {quoted(word)} is no name: use a-z, 0-9, - and _, 64 at most")
        elif word in RESERVED:
            problems.append(f"{path}: {owner}: {word!r} has a meaning of its own: use another name")
        elif owners.setdefault(word, owner) != owner:
            problems.append(f"{path}: {owner}: {word!r} is already the name of {owners[word]}")

    aliases: dict[str, str] = {}
    for name, entry in entries.experts.items():
        for word in [name, *([entry.code] if entry.code is not None else []), *entry.aliases]:
            claim(word, f"experts.{quoted(name)[1:-1]}")
            aliases[word] = name
    kinds = {name: entry.kind for name, entry in entries.experts.items()}
    names = Names(kinds, aliases)
    compositions: dict[str, Composition] = {}
    for label, named in entries.compositions.items():
        claim(label, f"compositions.{quoted(label)[1:-1]}")
        with collecting(problems, f"{path}: compositions.{quoted(label)[1:-1]}"):
            if isinstance(named, str):
                compositions[label] = replace(names.parse(named), name=label, label=label)
            else:
                roles = {"task": named.task, "language": named.language}
                found = {role: names.parse(expert).roles for role, expert in roles.items() if expert is not None}
                for role, meant in found.items():
                    if list(meant) != [role]:
                        raise ComposeError(f"{role}: {quoted(roles[role])} is not a {role} expert")
                task, language = (found.get(role, {}).get(role) for role in ("task", "language"))
                compositions[label] = Composition(label, task, language, label=label)
    return Names(kinds, aliases, compositions)


@contextmanager
def collecting(problems: list[str], key: str) -> Iterator[None]:
    """Adds a ComposeError to `problems` and goes on."""
    try:
        yield
    except ComposeError as error:
        problems.append(f"{key}: {error}")
