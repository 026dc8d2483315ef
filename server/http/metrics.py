"""metrics: vLLM's series about adapters, kept from growing with every mix of names there ever was."""

from contextlib import suppress
from typing import Any

from vllm.engine.protocol import EngineClient

NAMES = ("running_lora_adapters", "waiting_lora_adapters")

MOST = 256
"""Mixes that are counted where several server processes share their series, which then cannot be dropped again."""


class LoRAInfo:
    """Stands in for the gauge `vllm:lora_requests_info`: the newest mix of names alone, recipes under their pair."""

    def __init__(self, gauge: Any, shared: bool) -> None:
        self._gauge = gauge
        self._shared = shared
        self._seen: set[tuple[str, ...]] = set()

    def labels(self, **labels: Any) -> Any:
        for key in NAMES:
            labels[key] = ",".join(dict.fromkeys(name.partition("@")[0] for name in labels[key].split(",")))
        if not self._shared:
            self._gauge.clear()
            return self._gauge.labels(**labels)
        mix = tuple(labels[key] for key in NAMES)
        if mix not in self._seen and len(self._seen) == MOST:
            return self._gauge.labels(**{**labels, **dict.fromkeys(NAMES, "")})
        self._seen.add(mix)
        return self._gauge.labels(**labels)


def bound(client: EngineClient, shared: bool) -> None:
    """Puts LoRAInfo into the loggers of this client."""
    with suppress(AttributeError):
        for logger in client.logger_manager.stat_loggers:
            if getattr(logger, "gauge_lora_info", None) is not None:
                logger.gauge_lora_info = LoRAInfo(logger.gauge_lora_info, shared)
