"""series: what a server tells Prometheus of its compositions, under vLLM's names where it has one for adapters.

Labels are the family's own names: a recipe that a client has made up counts under its pair. Of several server processes
the first tells of the bank, which is one for all.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.logger import init_logger

from .leases import Leases, Unavailable

logger = init_logger("vllm.layerloom")

NAME = ["model_name"]
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
EVERY, RARELY = 1.0, 60
"""Seconds between looking at the bank, and how many of them where nothing happens."""

COUNTED = {
    "hits": "bank_hits",
    "assemblies": "assemblies",
    "assembly_seconds": "assembly_seconds",
    "assembly_bytes": "assembly_bytes",
    "evictions": "evictions",
}
LEVELS = {
    "budget": ("layerloom:bank_budget_bytes", "Bytes that compositions may take, on each worker"),
    "free": ("layerloom:bank_free_bytes", "Bytes of them that none has taken"),
    "pages": ("layerloom:bank_pages", "Pages of compositions"),
    "longest_assembly": ("layerloom:longest_assembly_seconds", "The longest that one has taken to make"),
    "longest_stall": ("layerloom:longest_stall_seconds", "The longest that compositions have kept the engine's thread"),
}


def known(name: str) -> bool:
    """Whether vLLM has a series of that name, as newer versions may."""
    return name in REGISTRY._names_to_collectors


class Series:
    """All of them, once for a process."""

    def __init__(self) -> None:
        self.requests = Counter("layerloom:requests", "Requests by how they ended", [*NAME, "outcome"])
        self.prompt_tokens = Counter("layerloom:prompt_tokens", "Tokens of prompts", NAME)
        self.generation_tokens = Counter("layerloom:generation_tokens", "Tokens of answers", NAME)
        self.first_token = Histogram(
            "layerloom:time_to_first_token_seconds",
            "From when a request was read to its first token, waiting for its composition included",
            NAME,
            buckets=SECONDS,
        )
        self.queue_time = Histogram("layerloom:queue_time_seconds", "In the scheduler's queue", NAME, buckets=SECONDS)
        self.reloads = Counter("layerloom:family_reloads", "Times that the family was loaded anew", ["outcome"])
        newest: dict[str, Any] = {"multiprocess_mode": "mostrecent"}
        self.bank_bytes = Gauge("layerloom:bank_bytes", "Bytes of pages, on each worker", ["kind"], **newest)
        self.counts = {
            key: Counter(f"layerloom:{name}", f"Of the bank: {name.replace('_', ' ')}") for key, name in COUNTED.items()
        }
        self.levels = {key: Gauge(name, said, **newest) for key, (name, said) in LEVELS.items()}
        self.loaded = self._as_vllm("lora_adapter_loaded", ["adapter_name", "level", "pinned"])
        self.on_gpu = self._as_vllm("num_gpu_loaded_lora_adapters")
        self.on_cpu = self._as_vllm("num_cpu_loaded_lora_adapters")
        self.most = self._as_vllm("max_gpu_lora_adapters")
        name = "vllm:lora_adapter_load_seconds"
        self.load_seconds = None if known(name) else Histogram(name, "Making a composition", buckets=SECONDS)
        self._shown: set[tuple[str, str, str]] = set()
        self._counted: dict[str, float] = {}

    def _as_vllm(self, name: str, labels: list[str] | None = None) -> Any:
        """A gauge that vLLM has not, yet; else nothing of ours."""
        name = f"vllm:{name}"
        if known(name):
            return None
        return Gauge(name, "Compositions in memory", labels or [], multiprocess_mode="mostrecent")

    def show(self, report: dict[str, Any], capacity: int) -> None:
        """What a worker says of its bank."""
        for kind, count in report["bytes"].items():
            self.bank_bytes.labels(kind).set(count)
        for key, level in self.levels.items():
            level.set(report[key])
        for key, counter in self.counts.items():
            counter.inc(max(0.0, report[key] - self._counted.get(key, 0.0)))
            self._counted[key] = report[key]
        found: dict[str, bool] = {}
        for shown in report["compositions"]:
            name = label_of(shown["name"])
            found[name] = found.get(name, False) or shown["pinned"]
        if self.loaded is not None:
            labels = {(name, "gpu", str(pinned).lower()) for name, pinned in found.items()}
            for gone in self._shown - labels:
                self.loaded.labels(*gone).set(0)
                with suppress(KeyError, AttributeError):
                    self.loaded.remove(*gone)
            for label in labels:
                self.loaded.labels(*label).set(1)
            self._shown = labels
        for gauge, value in ((self.on_gpu, len(report["compositions"])), (self.on_cpu, 0), (self.most, capacity)):
            if gauge is not None:
                gauge.set(value)

    @contextmanager
    def request(self, name: str) -> Iterator["Seen"]:
        """Around one request; how it ends is counted once."""
        seen = Seen()
        outcome = "error"
        try:
            yield seen
            outcome = seen.outcome or "abort"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = seen.outcome or "abort"
            raise
        except Unavailable:
            outcome = "unavailable"
            raise
        finally:
            self.requests.labels(name, outcome).inc()
            self.prompt_tokens.labels(name).inc(seen.prompt)
            self.generation_tokens.labels(name).inc(seen.tokens)
            if seen.first is not None:
                self.first_token.labels(name).observe(seen.first)
            if seen.queued is not None:
                self.queue_time.labels(name).observe(seen.queued)


class Seen:
    """What the engine has said of a request."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first: float | None = None
        self.queued: float | None = None
        self.prompt = 0
        self.tokens = 0
        self.outcome = ""

    def output(self, output: Any) -> None:
        if self.first is None:
            self.first = time.perf_counter() - self.began
            self.prompt = len(output.prompt_token_ids or ())
        for answer in output.outputs:
            self.outcome = answer.finish_reason or self.outcome
        stats = output.metrics
        if stats is not None:
            self.tokens = max(self.tokens, stats.num_generation_tokens)
            if stats.scheduled_ts and stats.queued_ts:
                self.queued = stats.scheduled_ts - stats.queued_ts
        else:
            self.tokens += sum(len(answer.token_ids) for answer in output.outputs)


@cache
def series() -> Series:
    return Series()


def label_of(name: str) -> str:
    """The family's name for what a client asked for."""
    return name.partition("@")[0]


async def keep_showing(leases: Leases, capacity: int, alone: bool) -> None:
    """Looks at the bank once a second until the engine has ended; rarely while this server, `alone`, asks it nothing.

    An idle worker that is asked something spins for a while: asked every second it would never rest.
    """
    seen, idle = -1, 0
    while True:
        idle += 1
        if leases.told != seen or idle >= (RARELY if alone else RARELY // 6):
            try:
                said = await leases.tell("report_compositions")
            except Unavailable:
                return
            series().show(said[0], capacity)
            seen, idle = leases.told, 0
        await asyncio.sleep(EVERY)
