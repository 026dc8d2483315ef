"""maker: compositions made on a thread while the engine goes on: files read, decoded, blended, packed."""

import os
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from layerloom.composer import Bank, ComposeError
from layerloom.composer.pages.bank import Reserved
from layerloom.kernels.threads import be_alone

MOST_AHEAD = 8
"""Compositions that may have their room before they are made; the next ones wait."""

NICE = 5
"""How much the thread gives way: where it has no core of its own, a third of what the engine has."""


@dataclass(eq=False)
class Job:
    """A composition to be made, for those who wait for it."""

    reserved: Reserved | None
    """None when it could not be made: nothing is to keep its room."""
    waiting: set[str] = field(default_factory=set)
    done: bool = False
    error: Exception | None = None


class Maker:
    """Makes one composition after another, in the order they were asked for.

    The thread lives as long as there is something to make. It may use all `cores`; vLLM binds each of its own to one.
    """

    def __init__(self, bank: Bank, cores: Iterable[int]) -> None:
        self._bank = bank
        self._cores = set(cores)
        self._threads = torch.get_num_threads()
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._change = threading.Lock()
        self._working = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def full(self) -> bool:
        return len(self._jobs) >= MOST_AHEAD

    @property
    def working(self) -> bool:
        """Whether pages are being written to."""
        return self._working

    def get(self, digest: str) -> Job | None:
        return self._jobs.get(digest)

    def begin(self, reserved: Reserved, holder: str) -> Job:
        """Makes it, at once if there is nothing to do."""
        job = self._jobs[reserved.plan.digest] = Job(reserved, {holder}, self._bank.is_made(reserved))
        if job.done:
            return job
        with self._change:
            self._queue.append(job)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="layerloom-maker").start()
        return job

    def take(self, digest: str) -> Reserved:
        """What is done. Raises what making it did."""
        job = self._jobs.pop(digest)
        if job.reserved is None:
            raise job.error or ComposeError("it was not made")
        return job.reserved

    def forget(self, digest: str, holder: str) -> None:
        """`holder` does not wait any more; what nobody waits for is not made."""
        job = self._jobs.get(digest)
        if job is not None:
            job.waiting.discard(holder)
            if not job.waiting:
                del self._jobs[digest]

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # not Linux, or not allowed
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            os.sched_setaffinity(0, self._cores)
        be_alone(self._threads)
        while job := self._next():
            try:
                assert job.reserved is not None
                self._bank.make(job.reserved, lambda job=job: not job.waiting or is_ending())
            except Exception as error:
                job.reserved, job.error = None, error.with_traceback(None)
            job.done = True

    def _next(self) -> Job | None:
        with self._change:
            job = self._queue.popleft() if self._queue and not is_ending() else None
            self._working = job is not None
            return job


def is_ending() -> bool:
    """Whether the process waits for its threads to end, so that it can."""
    return not threading.main_thread().is_alive()
