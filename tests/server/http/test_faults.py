"""Processes that die and servers that are told to end: nobody hangs, and the exit status says what happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pico import make_family
from serving import LONG_STREAMS, Server, events, members, processes, serving, wait_until

AT_ONCE = 10.0
"""Seconds from a death to the end of the server, and of every request."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("faults"), depth=4, max_position_embeddings=32768)


def stream(server: Server, model: str, tokens: int, started: threading.Event) -> tuple[int, str]:
    """The tokens there were, and how the stream ended: "[DONE]", an error's text, or "cut"."""
    body = {"model": model, "prompt": "diso", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    count, end = 0, "cut"
    try:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
            if response.status_code != 200:
                return 0, f"{response.status_code} {response.read().decode()}"
            for event in events(response):
                if '"usage"' in event:
                    count = json.loads(event)["usage"]["completion_tokens"]
                    started.set()
                elif not end.startswith("{"):
                    end = event
    except httpx.TransportError as error:
        end = f"cut: {error}"
    finally:
        started.set()
    return count, end


def ask(server: Server, model: str) -> tuple[int, str]:
    try:
        response = server.post("/v1/completions", {"model": model, "prompt": "diso", "max_tokens": 4})
    except httpx.TransportError as error:
        return 0, str(error)
    return response.status_code, response.text


class Clients:
    """Some that stream, and then some that ask for compositions nobody has asked for before."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.pool = ThreadPoolExecutor(16)
        started = [threading.Event() for _ in range(3)]
        self.streams = [
            self.pool.submit(stream, server, model, 32000, event)
            for model, event in zip(("base", "math", "base"), started, strict=True)
        ]
        for event in started:
            assert event.wait(120)
        assert not [future.result() for future in self.streams if future.done()]
        self.firsts: list[Future[tuple[int, str]]] = []

    def ask_all(self) -> None:
        names = ["swahili", "bengali", "math+swahili", "math+bengali", "math", "base"]
        self.firsts += [self.pool.submit(ask, self.server, name) for name in names]


@pytest.fixture
def clients() -> Iterator[Callable[[Server], Clients]]:
    made: list[Clients] = []

    def make(server: Server) -> Clients:
        made.append(Clients(server))
        return made[-1]

    yield make
    for one in made:
        one.pool.shutdown(cancel_futures=True)


CASES = {
    "engine": ((), "EngineCore"),
    "worker of two": (("--tensor-parallel-size", "2"), "Worker"),
    "engine behind two servers": (("--api-server-count", "2"), "EngineCore"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_death_ends_the_server_and_every_request(
    case: str, family: Path, tmp_path: Path, clients: Callable[[Server], Clients], capfd: Any
) -> None:
    options, title = CASES[case]
    with serving(family, tmp_path / "log", *LONG_STREAMS, *options) as server:
        some = clients(server)
        victim = processes(server, title)[-1]
        some.ask_all()
        victim.send_signal(signal.SIGKILL)
        died = time.monotonic()
        some.ask_all()

        status = server.process.wait(3 * AT_ONCE)
        ended = time.monotonic() - died
        answers = [future.result(AT_ONCE) for future in (*some.firsts, *some.streams)]
        wait_until(lambda: not members(server.process.pid), AT_ONCE)
        gone = time.monotonic() - died
    with capfd.disabled():
        print(f"\n{case}: exit status {status} after {ended:.1f} s, all processes gone after {gone:.1f} s")
    assert status not in (0, -signal.SIGKILL), server.tail()
    assert ended < AT_ONCE and gone < AT_ONCE + 5, server.tail()
    for code, text in answers[: len(some.firsts)]:
        # Answered before, told, or cut off when the server ended; the last is the best that two servers can do.
        assert code in (200, 503, 0), text
        assert code != 503 or "the engine has ended" in text or "shutting down" in text, text
    for _, end in answers[len(some.firsts) :]:
        assert end != "[DONE]", "no stream may end as if it were complete"


@pytest.mark.timeout(900)
def test_sigterm_lets_requests_end_but_not_for_ever(family: Path, tmp_path: Path) -> None:
    """Two streams that end in time, two that would go on for minutes, and one to a client that does not read."""
    limit, soon = 20, 300
    with (
        serving(family, tmp_path / "log", *LONG_STREAMS, "--shutdown-timeout", str(limit)) as server,
        ThreadPoolExecutor(8) as pool,
    ):

        def start(model: str, tokens: int) -> Future[tuple[int, str]]:
            begun = threading.Event()
            future = pool.submit(stream, server, model, tokens, begun)
            assert begun.wait(120)
            return future

        long = [start(model, 32000) for model in ("math", "swahili", "math+swahili")]
        short = [start(model, soon) for model in ("math+swahili", "base")]
        body = {"model": "math", "prompt": "diso", "max_tokens": 32000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120):
            assert not any(future.done() for future in long)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.get("/health").status_code == 503, limit)
            response = server.post("/v1/completions", {"model": "bengali", "prompt": "diso", "max_tokens": 4})
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "shutting down" in response.json()["error"]["message"]
            for future in short:
                assert future.result(limit) == (soon, "[DONE]")
            assert server.process.wait(60) == 0, server.tail()
            assert time.monotonic() - told < limit + AT_ONCE
        for future in long:
            count, end = future.result(AT_ONCE)
            assert count and end != "[DONE]"


STUCK = """
import atexit, subprocess, sys, time
import psutil
from layerloom.server.http.lifetime import end_after_engines

engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "EngineCore"])
end_after_engines(lambda: [psutil.Process(engine.pid)])
atexit.register(time.sleep, 600)
print(engine.pid, flush=True)
engine.wait()
"""


def test_who_has_started_an_engine_does_not_outlive_it_for_long() -> None:
    """Not even in Python's own end, in which something waits."""
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            engine = int(process.stdout.readline())
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            os.kill(engine, signal.SIGKILL)
            assert process.wait(3 * AT_ONCE) == 1
        finally:
            process.kill()
