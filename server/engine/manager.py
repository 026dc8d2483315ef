"""manager: stands where vLLM's LoRA manager would; an adapter here is a composition."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter, sleep
from typing import Any

from vllm.lora.request import LoRARequest

from layerloom.composer import Bank, ComposeError, Family, Plan
from layerloom.composer.pages.arena import NoRoom, megabytes
from layerloom.composer.pages.bank import Reserved
from layerloom.kernels.compose import prepare

from .families import SWITCHED, Families, State
from .maker import Maker
from .residents import EVICTED, Adapter, Residents
from .routes import EnginePages, Pages, Routes

HELD, READING, BUSY, REFUSED = "held", "reading", "busy", "refused"

Answer = tuple[str, str]
"""One of these, and the reason."""


class CompositionManager:
    """Answers the calls vLLM's model runner makes on its LoRA manager, and the servers' own: `hold` and `release`.

    A composition is held from before its first request reaches the scheduler until its last has ended, and what is held
    is never let go of. All that can fail does so in `hold`; a step (`set_active_adapters`) looks up what is in memory.
    """

    def __init__(
        self,
        family: Family,
        pages: EnginePages,
        capacity: int,
        mixed: int,
        memory: int | None,
        recipes: bool,
        cores: Iterable[int],
        spare: Iterable[int],
        load: Callable[[], Family],
    ) -> None:
        self.pages = pages
        self.capacity = capacity
        self.families = Families(family, pages, mixed, capacity, load)
        self.families.fit(memory, recipes)
        pages.give(self.families.memory)
        for dtype in self.bank.dtypes():
            prepare(dtype, pages.device)
        self._base = tuple(pages.base_page(part) for part in range(family.depth + 1))
        self.routes = Routes(pages, self._base)
        self._adapters = Residents()
        self._active: frozenset[int] = frozenset()
        self._maker = Maker(cores, spare)
        self._hits = 0
        self._longest = 0.0
        """Seconds that a call here kept the engine waiting."""

    @property
    def family(self) -> Family:
        return self.families.family

    @property
    def bank(self) -> Bank:
        return self.families.bank

    def renew(self, action: str, token: str) -> State:
        """The family's files read anew: `begin`, ask for the `state` until it is ready, then `switch` or `drop` it.

        Requests that run, and those that were named before, go on with the weights of the family before. It never
        raises.
        """
        if action == "begin":
            self.families.begin(token)
        elif action == "drop":
            self.families.drop(token)
        elif action == "switch" and self.families.switch(token):
            self._adapters.renew(self.families.digests)
            self.routes.forget()
            return SWITCHED, self.family.digest
        return self.families.state(token)

    def hold(self, name: str, digest: str, adapter_id: int, holder: str) -> Answer:
        """Keeps a composition in memory for `holder`, assembled first if need be, until it calls `release`.

        The answer is HELD; READING, when it has its room and is being made, and BUSY, when there is no room yet: ask
        again; or REFUSED. It never raises: vLLM's executor for several workers does not survive that.
        """
        began = perf_counter()
        try:
            if adapter_id not in self._adapters:
                answer = self._load(name, digest, adapter_id, holder)
                if answer[0] != HELD:
                    return answer
            else:
                self._hits += 1
            adapter = self._adapters[adapter_id]
            if adapter.path != digest:
                return REFUSED, f"adapter id {adapter_id} already stands for {adapter.name}"
            self._adapters.hold(adapter_id, holder)
            return HELD, ""
        except Exception as error:
            # Clients are told which file, and not where this machine has it.
            return REFUSED, str(error).replace(f"{self.family.root}/", "") or type(error).__name__
        finally:
            self._longest = max(self._longest, perf_counter() - began)

    def release(self, digest: str, adapter_id: int, holder: str) -> None:
        """Says that `holder` has no request left for a composition, or does not wait for it any more."""
        self._maker.forget(digest, holder)
        self._adapters.release(adapter_id, holder)

    def evict(self, digest: str, adapter_id: int) -> str:
        """Lets go of a composition: EVICTED, or LEAVING, PINNED or ABSENT (see residents)."""
        found = self._adapters.evict(adapter_id, digest)
        if found == EVICTED:
            self.routes.forget()
        return found

    def report(self) -> dict[str, Any]:
        """What is in memory and what has been done, ready for JSON; bytes are of this worker's shard."""
        made = self._maker.made
        shown = self._adapters.report(self.bank)
        shown["bytes"]["base"] = sum(map(self.pages.bytes, range(self.family.depth + 1)))
        free = self.pages.free
        return {
            **shown,
            "budget": self.families.memory,
            "free": free,
            "largest_free": getattr(self.pages, "largest_free", free),
            "hits": self._hits,
            "assemblies": made.count,
            "assembly_seconds": made.seconds,
            "assembly_bytes": made.bytes,
            "longest_assembly": made.longest,
            "longest_stall": self._longest,
            "making": len(self._maker),
            "family": self.family.digest,
            "reloads": self.families.switches,
        }

    def _load(self, name: str, digest: str, adapter_id: int, holder: str) -> Answer:
        """Has a composition made that is not there. Raises ComposeError."""
        job = self._maker.get(digest)
        if job is None:
            bank, plan = self.families.plan(name, digest)
            if self._maker.full:
                return BUSY, f"{len(self._maker)} other compositions are to be made before it"
            if not self._make_room(bank, plan):
                others = len(self._maker) + self._adapters.held
                # What nobody waits for any more has its room for a moment yet.
                if others or self._maker.working:
                    return BUSY, f"{others} other compositions are in use and hold all the room that it needs"
                raise ComposeError(
                    f"it needs {megabytes(bank.missing(plan))}, and the bank has {megabytes(self.pages.free)}: "
                    "start with a larger --bank-memory"
                )
            reserved = self._reserve(bank, plan)
            if reserved is None:
                return BUSY, "the room for it is in pieces, and cannot be put together while others are being made"
            job = self._maker.begin(bank, reserved, holder)
        job.waiting.add(holder)
        if not job.done:
            return READING, ""
        reserved = self._maker.take(digest)
        own = {page: key for page, key in zip(reserved.pages, reserved.keys, strict=True) if page not in self._base}
        self._adapters.add(adapter_id, Adapter(reserved.plan.name, digest, reserved.pages, own))
        return HELD, ""

    def _reserve(self, bank: Bank, plan: Plan) -> Reserved | None:
        """The room for a composition; None where that is in pieces, and pages are being written to."""
        working, generation = self._maker.working, self.pages.generation
        self.pages.hold_still(working)
        try:
            return bank.reserve(plan)
        except NoRoom:
            if not working:
                raise
            return None
        finally:
            if self.pages.generation != generation:
                self.routes.forget()

    def _make_room(self, bank: Bank, plan: Plan) -> bool:
        """Lets go of compositions that nobody holds until this one fits; False where it does not."""

        def short() -> bool:
            return bank.missing(plan) > self.pages.free

        if short():
            self.routes.forget()
        while len(self._adapters) + len(self._maker) >= self.capacity or short():
            if not self._adapters.evict_one(self._active):
                return False
        return True

    def add_adapter(self, request: LoRARequest) -> bool:
        """vLLM's own way to load one, for those who do not `hold` it. False when it was there; raises ComposeError."""
        there = request.lora_int_id in self._adapters
        holder = "add_adapter"
        while True:
            answer = self.hold(request.lora_name, request.lora_path, request.lora_int_id, holder)
            if answer[0] != READING and not (answer[0] == BUSY and self._maker.working):
                break
            sleep(0.005)
        self.release(request.lora_path, request.lora_int_id, holder)
        if answer[0] != HELD:
            raise ComposeError(f"{request.lora_name}: {answer[1]}")
        return not there

    def remove_adapter(self, adapter_id: int) -> bool:
        """False when it was not there, or is held."""
        if adapter_id not in self._adapters or self._adapters[adapter_id].holders:
            return False
        self._adapters[adapter_id].pinned = False
        return self._adapters.evict(adapter_id, self._adapters[adapter_id].path) == EVICTED

    def remove_all_adapters(self) -> None:
        for adapter_id in list(self._adapters):
            self.remove_adapter(adapter_id)
        self.routes.forget()

    def pin_adapter(self, adapter_id: int) -> bool:
        if adapter_id not in self._adapters:
            raise ValueError(f"no composition with adapter id {adapter_id} is loaded")
        self._adapters[adapter_id].pinned = True
        return True

    def list_adapters(self) -> set[int]:
        return set(self._adapters)

    def set_active_adapters(self, requests: set[LoRARequest], mapping: Any | None) -> None:
        """Routes the coming step: `mapping` names the adapter id of each token and of each sampled token."""
        self._maker.step()
        self._active = frozenset(request.lora_int_id for request in requests)
        for request in requests:
            if request.lora_int_id not in self._adapters:
                # Of a caller who added a request to the engine without holding its composition.
                self.add_adapter(request)
        if mapping is None:
            return
        self.routes.tokens(mapping.index_mapping, self._routed)
        self.routes.samples(mapping.prompt_mapping, self._routed)

    def _routed(self, adapter_id: int) -> tuple[Pages, bool]:
        """A composition's pages, and whether it is a dummy."""
        if adapter_id == 0:
            return self._base, False
        adapter = self._adapters[adapter_id]
        return adapter.pages, adapter.dummy

    def sampling_for(self, adapter_id: int) -> AbstractContextManager[None]:
        """The output head of one request alone, for prompt log probabilities."""
        return self.routes.head_for(self._routed(adapter_id)[0])

    def sampling_tokens(self, first: int, count: int) -> AbstractContextManager[None]:
        """The output head for some of the step's tokens, in place of those that are sampled."""
        return self.routes.head_for_tokens(first, count)

    # Dummy adapters, with which vLLM warms up and captures graphs, are the base under other ids.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        self._adapters.add(request.lora_int_id, Adapter(request.lora_name, request.lora_path, self._base, dummy=True))
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False
