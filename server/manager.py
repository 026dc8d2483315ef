"""manager: stands where vLLM's LoRA manager would; an adapter here is a composition."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from vllm.lora.request import LoRARequest

from layerloom.composer import Bank, ComposeError, Family, Plan
from layerloom.composer.arena import megabytes
from layerloom.composer.bank import Engine
from layerloom.composer.budget import needed
from layerloom.kernels.compose import prepare

MOST_AHEAD = 8
"""Compositions that may be read ahead before they are added."""

Pages = tuple[Any, ...]
"""A composition in the engine: a page for every layer, then the stem's."""

Routed = tuple[list[Pages], np.ndarray, bool]
"""What `EnginePages.route` takes."""


class EnginePages(Engine, Protocol):
    """How pages are kept: packed on a CPU (packed.py), in one tensor on a GPU (arena.py)."""

    bounded: bool
    """Whether compositions have memory of a fixed size, set apart at the start. Then reading ahead disturbs no step."""

    device: torch.device
    """Where pages are composed."""

    @property
    def generation(self) -> int:
        """Grows when pages have moved and must be routed again."""

    @property
    def free(self) -> float:
        """Bytes that no composition has taken."""

    def reserve(self, memory: int | None) -> None:
        """Lets compositions take `memory` bytes; None, where they are not bounded, is as much as there is."""

    def route(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """Uses composition position[t] for token t of the coming steps.

        `replayed` says that the launch is captured in a CUDA graph, and replayed with other pages in their place.
        """

    def route_head(self, compositions: list[Pages], position: np.ndarray, replayed: bool) -> None:
        """The same for the output head, whose rows are the sampled tokens."""


@dataclass(frozen=True)
class Adapter:
    """A composition as vLLM's scheduler knows it."""

    name: str
    path: str
    pages: Pages
    dummy: bool = False


class CompositionManager:
    """Answers the calls vLLM's model runner makes on its LoRA manager.

    Everything that can fail does so in `add_adapter`, which reaches the client as an HTTP error. What the
    step loop calls (`set_active_adapters`) only looks up pages that are already in memory.
    """

    def __init__(
        self, family: Family, pages: EnginePages, capacity: int, mixed: int, memory: int | None, recipes: bool
    ) -> None:
        self.family = family
        self.pages = pages
        self.bank = Bank(family, pages)
        self.capacity = capacity
        self.mixed = mixed
        self._known = {plan.digest: plan for plan in map(family.plan, family.names())}
        if memory is None and pages.bounded:
            # A composition that only a client's recipe names can be a whole model of its own.
            memory = self._needed(self._known) + recipes * sum(map(pages.bytes, range(family.depth + 1)))
        self.memory = memory
        self._check(self._known)
        pages.reserve(self.memory)
        for dtype in self.bank.dtypes():
            prepare(dtype, pages.device)
        base = tuple(pages.base_page(part) for part in range(family.depth + 1))
        self._base = Adapter("base", "", base)
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        self._pinned: set[int] = set()
        self._active: frozenset[int] = frozenset()
        self._needed_now: frozenset[int] = frozenset()
        self._reader = ThreadPoolExecutor(1, "layerloom-reader")
        self._ahead: dict[str, Future[None]] = {}
        self._forget_routes()

    def _forget_routes(self) -> None:
        """Lets go of the pages of past steps; the next step is routed anew."""
        self._tokens: tuple[int, ...] | None = None
        self._samples: tuple[int, ...] | None = None
        self._rows: Routed = [self._base.pages], np.zeros(0, dtype=np.int64), False
        self._head = self._rows
        self.pages.route(*self._rows)
        self.pages.route_head(*self._head)

    def _needed(self, known: dict[str, Plan]) -> int:
        return needed(known.values(), self.mixed, self.bank)

    def _check(self, known: dict[str, Plan]) -> None:
        """Raises ComposeError unless any `mixed` of the compositions fit in memory together."""
        wanted = self._needed(known)
        if self.memory is not None and wanted > self.memory:
            raise ComposeError(
                f"any {self.mixed} of {len(known)} compositions at once need {megabytes(wanted)} of bank memory, and "
                f"there are {megabytes(self.memory)}: start with a larger --bank-memory or a smaller --max-loras"
            )

    def add_adapter(self, request: LoRARequest) -> bool:
        """Assembles the composition; False when it was there already. Raises ComposeError with the reason."""
        known = self._adapters.get(request.lora_int_id)
        if known is not None:
            if known.path != request.lora_path:
                raise ComposeError(f"adapter id {request.lora_int_id} already stands for {known.name}")
            self._adapters.move_to_end(request.lora_int_id)
            return False
        plan = self.family.plan(request.lora_name)
        if plan.digest != request.lora_path:
            raise ComposeError(
                f"{plan.name}: the request was made for digest {request.lora_path[:12]}, this engine's family has "
                f"{plan.digest[:12]}. Were the expert's files changed while serving? Restart the server."
            )
        known = {**self._known, plan.digest: plan}
        self._check(known)
        while len(self._adapters) >= self.capacity and self._evict():
            pass
        self._adapters[request.lora_int_id] = Adapter(plan.name, plan.digest, self._assemble(plan))
        self._known = known
        self._ahead.pop(plan.digest, None)
        return True

    def stage(self, name: str, digest: str) -> None:
        """Starts reading a composition's files, so that `add_adapter` need not wait for them."""
        if digest in self._ahead or not self.pages.bounded:
            return
        if len(self._ahead) >= MOST_AHEAD:
            # Whoever asked for those has not come back for them.
            self._ahead.clear()
            self.bank.unstage()
        self._ahead[digest] = self._reader.submit(lambda: self.bank.stage(self.family.plan(name)))

    def is_staged(self, digest: str) -> bool:
        """Whether that is done. What went wrong goes wrong again, with its reason, in `add_adapter`."""
        return digest not in self._ahead or self._ahead[digest].done()

    def _assemble(self, plan: Plan) -> Pages:
        def short() -> bool:
            return self.bank.missing(plan) > self.pages.free

        if short():
            self._forget_routes()
        while short() and self._evict():
            pass
        generation = self.pages.generation
        try:
            return self.bank.pages(plan)
        finally:
            if self.pages.generation != generation:
                self._forget_routes()

    def _evict(self) -> bool:
        """Lets go of the composition that was longest unused, those of the last step and pinned ones last."""
        free = [adapter_id for adapter_id in self._adapters if adapter_id not in self._needed_now]
        if not free:
            return False
        del self._adapters[min(free, key=lambda adapter_id: (adapter_id in self._pinned, adapter_id in self._active))]
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        self._pinned.discard(adapter_id)
        return self._adapters.pop(adapter_id, None) is not None

    def remove_all_adapters(self) -> None:
        self._adapters.clear()
        self._pinned.clear()
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
        # First, so that making room for one of them never evicts another.
        self._active = self._needed_now = frozenset(request.lora_int_id for request in requests)
        for request in requests:
            self.add_adapter(request)
        self._needed_now = frozenset()
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
