"""settings: how each kernel is launched on each architecture. A look-up; nothing is tuned while serving.

bench/tune_kernels.py tries settings on a GPU and prints the table. None was at hand for the numbers below: they compile
without spills (tests/kernels/resources.csv) and are otherwise a guess from the bytes that move.

A file with a kernel has a function beside it that yields each form of it that is launched on an architecture:

    def variants(arch: str) -> Iterator[Variant]:
        for chosen in every("op", arch):
            for dtype in ("bf16", "fp16", "fp32"):
                types = {"x_ptr": f"*{dtype}", "n": "i32"}
                yield Variant(f"op {dtype}", _op, types, {"BLOCK": chosen.block_n}, ("x_ptr",), chosen)

bench/kernel_resources.py compiles them all and holds their registers, spills and shared memory against that table.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .tiles import BLOCKS

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, slots=True)
class Settings:
    """Tile of an operation: rows (of x or of a matrix), columns of the result, depth of a product; warps and stages."""

    block_m: int = 16
    block_n: int = 128
    block_k: int = 64
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel as it is launched: what Triton specialises it on.

    `types` gives every argument that is no constexpr ("*bf16", "i32", …), by name, and `constants` the others;
    `aligned` names the arguments whose value is always a multiple of 16.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...]
    settings: Settings


# op → architecture (or "default") → (up to how many tokens, settings), ascending; the last row is for all others.
EVER = 1 << 62
Rows = tuple[tuple[int, Settings], ...]
TABLE: dict[str, dict[str, Rows]] = {
    "compose": {"default": ((EVER, Settings(16, 64, 256, 8, 1)),)},
    "paged_linear": {
        "default": (
            (64, Settings(16, 64, 128, 4, 2)),
            (512, Settings(64, 64, 64, 4, 2)),
            (EVER, Settings(128, 64, 32, 4, 2)),
        ),
        "sm_80": (
            (64, Settings(16, 64, 128, 4, 3)),
            (512, Settings(64, 128, 64, 4, 3)),
            (EVER, Settings(128, 128, 32, 8, 3)),
        ),
        "sm_90": (
            (64, Settings(16, 64, 128, 4, 4)),
            (512, Settings(64, 128, 64, 4, 4)),
            (EVER, Settings(128, 128, 64, 8, 3)),
        ),
        "sm_100": (
            (64, Settings(16, 64, 128, 4, 4)),
            (512, Settings(64, 128, 64, 4, 4)),
            (EVER, Settings(128, 128, 64, 8, 3)),
        ),
    },
    "delta_linear": {
        # Three stages spill there.
        "sm_100": ((64, Settings(16, 64, 128, 4, 2)), (EVER, Settings(64, 64, 128, 8, 2))),
        "default": ((64, Settings(16, 64, 128, 4, 3)), (EVER, Settings(64, 64, 128, 8, 2))),
    },
    "paged_rms_norm": {"default": ((EVER, Settings(16, 1024, 0, 4, 1)),)},
    "paged_embedding": {"default": ((EVER, Settings(16, 1024, 0, 4, 1)),)},
    "route": {"default": ((EVER, Settings(16, 1024, 0, 4, 1)),)},
}


def settings(op: str, device: torch.device, tokens: int = 0) -> Settings:
    """How to launch `op` on this device for a batch of so many tokens. block_m is one of tiles.BLOCKS."""
    return lookup(op, architecture(device), tokens)


def lookup(op: str, arch: str, tokens: int = 0) -> Settings:
    """`settings` by the architecture's name."""
    return next(found for most, found in _rows(op, arch) if tokens <= most)


def every(op: str, arch: str) -> tuple[Settings, ...]:
    """All the settings that `op` is launched with on an architecture, without repeats."""
    return tuple(dict.fromkeys(found for _, found in _rows(op, arch)))


@cache
def architecture(device: torch.device) -> str:
    """The name in the table: "sm_90", "gfx942", …; "default" for a CPU, which only interprets kernels."""
    if device.type != "cuda":
        return "default"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _rows(op: str, arch: str) -> Rows:
    table = TABLE[op]
    return table.get(arch, table["default"])


assert all(found.block_m in BLOCKS for table in TABLE.values() for rows in table.values() for _, found in rows)
