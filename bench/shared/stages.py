"""stages: where the time goes while a composition is made, measured inside an engine of this process."""

import importlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

STAGES = {
    "read": ("layerloom.composer.sources.tensorfile", "TensorFile.read"),
    "decode": ("layerloom.composer.sources.archive", "Archive.read"),
    "fill": ("layerloom.server.engine.parts", "Parts.fill"),
    "compose": ("layerloom.composer.pages.bank", "compose"),
    "pack": ("layerloom.server.engine.packed", "seal"),
}
"""What is measured, each without what it calls of the others. `fill` is copying into the engine's layout."""


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            within: list[float] = self._open.__dict__.setdefault("stages", [])
            within.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                took = time.perf_counter() - start
                self.seconds[stage] += took - within.pop()
                if within:
                    within[-1] += took

        return wrapped


@contextmanager
def clocked() -> Iterator[Clock]:
    """Measures the stages of everything that is made meanwhile."""
    clock, before = Clock(), []
    for stage, (module, path) in STAGES.items():
        *owners, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, clock.timed(stage, getattr(owner, name)))
    try:
        yield clock
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def profile(
    family: Path, names: list[str], pages: str, ready: Callable[[], AbstractContextManager[None]]
) -> dict[str, tuple[float, Clock]]:
    """For each composition, made one after the other: seconds from asking until it is there, and its stages.

    `ready` is entered around each. The engine is one of this process, so the process should do nothing else.
    """
    from layerloom.server import Runtime

    prompt, found = [{"prompt_token_ids": list(range(3, 27))}], {}
    options = {"kv_cache_memory_bytes": 1 << 28, "max_model_len": 512, "max_num_batched_tokens": 512}
    with Runtime(family, pages=pages, enforce_eager=True, **options) as runtime:
        runtime.generate("base", prompt, max_tokens=1)
        for name in names:
            with ready(), clocked() as clock:
                start = time.perf_counter()
                runtime.generate(name, prompt, max_tokens=1)
                first = time.perf_counter() - start
            start = time.perf_counter()
            runtime.generate(name, prompt, max_tokens=1)
            found[name] = first - (time.perf_counter() - start), clock
    return found
