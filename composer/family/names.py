"""names: what a model name means, and the one way to write it.

    name        = "base" | expert | pair | pair "@" option ("," option)* | composition of the family
    pair        = task "+" (language | "auto"), in either order
    option      = "preset=" ("paper" | "unreasonable" | "lighton")
                | ("bottom" | "top" | "transition") "=" whole number below 1000
                | "weight=" decimal from 0 to 1, at most six places   share of language in averaged layers
                | "stem=" ("language" | "task" | "base" | "average")
                | "layers=" (0-9 | "x") for every layer of the model, from the first   share of language, in tenths

Experts may be called by their code or an alias. Capitals, blanks around words, and "base:" before the name, as SGLang's
clients write it, make no difference. The canonical name has the experts' own names, task first, and the options in the
order above. Numbers have one spelling (6 and 0.5, never 06 or .50), so that a name which is accepted says exactly one
thing. What is of the language "auto" becomes a composition when a conversation is there to tell its language.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn
from urllib.parse import unquote

from rapidfuzz import fuzz, process

from layerloom.composer.errors import ComposeError, UnknownName, listed, quoted

from .recipe import PRESETS, TENTHS

WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
AUTO = "auto"
RESERVED = ("base", "task", "language", "average", AUTO, "attention", "mlp", "norm", "error")
"""Words that mean something in names and recipes, and so cannot be an expert's."""

LONGEST_NAME = 256
BLANKS = re.compile(r"\s*([+@,=:])\s*")
COUNT = re.compile(r"0|[1-9][0-9]{0,2}")
SHARE = re.compile(r"0|1|0\.[0-9]{0,5}[1-9]")
OPTIONS: dict[str, tuple[re.Pattern[str], str]] = {
    "preset": (re.compile("|".join(PRESETS)), f"one of {', '.join(PRESETS)}"),
    "bottom": (COUNT, "a whole number below 1000, as in 6"),
    "top": (COUNT, "a whole number below 1000, as in 2"),
    "transition": (COUNT, "a whole number below 1000, as in 1"),
    "weight": (SHARE, "a decimal from 0 to 1, as in 0.5"),
    "stem": (re.compile("language|task|base|average"), "one of language, task, base, average"),
    "layers": (
        re.compile(f"[{TENTHS}]{{1,200}}"),
        "tenths of language in each layer, 0 to 9 or x, as in xx505xx",
    ),
}


@dataclass(frozen=True)
class Composition:
    """A parsed name. `name` is canonical: parsing it gives this composition again."""

    name: str
    task: str | None = None
    language: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    label: str | None = None
    """The family's own name for it; then it is `name` too."""

    @property
    def is_auto(self) -> bool:
        """Whether its language is told by what is asked."""
        return self.language == AUTO

    def speaking(self, language: str) -> str:
        """The name of what it is in a language."""
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.task}+{language}{'@' if options else ''}{options}"

    @property
    def roles(self) -> dict[str, str]:
        """{"task": expert, "language": expert}, those that there are."""
        roles = {"task": self.task, "language": self.language}
        return {role: expert for role, expert in roles.items() if expert is not None}


class Names:
    """The names a family knows.

    `kinds` maps experts to "task" or "language", `aliases` every code and alias to its expert, and
    `compositions` the family's own names to what they mean.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        aliases: Mapping[str, str],
        compositions: Mapping[str, Composition] | None = None,
    ) -> None:
        self.kinds = kinds
        self.experts = {**{expert: expert for expert in kinds}, **aliases}
        self.compositions = compositions or {}

    def all(self) -> list[str]:
        """The canonical names without options: base, experts, pairs, the family's compositions."""
        return list(self._all)

    @cached_property
    def _all(self) -> list[str]:
        pairs = [f"{task}+{language}" for task in self._of_kind("task") for language in self._of_kind("language")]
        return ["base", *self.kinds, *pairs, *self.compositions]

    def parse(self, text: str, allow_options: bool = True) -> Composition:
        """What `text` means. Raises UnknownName, or ComposeError for known words wrongly put together."""
        if len(text) > LONGEST_NAME:
            self._unknown(text)
        words, at, options = forgiven(text).partition("@")
        if words == "base" or words in self.compositions:
            composition = self.compositions.get(words, Composition("base"))
        else:
            composition = self._experts(text, words)
        if not at:
            return composition
        if not allow_options:
            raise ComposeError(f"{quoted(text)}: this server takes no options in names; options need --allow-recipes")
        if composition.label or not (composition.task and composition.language):
            raise ComposeError(f"{quoted(text)}: options belong to a task+language pair, such as {self._example()}")
        given = self._options(text, options)
        written = ",".join(f"{key}={value}" for key, value in given)
        return Composition(f"{composition.name}@{written}", composition.task, composition.language, given)

    def _experts(self, text: str, words: str) -> Composition:
        experts = [AUTO if word == AUTO else self.experts.get(word) for word in words.split("+")]
        roles: dict[str, str] = {}
        for expert in experts:
            if expert is None or (expert == AUTO and not self._of_kind("language")):
                self._unknown(text)
            kind = "language" if expert == AUTO else self.kinds[expert]
            if kind in roles:
                both = (
                    f"{roles[kind]} and {expert} are both {kind} experts"
                    if roles[kind] != expert
                    else f"{expert} twice"
                )
                raise ComposeError(
                    f"{quoted(text)}: {both}; a composition is one task and one language, such as {self._example()}. "
                    f"Tasks: {listed(self._of_kind('task'))}. Languages: {listed(self._of_kind('language'))}"
                )
            roles[kind] = expert
        if roles == {"language": AUTO}:
            example = self._example().partition("+")[0]
            raise ComposeError(f"{quoted(text)}: auto goes with a task, as in {example}+{AUTO}")
        name = "+".join(roles[kind] for kind in ("task", "language") if kind in roles)
        return Composition(name, roles.get("task"), roles.get("language"))

    def _options(self, text: str, written: str) -> tuple[tuple[str, str], ...]:
        given: dict[str, str] = {}
        for option in written.split(","):
            key, _, value = option.partition("=")
            if key not in OPTIONS:
                hint = _hint(nearest(key, OPTIONS))
                raise ComposeError(f"{quoted(text)}: unknown option {quoted(key)}.{hint} Valid: {', '.join(OPTIONS)}")
            pattern, wanted = OPTIONS[key]
            if not pattern.fullmatch(value):
                hint = _hint(nearest(value, pattern.pattern.split("|"))) if key in ("preset", "stem") else ""
                raise ComposeError(f"{quoted(text)}: {key} is {wanted}, not {quoted(value)}.{hint}")
            if key in given:
                raise ComposeError(f"{quoted(text)}: {key} is given twice")
            given[key] = value
        return tuple((key, given[key]) for key in OPTIONS if key in given)

    def _unknown(self, text: str) -> NoReturn:
        valid = self._all
        # A plus sign in an address may have become a blank.
        words = re.sub(r"\s+", "+", forgiven(unquote(text[:LONGEST_NAME]))).partition("@")[0].split("+")
        known = [*self.experts, AUTO] if len(words) == 2 else ["base", *self.experts, *self.compositions]
        close = [nearest(word, known) for word in words[:2]]
        meant = nearest("+".join(words), valid)
        if len(words) <= 2 and None not in close:
            with suppress(ComposeError):
                meant = self.parse("+".join(word for word in close if word)).name
        raise UnknownName(text, valid, meant)

    def _of_kind(self, kind: str) -> list[str]:
        return [expert for expert, its_kind in self.kinds.items() if its_kind == kind]

    def _example(self) -> str:
        tasks, languages = self._of_kind("task"), self._of_kind("language")
        return f"{(tasks or ['math'])[0]}+{(languages or ['swahili'])[0]}"


def forgiven(text: str) -> str:
    """A name without what makes no difference in it."""
    return BLANKS.sub(r"\1", text.strip()).lower().removeprefix("base:")


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The closest of `valid`, if one is close. Quick, because clients can make it work as often as they like."""
    found = process.extractOne(word[:LONGEST_NAME], list(valid), scorer=fuzz.ratio, score_cutoff=60)
    return None if found is None else str(found[0])


def _hint(meant: str | None) -> str:
    return f" Did you mean {meant!r}?" if meant else ""
