"""streams: answers that go on while other things happen, and when each of their tokens came."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from openai import AsyncOpenAI

PROMPT, ANSWER = 24, 900
"""Tokens."""
RUNNING = 8
"""Tokens of every stream after which they count as running."""


def prompt(number: int) -> list[int]:
    """Ids that no other number gives, but for numbers that are thousands apart."""
    return [3 + (37 * number + (7 + number % 13) * i) % 400 for i in range(PROMPT)]


@asynccontextmanager
async def streams(client: AsyncOpenAI, count: int, name: str = "base") -> AsyncIterator[list[list[float]]]:
    """Yields, once they run, the times of the tokens of `count` answers; one that has ended is followed by another.

    A list for each answer, the first `count` those that ran first. Times are of `time.perf_counter`.
    """
    answers: list[list[float]] = []

    async def ask_on(first: int) -> None:
        for number in itertools.count(first, count):
            stamps: list[float] = []
            answers.append(stamps)
            options = {"max_tokens": ANSWER, "stream": True, "extra_body": {"ignore_eos": True}}
            async for _ in await client.completions.create(model=name, prompt=prompt(number), **options):
                stamps.append(time.perf_counter())

    tasks = [asyncio.create_task(ask_on(number)) for number in range(count)]
    try:
        while len(answers) < count or any(len(stamps) < RUNNING for stamps in answers[:count]):
            failed = [task for task in tasks if task.done()]
            if failed:
                await failed[0]
            await asyncio.sleep(0.02)
        yield answers
        for task in tasks:
            if task.done():
                await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def lateness() -> AsyncIterator[list[float]]:
    """Yields a list of how many seconds late this process comes to what is due every 20 ms.

    A machine that was stopped shows there, and a client that had no core to run on.
    """
    late: list[float] = [0.0]

    async def watch() -> None:
        while True:
            due = time.perf_counter() + 0.02
            await asyncio.sleep(0.02)
            late.append(time.perf_counter() - due)

    task = asyncio.create_task(watch())
    try:
        yield late
    finally:
        task.cancel()


def gaps(answers: Iterable[Sequence[float]], start: float, end: float) -> list[float]:
    """Seconds between tokens of one answer, of those gaps that lie at least in part between `start` and `end`."""
    pairs = (pair for stamps in answers for pair in itertools.pairwise(stamps))
    return [after - before for before, after in pairs if after > start and before < end]


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least that share of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
