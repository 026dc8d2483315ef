"""manager: stands where vLLM's LoRA manager would; an adapter here is a composition."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Any

from vllm.lora.request import LoRARequest

from layerloom.composer import Bank, ComposeError, Family, Plan
from layerloom.composer.pages.arena import NoRoom, megabytes
from layerloom.composer.pages.bank import Reserved
from layerloom.composer.pages.budget import needed
from layerloom.kernels.compose import prepare

from .maker import Maker
from .routes import EnginePages, Pages, Routes

HELD, READING, BUSY, REFUSED = "held", "reading", "busy", "refused"

Answer = tuple[str, str]
"""One of these, and the reason."""


@dataclass
class Adapter:
    """A composition as vLLM's scheduler knows it, and who has requests for it."""

    name: str
    path: str
    pages: Pages
    dummy: bool = False
    holders: set[str] = field(default_factory=set)


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
    ) -> None:
        self.family = family
        self.pages = pages
        self.bank = Bank(family, pages)
        self.capacity = capacity
        names = family.names()
        wanted = needed(map(family.plan, names), mixed, self.bank)
        if memory is None:
            # A composition that only a client's recipe names can be a whole model of its own.
            memory = wanted + recipes * sum(map(pages.bytes, range(family.depth + 1)))
        if wanted > memory:
            raise ComposeError(
                f"any {mixed} of {len(names)} compositions at once need {megabytes(wanted)} of bank memory, and there "
                f"are {megabytes(memory)}: start with a larger --bank-memory or a smaller --max-loras"
            )
        pages.give(memory)
        for dtype in self.bank.dtypes():
            prepare(dtype, pages.device)
        self._base = tuple(pages.base_page(part) for part in range(family.depth + 1))
        self.routes = Routes(pages, self._base)
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        """Those longest unused first."""
        self._pinned: set[int] = set()
        self._active: frozenset[int] = frozenset()
        self._maker = Maker(self.bank, cores, spare)

    def hold(self, name: str, digest: str, adapter_id: int, holder: str) -> Answer:
        """Keeps a composition in memory for `holder`, assembled first if need be, until it calls `release`.

        The answer is HELD; READING, when it is being made, and BUSY, when all room is held by others: ask again; or
        REFUSED. It never raises: vLLM's executor for several workers does not survive that.
        """
        try:
            if adapter_id not in self._adapters:
                answer = self._load(name, digest, adapter_id, holder)
                if answer[0] != HELD:
                    return answer
            adapter = self._adapters[adapter_id]
            if adapter.path != digest:
                return REFUSED, f"adapter id {adapter_id} already stands for {adapter.name}"
            adapter.holders.add(holder)
            self._adapters.move_to_end(adapter_id)
            return HELD, ""
        except Exception as error:
            # Clients are told which file, and not where this machine has it.
            return REFUSED, str(error).replace(f"{self.family.root}/", "") or type(error).__name__

    def release(self, digest: str, adapter_id: int, holder: str) -> None:
        """Says that `holder` has no request left for a composition, or does not wait for it any more."""
        self._maker.forget(digest, holder)
        adapter = self._adapters.get(adapter_id)
        if adapter is not None and holder in adapter.holders:
            adapter.holders.remove(holder)
            self._adapters.move_to_end(adapter_id)

    def _load(self, name: str, digest: str, adapter_id: int, holder: str) -> Answer:
        """Has a composition made that is not there. Raises ComposeError."""
        job = self._maker.get(digest)
        if job is None:
            plan = self.family.plan(name)
            if plan.digest != digest:
                raise ComposeError(
                    f"{plan.name}: the request was made for digest {digest[:12]}, this engine's family has "
                    f"{plan.digest[:12]}. Were the expert's files changed while serving? Restart the server."
                )
            if self._maker.full:
                return READING, ""
            if not self._make_room(plan):
                others = len(self._maker) + sum(bool(adapter.holders) for adapter in self._adapters.values())
                # What nobody waits for any more has its room for a moment yet.
                if others or self._maker.working:
                    return BUSY, f"{others} other compositions are in use and hold all the room that it needs"
                raise ComposeError(
                    f"it needs {megabytes(self.bank.missing(plan))}, and the bank has {megabytes(self.pages.free)}: "
                    "start with a larger --bank-memory"
                )
            reserved = self._reserve(plan)
            if reserved is None:
                return READING, ""
            job = self._maker.begin(reserved, holder)
        job.waiting.add(holder)
        if not job.done:
            return READING, ""
        reserved = self._maker.take(digest)
        self._adapters[adapter_id] = Adapter(reserved.plan.name, digest, reserved.pages)
        return HELD, ""

    def _reserve(self, plan: Plan) -> Reserved | None:
        """The room for a composition; None where that is in pieces, and pages are being written to."""
        working, generation = self._maker.working, self.pages.generation
        self.pages.hold_still(working)
        try:
            return self.bank.reserve(plan)
        except NoRoom:
            if not working:
                raise
            return None
        finally:
            if self.pages.generation != generation:
                self.routes.forget()

    def _make_room(self, plan: Plan) -> bool:
        """Lets go of compositions that nobody holds until this one fits; False where it does not."""

        def short() -> bool:
            return self.bank.missing(plan) > self.pages.free

        if short():
            self.routes.forget()
        while len(self._adapters) + len(self._maker) >= self.capacity or short():
            free = [adapter_id for adapter_id, adapter in self._adapters.items() if not adapter.holders]
            if not free:
                return False
            # The longest unused; those of the last step and pinned ones last.
            del self._adapters[min(free, key=lambda of: (of in self._pinned, of in self._active))]
        return True

    def add_adapter(self, request: LoRARequest) -> bool:
        """vLLM's own way to load one, for those who do not `hold` it. False when it was there; raises ComposeError."""
        there = request.lora_int_id in self._adapters
        holder = "add_adapter"
        while (answer := self.hold(request.lora_name, request.lora_path, request.lora_int_id, holder))[0] == READING:
            sleep(0.005)
        self.release(request.lora_path, request.lora_int_id, holder)
        if answer[0] != HELD:
            raise ComposeError(f"{request.lora_name}: {answer[1]}")
        return not there

    def remove_adapter(self, adapter_id: int) -> bool:
        """False when it was not there, or is held."""
        adapter = self._adapters.get(adapter_id)
        if adapter is None or adapter.holders:
            return False
        self._pinned.discard(adapter_id)
        del self._adapters[adapter_id]
        return True

    def remove_all_adapters(self) -> None:
        for adapter_id in list(self._adapters):
            self.remove_adapter(adapter_id)
        self.routes.forget()

    def pin_adapter(self, adapter_id: int) -> bool:
        if adapter_id not in self._adapters:
            raise ValueError(f"no composition with adapter id {adapter_id} is loaded")
        self._pinned.add(adapter_id)
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
        self._adapters[request.lora_int_id] = Adapter(request.lora_name, request.lora_path, self._base, dummy=True)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False
