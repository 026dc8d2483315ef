"""starting: an engine in a process of its own, started and ended without keeping an event loop from its work."""

import asyncio
import os
from collections.abc import Callable

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from layerloom.composer import Family
from layerloom.server.options import prepare_environment

from .script import imported_once

Described = tuple[Family, AsyncEngineArgs]


async def engine_started(describe: Callable[[], Described]) -> tuple[Family, AsyncLLM]:
    """What `describe`, called on a thread, says, with the engine in place of its arguments.

    Cancelling waits until the engine is there, to end it: until then vLLM has no way to.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(started, describe))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        _, engine = await starting
        await engine_ended(engine)
        raise


async def engine_ended(engine: AsyncLLM, patience: float = 0) -> None:
    """Ends an engine and its processes. Its requests have `patience` seconds; who waits after that is told."""
    if not patience or not engine.get_num_unfinished_requests():
        # vLLM does this last, and logs that the engine has died as long as somebody listens to it.
        if engine.output_handler is not None:
            engine.output_handler.cancel()
        engine.output_processor.propagate_error(EngineDeadError())
    await asyncio.shield(asyncio.to_thread(engine.shutdown, timeout=patience or None))


def started(describe: Callable[[], Described]) -> tuple[Family, AsyncLLM]:
    with imported_once():
        prepare_environment()
        # A process with threads is not to be forked.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        family, arguments = describe()
        # By all cores, and remembered, before the engine has processes of its own.
        family.revisions()
        return family, AsyncLLM.from_engine_args(arguments)
