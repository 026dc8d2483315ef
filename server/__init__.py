"""The runtime on vLLM: engine plugin, OpenAI HTTP surface and command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime.runtime import Runtime

__all__ = ["Runtime"]


def __getattr__(name: str) -> Any:
    # vLLM takes seconds to import: only those who ask for the runtime pay.
    if name == "Runtime":
        from .runtime.runtime import Runtime

        return Runtime
    raise AttributeError(name)
