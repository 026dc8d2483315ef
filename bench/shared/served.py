"""served: a server in processes of its own, on some of the machine's cores, and the time that it took to come up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "server")]

import httpx  # noqa: E402
from serving import PATIENT, START_LIMIT, Server, free_port, members, processes, stop  # noqa: E402  (of tests/server)

EAGER = ("--enforce-eager", "--no-enable-prefix-caching")


@dataclass(frozen=True)
class Served:
    """A server that is ready; `seconds` are from the command to /health."""

    server: Server
    seconds: float

    @property
    def engine(self) -> int:
        """The process id of the one that has the weights. Raises RuntimeError when that has ended, or are several."""
        found = processes(self.server, "VLLM::Worker") or processes(self.server, "VLLM::EngineCore")
        if len(found) != 1:
            raise RuntimeError(f"{len(found)} engines, where there was one:\n{self.server.tail(20)}")
        return int(found[0].pid)

    @property
    def processes(self) -> list[int]:
        """The process ids of all of the server's."""
        return [int(process.pid) for process in members(self.server.process.pid)]


def layerloom(family: Path, *options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("layerloom")), "serve", str(family), *options]


def stock(model: Path, *options: str) -> list[str]:
    """vLLM's own server."""
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options]


def on_cores(count: int) -> dict[str, str]:
    """The environment of a server that has so many cores: vLLM's defaults, by which one of them does not compute.

    It is for the engine's scheduler, which spins while it waits. Of a single core there is none to spare.
    """
    return {} if count > 1 else {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@contextmanager
def served(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cores: int | None = None
) -> Iterator[Served]:
    """Yields the server that `command` starts, on the first `cores` cores, and this process on the others if any.

    Leaves no process behind. Raises RuntimeError, with the end of the log, when it does not come up.
    """
    every = sorted(os.sched_getaffinity(0))
    if cores is not None and cores > len(every):
        raise RuntimeError(f"there are {len(every)} cores here, not {cores}")
    # Else it would end this process, and no other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    port = free_port()
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    said = {**os.environ, "HF_HUB_OFFLINE": "1", **PATIENT, **environment}
    with log.open("wb") as output:
        # A process begins with the cores of the thread that starts it.
        os.sched_setaffinity(0, every[:cores])
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=said, start_new_session=True)
    os.sched_setaffinity(0, every[cores:] if cores is not None and cores < len(every) else every)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        while not healthy(server):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}:\n{server.tail()}")
            if time.perf_counter() - began > START_LIMIT:
                raise RuntimeError(f"the server was not up within {START_LIMIT:.0f} s:\n{server.tail()}")
            time.sleep(0.05)
        yield Served(server, time.perf_counter() - began)
    finally:
        os.sched_setaffinity(0, every)
        stop(process)


def healthy(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
