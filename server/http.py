"""http: compositions on vLLM's OpenAI server."""

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import State
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.exceptions import VLLMNotFoundError, VLLMValidationError
from vllm.lora.request import LoRARequest

from layerloom.composer import ComposeError, Family, Plan, UnknownName

from .engine import load_family, lora_request

POLL = 0.01
"""Seconds."""


class Resolver:
    """Turns a model name into the adapter vLLM serves it with, assembling it on first use."""

    def __init__(self, family: Family, allow_recipes: bool, models: OpenAIServingModels) -> None:
        self.family = family
        self.allow_recipes = allow_recipes
        self.models = models

    async def resolve_lora(self, name: str) -> LoRARequest:
        """Stands in for OpenAIServingModels.resolve_lora. Raises vLLM's own errors, which become 404 and 400."""
        try:
            plan = self.family.plan(self.family.parse(name, self.allow_recipes))
        except UnknownName as error:
            raise VLLMNotFoundError(str(error)) from error
        except ComposeError as error:
            raise VLLMValidationError(str(error), parameter="model") from error
        request = lora_request(plan)
        async with self.models.lora_resolver_lock[plan.name]:
            if self.models.lora_requests.get(plan.name) is None:
                try:
                    await self._read(plan)
                    await self.models.engine_client.add_lora(request)
                except Exception as error:
                    raise VLLMValidationError(
                        f"{plan.name} could not be assembled: {error}", parameter="model"
                    ) from error
            self.models.lora_requests[plan.name] = self.models.lora_requests[name] = request
        return request

    async def _read(self, plan: Plan) -> None:
        """Has the workers read the composition's files while they go on with other requests."""
        call = self.models.engine_client.collective_rpc
        await call("stage_composition", args=(plan.name, plan.digest))
        while not all(await call("composition_is_staged", args=(plan.digest,))):
            await asyncio.sleep(POLL)

    async def refuse(self, *_: Any, **__: Any) -> None:
        """Stands in for loading and unloading LoRA adapters by path."""
        raise VLLMValidationError(
            "compositions are not loaded or unloaded: ask for one by its name, see GET /v1/models"
        )


class LayerloomEndpoints:
    """Entry point `vllm.endpoint_plugins`: lists every composition before its first use, and resolves names."""

    name = "layerloom"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        # Older versions let vLLM's own route for this path go first; newer ones would leave it out themselves.
        routes = app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", None) != "/v1/models"]

        @app.get("/v1/models")
        async def models(request: Request) -> dict[str, Any]:
            """The base, every expert and every task+language pair, with parent and recipe."""
            serving: OpenAIServingModels = request.app.state.openai_serving_models
            listed = await serving.registry.show_available_models()
            base = listed.data[0]
            family: Family | None = getattr(request.app.state, "layerloom_family", None)
            cards = [card.model_dump() for card in listed.data]
            if family is not None:
                for name in family.names():
                    if name != "base":
                        card = base.model_copy(update={"id": name, "parent": base.id})
                        cards.append({**card.model_dump(), **family.describe(name), "parent": base.id})
            return {"object": "list", "data": cards}

    async def init_state(self, engine_client: EngineClient | None, state: State, args: Namespace) -> None:
        options = engine_client.vllm_config.additional_config.get("layerloom") if engine_client else None
        if not options:
            return
        family = state.layerloom_family = load_family(options)
        models: OpenAIServingModels = state.openai_serving_models
        resolver = Resolver(family, options["allow_recipes"], models)
        models.resolve_lora = resolver.resolve_lora
        # Their routes are open because vLLM ties them to resolving names at run time.
        models.load_lora_adapter = models.unload_lora_adapter = resolver.refuse
