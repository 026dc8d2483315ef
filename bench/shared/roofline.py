"""roofline: what a kernel must move and multiply, and how long that takes on a machine of given limits.

expected seconds = max(bytes / bandwidth, FLOPs / rate). Both limits are measured on the GPU at hand: the bandwidth is
that of a device copy (bytes read and written), the rate that of a large library GEMM. Every input counts as read once
and every output as written once, in bf16 where nothing else is said.
"""

from dataclasses import dataclass

GROUP = 128
"""Columns of one scale of int8 and int4."""
RANK = 16


@dataclass(frozen=True, slots=True)
class Model:
    """The linear layers of a model. `own` of its layers are each language's own, the others are shared by all."""

    name: str
    hidden: int
    intermediate: int
    qkv: int
    layers: int
    own: int

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """N and K of each matrix of a layer, as an engine fuses them."""
        return {
            "qkv": (self.qkv, self.hidden),
            "o": (self.hidden, self.hidden),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }

    @property
    def numbers(self) -> int:
        """Of a layer, with its two norms."""
        return sum(n * k for n, k in self.matrices.values()) + 2 * self.hidden


LLAMA_8B = Model("Llama-3.1-8B", 4096, 14336, 6144, 32, 9)
LLAMA_1B = Model("Llama-3.2-1B", 2048, 8192, 3072, 16, 5)
TOY = Model("toy", 128, 256, 192, 3, 2)


@dataclass(frozen=True, slots=True)
class Limits:
    """bytes/s and FLOP/s of the machine."""

    bandwidth: float
    rate: float

    def seconds(self, cost: "Cost") -> float:
        return max(cost.bytes / self.bandwidth, cost.flops / self.rate)


@dataclass(frozen=True, slots=True)
class Cost:
    bytes: float
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.bytes * times, self.flops * times)


def delta_bytes(codec: str, n: int, k: int) -> float:
    """Bytes of one expert's [n, k] matrix under a codec."""
    match codec:
        case "dense" | "exact":
            return 2 * n * k
        case "int8":
            return n * k + 2 * n * (k / GROUP)
        case "int4":
            return n * k / 2 + 2 * n * (k / GROUP)
        case "sign":
            return n * k / 8 + 4 * n
        case "factors":
            return 2 * RANK * (n + k)
    raise ValueError(f"no such codec: {codec}")


def compose(model: Model, codecs: tuple[str, ...]) -> Cost:
    """A layer from a delta of each codec: those deltas and the base in, the layer out. Norms are dense or XORed."""
    reads_base = any(codec != "dense" for codec in codecs)
    moved = 2.0 * model.numbers * (1 + reads_base)
    for codec in codecs:
        moved += sum(delta_bytes(codec, n, k) for n, k in model.matrices.values()) + 2 * 2 * model.hidden
    return Cost(moved)


def linear(m: int, n: int, k: int, pages: int = 1) -> Cost:
    """m rows, each by one of so many [n, k] weights."""
    return Cost(2.0 * (pages * n * k + m * k + m * n), 2.0 * m * n * k)


def delta_linear(m: int, n: int, k: int, codec: str, pages: int) -> Cost:
    """What the deltas add to a product: x again, y in and out, the deltas of all pages."""
    return Cost(pages * delta_bytes(codec, n, k) + 2.0 * (m * k + 2 * m * n), 2.0 * m * n * k)


def decode(model: Model, m: int, languages: int, codec: str) -> Cost:
    """All linear layers for a batch of m tokens. codec `dense`: assembled; otherwise base and packed deltas."""
    total = Cost(0)
    for n, k in model.matrices.values():
        total += linear(m, n, k) * (model.layers - model.own)
        if codec == "dense":
            total += linear(m, n, k, languages) * model.own
        else:
            total += (linear(m, n, k) + delta_linear(m, n, k, codec, languages)) * model.own
    return total
