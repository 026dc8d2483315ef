"""stepper: an engine on a thread of its own, which any number of threads may ask at once."""

import gc
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Any, TypeVar

from vllm import LLM, RequestOutput
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.v1.engine.exceptions import EngineDeadError

T = TypeVar("T")

POLL = 1.0
"""Seconds after which who waits looks whether the engine is still there."""


@dataclass
class Call:
    """The requests of one caller."""

    ids: list[str] = field(default_factory=list)
    outputs: dict[str, RequestOutput] = field(default_factory=dict)
    future: "Future[list[RequestOutput]]" = field(default_factory=Future)


class Stepper:
    """Builds an engine, and steps it while there are requests; those of all callers run in one batch.

    Everything that touches the engine happens on one thread, its own: vLLM ties the engine to the thread that builds
    it (device, cores, OpenMP's threads), and Ctrl-C, which reaches the main thread, never cuts a step in two. Callers
    wait. An error in a step, or an engine found dead, ends it all and reaches every one of them; any other error only
    who made it.
    """

    def __init__(self, build: Callable[[], LLM]) -> None:
        self._jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._calls: dict[str, Call] = {}
        self._llm: LLM | None = None
        self._over: BaseException | None = None
        self._thread = Thread(target=self._work, name="layerloom-engine", daemon=True)
        self._thread.start()

        def built() -> None:
            self._llm = build()

        try:
            self.ask(built)
        except BaseException as error:
            self._jobs.put(lambda: self._end(RuntimeError("the engine did not start")))
            if isinstance(error, Exception):
                self._thread.join()
            raise

    @property
    def alive(self) -> bool:
        return self._over is None

    @property
    def llm(self) -> LLM:
        if self._llm is None or self._over is not None:
            raise RuntimeError(f"this runtime has ended ({self._over}): make another")
        return self._llm

    @property
    def _core(self) -> Any:
        llm = self._llm
        return None if llm is None else llm.llm_engine.engine_core

    def ask(self, question: Callable[[], T]) -> T:
        """What `question` returns or raises, on the engine's thread, between two steps."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(question())
            except BaseException as error:
                self._refuse(future, error)

        return self._answer(job, future)

    def run(self, enqueue: Callable[[], list[str]]) -> list[RequestOutput]:
        """The finished outputs of the requests that `enqueue`, which returns their ids, adds to the engine."""
        call = Call()

        def job() -> None:
            try:
                # vLLM adds a suffix to the ids under which it hands out.
                call.ids = [request_id.partition("-")[0] for request_id in enqueue()]
                self._calls |= dict.fromkeys(call.ids, call)
                self._hand_out(call)
            except BaseException as error:
                self._refuse(call.future, error)

        try:
            return self._answer(job, call.future)
        except BaseException:
            self._jobs.put(lambda: self._drop(call))
            raise

    def close(self) -> None:
        """Ends the engine, its processes and its thread; whoever still waits gets an error."""
        self._jobs.put(lambda: self._end(RuntimeError("it was closed")))
        # On its own thread where that lets go of the last reference to a runtime.
        while self._thread.is_alive() and current_thread() is not self._thread:
            self._thread.join(POLL)
            self._wake_if_killed()

    def _answer(self, job: Callable[[], None], future: "Future[T]") -> T:
        self._jobs.put(job)
        while not wait([future], POLL).done:
            if not self._thread.is_alive() and not future.done():
                assert self._over is not None
                raise self._over
            self._wake_if_killed()
        return future.result()

    def _wake_if_killed(self) -> None:
        """vLLM leaves those who wait for an engine process that was killed waiting for ever."""
        core = self._core
        if hasattr(core, "resources") and has_died(core):
            error = EngineDeadError(suppress_context=True)
            for asked in list(core.utility_results.values()):
                with suppress(Exception):
                    asked.set_exception(error)
            core.outputs_queue.put(error)

    # What follows runs on the engine's thread.

    def _work(self) -> None:
        while self._over is None:
            self._next()

    def _next(self) -> None:
        # No loop, whose variable would keep the last job, and so its caller's runtime, alive.
        try:
            job = self._jobs.get(block=not self._calls)
        except Empty:
            job = self._step
        try:
            job()
        except BaseException as error:
            self._end(error)

    def _refuse(self, future: "Future[T]", error: BaseException) -> None:
        if has_died(self._core):
            # In place of what has come of it.
            error = EngineDeadError(suppress_context=True)
            # Before its caller is told, who may come again at once.
            self._end(error)
        future.set_exception(error)

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished and (call := self._calls.pop(output.request_id, None)):
                call.outputs[output.request_id] = output
                self._hand_out(call)

    def _hand_out(self, call: Call) -> None:
        if len(call.outputs) == len(call.ids):
            call.future.set_result([call.outputs[request_id] for request_id in call.ids])

    def _drop(self, call: Call) -> None:
        unfinished = [request_id for request_id in call.ids if self._calls.pop(request_id, None)]
        self.llm.llm_engine.abort_request(unfinished)

    def _end(self, error: BaseException) -> None:
        self._over = error
        for call in {id(call): call for call in self._calls.values()}.values():
            call.future.set_exception(error)
        self._calls.clear()
        # Of an engine that did not start too, or the next one finds its process groups.
        end = cleanup_dist_env_and_memory if self._llm is None else self._llm.llm_engine.engine_core.shutdown
        with suppress(Exception):
            end()
        self._llm = None
        del end
        gc.collect()


def has_died(core: Any) -> bool:
    """Whether an engine's process has, or, where it is in this one, a worker of its own."""
    if hasattr(core, "resources"):
        return bool(core.resources.engine_dead)
    return hasattr(core, "engine_core") and getattr(core.engine_core.model_executor, "is_failed", False)
