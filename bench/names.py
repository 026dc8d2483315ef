"""What names that clients make up cost: the 2,000th recipe next to the first, and a flood of unknown ones.

    OMP_NUM_THREADS=1 python bench/names.py [--recipes 2000] [--seconds 10]

A pico family of 5 tasks and 40 languages (245 names). Recipes are asked for one after the other, each once; then one
client asks for the base, alone, beside 8 clients who ask for the base, too, and beside 8 who ask for names that there
are not: what the last cost a neighbour should be no more than right requests would. Expected of either: the same.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "server")]

import httpx  # noqa: E402
from pico import make_family  # noqa: E402
from serving import Server, members, serving  # noqa: E402

TASKS, LANGUAGES, FLOOD = 5, 40, 8
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}


async def ask(client: httpx.AsyncClient, name: str, status: int = 200) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    response = await client.post("/v1/completions", json={"model": name, "prompt": [5, 6, 7], "max_tokens": 1})
    assert response.status_code == status, response.text
    return 1e3 * (time.perf_counter() - began)


async def one_after_the_other(server: Server, count: int) -> list[float]:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        await ask(client, "t0+l0@weight=0.5")
        return [await ask(client, f"t{i % TASKS}+l{i % LANGUAGES}@weight=0.{i:05}1") for i in range(1, count + 1)]


async def beside(server: Server, seconds: float, name: str | None, status: int = 200) -> tuple[list[float], int]:
    """The latencies of one client of the base's, and how many requests for `name` were answered meanwhile."""
    until, answered = time.monotonic() + seconds, 0

    async def neighbour(number: int) -> None:
        nonlocal answered
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            while time.monotonic() < until:
                await ask(client, (name or "").format(number, answered), status)
                answered += 1

    async def quiet() -> list[float]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            times = []
            while time.monotonic() < until:
                times.append(await ask(client, "base"))
                await asyncio.sleep(0.02)
            return times

    times, *_ = await asyncio.gather(quiet(), *(neighbour(i) for i in range(FLOOD if name else 0)))
    return times, answered


def memory(server: Server) -> str:
    sizes = {process.name(): process.memory_info().rss >> 20 for process in members(server.process.pid)}
    return ", ".join(f"{name} {size} MB" for name, size in sorted(sizes.items()) if size > 100)


def shown(times: list[float]) -> str:
    return f"median {statistics.median(times):.1f} ms, 95% {statistics.quantiles(times, n=20)[-1]:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="layerloom-names-") as directory:
        root = Path(directory)
        experts = {f"t{i}": "task" for i in range(TASKS)} | {f"l{i}": "language" for i in range(LANGUAGES)}
        path = make_family(root, depth=4, experts=experts, **SHAPE)
        with serving(path, root / "log", "--allow-recipes") as server:
            times = asyncio.run(one_after_the_other(server, args.recipes))
            part = max(1, len(times) // 20)
            print(f"recipes, the first {part}: {shown(times[:part])}; the last {part}: {shown(times[-part:])}")
            print(f"memory: {memory(server)}")
            for what, name, status in (
                ("alone", None, 200),
                (f"beside {FLOOD} clients of the base", "base", 200),
                (f"beside {FLOOD} clients who make up names", "klingon-{}-{}", 404),
                (f"beside {FLOOD} clients who make up pairs", "t0+langage{}{}", 404),
            ):
                times, answered = asyncio.run(beside(server, args.seconds, name, status))
                rate = f", {answered / args.seconds:.0f} others a second" if name else ""
                print(f"a client of the base {what}: {shown(times)}{rate}")
            print(f"memory: {memory(server)}")


if __name__ == "__main__":
    main()
