"""The runtime on vLLM: engine plugin, OpenAI HTTP surface and command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .http.app import create_app
    from .runtime.answer import Answer
    from .runtime.async_runtime import AsyncRuntime
    from .runtime.runtime import Runtime

__all__ = ["Answer", "AsyncRuntime", "Runtime", "create_app"]

WHERE = {
    "Answer": ".runtime.answer",
    "AsyncRuntime": ".runtime.async_runtime",
    "Runtime": ".runtime.runtime",
    "create_app": ".http.app",
}


def __getattr__(name: str) -> Any:
    # vLLM takes seconds to import: only those who ask for what needs it pay.
    if name in WHERE:
        return getattr(import_module(WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
