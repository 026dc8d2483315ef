"""Where compositions are made: not on the cores that vLLM computes on, where there are others."""

import multiprocessing
import os

import pytest

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")


def tell_cores(answer) -> None:
    from layerloom.server.engine.worker import cores_of_engine

    answer.put((cores_of_engine(), os.sched_getaffinity(0)))


def test_a_worker_that_is_bound_knows_the_cores_of_its_engine(monkeypatch):
    every = os.sched_getaffinity(0)
    # So vLLM binds its workers, before they start.
    monkeypatch.setenv("OMP_PLACES", f"{{{min(every)}}}")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=tell_cores, args=(answer,))
    worker.start()
    cores, own = answer.get(timeout=120)
    worker.join()
    assert cores == every and own == {min(every)}
