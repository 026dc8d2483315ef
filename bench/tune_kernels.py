"""Tries launch settings on this machine's GPU, and prints the lines of kernels/settings.py for its architecture.

    python bench/tune_kernels.py [compose paged_linear delta_linear] [--rounds 20]

Shapes are those of a layer of Llama-3.1-8B. A setting counts by its median time over the rounds, with the L2 cache
emptied in between, and only if it gives what the first one gave. It needs a GPU; no line was ever made without one.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator

import torch

from layerloom.kernels import compose, planar
from layerloom.kernels import settings as launch
from layerloom.kernels.delta import Packed, Signs, Xor
from layerloom.kernels.settings import EVER, Settings
from layerloom.kernels.tiles import Tiles

N, K, PAGES = 14336, 4096, 4
TOKENS = {"compose": [EVER], "paged_linear": [64, 512, EVER], "delta_linear": [64, EVER]}
LARGE = 2048
"""Tokens of a batch that stands for all larger ones."""


def candidates(op: str) -> Iterator[Settings]:
    if op == "compose":
        for m, k, warps in itertools.product((16, 64), (128, 256, 512), (4, 8, 16)):
            yield Settings(m, 64, k, warps, 1)
        return
    for m, n, k in itertools.product((16, 64, 128), (32, 64, 128, 256), (32, 64, 128)):
        for warps, stages in itertools.product((4, 8), (2, 3, 4)):
            yield Settings(m, n, k, warps, stages)


def packed(bits: int, *pages: int) -> Packed:
    words = torch.randint(-(1 << 31), (1 << 31) - 1, (*pages, N, planar.word_count(K, bits)), dtype=torch.int32)
    scales = torch.rand(*pages, N, K // 128).to(torch.bfloat16) * 1e-3
    return Packed(words.cuda(), scales.cuda(), K, bits, 128)


def signs(*pages: int) -> Signs:
    words = torch.randint(-(1 << 31), (1 << 31) - 1, (*pages, N, planar.word_count(K, 1)), dtype=torch.int32)
    return Signs(words.cuda(), torch.rand(*pages, N).cuda() * 1e-3, K)


def compose_work(tokens: int) -> list[Callable[[], torch.Tensor]]:
    base = torch.randn(N * K).to(torch.bfloat16).cuda()
    out = torch.empty_like(base)
    pattern = torch.randint(0, 1 << 8, (N, K), dtype=torch.int16).cuda()
    deltas = [Xor(pattern), packed(4), packed(8), signs()]
    blends = [([[delta]], [1.0]) for delta in deltas] + [([[delta], [Xor(pattern)]], [0.5, 0.5]) for delta in deltas]
    return [
        lambda experts=experts, weights=weights: compose(out, base, experts, weights) for experts, weights in blends
    ]


def tiles(tokens: int) -> Tiles:
    # Not imported above: compose is tuned without them.
    from layerloom.kernels.assign import assign, buffers

    slots = torch.arange(tokens, dtype=torch.int32).mul(PAGES).div(tokens, rounding_mode="floor").int().cuda()
    pages = torch.arange(PAGES, dtype=torch.int32, device="cuda").unsqueeze(0)
    order, tables = buffers(tokens, 1, PAGES, "cuda")
    assign(slots, pages, order, tables)
    return Tiles(order, {block: table[0] for block, table in tables.items()}, PAGES)


def paged_linear_work(tokens: int) -> list[Callable[[], torch.Tensor]]:
    from layerloom.kernels import paged_linear

    x = torch.randn(tokens, K).to(torch.bfloat16).cuda()
    weight = torch.randn(PAGES, N, K, device="cuda", dtype=torch.bfloat16)
    table = tiles(tokens)
    return [lambda: paged_linear(x, weight, table)]


def delta_linear_work(tokens: int) -> list[Callable[[], torch.Tensor]]:
    from layerloom.kernels.delta_linear import delta_linear

    x = torch.randn(tokens, K).to(torch.bfloat16).cuda()
    table = tiles(tokens)
    deltas = [packed(4, PAGES), packed(8, PAGES), signs(PAGES)]
    return [lambda delta=delta: delta_linear(x.new_zeros(tokens, N), x, delta, table) for delta in deltas]


WORK = {"compose": compose_work, "paged_linear": paged_linear_work, "delta_linear": delta_linear_work}


def seconds(run: Callable[[], torch.Tensor], rounds: int, flush: torch.Tensor) -> float:
    times = []
    for _ in range(rounds):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def tune(op: str, most: int, arch: str, rounds: int, flush: torch.Tensor) -> Settings:
    runs = WORK[op](min(most, LARGE))
    best, least = None, math.inf
    first: list[torch.Tensor] = []
    for tried in candidates(op):
        launch.TABLE[op][arch] = ((EVER, tried),)
        try:
            found = [run().clone() for run in runs]
            torch.cuda.synchronize()
        except Exception as error:  # What does not fit into this GPU is no candidate, whichever way Triton says so.
            print(f"# {op} {tried}: {type(error).__name__}", file=sys.stderr)
            continue
        first = first or found
        if not all(
            torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.02) for a, b in zip(first, found, strict=True)
        ):
            raise SystemExit(f"{op}: {tried} gives other numbers than the first setting")
        # Every form counts alike, long or short.
        cost = math.prod(seconds(run, rounds, flush) for run in runs) ** (1 / len(runs))
        print(f"# {op} up to {most} tokens, {tried}: {cost * 1e6:.1f} us", file=sys.stderr)
        if cost < least:
            best, least = tried, cost
    if best is None:
        raise SystemExit(f"{op}: no setting ran")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", default=[*WORK], help=", ".join(WORK))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if unknown := set(arguments.ops) - set(WORK):
        parser.error(f"no such op: {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        raise SystemExit("tune_kernels: there is no GPU here, and settings are tuned on the GPU that will run them")
    arch = launch.architecture(torch.device("cuda", torch.cuda.current_device()))
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}")
    for op in arguments.ops:
        rows = [(most, tune(op, most, arch, arguments.rounds, flush)) for most in TOKENS[op]]
        print(f'"{op}": {{"{arch}": (')
        for most, found in rows:
            numbers = (found.block_m, found.block_n, found.block_k, found.num_warps, found.num_stages)
            print(f"    ({'EVER' if most == EVER else most}, Settings{numbers}),")
        print(")},")


if __name__ == "__main__":
    main()
