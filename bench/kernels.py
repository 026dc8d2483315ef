"""The kernels on this machine's GPU: are they right, and how fast are they? Needs torch ≥ 2.11 and triton ≥ 3.6 only.

    python bench/kernels.py                 check against float64, then time
    python bench/kernels.py --small         … shapes of a 1B model, for a GPU with less memory than 24 GB
    python bench/kernels.py --csv out.csv   … and keep the table
    TRITON_INTERPRET=1 python bench/kernels.py --check-only     on a CPU, small shapes

The first run compiles every form of every kernel, which takes minutes.

Columns: GB/s by the bytes that the op must move; `share` of the limit is the roofline's time by the measured one, and
the roofline's limits are the device copy and the library GEMM of the first two lines (roofline.py has the formulas;
where memory is the limit, share is GB/s by the copy's GB/s). `ratio` is the time by that of what `against` names.
No line of such a table was ever made without a GPU; --dry-run calls everything once on toy shapes, and times nothing.
"""

# No other import up here, and nothing done: transformers looks for Hugging Face's package `kernels` by its name, and in
# a process started from a script in this folder it imports this file.
import argparse
import csv
import math
import os
import sys
from collections.abc import Iterable
from typing import Any

HEADER = ("op", "case", "M", "V", "us", "GB/s", "expected us", "share", "against", "ratio")


def check(device: Any) -> bool:
    from shared import kernel_checks

    right = True
    for op, (count, wrong) in kernel_checks.run(device).items():
        right &= not wrong
        print(f"{op}: {count - len(wrong)} of {count} checks against float64 hold")
        for line in wrong:
            print(f"  WRONG: {line}")
    return right


def line(row: Any) -> tuple[str, ...]:
    """The cells of a row of kernel_times.Row; a dash for what is not known."""

    def cell(number: float, digits: int) -> str:
        return f"{number:.{digits}f}" if math.isfinite(number) else "-"

    return (
        row.op,
        row.case,
        str(row.m or "-"),
        str(row.pages or "-"),
        cell(row.seconds * 1e6, 1),
        cell(row.cost.bytes / row.seconds / 1e9, 0),
        cell(row.expected * 1e6, 1),
        cell(row.expected / row.seconds, 2),
        row.against,
        cell(row.seconds / row.other, 2),
    )


def print_row(cells: Iterable[str]) -> None:
    widths = (13, 18, 5, 3, 9, 6, 12, 6, 16, 6)
    left = (0, 1, 8)
    padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    print("  ".join(padded).rstrip(), flush=True)


def time(machine: Any, options: argparse.Namespace, versions: dict[str, str]) -> None:
    from shared import decode_times, kernel_times
    from shared.roofline import LLAMA_1B, LLAMA_8B, TOY

    model = TOY if options.dry_run else LLAMA_1B if options.small else LLAMA_8B
    limit, first = kernel_times.limits(machine, options.small)
    print(f"\n{model.name}, a layer has {model.numbers / 1e6:.0f} M numbers; bf16, groups of 128\n")
    parts = {
        "limit": lambda: first,
        "compose": lambda: kernel_times.compose_rows(machine, model, limit),
        "linear": lambda: kernel_times.linear_rows(machine, model, limit, 16 if options.dry_run else 4096),
        "decode": lambda: decode_times.decode_rows(machine, model, limit, options.tokens),
    }
    print_row(HEADER)
    found = []
    for name, rows in parts.items():
        if name == "limit" or not options.only or name in options.only:
            for row in rows():
                found.append(line(row))
                print_row(found[-1])
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*HEADER, "model", *versions))
            writer.writerows((*cells, model.name, *versions.values()) for cells in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="shapes of Llama-3.2-1B")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--only", nargs="*", choices=("compose", "linear", "decode"), help="time these alone")
    parser.add_argument("--tokens", type=int, default=64, help="of a decode step, over all languages")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="for the inputs of an earlier run; otherwise they are new")
    parser.add_argument("--csv")
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch
    import triton

    from shared.standalone import find_kernels

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    without_gpu = interpreted and (options.check_only or options.dry_run)
    if interpreted and not without_gpu:
        print("TRITON_INTERPRET=1 is set: with it there is --check-only, on the CPU, and nothing to time")
        return 1
    if not without_gpu and not torch.cuda.is_available():
        print("there is no GPU here; on a CPU there is TRITON_INTERPRET=1 python bench/kernels.py --check-only")
        return 1
    os.environ["LAYERLOOM_KERNELS"] = "triton"
    find_kernels()
    device = torch.device("cpu") if without_gpu else torch.device("cuda", torch.cuda.current_device())
    name = "no GPU, interpreter on the CPU" if without_gpu else torch.cuda.get_device_name()
    versions = {"gpu": name, "torch": torch.__version__, "triton": triton.__version__}
    print(", ".join((name, f"torch {torch.__version__}", f"triton {triton.__version__}")), flush=True)
    seed = torch.seed() % (1 << 32) if options.seed is None else options.seed
    torch.manual_seed(seed)
    print(f"inputs of --seed {seed}", flush=True)
    if not options.dry_run and not check(device):
        return 1
    if not options.check_only:
        from shared.kernel_times import Machine

        time(Machine(device, options.rounds), options, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
