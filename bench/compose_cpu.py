"""compose on the CPU against a copy of as many bytes: python bench/compose_cpu.py [--threads 1] [--size 4096]

First each case is compared bit by bit with the torch twin, then timed: the best of several runs into an output that is
there already. `copy` is torch's copy_ of the same traffic (bytes read and written), `torch` the torch twin.

Two runs on one core of an AMD EPYC (family 25, model 17: AVX-512) shared with a lot of other work (load 6 to 9 on two
cores), CPU time, copy's time divided by ours: exact 1.13 and 1.25, two dense 1.06 and 0.99, two exact 0.90 and 1.13,
int8 1.47 and 0.87, int4 1.13 and 0.76, sign 1.29 and 0.89, int4 with dense 0.93 and 0.64, rank 16 0.19 and 0.18. The
copy itself varied by a third between them: measure again on a quiet machine before you rely on these. The second run
is of the code as it is; the first came before the end of a row was moved into the same loop.

On a quiet core of a first-generation EPYC (family 23, model 1: AVX2 in halves, no AVX-512), the same code: exact 1.08,
two dense 0.53, two exact 0.42, int8 0.36, int4 0.33, sign 0.38, rank 16 0.13. There a vector of 32 numbers does not fit
the registers, and rounding costs more than memory; the torch twin takes 2.3 to 8.4 times as long as these.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from layerloom.kernels.compose_cpu import compose_compiled
from layerloom.kernels.compose_torch import compose_torch
from layerloom.kernels.delta import Delta, Dense, Factors, Packed, Signs, Xor
from layerloom.kernels.planar import word_count

Terms = list[tuple[float, list[Delta]]]


def cases(size: int) -> tuple[torch.Tensor, dict[str, tuple[float, Terms]]]:
    """The base, and the weight of the base and the terms of each case; bf16, groups of 128."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    def words(bits: int) -> torch.Tensor:
        return torch.randint(-(1 << 31), 1 << 31, (size, word_count(size, bits)), generator=generator).to(torch.int32)

    base, *experts = (numbers(size, size) for _ in range(4))
    dense = [Dense(expert) for expert in experts]
    xor = [Xor(expert.view(torch.int16) ^ base.view(torch.int16)) for expert in experts]
    int8, int4 = (Packed(words(bits), numbers(size, size // 128), size, bits, 128) for bits in (8, 4))
    sign = Signs(words(1), torch.rand(size, generator=generator), size)
    factors = Factors(numbers(16, size), numbers(size, 16))
    found: dict[str, tuple[float, Terms]] = {
        "exact": (0.0, [(1.0, [xor[0]])]),
        "two dense, averaged": (0.0, [(0.5, [dense[0]]), (0.5, [dense[1]])]),
        "two exact, averaged": (0.0, [(0.5, [xor[0]]), (0.5, [xor[1]])]),
        "three dense": (0.0, [(0.25, [dense[0]]), (0.25, [dense[1]]), (0.5, [dense[2]])]),
        "dense and base": (0.5, [(0.5, [dense[0]])]),
    }
    for name, delta in (("int8", int8), ("int4", int4), ("sign", sign), ("rank 16", factors)):
        found[name] = (0.0, [(1.0, [delta])])
        found[f"{name} and dense"] = (0.0, [(0.5, [delta]), (0.5, [dense[0]])])
    return base.view(-1), found


def traffic(base: torch.Tensor, rest: float, terms: Terms) -> int:
    """Bytes read and written."""
    deltas = [delta for _, page in terms for delta in page]
    reads_base = rest != 0.0 or any(not isinstance(delta, Dense) for delta in deltas)
    return base.nbytes * (1 + reads_base) + sum(
        tensor.nbytes
        for delta in deltas
        for name in delta.__dataclass_fields__
        if isinstance(tensor := getattr(delta, name), torch.Tensor)
    )


def best(run: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    """The shortest of the runs that fit in so many seconds, of five at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each number")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # With one thread its own time counts: others may use the machine.
    clock = time.process_time if args.threads == 1 else time.perf_counter
    base, found = cases(args.size)
    out = torch.empty_like(base)
    started = time.perf_counter()
    compose_compiled(out, base, found["int4 and dense"][1], 0.0)
    first = time.perf_counter() - started
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    print(f"{model}, {args.threads} thread(s), torch {torch.__version__}, {args.size}x{args.size} bf16")
    print(f"first call, compiled or from the cache: {first:.2f} s\n")
    print(f"{'':20} {'ms':>7} {'GB/s':>6} {'copy ms':>8} {'of copy':>8} {'torch ms':>9}")
    for name, (rest, terms) in found.items():
        print(f"{name:20} {row(name, base, rest, terms, args.seconds, clock)}")


def row(name: str, base: torch.Tensor, rest: float, terms: Terms, seconds: float, clock: Callable[[], float]) -> str:
    """A line of the table, after the check."""
    out, wanted = torch.full_like(base, 7), torch.empty_like(base)
    compose_torch(wanted, base, terms, rest)
    compose_compiled(out, base, terms, rest)
    assert torch.equal(out.view(torch.int16), wanted.view(torch.int16)), f"{name}: not the torch twin's bits"
    size = traffic(base, rest, terms)
    source, target = torch.ones(size // 2, dtype=torch.uint8), torch.ones(size // 2, dtype=torch.uint8)
    copy, ours = float("inf"), float("inf")
    for _ in range(2):  # In turns, for a machine that others use.
        copy = min(copy, best(lambda: target.copy_(source), seconds / 2, clock))
        ours = min(ours, best(lambda: compose_compiled(out, base, terms, rest), seconds / 2, clock))
    twin = best(lambda: compose_torch(wanted, base, terms, rest), seconds, clock)
    return f"{ours * 1e3:7.2f} {size / ours / 1e9:6.1f} {copy * 1e3:8.2f} {copy / ours:8.2f} {twin * 1e3:9.1f}"


if __name__ == "__main__":
    main()
