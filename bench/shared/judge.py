"""judge: what stock vLLM answers on merged checkpoints, and whether other answers are the same."""

import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "server")]

from layerloom.composer import Family, merge  # noqa: E402

CLOSE = 0.05
"""How much likelier (in logprob) a token may be than another that is as good: sums of other batches may be rounded
otherwise, in bf16."""

ASKED = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
ASKED |= {"logprobs": 5, "return_tokens_as_token_ids": True}
"""What a server is asked for, beside model, prompt and the number of tokens."""

SAME, AS_GOOD, WRONG = "the same", "as good", "wrong"

Key = tuple[str, int]
"""A composition and the number of a prompt."""

Told = Mapping[Key, Counter[tuple[int, ...]]]
"""All answers to each prompt, as tokens, and how often they came."""


@dataclass(frozen=True)
class Reference:
    """A greedy answer, and the logprobs of the likeliest tokens at each step."""

    tokens: tuple[int, ...]
    steps: tuple[Mapping[int, float], ...]

    @classmethod
    def of(cls, choice: Mapping[str, Any]) -> "Reference":
        """Of a server's answer to what was ASKED."""
        steps = choice["logprobs"]["top_logprobs"]
        return cls(
            tuple(choice["token_ids"]),
            tuple({int(token.removeprefix("token_id:")): logprob for token, logprob in step.items()} for step in steps),
        )

    def compare(self, tokens: Sequence[int], close: float = CLOSE) -> str:
        """SAME; AS_GOOD, when the first token that differs was hardly less likely here; or WRONG.

        What comes after such a token is the answer to something else, and says nothing.
        """
        at = self.before(tokens)
        if at == len(self.tokens):
            return SAME
        step = self.steps[at]
        return AS_GOOD if step[self.tokens[at]] - step.get(tokens[at], -math.inf) < close else WRONG

    def same(self, tokens: Sequence[int]) -> list[bool]:
        """Of each place, whether the token there is this one's."""
        return [own == other for own, other in zip(self.tokens, tokens, strict=True)]

    def before(self, tokens: Sequence[int]) -> int:
        """How many tokens come before the first that differs."""
        pairs = enumerate(zip(self.tokens, tokens, strict=True))
        return next((at for at, (own, other) in pairs if own != other), len(self.tokens))

    def cut(self, tokens: int) -> "Reference":
        """Its first so many tokens."""
        return Reference(self.tokens[:tokens], self.steps[:tokens])

    def distance(self, other: "Reference") -> float:
        """The largest difference of a logprob that both have, as far as the two answers go together."""
        both = slice(self.before(other.tokens) + 1)
        steps = zip(self.steps[both], other.steps[both], strict=True)
        return max(abs(a[token] - b[token]) for a, b in steps for token in a.keys() & b.keys())


@dataclass(frozen=True)
class Right:
    """What is right: stock's answers to each prompt, alone and in a batch, which rounds otherwise."""

    answers: Mapping[Key, Sequence[Reference]]

    @cached_property
    def rounding(self) -> float:
        """The largest difference of a logprob between stock's answers to the same prompt."""
        return max(one.distance(other) for answers in self.answers.values() for one, other in combinations(answers, 2))

    def nearest(self, key: Key, tokens: Sequence[int]) -> Reference:
        """That of stock's answers which goes together with these tokens longest."""
        return max(self.answers[key], key=lambda reference: reference.before(tokens))

    @property
    def close(self) -> float:
        """How much likelier another token may be by rounding alone: each of two logprobs is off."""
        return 2 * self.rounding


@dataclass
class Compared:
    """How many answers are SAME, AS_GOOD and WRONG, and the wrong ones in words."""

    keys: list[Key] = field(default_factory=list)
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def cells(self) -> tuple[int, ...]:
        """One for each of COLUMNS."""
        names = {name for name, _ in self.keys}
        return len(names), len(self.keys), self.found.total(), *(self.found[each] for each in (SAME, AS_GOOD, WRONG))


COLUMNS = ("compositions", "of prompts", "answers", SAME, AS_GOOD, WRONG)


def compared(told: Told, references: Mapping[Key, Reference]) -> Compared:
    """All answers to what there is a reference for."""
    result = Compared([key for key in told if key in references])
    for name, prompt in result.keys:
        reference = references[name, prompt]
        for tokens, count in told[name, prompt].items():
            verdict = reference.compare(tokens)
            result.found[verdict] += count
            if verdict == WRONG:
                result.wrong.append(f"{name}, prompt {prompt}, {count} times {tokens}: right is {reference.tokens}")
    return result


def stock_answers(
    family: Family, name: str, prompts: Sequence[list[int]], tokens: int, directory: Path
) -> list[Reference]:
    """Those of stock vLLM to each prompt, on what `merge` writes to `directory`."""
    import engines  # of tests/server

    before = dict(os.environ)
    os.environ.update(engines.ENVIRONMENT)
    try:
        merged = merge(family, name, directory)
        (outputs,) = engines.run(merged, (None, engines.prompts(prompts), engines.sampling(tokens, logprobs=2)))
    finally:
        os.environ.clear()
        os.environ.update(before)
    return from_outputs(outputs)


def from_outputs(outputs: Sequence[Any]) -> list[Reference]:
    """Of what vLLM's own `generate` returns, asked for logprobs."""
    found = (output.outputs[0] for output in outputs)
    return [
        Reference(
            tuple(each.token_ids),
            tuple({token: entry.logprob for token, entry in step.items()} for step in each.logprobs),
        )
        for each in found
    ]
