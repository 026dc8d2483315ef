"""visit: one HTTP request on its way through vLLM's handlers, and what it holds meanwhile."""

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.lora.request import LoRARequest

from layerloom.composer import ComposeError, UnknownName

from .leases import Lease, Unavailable

TEXT_ONLY = ("/tokenize", "/detokenize", "/count_tokens", "/render", "/derender")
"""How the paths end that need a composition's name, and not its weights."""


@dataclass
class Visit:
    """A request: the compositions it asked for, by the names it used, and its leases of them."""

    path: str
    accept: str = ""
    """Its Accept-Language header."""
    body: bytes = b""
    adapters: dict[str, LoRARequest] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    outputs: list[AsyncGenerator[Any, None]] = field(default_factory=list)
    """What the engine says to it, while it is being asked for."""
    unavailable: str = ""
    """Why it is to be answered with 503, whatever a handler makes of it."""
    chosen: str = ""
    """The composition that a name stood for which leaves its language open."""

    def reading(self, receive: Receive) -> Receive:
        """`receive`, and the body is kept: the same bytes that its handler keeps."""
        parts: list[bytes] = []

        async def read() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self.body = b"".join(parts)
            return message

        return read

    @property
    def asked(self) -> dict[str, Any]:
        """What its body says, if that is an object in JSON."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    async def end(self) -> None:
        """Aborts what still runs when the client has hung up.

        A stream that was cut while it sent something is closed only when it is collected, which can take seconds. What
        somebody waits for in the background goes on.
        """
        for outputs in self.outputs:
            with suppress(RuntimeError):
                await outputs.aclose()

    @property
    def generates(self) -> bool:
        return not self.path.endswith(TEXT_ONLY)


VISIT: ContextVar[Visit] = ContextVar("layerloom_visit")


@contextmanager
def told(parameter: str = "model") -> Iterator[None]:
    """Turns what composing raises into vLLM's own errors: 404 and 400, or 503 where it cannot be had now."""
    try:
        yield
    except UnknownName as error:
        raise VLLMNotFoundError(str(error)) from error
    except ComposeError as error:
        visit = VISIT.get(None)
        if isinstance(error, Unavailable) and visit is not None:
            visit.unavailable = str(error)
        raise Refused(str(error), parameter=parameter) from error


class Refused(VLLMValidationError):
    """Says what is wrong and nothing else: vLLM's own adds the parameter, which the answer has in a field."""

    def __str__(self) -> str:
        return str(self.args[0])


class Adapters(Mapping[str, LoRARequest]):
    """Stands in for the dictionary in which vLLM's OpenAIServingModels keeps every adapter that was ever asked for.

    It has those of the current request alone: so each request is resolved, and nothing grows.
    """

    def _own(self) -> dict[str, LoRARequest]:
        visit = VISIT.get(None)
        return {} if visit is None else visit.adapters

    def __getitem__(self, name: str) -> LoRARequest:
        return self._own()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())
