"""changes: where a family's experts change, measured on a thread of its own when somebody wants to see it."""

import asyncio
import math
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from vllm.logger import init_logger

from layerloom.composer import Checkpoint, ComposeError, Expert, Family, Report, Suggestion, kind_of, suggest
from layerloom.composer.sources.archive import Archive
from layerloom.composer.sources.codecs import DTYPES
from layerloom.composer.tools.inspect import of_expert
from layerloom.composer.tools.picture import grid, modules_of
from layerloom.kernels.threads import be_alone

from .living import Living, without_paths

logger = init_logger("vllm.layerloom")

EVERY = 0.5
"""Seconds between telling how far it is."""

NICE = 10


class Stopped(Exception):
    """Nobody can want the rest: there is another family, or the server ends."""


class Changes:
    """The reports of a family's experts. One measurement at a time, which all who ask wait for; the last is kept."""

    def __init__(self, living: Living, is_ending: Callable[[], object]) -> None:
        self.living = living
        self.is_ending = is_ending
        self._family: Family | None = None
        self._reports: tuple[Report, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._read = self._bytes = 0

    @property
    def known(self) -> dict[str, Any] | None:
        """What was measured of the family that is served now."""
        return shown(self.living.family, self._reports) if self._family is self.living.family else None

    @property
    def running(self) -> bool:
        return self._task is not None

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """{"done": share} now and then; at the end {"changes": …}, or {"error": reason}."""
        while self._family is not self.living.family:
            if self._task is None:
                self._task = asyncio.ensure_future(self._measure(self.living.family))
                self._task.add_done_callback(self._measured)
            task = self._task
            yield {"done": self._read / self._bytes if self._bytes else 0.0}
            await asyncio.wait({task}, timeout=EVERY)
            if task.done() and (error := task.exception()) is not None and not isinstance(error, Stopped):
                yield {"error": self._reason(error)}
                return
            if self.is_ending():
                return
        yield {"changes": self.known}

    def suggest(self, name: str) -> Suggestion:
        """A split for a pair, from what was measured. Raises ComposeError."""
        family = self.living.family
        if self._family is not family:
            raise ComposeError("this server process has not measured where the experts change: ask for that first")
        reports = {report.expert: report for report in self._reports}
        return suggest(family, name, lambda _, expert: reports[expert.name])

    async def _measure(self, family: Family) -> None:
        self._read, self._bytes = 0, cost(family)
        sizes = {name: size_of(family, name) for name in family.base.tensors}

        def read(tensor: str) -> None:
            self._read += 2 * sizes.get(tensor, 0)
            if self.is_ending() or self.living.family is not family:
                raise Stopped

        def work() -> tuple[Report, ...]:
            return tuple(of_expert(family, expert, read) for expert in family.experts.values())

        thread = ThreadPoolExecutor(1, "layerloom-changes", initializer=give_way)
        try:
            self._reports = await asyncio.get_running_loop().run_in_executor(thread, work)
        finally:
            thread.shutdown(wait=False)
        self._family = family

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Stopped):
            logger.error("layerloom: where experts change could not be measured: %s", self._reason(error))

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, ComposeError):
            return without_paths(error, self.living.family.root)
        return f"{type(error).__name__}: {error}"


def give_way() -> None:
    """Requests go first."""
    be_alone()
    with suppress(OSError, AttributeError):  # not Linux, or not allowed
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def cost(family: Family) -> int:
    """Bytes that must be read; archives have written down what they change."""
    return sum(cost_of(family, expert) for expert in family.experts.values())


def cost_of(family: Family, expert: Expert) -> int:
    source = expert.checkpoint
    if isinstance(source, Archive):
        return 0
    whole = isinstance(source, Checkpoint)
    base = family.base.tensors
    names = [name for name, info in source.tensors.items() if name in base and (whole or info.file != base[name].file)]
    return sum(2 * size_of(family, name) for name in names)


def size_of(family: Family, name: str) -> int:
    info = family.base.tensors[name]
    return math.prod(info.shape) * DTYPES[info.dtype].itemsize if info.dtype in DTYPES else 0


def shown(family: Family, reports: tuple[Report, ...]) -> dict[str, Any]:
    """A share of change for every expert, layer and module: 0 where it is the base's, None where it is not finite."""
    modules = modules_of(reports)
    return {
        "family": family.digest,
        "modules": [{"name": name, "kind": kind_of(f"{name}.weight")} for name in modules],
        "experts": [
            {
                "name": report.expert,
                "stored": report.kind,
                "bytes": report.bytes,
                "plain": report.plain,
                "change": [[finite(value) for value in row] for row in grid(report, modules, report.depth)],
                "stem": {row.module: finite(row.change) for row in report.rows if row.layer is None},
            }
            for report in reports
        ],
    }


def finite(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
