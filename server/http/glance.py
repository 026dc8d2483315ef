"""glance: the bank as those see it who look often, which must not keep an idle engine awake."""

import asyncio
import time
from typing import Any

from .living import Living
from .operators import SOON
from .series import RARELY

OFTEN = 0.2
"""Seconds between asking the engine, however many look."""


class Glance:
    """What the engine's workers said last. They are asked only when something may be different."""

    def __init__(self, living: Living) -> None:
        self.living = living
        self._said: list[dict[str, Any]] | None = None
        self._seen = -1
        self._at = 0.0
        self._asking: asyncio.Task[None] | None = None

    async def look(self) -> tuple[list[dict[str, Any]], float]:
        """What each worker says, and how many seconds ago. Raises Unavailable when there is no engine to ask."""
        asking = self._asking
        if asking is None and self._is_old():
            asking = self._asking = asyncio.ensure_future(self._ask())
            asking.add_done_callback(self._asked)
        if asking is not None:
            # The engine may be in a long step: then what it said last.
            await asyncio.wait({asking}, timeout=SOON if self._said is not None else None)
            if asking.done():
                asking.result()
        assert self._said is not None
        return self._said, time.monotonic() - self._at

    def _is_old(self) -> bool:
        if self._said is None:
            return True
        age = time.monotonic() - self._at
        # Other servers change it, too, and do not say.
        others = self.living.servers > 1 and age > RARELY // 6
        return others or self._seen != self.living.leases.told

    async def _ask(self) -> None:
        await asyncio.sleep(max(0.0, self._at + OFTEN - time.monotonic()))
        seen = self.living.leases.told
        self._said = await self.living.leases.tell("report_compositions")
        self._seen, self._at = seen, time.monotonic()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()
