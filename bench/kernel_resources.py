"""Registers, spills and shared memory of every kernel in every form that is launched, without a GPU.

    python bench/kernel_resources.py            compile, print, and compare with tests/kernels/resources.csv
    python bench/kernel_resources.py --write    … and write that table anew
    python bench/kernel_resources.py --only 'compose .* bf16' [--again]

Every module of layerloom.kernels that has a function `variants(arch)` takes part; kernels/settings.py says what it
yields. A spill fails, as does growth against the table, shared memory that the architecture does not have, and a kernel
that is not in the table. Compared under the Triton that wrote the table; under another one only spills count.

The table has Triton's own key of each, which stands for the kernel's source and all that it calls, types, constants,
options, target, the compiler and its environment. What has the same key comes to the same, and is compiled by --write
and --again alone.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib
import io
import os
import pkgutil
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_key

from layerloom import kernels
from layerloom.kernels.settings import ARCHITECTURES, Settings, Variant

TABLE = Path(__file__).parents[1] / "tests" / "kernels" / "resources.csv"
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory that a program can have."""


class Row(NamedTuple):
    kernel: str
    arch: str
    settings: str
    registers: int
    spills: int
    shared: int
    compiled: str = ""
    """The key of what was compiled."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


@functools.cache
def found(arch: str) -> list[Variant]:
    modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    return [variant for module in modules if hasattr(module, "variants") for variant in module.variants(arch)]


def label(settings: Settings) -> str:
    tile = f"{settings.block_m}x{settings.block_n}x{settings.block_k}"
    return f"{tile} {settings.num_warps} warps {settings.num_stages} stages"


def launched(variant: Variant, arch: str) -> tuple[ASTSource, GPUTarget, dict[str, Any]]:
    """What Triton is given: source, target and options."""
    function = variant.kernel
    while not isinstance(function, triton.JITFunction):
        function = function.fn
    names = function.arg_names
    absent = set(names) - set(variant.types) - set(variant.constants)
    if absent:
        raise ValueError(f"{variant.name}: variants() says nothing of {', '.join(sorted(absent))}")
    source = ASTSource(
        function,
        signature={name: variant.types.get(name, "constexpr") for name in names},
        constexprs={name: value for name, value in variant.constants.items() if name in names},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    target = GPUTarget("cuda", int(arch[3:]), 32) if arch.startswith("sm_") else GPUTarget("hip", arch, 64)
    options = {"num_warps": variant.settings.num_warps, "num_stages": variant.settings.num_stages}
    return source, target, {**options, "enable_fp_fusion": False}


def key(variant: Variant, arch: str) -> str:
    """Stands for all that decides what is measured."""
    source, target, options = launched(variant, arch)
    backend = make_backend(target)
    environment = get_cache_invalidating_env_vars()
    return hashlib.sha256(
        get_cache_key(source, backend, backend.parse_options(options), environment).encode()
    ).hexdigest()


def measure(arch: str, index: int) -> Row:
    # ptxas tells registers; without a device nothing else does.
    knobs.nvidia.dump_ptxas_log = True
    knobs.compilation.always_compile = True
    variant = found(arch)[index]
    source, target, options = launched(variant, arch)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        kernel = triton.compile(source, target=target, options=options)
    log = output.getvalue()
    if arch.startswith("sm_"):
        text, used, spilled = log, r"Used (\d+) registers", r"(\d+) bytes spill stores"
    else:
        text, used, spilled = kernel.asm["amdgcn"], r"\.vgpr_count:\s+(\d+)", r"\.[sv]gpr_spill_count:\s+(\d+)"
    registers, spills = max(map(int, re.findall(used, text))), sum(map(int, re.findall(spilled, text)))
    return Row(
        variant.name, arch, label(variant.settings), registers, spills, kernel.metadata.shared, key(variant, arch)
    )


def measure_all(only: str, table: dict[tuple[str, str, str], Row]) -> tuple[list[Row], int]:
    """The rows, and how many of them had to be compiled: those that the table does not have as they are."""
    rows: dict[tuple[str, int], Row] = {}
    new = []
    for arch in ARCHITECTURES:
        for i, variant in enumerate(found(arch)):
            if re.search(only, variant.name):
                row = table.get((variant.name, arch, label(variant.settings)))
                if row is None or row.spills or row.compiled != key(variant, arch):
                    new.append((arch, i))
                else:
                    rows[arch, i] = row
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor() as pool:
            rows |= zip(new, pool.map(measure, *zip(*new, strict=True), chunksize=4), strict=True) if new else ()
    return [rows[job] for job in sorted(rows)], len(new)


def read_table() -> tuple[str, dict[tuple[str, str, str], Row]]:
    """The Triton that wrote it, and its rows."""
    if not TABLE.exists():
        return triton.__version__, {}
    version, _, *lines = TABLE.read_text().splitlines()
    rows = (
        Row(kernel, arch, settings, *map(int, numbers), compiled)
        for kernel, arch, settings, *numbers, compiled in csv.reader(lines)
    )
    return version.removeprefix("# triton "), {row.key: row for row in rows}


def write_table(rows: list[Row]) -> None:
    with TABLE.open("w", newline="") as file:
        file.write(f"# triton {triton.__version__}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(sorted(rows))


def faults(rows: list[Row], table: dict[tuple[str, str, str], Row], whole: bool, same_compiler: bool) -> list[str]:
    """What is wrong, a line for each."""
    lines = [f"{row.kernel}, {row.arch}: spills {row.spills}" for row in rows if row.spills]
    keys = [row.key for row in rows]
    lines += [f"{key[0]}, {key[1]}: two variants of one name and settings" for key in {*keys} if keys.count(key) > 1]
    for row in rows:
        if row.shared > SHARED[row.arch]:
            lines.append(f"{row.kernel}, {row.arch}: {row.shared} bytes of shared memory of {SHARED[row.arch]}")
        if row.key not in table:
            lines.append(f"{row.kernel}, {row.arch}, {row.settings}: not in the table")
        elif same_compiler:
            for field in ("registers", "shared"):
                was, now = getattr(table[row.key], field), getattr(row, field)
                if now > was:
                    lines.append(f"{row.kernel}, {row.arch}, {row.settings}: {field} {was} → {now}")
    if whole:
        lines += [f"{', '.join(key)}: in the table, but not a kernel" for key in table.keys() - set(keys)]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--again", action="store_true", help="compile what the table knows, too")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: kernels that are interpreted cannot be compiled")
    version, table = read_table()
    rows, fresh = measure_all(arguments.only, {} if arguments.write or arguments.again else table)
    for row in rows:
        print(*row, sep=", ")
    if arguments.write:
        kept = [row for row in table.values() if arguments.only and not re.search(arguments.only, row.kernel)]
        write_table([*kept, *rows])
        version, table = read_table()
    wrong = faults(rows, table, whole=not arguments.only, same_compiler=version == triton.__version__)
    print(f"{len(rows)} kernels, {fresh} compiled, {len(wrong)} faults", *wrong, sep="\n")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
