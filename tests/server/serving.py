"""serving: `layerloom serve` in a process group of its own."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil
from openai import AsyncOpenAI, OpenAI

START_LIMIT = 600.0
STOP_LIMIT = 60.0
COMMAND = Path(sys.executable).with_name("layerloom")
# Small, quick to start, and one compute thread: the tests share the machine with the server.
OPTIONS = ("--host", "127.0.0.1", "--kv-cache-memory-bytes", "256M", "--enforce-eager")
PATIENT = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60"}
"""After 5 s, its default, the server closes connections that say nothing, those of a machine that stood still, too."""

ENVIRONMENT = {
    **PATIENT,
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}


LONG_STREAMS = ("--max-model-len", "32768", "--stream-interval", "20")
"""Streams that outlast what a test does beside them, and leave the server's loop the time for it: a pico model's
tokens come faster than a busy server can write them one by one."""

KEY = "none"
"""What clients of a server send as their API key, whether it asks for one or not."""


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)

    def healthy(self) -> bool:
        """vLLM's /health answers 503 when the engine is dead."""
        try:
            return self.process.poll() is None and self.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        """A Prometheus metric, summed over its labels."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name + "{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def serving(family: Path, log: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Yields a server that is ready, and leaves no process behind."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "serve", family, "--port", str(port), *OPTIONS, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **environment},
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        wait_until(lambda: process.poll() is not None or server.healthy(), START_LIMIT, server.tail)
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}:\n{server.tail()}")
        yield server
    finally:
        stop(process)


def events(response: httpx.Response) -> Iterator[str]:
    """The data of a stream's events. Not httpx' lines: those end at what Unicode calls the end of a line, too."""
    buffer = ""
    for part in response.iter_text():
        *whole, buffer = (buffer + part).split("\n\n")
        yield from (event.removeprefix("data: ") for event in whole)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the server to end and then makes it. Raises RuntimeError if a process of it outlived it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_LIMIT)
        wait_until(lambda: not members(process.pid), STOP_LIMIT)
    except (subprocess.TimeoutExpired, TimeoutError):
        left = [" ".join(member.cmdline()) for member in members(process.pid)]
        raise RuntimeError(f"after {STOP_LIMIT:.0f} s of SIGTERM there still was: {left}") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_LIMIT)


def members(group: int) -> list[psutil.Process]:
    """The living processes of a group."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def processes(server: Server, title: str) -> list[psutil.Process]:
    """Those of a server's with this in their title."""
    return [process for process in members(server.process.pid) if title in " ".join(process.cmdline())]


def free_port() -> int:
    # Below those that the system gives to clients: a server needs a minute until it listens there. Not of the process'
    # own generator: an engine in the process seeds it, and two workers then took the same ports.
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], limit: float, explain: Callable[[], str] = str) -> None:
    """Asks again and again until `condition()` holds. Raises TimeoutError with `explain()`."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {limit:.0f} s\n{explain()}")
        time.sleep(0.05)
