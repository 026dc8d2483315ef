"""kernel_times: how long the kernels take on the GPU at hand, beside what the roofline says they should.

A time is the median of CUDA events around one call. The host runs ahead while the GPU sleeps, so that launching is
not in it. Calls go round sets of buffers that together are larger than the L2 cache.
"""

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from layerloom.kernels import Tiles, assign, buffers, compose, delta_linear, paged_linear
from layerloom.kernels.delta import Delta, Dense, Factors, Packed, Signs, Xor
from layerloom.kernels.planar import word_count

from .roofline import GROUP, RANK, Cost, Limits, Model
from .roofline import compose as compose_cost
from .roofline import delta_linear as delta_cost
from .roofline import linear as linear_cost

BF16 = torch.bfloat16
linear = torch.nn.functional.linear
Run = Callable[[], object]
nan = float("nan")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: `expected` by the roofline, `other` the time of what the row is held against."""

    op: str
    case: str
    m: int
    pages: int
    seconds: float
    cost: Cost
    expected: float
    against: str = ""
    other: float = nan


@dataclass(frozen=True, slots=True)
class Machine:
    """A GPU; or, to try the script where there is none, a CPU on which nothing is timed."""

    device: torch.device
    rounds: int = 20

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def cache(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.gpu else 1

    def free(self) -> int:
        if not self.gpu:
            return 1 << 28
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def sets(self, size: float) -> int:
        """How many sets of buffers of so many bytes go round."""
        return max(1, -(-4 * self.cache // max(1, int(size)))) if self.gpu else 1

    def seconds(self, runs: Sequence[Run]) -> float:
        for run in runs:
            run()
        if not self.gpu:
            return nan
        events = []
        torch.cuda.synchronize()
        for i in range(max(self.rounds, len(runs))):
            torch.cuda._sleep(2_000_000)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            runs[i % len(runs)]()
            end.record()
            events.append((start, end))
            end.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3

    def captured(self, run: Run) -> Run:
        """The same as one CUDA graph."""
        if not self.gpu:
            return run
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=BF16, device=self.device).normal_(0, 0.02)

    def integers(self, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        """Random bits; what they stand for does not matter to the time, so their lower half may repeat."""
        most = torch.iinfo(dtype).max
        return torch.randint(-most - 1, most, shape, dtype=dtype, device=self.device)


def limits(machine: Machine, small: bool) -> tuple[Limits, list[Row]]:
    """The bandwidth of a device copy and the rate of a library GEMM."""
    size = (1 << 28 if small else 1 << 29) if machine.gpu else 1 << 12
    source, target = machine.integers(size // 4), machine.integers(size // 4)
    copied, cost = machine.seconds([lambda: target.copy_(source)]), Cost(2.0 * size)
    edge = (4096 if small else 8192) if machine.gpu else 64
    a, b = machine.normal(edge, edge), machine.normal(edge, edge)
    multiplied, product = machine.seconds([lambda: linear(a, b)]), linear_cost(edge, edge, edge)
    found = Limits(cost.bytes / copied, product.flops / multiplied)
    rows = [Row("limit", f"copy of {size >> 20} MiB", 0, 0, copied, cost, nan)]
    return found, [*rows, Row("limit", f"cuBLAS {edge}^3", edge, 1, multiplied, product, nan)]


def packed(machine: Machine, codec: str, n: int, k: int, *pages: int) -> Packed | Signs:
    width = {"int8": 8, "int4": 4, "sign": 1}[codec]
    words = machine.integers(*pages, n, word_count(k, width))
    if codec == "sign":
        return Signs(words, torch.rand(*pages, n, device=machine.device) * 1e-3, k)
    return Packed(words, machine.normal(*pages, n, -(-k // GROUP)).abs(), k, width, GROUP)


def page(machine: Machine, model: Model, codec: str) -> list[Delta]:
    """A layer's deltas in the order of its page: the matrices, then the norms."""
    found: list[Delta] = []
    for n, k in (*model.matrices.values(), (2, model.hidden)):
        if codec == "exact":
            found.append(Xor(machine.integers(n, k, dtype=torch.int16)))
        elif codec == "dense" or n == 2:
            found.append(Dense(machine.normal(n, k)))
        elif codec == "factors":
            found.append(Factors(machine.normal(RANK, k), machine.normal(n, RANK)))
        else:
            found.append(packed(machine, codec, n, k))
    return found


def compose_rows(machine: Machine, model: Model, limit: Limits) -> Iterator[Row]:
    out, base = machine.normal(model.numbers), machine.normal(model.numbers)
    for codecs in (("exact",), ("exact",) * 2, ("dense",) * 2, ("int8",), ("int4",), ("sign",), ("factors",)):
        weights, cost = [1.0 / len(codecs)] * len(codecs), compose_cost(model, codecs)
        sets = machine.sets(cost.bytes)
        experts = [[page(machine, model, codec) for codec in codecs] for _ in range(sets)]
        under = base if codecs[0] != "dense" else None
        taken = machine.seconds([partial(compose, out, under, terms, weights) for terms in experts])
        yield Row("compose", " + ".join(codecs), 0, len(codecs), taken, cost, limit.seconds(cost))


def routed(machine: Machine, tokens: int, pages: Sequence[Sequence[int]]) -> tuple[list[Tiles], Run]:
    """Tiles of each layer for tokens spread evenly over the slots, whose pages are given; and what fills them."""
    count = len(pages[0])
    slots = (torch.arange(tokens) * count // tokens).int().to(machine.device)
    ids = torch.tensor(pages, dtype=torch.int32, device=machine.device)
    order, tables = buffers(tokens, len(pages), count, machine.device)
    fill = partial(assign, slots, ids, order, tables)
    fill()
    return [Tiles(order, {b: table[i] for b, table in tables.items()}, count) for i in range(len(pages))], fill


def each(parts: Sequence[torch.Tensor], weights: torch.Tensor) -> None:
    for rows, weight in zip(parts, weights, strict=True):
        linear(rows, weight)


def split(delta: Packed | Signs, weight: torch.Tensor, x: torch.Tensor, tiles: Tiles) -> None:
    delta_linear(linear(x, weight), x, delta, tiles)


def linear_rows(machine: Machine, model: Model, limit: Limits, most: int) -> Iterator[Row]:
    """gate_up, the largest matrix, as paged_linear and as packed deltas on top of a library GEMM."""
    n, k = model.matrices["gate_up"]
    for m in (m for m in (1, 4, 16, 64, 256, 1024, 4096) if m <= most):
        x = machine.normal(m, k)
        for count in (v for v in (1, 2, 4, 8) if v <= m):
            sets = machine.sets(2 * count * n * k)
            views = list(machine.normal(sets, count, n, k))
            ((tiles,), _) = routed(machine, m, [range(count)])
            edges = [m * i // count for i in range(count + 1)]
            parts = [x[a:b] for a, b in pairwise(edges)]
            ours = machine.seconds([partial(paged_linear, x, view, tiles) for view in views])
            theirs = machine.seconds([partial(each, parts, view) for view in views])
            cost = linear_cost(m, n, k, count)
            what = "cuBLAS" if count == 1 else f"cuBLAS, {count} calls"
            yield Row("paged_linear", f"{n}x{k}", m, count, ours, cost, limit.seconds(cost), what, theirs)
            if m not in (16, 256) or count == 2:
                continue
            for codec in ("int8", "int4", "sign"):
                more = delta_cost(m, n, k, codec, count)
                deltas = [packed(machine, codec, n, k, count) for _ in range(machine.sets(more.bytes))]

                runs = [partial(split, delta, views[i % sets][0], x, tiles) for i, delta in enumerate(deltas)]
                taken = machine.seconds(runs)
                # Two launches: each has its own limit.
                both, expected = linear_cost(m, n, k) + more, limit.seconds(linear_cost(m, n, k)) + limit.seconds(more)
                yield Row("delta_linear", f"{n}x{k} {codec}", m, count, taken, both, expected, "cuBLAS", theirs)
                yield Row("delta_linear", f"{n}x{k} {codec}", m, count, taken, both, expected, "paged_linear", ours)
