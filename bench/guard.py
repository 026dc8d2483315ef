"""Fails where a ratio of speed has fallen by more than a tenth since it was last kept.

    python bench/guard.py
    python bench/guard.py --keep

Ratios of one run, so that it matters little which machine runs them: one composition and stock vLLM on its merged
checkpoint; four in one batch and what stock's own matrix products allow. They are kept in bench/results/guard.csv,
with the commit that they are of. Four minutes on two cores. What has fallen is measured twice more before it fails, as
others may have had the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared.report import written

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "bench" / "results" / "guard.csv"
LEAST, TRIES = 0.9, 3
# In float32, as CPUs without instructions for bfloat16 take a hundred times as long in that.
OPTIONS = ("--eager", "--dtype", "float32", "--no-turns", "--rounds", "5", "--requests", "16", "--tokens", "32")
CLOCK = "CPU time, median"
WATCHED = {
    "one composition, of stock vLLM's speed": ("Speed relative to stock", "one"),
    "four in one batch, of what stock's matrix products allow": ("Four in one batch next to", "four"),
}
"""How the title of a table begins, and a row of it."""


def measured(file: Path) -> dict[str, float]:
    # One core, as clocks of several that wait for each other say little.
    one_core = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [sys.executable, "bench/serving.py", *OPTIONS, "--csv", os.path.relpath(file, ROOT)]
    subprocess.run(command, check=True, env=os.environ | one_core, cwd=ROOT)
    return read(file)


def read(file: Path) -> dict[str, float]:
    """The ratios that are watched. Raises SystemExit where one is not in the file."""
    rows = [row for row in written(file)[1] if row["column"] == CLOCK]
    found = {
        name: float(row["value"])
        for name, (table, watched) in WATCHED.items()
        for row in rows
        if row["table"].startswith(table) and row["row"] == watched
    }
    if missing := WATCHED.keys() - found:
        raise SystemExit(f"{file}: does not have {'; '.join(missing)}: python bench/guard.py --keep")
    return found


def fallen(kept: dict[str, float]) -> list[str]:
    """Measures, and says what has."""
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder) / "now.csv")
    for name, ratio in found.items():
        print(f"{name}: {ratio:.3f}, kept {kept[name]:.3f}", flush=True)
    return [name for name, ratio in found.items() if ratio < LEAST * kept[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help=f"write {KEPT.name} anew, and compare nothing")
    args = parser.parse_args()
    if args.keep:
        measured(KEPT)
        return
    kept = read(KEPT)
    for _ in range(TRIES):
        if not (names := fallen(kept)):
            return
    raise SystemExit(
        f"{'; '.join(names)}: less than {LEAST:.0%} of what is kept. If that is meant: python bench/guard.py --keep"
    )


if __name__ == "__main__":
    main()
