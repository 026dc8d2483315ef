"""expression: the regular expressions of an adapter's config, matched as PEFT matches them, and for a bounded time."""

import math
import re
import time
from collections.abc import Mapping
from typing import Generic, TypeVar

import regex

from layerloom.composer.errors import ComposeError, quoted

Value = TypeVar("Value")

LONGEST = 1 << 16
"""Characters of an expression; the names of all modules of a large model take a fifth of that."""
SECONDS = 3.0
"""All that the expressions of one config may take; those of a large model take a tenth of a second."""
PLAIN = re.compile(r"[\w.-]+")
# What `regex`, which can be given a time limit, reads otherwise than `re`: fuzzy counts, and POSIX's classes.
OTHERWISE = re.compile(r"\{[^\d,}]|\[:")
COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
MOST = 10_000
"""The product of all counts in an expression: `regex` writes nested ones out."""


class ExpressionError(ComposeError):
    """An expression that is none, or takes too long."""


class Watch:
    """The time left to the expressions of one config."""

    def __init__(self) -> None:
        self.left = SECONDS


class Expression:
    """The expression `text` of a config's `key`; `wrapped` is how PEFT compiles it. Raises ExpressionError."""

    def __init__(self, key: str, text: str, watch: Watch, wrapped: str | None = None) -> None:
        self._shown = f"{key}: {quoted(text)}"
        self._watch = watch
        if len(text) > LONGEST:
            raise ExpressionError(f"{self._shown} has more than {LONGEST:,} characters; name the modules in a list")
        if OTHERWISE.search(text):
            raise ExpressionError(f"{self._shown} is no regular expression for names: it has a {{ or [: in it")
        counts = [int(count) for found in COUNT.finditer(text) for count in found.groups() if count and len(count) < 9]
        if math.prod(max(1, count) for count in counts) > MOST:
            raise ExpressionError(f"{self._shown} repeats more than {MOST:,} times; name the modules in a list")
        try:
            re.compile(text)
            re.compile(wrapped or text)
            self._compiled = regex.compile(wrapped or text)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            raise ExpressionError(f"{self._shown} is no regular expression: {reason}") from error

    def fullmatch(self, name: str) -> bool:
        return self._timed("fullmatch", name) is not None

    def match(self, name: str) -> "regex.Match[str] | None":
        return self._timed("match", name)

    def _timed(self, method: str, name: str) -> "regex.Match[str] | None":
        start = time.perf_counter()
        try:
            if self._watch.left <= 0:
                raise TimeoutError
            return getattr(self._compiled, method)(name, timeout=self._watch.left)
        except (TimeoutError, MemoryError) as error:
            raise ExpressionError(
                f"{self._shown} takes more than {SECONDS:.0f} s on the names of this model, {quoted(name)} for "
                "one; write it without repetitions inside each other, or name the modules in a list"
            ) from error
        finally:
            self._watch.left -= time.perf_counter() - start


class Patterns(Generic[Value]):
    """Values by pattern, as PEFT's rank_pattern: that of the first pattern which is a name's end, from a dot on.

    Most patterns are names. Those are looked up, so that a value for every module does not take a match for every
    pair of modules; the dots in them stand for any character, as in an expression.
    """

    def __init__(self, key: str, values: Mapping[str, Value], watch: Watch) -> None:
        self._values = list(values.values())
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._expressions: list[tuple[int, Expression]] = []
        for index, text in enumerate(values):
            if PLAIN.fullmatch(text):
                dots = tuple(place for place, character in enumerate(text) if character == ".")
                self._plain.setdefault((len(text), dots), {})[text] = index
            else:
                self._expressions.append((index, Expression(key, text, watch, rf"(.*\.)?({text})$")))

    def first(self, name: str) -> Value | None:
        found = len(self._values)
        for (length, dots), indices in self._plain.items():
            start = len(name) - length
            if start < 0 or (start and name[start - 1] != "."):
                continue
            end = list(name[start:])
            for place in dots:
                end[place] = "."
            found = min(found, indices.get("".join(end), found))
        for index, expression in self._expressions:
            if index > found:
                break
            if expression.match(name):
                found = index
        return self._values[found] if found < len(self._values) else None
