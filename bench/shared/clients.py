"""clients: many at once, who take the next request of one list as soon as they have had an answer."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

MOST_FAILURES = 100
"""After so many there is no point in asking on."""


@dataclass(frozen=True)
class Request:
    """A composition, and the number of a prompt."""

    name: str
    prompt: int


@dataclass(frozen=True)
class Answered:
    """When a request was sent first, in seconds since the start, how long it took, and the tokens."""

    request: Request
    sent: float
    seconds: float
    tokens: tuple[int, ...]

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


class Clients:
    """What they ask, and what they were told. Answers are greedy and of `tokens` tokens."""

    def __init__(self, url: str, prompts: Sequence[Sequence[int]], tokens: int, requests: Iterator[Request]) -> None:
        self.url = url
        self.prompts = prompts
        self.tokens = tokens
        self.requests = requests
        self.sent: list[Request] = []
        self.answers: list[Answered] = []
        self.failures: list[str] = []
        self.repeated = 0
        """How often a 503 said when to come again, and somebody did."""
        self.began = 0.0

    async def run(self, count: int, seconds: float) -> None:
        """Until the list or the time is over, or too much has failed."""
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
        async with httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits) as client:
            self.began = time.perf_counter()
            await asyncio.gather(*(self._one(client, self.began + seconds) for _ in range(count)))

    async def _one(self, client: httpx.AsyncClient, until: float) -> None:
        while time.perf_counter() < until and len(self.failures) < MOST_FAILURES:
            request = next(self.requests, None)
            if request is None:
                return
            self.sent.append(request)
            began = time.perf_counter()
            try:
                tokens = await self._ask(client, request)
            except httpx.TransportError as error:
                cause, after = error.__cause__ or error.__context__, time.perf_counter() - began
                self.failures.append(f"{request}, {after:.3f} s after it was sent: {error!r} of {cause!r}")
                continue
            if tokens is not None:
                self.answers.append(Answered(request, began - self.began, time.perf_counter() - began, tuple(tokens)))

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> list[int] | None:
        """The tokens, or None when it has failed."""
        body = {"model": request.name, "prompt": self.prompts[request.prompt], "max_tokens": self.tokens}
        body |= {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        while True:
            response = await client.post("/v1/completions", json=body)
            if response.status_code != 503 or "retry-after" not in response.headers:
                break
            self.repeated += 1
            await asyncio.sleep(float(response.headers["retry-after"]))
        tokens = response.json()["choices"][0]["token_ids"] if response.status_code == 200 else []
        if len(tokens) != self.tokens:
            self.failures.append(f"{request}: {response.status_code} {response.text[:300]}")
            return None
        return tokens
