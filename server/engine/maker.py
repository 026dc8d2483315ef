"""maker: compositions made on a thread while the engine goes on: files read, decoded, blended, packed."""

import os
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import torch

from layerloom.composer import Bank, ComposeError
from layerloom.composer.pages.bank import Reserved
from layerloom.kernels.threads import be_alone

MOST_AHEAD = 8
"""Compositions that may have their room before they are made; the next ones wait."""

NICE = 10
"""How much the thread gives way: where it has no core of its own, it and the packer's have a sixth of one."""

QUIET = 0.25
"""Seconds after the last step in which the engine counts as computing."""


@dataclass(eq=False)
class Job:
    """A composition to be made, for those who wait for it."""

    bank: Bank
    reserved: Reserved | None
    """None when it could not be made: nothing is to keep its room."""
    waiting: set[str] = field(default_factory=set)
    done: bool = False
    error: Exception | None = None


@dataclass(frozen=True)
class Made:
    """What has been made since the start; `seconds` from when each was begun."""

    count: int = 0
    seconds: float = 0.0
    bytes: int = 0
    longest: float = 0.0

    def and_one(self, seconds: float, bytes: int) -> "Made":
        return Made(self.count + 1, self.seconds + seconds, self.bytes + bytes, max(self.longest, seconds))


class Maker:
    """Makes one composition after another, in the order they were asked for.

    The thread lives as long as there is something to make. While the engine computes it uses the `spare` ones of the
    `cores`, where there are any: a step is as slow as the core that has least time for it.
    """

    def __init__(self, cores: Iterable[int], spare: Iterable[int]) -> None:
        self.made = Made()
        self._cores, self._spare = set(cores), set(spare)
        self._threads = torch.get_num_threads()
        self._last_step = -QUIET
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

    def step(self) -> None:
        """Says that the engine computes one."""
        self._last_step = monotonic()

    def get(self, digest: str) -> Job | None:
        return self._jobs.get(digest)

    def begin(self, bank: Bank, reserved: Reserved, holder: str) -> Job:
        """Makes it, at once if there is nothing to do."""
        job = self._jobs[reserved.plan.digest] = Job(bank, reserved, {holder}, bank.is_made(reserved))
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
        while job := self._next():
            self._settle()
            began = monotonic()
            try:
                assert job.reserved is not None
                bytes = job.bank.make(job.reserved, lambda job=job: not job.waiting or is_ending())
                self.made = self.made.and_one(monotonic() - began, bytes)
            except Exception as error:
                job.reserved, job.error = None, error.with_traceback(None)
            job.done = True

    def _settle(self) -> None:
        """Chooses the cores for the next composition."""
        computing = monotonic() - self._last_step < QUIET
        aside = computing and len(self._spare) > 0
        with suppress(OSError, AttributeError):
            os.sched_setaffinity(0, self._spare if aside else self._cores)
        be_alone(len(self._spare) + (0 if aside else self._threads))

    def _next(self) -> Job | None:
        with self._change:
            job = self._queue.popleft() if self._queue and not is_ending() else None
            self._working = job is not None
            return job


def is_ending() -> bool:
    """Whether the process waits for its threads to end, so that it can."""
    return not threading.main_thread().is_alive()
