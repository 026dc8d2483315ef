"""operators: what those who run a server ask it: which models there are, what is in memory, and to change that.

Loading and unloading have the names and answers of vLLM's LoRA adapters, which controllers and routers know.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.exceptions import VLLMNotFoundError

from layerloom.composer import KINDS, Plan, describe_blend
from layerloom.composer import Composition as Named
from layerloom.server.engine.residents import ABSENT, PINNED
from layerloom.server.options import lora_request

from .living import Living
from .schemas import Adapter, BankBytes, BankReport, Composition, Compositions, Detail, Layer, Load, Reload, Unload
from .visit import Refused, told

router = APIRouter()

SOON = 1.0
"""Seconds that a list of models waits for the engine."""


def living_of(request: Request) -> Living:
    found: Living = request.app.state.layerloom_living
    return found


def plan_of(request: Request, name: str) -> Plan:
    """Raises vLLM's own errors."""
    with told():
        return living_of(request).plan(name)


async def reports(request: Request) -> list[dict[str, Any]]:
    """What each worker says."""
    with told():
        found: list[dict[str, Any]] = await living_of(request).leases.tell("report_compositions")
    return found


def residents(said: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By digest, what all workers have; bytes are summed."""
    found: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for report in said:
        for shown in report["compositions"]:
            digest = shown["digest"]
            counts[digest] = counts.get(digest, 0) + 1
            known = found.setdefault(digest, {**shown, "bytes": 0, "shared_bytes": 0})
            for key in ("bytes", "shared_bytes"):
                known[key] += shown[key]
            known["last_used"] = max(known["last_used"], shown["last_used"])
    return {digest: shown for digest, shown in found.items() if counts[digest] == len(said)}


async def residents_soon(request: Request) -> dict[str, dict[str, Any]]:
    """`residents` as they are, or as they were last, where the engine is in a long step: lists are asked for often."""
    state = request.app.state
    asked = asyncio.ensure_future(reports(request))
    done, _ = await asyncio.wait({asked}, timeout=SOON)
    if done or not hasattr(state, "layerloom_residents"):
        state.layerloom_residents = residents(await asked)
    else:
        asked.cancel()
    found: dict[str, dict[str, Any]] = state.layerloom_residents
    return found


async def cards(request: Request, names: Sequence[str]) -> list[dict[str, Any]]:
    """The family's names as vLLM lists models and adapters, with recipe and whether they are in memory."""
    living = living_of(request)
    serving: OpenAIServingModels = request.app.state.openai_serving_models
    there = await residents_soon(request)
    base = (await serving.registry.show_available_models()).data[0]
    return [card(living, base, living.parse(name), there) for name in names]


def card(living: Living, base: Any, composition: Named, there: dict[str, Any]) -> dict[str, Any]:
    name, plan = composition.name, None if composition.is_auto else living.plan(composition.name)
    shown = base.model_copy(update={"id": name, "created": living.created, "root": name, "parent": None}).model_dump()
    digest = hashlib.sha256(name.encode()).hexdigest() if plan is None else plan.digest
    for number, permission in enumerate(shown.get("permission") or ()):
        # vLLM makes new ones for every answer.
        permission |= {"id": f"modelperm-{digest[:24]}{number}", "created": living.created}
    if name == base.id:
        return {**shown, "resident": True}
    resident = plan is not None and (plan.is_base or plan.digest in there)
    return {**shown, **living.family.describe(composition), "parent": base.id, "resident": resident}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The base, every expert and every task+language pair, with parent and recipe, and whether it is in memory.

    Then every task with the language "auto".
    """
    living = living_of(request)
    return {"object": "list", "data": await cards(request, [*living.family.names(), *living.languages.names])}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One of them, by any of its names."""
    with told():
        (found,) = await cards(request, [living_of(request).parse(name).name])
    return found


@router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
async def load(asked: Load, request: Request) -> str:
    """Assembles a composition, so that the first request for it need not wait."""
    plan = plan_of(request, asked.lora_name)
    if asked.lora_path not in (None, "", asked.lora_name, plan.name, plan.digest):
        raise Refused(
            f"compositions come from the family, not from a path: leave lora_path out, or give {plan.name!r} there",
            parameter="lora_path",
        )
    leases = living_of(request).leases
    if not plan.is_base:
        with told("lora_name"):
            leases.release(await leases.acquire(lora_request(plan)))
    return f"Success: LoRA adapter '{asked.lora_name}' added successfully."


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
async def unload(asked: Unload, request: Request) -> str:
    """Lets go of a composition: at once, or when the last of its requests has ended."""
    plan = plan_of(request, asked.lora_name)
    lora, leases = lora_request(plan), living_of(request).leases
    with told():
        await leases.dismiss(lora)
        answers = set(await leases.tell("evict_composition", lora.lora_path, lora.lora_int_id))
    if PINNED in answers:
        raise Refused(f"{plan.name} is pinned in family.yaml", parameter="lora_name")
    if answers == {ABSENT}:
        raise VLLMNotFoundError(f"The lora adapter {plan.name!r} cannot be found: it is not in memory.")
    return f"Success: LoRA adapter '{asked.lora_name}' removed successfully."


@router.post("/adapters", response_class=PlainTextResponse)
async def load_adapter(asked: Adapter, request: Request) -> str:
    """SageMaker's name for it."""
    return await load(Load(lora_name=asked.name, lora_path=asked.src), request)


@router.delete("/adapters/{name:path}", response_class=PlainTextResponse)
async def unload_adapter(name: str, request: Request) -> str:
    """SageMaker's name for it."""
    return await unload(Unload(lora_name=name), request)


def shown_of(living: Living, name: str, digest: str, there: dict[str, Any] | None) -> dict[str, Any]:
    known = there or {"bytes": 0, "shared_bytes": 0, "pinned": False, "last_used": None}
    in_flight = living.leases.users(digest)
    return {"name": name, "digest": digest, **known, "resident": there is not None, "in_flight": in_flight}


@router.get("/v1/compositions")
async def compositions(request: Request) -> Compositions:
    """What is in memory, last used first; the base, which always is, left out."""
    living = living_of(request)
    there = residents(await reports(request)).values()
    newest = sorted(there, key=lambda shown: -shown["last_used"])
    return Compositions(data=[Composition(**shown_of(living, s["name"], s["digest"], s)) for s in newest])


@router.get("/v1/compositions/{name:path}")
async def composition(name: str, request: Request) -> Detail:
    """One composition, in memory or not, layer by layer."""
    living, plan = living_of(request), plan_of(request, name)
    there = residents(await reports(request))
    layers = [
        Layer(
            layer=i,
            blend=blend.describe(),
            weights={kind: dict(blend.of(kind)) for kind in KINDS},
        )
        for i, blend in enumerate(plan.layers)
    ]
    layers.append(Layer(layer="stem", blend=describe_blend(plan.stem), weights={"all": dict(plan.stem)}))
    described = living.family.describe(living.family.parse(name))
    shown = shown_of(living, plan.name, plan.digest, there.get(plan.digest))
    if plan.is_base:
        shown["resident"] = True
    return Detail(**shown, recipe=described["recipe"], layers=layers)


@router.get("/v1/bank")
async def bank(request: Request) -> BankReport:
    """The memory of compositions."""
    return bank_of(await reports(request))


def bank_of(said: list[dict[str, Any]]) -> BankReport:
    """What each worker says, as one."""

    def total(key: str) -> Any:
        return sum(report[key] for report in said)

    counted = (
        "longest_assembly",
        "longest_stall",
        "reloads",
        "pages",
        "hits",
        "assemblies",
        "assembly_seconds",
        "assembly_bytes",
        "evictions",
        "making",
    )
    kinds = {kind: sum(report["bytes"][kind] for report in said) for kind in BankBytes.model_fields}
    return BankReport(
        **{key: total(key) for key in ("budget", "free")},
        **{key: max(report[key] for report in said) for key in counted},
        fragmentation=1 - total("largest_free") / total("free") if total("free") else 0.0,
        bytes=BankBytes(**kinds),
        compositions=len(residents(said)),
        family=said[0]["family"],
    )


@router.post("/v1/family/reload")
async def reload(request: Request) -> Reload:
    """Loads family.yaml and its experts anew, and serves them; where they are broken all stays as it was."""
    living = living_of(request)
    with told("family"):
        # A client that hangs up leaves no half of it behind.
        changed = await asyncio.shield(asyncio.ensure_future(living.reload()))
    return Reload(family=living.family.digest, changed=changed, compositions=len(living.family.names()))
