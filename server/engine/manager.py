"""manager: stands where vLLM's LoRA manager would; an adapter here is a composition."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import sleep
from typing import Any, Protocol

import numpy as np
import torch
from vllm.lora.request import LoRARequest

from layerloom.composer import Bank, ComposeError, Family, Plan
from layerloom.composer.pages.arena import megabytes
from layerloom.composer.pages.bank import Engine
from layerloom.composer.pages.budget import needed
from layerloom.kernels.compose import prepare

from .reader import Reader

HELD, READING, BUSY, REFUSED = "held", "reading", "busy", "refused"

Answer = tuple[str, str]
"""One of these, and the reason."""

Pages = tuple[Any, ...]
"""A composition in the engine: a page for every layer, then the stem's."""

Routed = tuple[list[Pages], np.ndarray, bool]
"""What `EnginePages.route` takes."""


class EnginePages(Engine, Protocol):
    """How pages are kept: packed on a CPU (packed.py), in one tensor on a GPU (arena.py)."""

    reads_ahead: bool
    """Whether files can be read on a thread without disturbing the steps that run meanwhile."""

    device: torch.device
    """Where pages are composed."""

    @property
    def generation(self) -> int:
        """Grows when pages have moved and must be routed again."""

    @property
    def free(self) -> float:
        """Bytes that no composition has taken."""

    def reserve(self, memory: int) -> None:
        """Lets compositions take `memory` bytes."""

    def route(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """Uses composition position[t] for token t of the coming steps.

        `replayed` says that the launch is captured in a CUDA graph, and replayed with other pages in their place.
        """

    def route_head(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """The same for the output head, whose rows are the sampled tokens."""


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
        self, family: Family, pages: EnginePages, capacity: int, mixed: int, memory: int | None, recipes: bool
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
        pages.reserve(memory)
        for dtype in self.bank.dtypes():
            prepare(dtype, pages.device)
        base = tuple(pages.base_page(part) for part in range(family.depth + 1))
        self._base = Adapter("base", "", base)
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        """Those longest unused first."""
        self._pinned: set[int] = set()
        self._active: frozenset[int] = frozenset()
        self._reader = Reader(self.bank)
        self._forget_routes()

    def _forget_routes(self) -> None:
        """Lets go of the pages of past steps; the next step is routed anew."""
        self._tokens: tuple[int, ...] | None = None
        self._samples: tuple[int, ...] | None = None
        self._rows: Routed = [self._base.pages], np.zeros(0, dtype=np.int64), False
        self._head = self._rows
        self.pages.route(*self._rows)
        self.pages.route_head(*self._head)

    def hold(self, name: str, digest: str, adapter_id: int, holder: str) -> Answer:
        """Keeps a composition in memory for `holder`, assembled first if need be, until it calls `release`.

        The answer is HELD; READING, when its files are still being read, and BUSY, when all room is held by others:
        ask again; or REFUSED. It never raises: vLLM's executor for several workers does not survive that.
        """
        try:
            if adapter_id not in self._adapters:
                answer = self._load(name, digest, adapter_id)
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
        self._reader.forget(digest)
        adapter = self._adapters.get(adapter_id)
        if adapter is not None and holder in adapter.holders:
            adapter.holders.remove(holder)
            self._adapters.move_to_end(adapter_id)

    def _load(self, name: str, digest: str, adapter_id: int) -> Answer:
        """Assembles a composition that is not there. Raises ComposeError."""
        plan = self.family.plan(name)
        if plan.digest != digest:
            raise ComposeError(
                f"{plan.name}: the request was made for digest {digest[:12]}, this engine's family has "
                f"{plan.digest[:12]}. Were the expert's files changed while serving? Restart the server."
            )
        if not self._make_room(plan):
            others = sum(bool(adapter.holders) for adapter in self._adapters.values())
            if others:
                return BUSY, f"{others} other compositions are in use and hold all the room that it needs"
            raise ComposeError(
                f"it needs {megabytes(self.bank.missing(plan))}, and the bank has {megabytes(self.pages.free)}: start "
                "with a larger --bank-memory"
            )
        if self.pages.reads_ahead and not self._reader.has_read(plan):
            return READING, ""
        self._adapters[adapter_id] = Adapter(plan.name, plan.digest, self._assemble(plan))
        return HELD, ""

    def _assemble(self, plan: Plan) -> Pages:
        generation = self.pages.generation
        try:
            return self.bank.pages(plan)
        finally:
            if self.pages.generation != generation:
                self._forget_routes()

    def _make_room(self, plan: Plan) -> bool:
        """Lets go of compositions that nobody holds until this one fits; False where it cannot."""

        def short() -> bool:
            return self.bank.missing(plan) > self.pages.free

        if short():
            self._forget_routes()
        while len(self._adapters) >= self.capacity or short():
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
        self._forget_routes()

    def pin_adapter(self, adapter_id: int) -> bool:
        if adapter_id not in self._adapters:
            raise ValueError(f"no composition with adapter id {adapter_id} is loaded")
        self._pinned.add(adapter_id)
        return True

    def list_adapters(self) -> set[int]:
        return set(self._adapters)

    def set_active_adapters(self, requests: set[LoRARequest], mapping: Any | None) -> None:
        """Routes the coming step: `mapping` names the adapter id of each token and of each sampled token."""
        self._active = frozenset(request.lora_int_id for request in requests)
        for request in requests:
            if request.lora_int_id not in self._adapters:
                # Of a caller who added a request to the engine without holding its composition.
                self.add_adapter(request)
        if mapping is None:
            return
        if mapping.index_mapping != self._tokens:
            self._tokens = mapping.index_mapping
            self._rows = self._compositions(mapping.index_mapping)
            self.pages.route(*self._rows)
        if mapping.prompt_mapping != self._samples:
            self._samples = mapping.prompt_mapping
            self._head = self._compositions(mapping.prompt_mapping)
            self.pages.route_head(*self._head)

    def _compositions(self, ids: Sequence[int]) -> Routed:
        """The distinct compositions of a batch, the index among them of each token's, and whether they are dummies."""
        distinct, position = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
        active = [self._adapter(int(adapter_id)) for adapter_id in distinct] or [self._base]
        return [adapter.pages for adapter in active], position, any(adapter.dummy for adapter in active)

    def _adapter(self, adapter_id: int) -> Adapter:
        return self._base if adapter_id == 0 else self._adapters[adapter_id]

    @contextmanager
    def sampling_for(self, adapter_id: int) -> Iterator[None]:
        """The output head of one request alone, for prompt log probabilities."""
        with self._head_of([self._adapter(adapter_id).pages], np.zeros(1, dtype=np.int64)):
            yield

    @contextmanager
    def sampling_tokens(self, first: int, count: int) -> Iterator[None]:
        """The output head for some of the step's tokens, in place of those that are sampled."""
        compositions, position, _ = self._rows
        with self._head_of(compositions, position[first : first + count]):
            yield

    @contextmanager
    def _head_of(self, compositions: list[Pages], position: np.ndarray) -> Iterator[None]:
        self.pages.route_head(compositions, position, False)
        try:
            yield
        finally:
            self.pages.route_head(*self._head)

    # Dummy adapters, with which vLLM warms up and captures graphs, are the base under other ids.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        self._adapters[request.lora_int_id] = Adapter(
            request.lora_name, request.lora_path, self._base.pages, dummy=True
        )
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False
