"""How long a running answer waits while a composition that nobody has used is made.

    OMP_NUM_THREADS=1 python bench/stall.py [--rounds 5]

One client reads an answer of the base, token by token. Meanwhile another asks for a composition for the first time.
The gap between two tokens of the first, once the second has asked, is the stall. With `packed` pages a composition is
read and made between two steps; with an `arena` a thread reads it, and what is left is moving it into the arena,
blending, and the first step for the new prompt. The usual gap stands beside it. Prompts are of one length, files in the
page cache.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "server")]

from pico import make_family  # noqa: E402
from serving import Server, serving  # noqa: E402  (of tests/server)

from shared.synthetic import SHAPE  # noqa: E402


async def gaps(server: Server, name: str, prompt: list[int]) -> tuple[float, float, float]:
    """Seconds: the usual gap, the longest one after `name` was asked for, and its first token."""
    stamps: list[float] = []
    async with server.async_client() as client:

        async def ask() -> tuple[float, float]:
            asked = time.perf_counter()
            await client.completions.create(model=name, prompt=prompt, max_tokens=1)
            return asked, time.perf_counter()

        options = {"max_tokens": 160, "stream": True, "extra_body": {"ignore_eos": True}}
        async for _ in await client.completions.create(model="base", prompt=prompt, **options):
            stamps.append(time.perf_counter())
            if len(stamps) == 40:
                other = asyncio.create_task(ask())
        asked, answered = await other
    between = [(end - start, end) for start, end in itertools.pairwise(stamps)]
    usual = statistics.median(gap for gap, end in between if end <= asked)
    return usual, max(gap for gap, end in between if end > asked), answered - asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| pages | usual gap, ms | longest gap, ms: median (min-max) | first token of the new one, ms |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as place:
        languages = [f"language-{i}" for i in range(options.rounds + 1)]
        experts = {"math": "task", **dict.fromkeys(languages, "language")}
        family = make_family(Path(place), depth=16, experts=experts, **SHAPE)
        for pages in ("packed", "arena"):
            with serving(family, Path(place) / "log", "--pages", pages) as server:
                prompt = list(range(3, 27))
                server.client.completions.create(model=f"math+{languages[0]}", prompt=prompt, max_tokens=4)
                found = [asyncio.run(gaps(server, f"math+{language}", prompt)) for language in languages[1:]]
            usual, longest, first = zip(*found, strict=True)
            low, middle, high = (1000 * f(longest) for f in (min, statistics.median, max))
            columns = f"{1000 * statistics.median(usual):.0f} | {middle:.0f} ({low:.0f}-{high:.0f})"
            print(f"| {pages} | {columns} | {1000 * statistics.median(first):.0f} |", flush=True)


if __name__ == "__main__":
    main()
