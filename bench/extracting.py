"""Time and peak memory of `layerloom extract` on a large pair, next to `cp` of the expert.

    python bench/extracting.py [--hidden 2048] [--depth 20] [--codecs exact int8 …] [--rounds 3] [--csv F]

The pair is random (bench/synthetic.py), two times 2.1 GB as it comes, in a temporary directory of --place. Everything
is read from the page cache, after one `cp` that is not counted; what is written is flushed to disk within the time
(extract does that itself, after cp it is `sync`). Peak memory is what the kernel says of the command's process. What
Python and torch take to start is in it; `layerloom extract --help` shows how much that is.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from shared.report import Report, spread

LAYERLOOM = str(Path(sys.executable).with_name("layerloom"))


def make_pair(root: Path, hidden: int, depth: int) -> None:
    from shared.synthetic import write_pair

    write_pair(root, hidden, depth)


@dataclass(frozen=True)
class Cost:
    wall: float
    cpu: float
    peak: float
    """MB"""


def run(*command: str | Path) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {process.returncode}")
    return Cost(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def copied(root: Path) -> Cost:
    cost = run("sh", "-c", 'cp -r "$1" "$2" && sync "$2"/*', "sh", root / "expert", root / "copy")
    shutil.rmtree(root / "copy")
    return cost


def extracted(root: Path, codec: str) -> tuple[Cost, int]:
    out = root / f"{codec}.safetensors"
    cost = run(LAYERLOOM, "extract", root / "base", root / "expert", "-o", out, "--codec", codec)
    size = out.stat().st_size
    out.unlink()
    return cost, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--codecs", nargs="*", default=["exact", "int8", "int4", "sign"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, help="where the temporary directory is made")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        root = Path(place)
        # In a process of its own, and this one does without torch: the peak of a child starts with its parent's.
        sizes = (root, options.hidden, options.depth)
        maker = multiprocessing.get_context("spawn").Process(target=make_pair, args=sizes)
        maker.start()
        maker.join()
        size = sum(file.stat().st_size for file in (root / "expert").glob("*.safetensors"))
        copied(root)
        report = Report(options.csv, pair=f"two times {size / 1e9:.2f} GB, {options.rounds} rounds")
        report.facts["extract --help"] = f"a peak of {run(LAYERLOOM, 'extract', '--help').peak:.0f} MB"
        rows = []
        for codec in options.codecs:
            pairs = [(*extracted(root, codec), copied(root)) for _ in range(options.rounds)]
            wall, cpu, written, copying = (
                statistics.median(values)
                for values in zip(*((cost.wall, cost.cpu, out, copy.wall) for cost, out, copy in pairs), strict=True)
            )
            peak = max(cost.peak for cost, _, _ in pairs)
            ratios = [cost.wall / copy.wall for cost, _, copy in pairs]
            rows.append((codec, 100 * written / size, peak, wall, cpu, copying, *spread(ratios)))
        columns = ("written, %", "peak, MB", "s", "s of CPU", "s of `cp`", "of `cp` next to it, median", "min", "max")
        report.table("Extracting", ("codec", *columns), rows)


if __name__ == "__main__":
    main()
