"""front: what stands before vLLM's routes: the API key, requests' leases, and 503 where there is no engine to ask."""

import hashlib
from argparse import Namespace
from secrets import compare_digest
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs

from layerloom.server.voices import SPEAKING

from .studio import PATHS
from .visit import VISIT, Visit

OPEN = {"/health", "/ping", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
"""What needs no API key; all else does, whoever adds it."""

CHANGING = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/family/reload", "/adapters"}
"""What changes what is in memory for everybody."""

ADMIN_KEY = "LAYERLOOM_ADMIN_KEY"
"""In the environment, which is not logged as options are."""

ADAPTER = b"x-amzn-sagemaker-adapter-identifier"
MODEL = b"x-layerloom-model"
"""Says which composition an answer is of, where its language was left open."""

RETRY_AFTER = {"Retry-After": "1"}
"""Seconds."""


class Front:
    """ASGI middleware. `keys` are the API keys, any of which will do; with none all is open.

    Where there is an `admin` key, what is CHANGING asks for it: as the API key, if it is one, too, or in X-Admin-Key.
    """

    def __init__(self, app: ASGIApp, keys: list[str], admin: str, open_metrics: bool) -> None:
        self.app = app
        self.keys = [digest(key) for key in keys]
        self.admin = digest(admin) if admin else None
        self.open = OPEN | PATHS | ({"/metrics"} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        headers = Headers(scope=scope)
        if scope.get("method") != "OPTIONS" and not self._may(path, headers):
            return await error(401, "Unauthorized", "the API key is missing or wrong")(scope, receive, send)
        if self.admin is not None and not self._may_change(path, headers):
            reason = "this needs the admin key: as the API key (Authorization: Bearer …), or in X-Admin-Key"
            return await error(403, "Forbidden", reason)(scope, receive, send)
        server = scope["app"].state.layerloom
        if server.ending:
            return await unavailable(server.ending)(scope, receive, send)
        visit = Visit(path, headers.get("Accept-Language", ""))
        receive = visit.reading(receive)
        if path == "/invocations":
            scope, receive = await with_adapter(visit, scope, receive)
        SPEAKING.set(None)
        token = VISIT.set(visit)
        answer = Answer(visit, server, scope, receive, send)
        try:
            await self.app(scope, receive, answer)
        finally:
            VISIT.reset(token)
            if not answer.complete:
                await visit.end()
            for lease in visit.leases:
                server.leases.release(lease)

    def _may(self, path: str, headers: Headers) -> bool:
        if not self.keys or path in self.open or path.startswith("/static/"):
            return True
        return any([compare_digest(given, known) for given in keys_given(headers) for known in self.keys])

    def _may_change(self, path: str, headers: Headers) -> bool:
        if path not in CHANGING and not path.startswith("/adapters/"):
            return True
        given = [*keys_given(headers), digest(headers.get("X-Admin-Key", ""))]
        return any([compare_digest(key, self.admin or b"") for key in given])


class Answer:
    """Sends on what a handler answers, unless it is an error and the reason is that there is nothing to ask now."""

    def __init__(self, visit: Visit, server: Any, scope: Scope, receive: Receive, send: Send) -> None:
        self.visit, self.server = visit, server
        self.scope, self.receive, self.send = scope, receive, send
        self.replaced = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            reason = self.visit.unavailable or self.server.ending
            if reason:
                self.replaced = True
                self.complete = True
                return await unavailable(reason)(self.scope, self.receive, self.send)
        if message["type"] == "http.response.start" and self.visit.chosen:
            message["headers"] = [*message["headers"], (MODEL, self.visit.chosen.encode())]
        if not self.replaced:
            await self.send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")


def api_keys(args: Namespace) -> list[str]:
    """Those of vLLM's options, or of its environment."""
    return [key for key in args.api_key or [envs.VLLM_API_KEY] if key]


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def keys_given(headers: Headers) -> list[bytes]:
    """The digests of the keys that come with a request: as OpenAI's clients send them, and as Anthropic's do."""
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    given = [key] if scheme.lower() == "bearer" else []
    return [digest(each) for each in (*given, headers.get("X-Api-Key")) if each is not None]


def unavailable(reason: str) -> JSONResponse:
    return error(503, "ServiceUnavailableError", reason, RETRY_AFTER)


def error(status: int, kind: str, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """In OpenAI's form."""
    content = {"error": {"message": reason, "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status, headers)


async def with_adapter(visit: Visit, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """SageMaker's route takes a model from a header alone, and the base without it: the body's `model` goes there."""
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    model = visit.asked.get("model")

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    if isinstance(model, str) and model and ADAPTER not in dict(scope["headers"]):
        scope = {**scope, "headers": [*scope["headers"], (ADAPTER, model.encode("utf-8", "replace"))]}
    return scope, again
