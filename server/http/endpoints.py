"""endpoints: compositions on vLLM's OpenAI server."""

import asyncio
import os
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.lora.request import LoRARequest

from layerloom.server.languages import turns_of
from layerloom.server.options import RUNTIME_LOADING, load_family, lora_request
from layerloom.server.voices import SPEAKING, Voices

from . import metrics, studio
from .front import ADMIN_KEY, Front, api_keys
from .leases import Leases
from .lifetime import Lifetime
from .living import Living
from .operators import router
from .ready import announce
from .said import said_in
from .series import keep_showing, label_of, series
from .visit import VISIT, Adapters, Refused, Visit, told
from .watching import watch

UNWRITABLE = (
    "the answer cannot be written in the form that was asked for (response_format, structured_outputs or a tool): "
    "at some place this model's vocabulary has no token that the form allows"
)


class Resolver:
    """Turns a model name into the adapter vLLM serves it with, and holds it for the request that asked."""

    def __init__(self, living: Living, leases: Leases, voices: Voices, stored: Mapping[str, Any]) -> None:
        self.living = living
        self.leases = leases
        self.voices = voices
        self.stored = stored
        """The messages before each answer that vLLM keeps for those that follow on it, where it is told to keep any."""

    async def resolve_lora(self, name: str) -> LoRARequest:
        """Stands in for OpenAIServingModels.resolve_lora. Raises vLLM's own errors, which become 404 and 400."""
        visit = VISIT.get(None) or Visit("")
        with told():
            plan = self.living.plan_for(name, lambda: self._turns(visit), visit.accept)
            if self.living.parse(name).is_auto:
                visit.chosen = plan.name
            request = lora_request(plan)
            speaking = self.voices.of(request.lora_name)
            if visit.generates:
                await self.leases.let_pass()
                visit.leases.append(await self.leases.acquire(request))
        visit.adapters[name] = request
        SPEAKING.set(speaking)
        return request

    def _turns(self, visit: Visit) -> list[str]:
        """What the user has said, in this request and in those that it follows on."""
        asked, tokenizer = visit.asked, self.voices.renderer.tokenizer
        before = self.stored.get(str(asked.get("previous_response_id")))
        return turns_of(before) + said_in(asked, tokenizer.decode if tokenizer else None)

    def holding(self, generate: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
        """An engine client's `generate`, for requests that hold their composition as long as they run.

        Longer than the HTTP request, if need be: one may go on in the background, or be aborted only later.
        """

        async def held(
            *args: Any, lora_request: LoRARequest | None = None, **options: Any
        ) -> AsyncGenerator[Any, None]:
            name = "base" if lora_request is None else label_of(lora_request.lora_name)
            bounded = any(getattr(given, "structured_outputs", None) for given in (*args, *options.values()))
            with series().request(name) as seen:
                lease = None if lora_request is None else await self.leases.acquire(lora_request)
                try:
                    async with aclosing(generate(*args, lora_request=lora_request, **options)) as outputs:
                        async for output in outputs:
                            seen.output(output)
                            if seen.outcome == "error" and bounded:
                                raise Refused(UNWRITABLE, parameter="response_format")
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
        app.include_router(router)
        app.include_router(studio.router)
        admin = os.environ.get(ADMIN_KEY, "")
        app.add_middleware(Front, keys=api_keys(app.state.args), admin=admin, open_metrics=settings["open_metrics"])
        app.state.layerloom_app = app

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        settings = settings_of(args)
        if settings is None or engine_client is None:
            return
        # Front asks for the key, on every route; vLLM's own, before it, would refuse one in Anthropic's header.
        app: FastAPI = state.layerloom_app
        app.user_middleware = [each for each in app.user_middleware if each.cls.__name__ != "AuthenticationMiddleware"]
        app.middleware_stack = None
        family = load_family(settings)
        leases = Leases(engine_client, settings["patience"])
        if (seconds := series().load_seconds) is not None:
            leases.on_made = seconds.observe
        voices = Voices(family, engine_client)
        living = state.layerloom_living = Living(settings, family, leases, voices, *place_of(engine_client))
        stored = getattr(getattr(state, "openai_serving_responses", None), "msg_store", {})
        resolver = Resolver(living, leases, voices, stored)
        models: OpenAIServingModels = state.openai_serving_models
        models.resolve_lora = resolver.resolve_lora
        models.lora_requests = Adapters()
        for serving in list(state._state.values()):
            if voices.lends_sampling and hasattr(serving, "default_sampling_params"):
                voices.lend(serving)
        # Here, and not for all of vLLM's processes: it asks for nothing but that names are resolved when they come.
        os.environ[RUNTIME_LOADING] = "1"
        engine_client.generate = resolver.holding(engine_client.generate)
        metrics.bound(engine_client, shared="PROMETHEUS_MULTIPROC_DIR" in os.environ)
        embedded = settings.get("embedded", False)
        state.layerloom = Lifetime(engine_client, leases, state, embedded)
        await asyncio.to_thread(living.languages.prepare)
        await living.preload()
        state.layerloom_watch = watch(living, signals=not embedded)
        if living.index == 0:
            showing = keep_showing(leases, args.max_cpu_loras or 0, living.servers == 1)
            state.layerloom_series = asyncio.create_task(showing)
        if not embedded:
            state.layerloom_ready = asyncio.create_task(announce(state, leases, living.index, living.servers))


def place_of(client: EngineClient) -> tuple[int, int]:
    """Which of the servers that share the engines this one is, and how many there are."""
    core = client.engine_core
    return getattr(core, "client_index", 0), getattr(core, "client_count", 1)


def settings_of(args: Namespace) -> dict[str, Any] | None:
    """What `layerloom serve` has set; None in a server of stock vLLM."""
    return (getattr(args, "additional_config", None) or {}).get("layerloom")
