"""talking: who answers in a chat: a server, or an engine of this process' own."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from .failures import Told

Messages = list[dict[str, str]]
CONNECT = 10.0
"""Seconds."""


@dataclass
class Wishes:
    """How answers are to be; None leaves it to who answers."""

    max_tokens: int | None = None
    temperature: float | None = None

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Piece:
    """Some text of an answer, and which composition says it."""

    text: str
    model: str


class Talker(Protocol):
    async def models(self) -> list[str]:
        """The names there are. Raises Told."""

    async def name_of(self, model: str) -> str:
        """The name of a model as it is written. Raises Told where there is none."""

    def answer(self, model: str, messages: Messages) -> AsyncIterator[Piece]:
        """Raises Told."""

    async def close(self) -> None: ...


@dataclass
class Server:
    """A server that speaks the OpenAI API, with or without the /v1 in its URL."""

    url: str
    key: str
    wishes: Wishes
    client: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.url = f"{self.url.rstrip('/').removesuffix('/v1')}/v1"
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.client = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT))

    async def models(self) -> list[str]:
        return [model["id"] for model in (await self._get("models"))["data"]]

    async def name_of(self, model: str) -> str:
        return str((await self._get(f"models/{model}"))["id"])

    async def answer(self, model: str, messages: Messages) -> AsyncIterator[Piece]:
        body = {"model": model, "messages": messages, "stream": True, **self.wishes.given()}
        try:
            async with self.client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise self._refused(response)
                async for event in events(response):
                    if "error" in event:
                        raise Told(str(event["error"].get("message", event["error"])))
                    for choice in event.get("choices", ()):
                        yield Piece(choice.get("delta", {}).get("content") or "", event.get("model", model))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        await self.client.aclose()

    async def _get(self, path: str) -> Any:
        try:
            response = await self.client.get(f"{self.url}/{path}")
            if response.is_error:
                raise self._refused(response)
            return response.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise self._unreachable(error) from error

    def _refused(self, response: httpx.Response) -> Exception:
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"{response.status_code} {response.reason_phrase}"
        hint = ": give its key with --api-key, or in OPENAI_API_KEY" if response.status_code == 401 else ""
        return Told(f"{said}{hint}")

    def _unreachable(self, error: Exception) -> Exception:
        reason = str(error) or type(error).__name__
        return Told(f"{self.url}: {reason}: is `layerloom serve` running there?")


@dataclass
class Engine:
    """AsyncRuntime, which has its engine in a process beside this one."""

    runtime: Any
    wishes: Wishes

    @classmethod
    async def start(cls, family: Path, wishes: Wishes) -> "Engine":
        from layerloom.server import AsyncRuntime

        runtime = AsyncRuntime(family, enforce_eager=True)
        await runtime.__aenter__()
        return cls(runtime, wishes)

    async def models(self) -> list[str]:
        from layerloom.server.languages import Languages

        return [*self.runtime.family.names(), *Languages(self.runtime.family).names]

    async def name_of(self, model: str) -> str:
        try:
            return str(self.runtime.family.parse(model).name)
        except ValueError as error:
            raise Told(str(error)) from error

    async def answer(self, model: str, messages: Messages) -> AsyncIterator[Piece]:
        # Up to the end of the context, unless it is told otherwise.
        sampling = {"max_tokens": None, **self.wishes.given()}
        try:
            async with aclosing(self.runtime.chat(model, messages, **sampling)) as parts:
                async for part in parts:
                    yield Piece(part.text, part.model)
        except RuntimeError:
            raise
        except ValueError as error:
            raise Told(str(error)) from error

    async def close(self) -> None:
        await self.runtime.close()


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What the events of a stream say. Not httpx' lines: those end at what Unicode calls the end of a line, too."""
    buffer = ""
    async for part in response.aiter_text():
        *whole, buffer = (buffer + part).split("\n\n")
        for event in whole:
            data = event.removeprefix("data: ")
            if data != "[DONE]" and event != data:
                yield json.loads(data)
