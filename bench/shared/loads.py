"""loads: requests for several languages, as clients send them: who asks for what and when, and what came back when."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import httpx
import numpy as np

from .judge import WRONG, Right
from .report import Cell
from .streams import lateness, quantile

SEED = 20261127

Address = Callable[[int], tuple[str, str]]
"""The server's URL and the model's name of what answers in a language."""


@dataclass(frozen=True)
class Ask:
    """A language and a prompt, by number, and how many seconds after the start it is due in an open loop."""

    language: int
    prompt: int
    due: float


@dataclass(frozen=True)
class Load:
    """`arrival` is closed (clients that ask again once answered) or poisson; `choice` of a language uniform or zipf."""

    arrival: str
    choice: str
    languages: int

    def __str__(self) -> str:
        return f"{self.arrival}, {self.choice}, {self.languages} language{'s' if self.languages > 1 else ''}"

    def asks(self, count: int, prompts: int, rate: float) -> list[Ask]:
        """The same for the same load. With zipf a language's chance goes with 1/rank."""
        chance = np.random.default_rng(SEED)
        weights = 1 / np.arange(1, self.languages + 1) if self.choice == "zipf" else np.ones(self.languages)
        languages = chance.choice(self.languages, size=count, p=weights / weights.sum())
        dues = np.cumsum(chance.exponential(1 / rate, count))
        return [Ask(int(language), i % prompts, float(dues[i])) for i, language in enumerate(languages)]


@dataclass(frozen=True)
class Streamed:
    """An answer: when it was due, and when its chunks came, in seconds after the start; and its tokens."""

    ask: Ask
    due: float
    stamps: tuple[float, ...]
    tokens: tuple[int, ...]

    def later(self, seconds: float, due: float) -> "Streamed":
        return replace(self, due=due, stamps=tuple(stamp + seconds for stamp in self.stamps))


@dataclass(frozen=True)
class Driven:
    answers: Sequence[Streamed]
    late: float = 0.0
    """The most seconds by which the clients' own clock was late: they had no core."""

    @property
    def seconds(self) -> float:
        return max(answer.stamps[-1] for answer in self.answers) - min(answer.due for answer in self.answers)

    @property
    def rate(self) -> float:
        """Tokens in a second."""
        return sum(len(answer.tokens) for answer in self.answers) / self.seconds

    @property
    def times(self) -> tuple[Cell, ...]:
        """One for each of TIMES."""
        first = [answer.stamps[0] - answer.due for answer in self.answers]
        gaps = [after - before for answer in self.answers for before, after in itertools.pairwise(answer.stamps)]
        return tuple(1000 * quantile(values, share) for values in (first, gaps) for share in (0.5, 0.99))


TIMES = ("TTFT p50, ms", "TTFT p99, ms", "between tokens p50, ms", "between tokens p99, ms")


class Refused(Exception):
    """A server gave no answer."""


async def stream(client: httpx.AsyncClient, address: tuple[str, str], prompt: Sequence[int], tokens: int) -> Streamed:
    """One greedy answer of so many tokens; its times are of the clock."""
    url, model = address
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    stamps: list[float] = []
    found: list[int] = []
    due = time.perf_counter()
    async with client.stream(
        "POST", f"{url}/v1/completions", json={**body, "stream": True, "return_token_ids": True}
    ) as response:
        if response.status_code != 200:
            raise Refused(f"{model}: {response.status_code} {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            said = json.loads(line.removeprefix("data: "))
            if "choices" not in said:
                raise Refused(f"{model}: {line[:300]}")
            stamps.append(time.perf_counter())
            found += said["choices"][0].get("token_ids") or []
    if len(found) != tokens:
        raise Refused(f"{model}: {len(found)} tokens in place of {tokens}")
    return Streamed(Ask(0, 0, 0.0), due, tuple(stamps), tuple(found))


async def drive(
    asks: Sequence[Ask],
    address: Address,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    clients: int | None,
    seconds: float,
) -> Driven:
    """Asks everything: by so many clients who ask on once they are answered, or with None when each request is due.

    After `seconds` no request is begun; those that run are awaited. Raises Refused.
    """
    answers: list[Streamed] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client, lateness() as late:
        began = time.perf_counter()

        async def one(ask: Ask) -> None:
            got = await stream(client, address(ask.language), prompts[ask.prompt], tokens)
            # Of an open loop, waiting begins when a request is due, whatever keeps the client.
            due = got.due - began if clients is not None else ask.due
            stamps = tuple(stamp - began for stamp in got.stamps)
            answers.append(Streamed(ask, due, stamps, got.tokens))

        async def one_client() -> None:
            for ask in waiting:
                if time.perf_counter() - began > seconds:
                    return
                await one(ask)

        async def when_due(ask: Ask) -> None:
            await asyncio.sleep(began + ask.due - time.perf_counter())
            await one(ask)

        waiting = iter(asks)
        if clients is None:
            await asyncio.gather(*(when_due(ask) for ask in asks if ask.due < seconds))
        else:
            await asyncio.gather(*(one_client() for _ in range(clients)))
    return Driven(answers, max(late))


def grouped(groups: Sequence[Driven], restart: float) -> Driven:
    """What one server had done that is restarted between groups, if all requests had been there from the start."""
    answers: list[Streamed] = []
    offset = 0.0
    for group in groups:
        answers += [answer.later(offset, 0.0) for answer in group.answers]
        offset += max(answer.stamps[-1] for answer in group.answers) + restart
    return Driven(answers, max(group.late for group in groups))


AGREEMENT = ("same tokens, %", "tokens before another", "wrong answers, %")


def agreement(answers: Sequence[Streamed], right: Right, name: Callable[[int], str]) -> list[Cell]:
    """One for each of AGREEMENT, against stock vLLM on the merged checkpoint of each request's language.

    Tokens are compared place by place; `before another` is the mean of how many came before the first that differs.
    """
    same, before, wrong = [], [], []
    for answer in answers:
        reference = right.nearest((name(answer.ask.language), answer.ask.prompt), answer.tokens)
        same += reference.same(answer.tokens)
        before.append(reference.before(answer.tokens))
        wrong.append(reference.compare(answer.tokens, right.close) == WRONG)
    return [100 * float(np.mean(same)), float(np.mean(before)), 100 * float(np.mean(wrong))]
