"""manager: stands where vLLM's LoRA manager would; an adapter here is a composition."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from layerloom.composer import Bank, ComposeError, Family
from layerloom.composer.bank import Engine

logger = init_logger("vllm.layerloom.manager")


Pages = tuple[Any, ...]
"""A composition in the engine: a page for every layer, then the stem's."""

Routed = tuple[list[Pages], np.ndarray]
"""Compositions, and the index among them of each token's."""


class EnginePages(Engine, Protocol):
    """How pages are kept: packed on a CPU (packed.py), in one tensor on a GPU (arena.py)."""

    def route(self, compositions: list[Pages], position: np.ndarray) -> None:
        """Uses composition position[t] for token t of the coming steps."""

    def route_head(self, compositions: list[Pages], position: np.ndarray) -> None:
        """The same for the output head, whose rows are the sampled tokens."""


@dataclass(frozen=True)
class Adapter:
    """A composition as vLLM's scheduler knows it."""

    name: str
    path: str
    pages: Pages


class CompositionManager:
    """Answers the calls vLLM's model runner makes on its LoRA manager.

    Everything that can fail does so in `add_adapter`, which reaches the client as an HTTP error. What the
    step loop calls (`set_active_adapters`) only looks up pages that are already in memory.
    """

    def __init__(self, family: Family, pages: EnginePages, capacity: int) -> None:
        self.family = family
        self.pages = pages
        self.bank = Bank(family, pages)
        self.capacity = capacity
        base = tuple(pages.base_page(part) for part in range(family.depth + 1))
        self._base = Adapter("base", "", base)
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        self._pinned: set[int] = set()
        self._active: frozenset[int] = frozenset()
        self._tokens: tuple[int, ...] | None = None
        self._samples: tuple[int, ...] | None = None
        self._head: Routed = [base], np.zeros(0, dtype=np.int64)

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
        adapter = Adapter(plan.name, plan.digest, self.bank.pages(plan))
        while len(self._adapters) >= self.capacity and self._evict():
            pass
        self._adapters[request.lora_int_id] = adapter
        return True

    def _evict(self) -> bool:
        for adapter_id in self._adapters:
            if adapter_id not in self._active and adapter_id not in self._pinned:
                del self._adapters[adapter_id]
                return True
        return False

    def remove_adapter(self, adapter_id: int) -> bool:
        self._pinned.discard(adapter_id)
        return self._adapters.pop(adapter_id, None) is not None

    def remove_all_adapters(self) -> None:
        self._adapters.clear()
        self._pinned.clear()
        self._tokens = self._samples = None

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
        self._active = frozenset(request.lora_int_id for request in requests)
        for request in requests:
            self.add_adapter(request)
        if mapping is None:
            return
        if mapping.index_mapping != self._tokens:
            self._tokens = mapping.index_mapping
            self.pages.route(*self._compositions(mapping.index_mapping))
        if mapping.prompt_mapping != self._samples:
            self._samples = mapping.prompt_mapping
            self._head = self._compositions(mapping.prompt_mapping)
            self.pages.route_head(*self._head)

    def _compositions(self, ids: Sequence[int]) -> Routed:
        """The distinct compositions of a batch, and the index among them of each token's."""
        distinct, position = np.unique(np.asarray(ids, dtype=np.int64), return_inverse=True)
        return [self._adapter(int(adapter_id)).pages for adapter_id in distinct] or [self._base.pages], position

    def _adapter(self, adapter_id: int) -> Adapter:
        return self._base if adapter_id == 0 else self._adapters[adapter_id]

    @contextmanager
    def sampling_for(self, adapter_id: int) -> Iterator[None]:
        """The output head of one request alone, for prompt log probabilities."""
        self.pages.route_head([self._adapter(adapter_id).pages], np.zeros(1, dtype=np.int64))
        try:
            yield
        finally:
            self.pages.route_head(*self._head)

    # Dummy adapters, with which vLLM warms up and captures graphs, are the base under other ids.

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        yield

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        self._adapters[request.lora_int_id] = Adapter(request.lora_name, request.lora_path, self._base.pages)
        return True

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        return default_rank

    def supports_tower_connector_lora(self) -> bool:
        return False
