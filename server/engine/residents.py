"""residents: the compositions in an engine's memory: who holds them, which are pinned, and which goes first."""

import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from layerloom.composer.pages.bank import Bank, Key

from .routes import Pages

EVICTED, LEAVING, PINNED, ABSENT = "evicted", "leaving", "pinned", "absent"


@dataclass
class Adapter:
    """A composition as vLLM's scheduler knows it, and who has requests for it. `keys` are of the pages of its own."""

    name: str
    path: str
    pages: Pages
    keys: dict[Any, Key] = field(default_factory=dict)
    dummy: bool = False
    holders: set[str] = field(default_factory=set)
    pinned: bool = False
    leaving: bool = False
    """Whether it goes when nobody holds it any more."""
    used: float = field(default_factory=time.time)
    """When it was last asked for or let go of, in seconds since 1970."""


class Residents:
    """Adapters by id, those longest unused first."""

    def __init__(self) -> None:
        self._adapters: OrderedDict[int, Adapter] = OrderedDict()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[int]:
        return iter(self._adapters)

    def __contains__(self, adapter_id: int) -> bool:
        return adapter_id in self._adapters

    def __getitem__(self, adapter_id: int) -> Adapter:
        return self._adapters[adapter_id]

    def add(self, adapter_id: int, adapter: Adapter) -> None:
        self._adapters[adapter_id] = adapter

    @property
    def held(self) -> int:
        """How many somebody holds, or are pinned."""
        return sum(bool(adapter.holders) or adapter.pinned for adapter in self._adapters.values())

    def hold(self, adapter_id: int, holder: str) -> None:
        adapter = self._adapters[adapter_id]
        adapter.holders.add(holder)
        adapter.leaving = False
        self._touch(adapter_id)

    def release(self, adapter_id: int, holder: str) -> None:
        adapter = self._adapters.get(adapter_id)
        if adapter is not None and holder in adapter.holders:
            adapter.holders.remove(holder)
            self._touch(adapter_id)
            if adapter.leaving and not adapter.holders:
                self._drop(adapter_id)

    def evict(self, adapter_id: int, digest: str) -> str:
        """Lets go of it: EVICTED, or LEAVING as soon as nobody holds it; PINNED and ABSENT ones stay as they are."""
        adapter = self._adapters.get(adapter_id)
        if adapter is None or adapter.path != digest:
            return ABSENT
        if adapter.pinned:
            return PINNED
        if adapter.holders:
            adapter.leaving = True
            return LEAVING
        self._drop(adapter_id)
        return EVICTED

    def evict_one(self, active: Collection[int]) -> bool:
        """Lets go of the longest unused that nobody needs, an `active` one last; False where all are needed."""
        free = [key for key, adapter in self._adapters.items() if not adapter.holders and not adapter.pinned]
        if not free:
            return False
        self._drop(min(free, key=lambda key: key in active))
        return True

    def renew(self, digests: Collection[str]) -> None:
        """The family is another one, with these compositions: the others go when nobody holds them; none is pinned."""
        for adapter_id, adapter in list(self._adapters.items()):
            adapter.pinned = False
            if adapter.path not in digests and not adapter.dummy:
                self.evict(adapter_id, adapter.path)

    def _drop(self, adapter_id: int) -> None:
        del self._adapters[adapter_id]
        self.evictions += 1

    def _touch(self, adapter_id: int) -> None:
        self._adapters[adapter_id].used = time.time()
        self._adapters.move_to_end(adapter_id)

    def report(self, bank: Bank) -> dict[str, Any]:
        """What is there, ready for JSON; bytes are of this worker's shard."""
        adapters = [adapter for adapter in self._adapters.values() if not adapter.dummy]
        users = Counter(page for adapter in adapters for page in adapter.keys)
        pages = {page: key for adapter in adapters for page, key in adapter.keys.items()}
        stem = bank.family.depth
        sizes = {page: bank.bytes(key) for page, key in pages.items()}
        kinds = dict.fromkeys(("layers", "stems", "deltas"), 0)
        for page, (part, _, codec) in pages.items():
            kinds["deltas" if codec is not None else "stems" if part == stem else "layers"] += sizes[page]
        shown = [
            {
                "name": adapter.name,
                "digest": adapter.path,
                "bytes": sum(sizes[page] for page in adapter.keys),
                "shared_bytes": sum(sizes[page] for page in adapter.keys if users[page] > 1),
                "pinned": adapter.pinned,
                "last_used": adapter.used,
            }
            for adapter in adapters
        ]
        return {"compositions": shown, "bytes": kinds, "pages": len(pages), "evictions": self.evictions}
