"""languages: which of a family's languages a conversation is in, for `math+auto`.

Told by lingua, from n-grams: a detector of the family's languages and English says which it is, and another of the
languages that most people write in, with less of each, when a text is more likely none of the family's.
bench/languages.py measures both, and what is chosen here comes from its table.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from itertools import islice
from typing import Any

from lingua import Language, LanguageDetector, LanguageDetectorBuilder

from layerloom.composer import ComposeError, Composition, Family
from layerloom.composer.family.names import AUTO

MOST = 500
"""Characters that are read of the beginning of a turn, and of its end."""

MOST_TURNS = 32
GLANCE = 200
"""Characters that the wide detector reads of a text: it takes longest."""

COMMON = """
    af ar bg bn ca cs da de el en es fa fi fr gu he hi hr hu id it ja ko mr ms nb nl pa pl pt ro ru sk so sr sv sw ta te
    th tl tr uk ur vi yo zh zu
"""
"""What a text may be in that is in none of a family's languages. All 75 that lingua has take twice as long, and take
more of what is in the family's for one of those that few people write in."""

ENOUGH = 12
"""Letters that tell a language by themselves; a turn of fewer is read after the one before it."""

LIKELY = 0.001
"""How likely a language must be in the eyes of the wide detector, next to the one that it finds likeliest."""

CLOSE = 0.25
"""How likely one must be, next to the likeliest of the family's, to be taken because the client prefers it."""

NO_WORDS = re.compile(r"```.*?(?:```|$)|\$[^$]*\$|\\[a-zA-Z]+|https?://\S+|<[^<>]*>", re.DOTALL)
"""Code, formulas, LaTeX's commands, addresses and tags."""

SPELT = {"no": "nb", "iw": "he", "in": "id", "fil": "tl", "cmn": "zh"}
ELSE = "else"
"""In place of a language: one that the family has not."""


class Languages:
    """The languages of a family's experts, by code, name or alias; those that lingua does not know are never told."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.experts: dict[Language, str] = {}
        for name in family.languages:
            expert = family.experts[name]
            known = [language for word in (expert.code, name, *expert.aliases) if word and (language := spoken(word))]
            if known:
                self.experts.setdefault(known[0], name)

    @property
    def names(self) -> list[str]:
        """Every task in the language of what is asked; none where no language can be told."""
        tasks = [name for name, expert in self.family.experts.items() if expert.kind == "task"]
        return [f"{task}+{AUTO}" for task in tasks if self.experts]

    def prepare(self) -> None:
        """Loads now what the first conversation would wait for, some tenths of a second."""
        if self.experts:
            self.tell("lugha")

    def meant(self, composition: Composition, turns: Callable[[], Sequence[str]], accept: str = "") -> Composition:
        """`composition`, or what it is in the language of what `turns` gives, where its own is "auto"; as `choose`."""
        return self.choose(composition, turns(), accept) if composition.is_auto else composition

    def choose(self, composition: Composition, turns: Sequence[str], accept: str = "") -> Composition:
        """What `composition`, whose language is "auto", is in a conversation.

        `turns` are what the user has said, in order; `accept` is an Accept-Language header, a hint between languages
        that are about as likely. The last turn decides, with those before it where it says too little ("5 + 3?"), so
        that a thread stays in its language. Raises ComposeError where no language of the family's is told and its
        fallback is "error".
        """
        hints = [expert for tag in preferred(accept) if (expert := self.experts.get(tag))]
        text, told = "", None
        for turn in islice(reversed(turns), MOST_TURNS):
            text = f"{text}\n{words_of(turn)}"[: 2 * MOST]
            if sum(map(str.isalpha, text)) >= ENOUGH:
                told = self.tell(text, hints)
            if told is not None:
                break
        else:
            told = self.tell(text, hints)
        if told is None and hints:
            told = hints[0]
        if told in (None, ELSE):
            return self._fallback(composition)
        return self.family.parse(composition.speaking(str(told)))

    def tell(self, text: str, hints: Sequence[str] = ()) -> str | None:
        """The expert whose language a text is in, ELSE when it is in another one, or None when that is not clear."""
        found = {self.experts.get(each.language, ELSE): each.value for each in confidences(self._detector, text)}
        best = max(found, key=found.__getitem__, default=ELSE)
        if not found or found[best] == 0:
            # No letter, or none that one of them is written in.
            return ELSE if any(map(str.isalpha, text)) else None
        best = next((hint for hint in hints if found[hint] >= CLOSE * found[best]), best)
        if best == ELSE:
            return ELSE if found[best] >= self.family.fallback.below else None
        among_all = {each.language: each.value for each in confidences(self._wide, text[:GLANCE])}
        (language,) = (language for language, expert in self.experts.items() if expert == best)
        if among_all[language] < LIKELY * max(among_all.values()):
            return ELSE
        return best if best in hints or found[best] >= self.family.fallback.below else None

    @cached_property
    def _detector(self) -> LanguageDetector:
        known = {*self.experts, Language.ENGLISH}
        return LanguageDetectorBuilder.from_languages(*known).with_preloaded_language_models().build()

    @cached_property
    def _wide(self) -> LanguageDetector:
        """With the other 80 MB for the demo; as much of each language as the other has would be 1 GB."""
        known = {*self.experts, *map(spoken, COMMON.split())} - {None}
        builder = LanguageDetectorBuilder.from_languages(*known).with_low_accuracy_mode()
        return builder.with_preloaded_language_models().build()

    def _fallback(self, composition: Composition) -> Composition:
        to = self.family.fallback.to
        if to != "error":
            return self.family.parse(to or str(composition.task))
        known = ", ".join(self.experts.values()) or "none of its experts is known by its code"
        raise ComposeError(
            f"{composition.name}: what is asked is in no language of this family, or it cannot be told. Ask for one, "
            f"as in {self.family.parse(composition.speaking(self.family.languages[0])).name}. Told apart: {known}"
        )


def confidences(detector: LanguageDetector, text: str) -> Any:
    return detector.compute_language_confidence_values(text)


@cache
def by_word() -> dict[str, Language]:
    """Languages by their codes of two and three letters, and by their English names."""
    found: dict[str, Language] = {}
    for language in Language.all():
        codes = language.iso_code_639_1, language.iso_code_639_3, language
        found |= {code.name.lower(): language for code in codes}
    return found | {other: found[code] for other, code in SPELT.items()}


def spoken(tag: str) -> Language | None:
    """The language of a tag such as sw, swa, swahili or pt-BR."""
    primary = re.split("[-_]", tag.strip().lower(), maxsplit=1)[0]
    return by_word().get(primary)


def preferred(accept: str) -> list[Language]:
    """The languages of an Accept-Language header (RFC 9110, 12.5.4), the most wanted first."""
    weighed = []
    for part in accept[:256].split(","):
        tag, _, weight = part.partition(";")
        quality = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", weight)
        language = spoken(tag)
        if language is not None and not (quality and float(quality[1]) == 0):
            weighed.append((-float(quality[1]) if quality else -1.0, len(weighed), language))
    return [language for *_, language in sorted(weighed, key=lambda each: each[:2])]


def words_of(turn: str) -> str:
    """The words of its beginning and its end."""
    shown = turn if len(turn) <= 2 * MOST else f"{turn[:MOST]} … {turn[-MOST:]}"
    return NO_WORDS.sub(" ", shown)


def turns_of(messages: Any) -> list[str]:
    """What the user says in messages of OpenAI's or Anthropic's form; what has another form is passed over."""
    turns = []
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            parts = [content] if isinstance(content, str) else content if isinstance(content, list) else []
            texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
            turns.append(" ".join(text for text in texts if isinstance(text, str)))
    return turns
