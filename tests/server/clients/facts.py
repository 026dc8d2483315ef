"""facts: what a script finds out with its client, told as JSON. Runs in the clients' own environment."""

import asyncio
import inspect
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

ASKED: dict[str, Any] = json.loads(os.environ["LAYERLOOM_ASKED"])
URL: str = ASKED["url"]
KEY: str = ASKED["key"]
PICO: str = ASKED["pico"]
ENDLESS: int = ASKED["endless"]

ABORT = 'outcome="abort"'

FACTS: dict[str, Callable[[], Any]] = {}


def fact(function: Callable[[], Any]) -> Callable[[], Any]:
    """Its name is the fact's, what it gives or awaits is the fact."""
    FACTS[function.__name__] = function
    return function


def tell() -> None:
    """Prints {fact: what was found}. What raises is told by class, HTTP status and message; the others go on."""
    found = {}
    for name in sys.argv[1:] or FACTS:
        began = time.perf_counter()
        try:
            result = FACTS[name]()
            found[name] = asyncio.run(result) if inspect.iscoroutine(result) else result
        except Exception as error:
            found[name] = refusal(error)
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    print(json.dumps(found))


def refusal(error: Exception) -> dict[str, Any]:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"kinds": kinds, "status": getattr(error, "status_code", None), "message": str(error)}


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


def aborted(leave: Callable[[], Any]) -> int:
    """How many requests pico has seen aborted by what `leave` does.

    Again, if it is none: on a busy machine the client may hear of the first token when the last one is made.
    """
    before, aborts = counted("layerloom:requests_total", ABORT), 0
    for _ in range(3):
        leave()
        end = time.monotonic() + 60
        while counted("vllm:num_requests_running") and time.monotonic() < end:
            time.sleep(0.05)
        aborts = int(counted("layerloom:requests_total", ABORT) - before)
        if aborts:
            break
    return aborts


def counted(name: str, label: str = "") -> float:
    lines = urllib.request.urlopen(f"{PICO}/metrics").read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{") and label in line)
