"""endpoints: compositions on vLLM's OpenAI server."""

import os
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import State
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.lora.request import LoRARequest

from layerloom.composer import ComposeError, Family, Plan, UnknownName
from layerloom.server.options import load_family, lora_request
from layerloom.server.voices import SPEAKING, Voices

from . import metrics
from .front import Front
from .leases import Leases, Unavailable
from .lifetime import Lifetime
from .visit import VISIT, Adapters, Visit

MOST_PLANS = 1024
"""Names whose plans are remembered."""


class Resolver:
    """Turns a model name into the adapter vLLM serves it with, and holds it for the request that asked."""

    def __init__(self, family: Family, allow_recipes: bool, leases: Leases, voices: Voices) -> None:
        self.leases = leases
        self.voices = voices
        self._plan: Callable[[str], Plan] = lru_cache(MOST_PLANS)(
            lambda name: family.plan(family.parse(name, allow_recipes))
        )

    async def resolve_lora(self, name: str) -> LoRARequest:
        """Stands in for OpenAIServingModels.resolve_lora. Raises vLLM's own errors, which become 404 and 400."""
        visit = VISIT.get(None) or Visit("")
        try:
            request = lora_request(self._plan(name))
            if visit.generates:
                await self.leases.let_pass()
                visit.leases.append(await self.leases.acquire(request))
        except UnknownName as error:
            raise VLLMNotFoundError(str(error)) from error
        except ComposeError as error:
            if isinstance(error, Unavailable):
                visit.unavailable = str(error)
            raise VLLMValidationError(str(error), parameter="model") from error
        visit.adapters[name] = request
        SPEAKING.set(self.voices.of(request.lora_name))
        return request

    def holding(self, generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        """An engine client's `generate`, for requests that hold their composition as long as they run.

        Longer than the HTTP request, if need be: one may go on in the background, or be aborted only later.
        """

        async def held(
            *args: Any, lora_request: LoRARequest | None = None, **options: Any
        ) -> AsyncGenerator[Any, None]:
            lease = None if lora_request is None else await self.leases.acquire(lora_request)
            try:
                async with aclosing(generate(*args, lora_request=lora_request, **options)) as outputs:
                    async for output in outputs:
                        yield output
            finally:
                if lease is not None:
                    self.leases.release(lease)

        def started(*args: Any, **options: Any) -> AsyncIterator[Any]:
            outputs = held(*args, **options)
            visit = VISIT.get(None)
            if visit is not None:
                visit.outputs.append(outputs)
            return outputs

        return started


class LayerloomEndpoints:
    """Entry point `vllm.endpoint_plugins`: lists every composition before its first use, and resolves names."""

    name = "layerloom"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        settings = settings_of(app.state.args)
        if settings is None:
            return
        # Older versions let vLLM's own route for this path go first; newer ones would leave it out themselves.
        routes = app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", None) != "/v1/models"]
        started = int(time.time())

        @app.get("/v1/models")
        async def models(request: Request) -> dict[str, Any]:
            """The base, every expert and every task+language pair, with parent and recipe."""
            serving: OpenAIServingModels = request.app.state.openai_serving_models
            family: Family = request.app.state.layerloom_family
            base = (await serving.registry.show_available_models()).data[0].model_copy(update={"created": started})
            cards = [base.model_dump()]
            for name in family.names():
                if name != "base":
                    card = base.model_copy(update={"id": name, "parent": base.id})
                    cards.append({**card.model_dump(), **family.describe(name), "parent": base.id})
            return {"object": "list", "data": cards}

        @app.post("/v1/load_lora_adapter")
        @app.post("/v1/unload_lora_adapter")
        @app.post("/adapters")
        async def refuse() -> None:
            """Compositions come from the family alone."""
            raise VLLMValidationError(
                "compositions are not loaded or unloaded: ask for one by its name, see GET /v1/models"
            )

        keys = [key for key in app.state.args.api_key or [envs.VLLM_API_KEY] if key]
        app.add_middleware(Front, keys=keys, open_metrics=settings["open_metrics"])

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        settings = settings_of(args)
        if settings is None or engine_client is None:
            return
        family = state.layerloom_family = load_family(settings)
        leases = Leases(engine_client, settings["patience"])
        voices = Voices(family, engine_client)
        resolver = Resolver(family, settings["allow_recipes"], leases, voices)
        models: OpenAIServingModels = state.openai_serving_models
        models.resolve_lora = resolver.resolve_lora
        models.lora_requests = Adapters()
        for serving in list(state._state.values()):
            if voices.lends_sampling and hasattr(serving, "default_sampling_params"):
                voices.lend(serving)
        # Here, and not for all of vLLM's processes: it asks for nothing but that names are resolved when they come.
        os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        engine_client.generate = resolver.holding(engine_client.generate)
        metrics.bound(engine_client, shared="PROMETHEUS_MULTIPROC_DIR" in os.environ)
        state.layerloom = Lifetime(engine_client, leases, state)


def settings_of(args: Namespace) -> dict[str, Any] | None:
    """What `layerloom serve` has set; None in a server of stock vLLM."""
    return (getattr(args, "additional_config", None) or {}).get("layerloom")
