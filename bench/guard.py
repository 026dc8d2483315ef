"""Fails where a ratio of speed has fallen by more than a tenth since it was last kept.

    python bench/guard.py
    python bench/guard.py --keep

Ratios of one run, so that it matters little which machine runs them: one composition and stock vLLM on its merged
checkpoint; four in one batch and what stock's own matrix products allow. They are kept in bench/results/guard.csv,
with the commit that they are of. Two minutes on two cores. What has fallen is measured once more before it fails, as
others may have had the machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shared.report import written

HERE = Path(__file__).parent
KEPT = HERE / "results" / "guard.csv"
LEAST = 0.9
# In float32, as CPUs without instructions for bfloat16 take a hundred times as long in that.
OPTIONS = ("--eager", "--dtype", "float32", "--no-turns", "--rounds", "3", "--requests", "16", "--tokens", "32")
WATCHED = {
    "one composition, of stock vLLM's speed": ("one", "CPU time, median"),
    "four in one batch, of what stock's matrix products allow": ("four, of the bound", "of stock's speed, median"),
}


def measured(file: Path) -> dict[str, float]:
    # One core, as clocks of several that wait for each other say little.
    one_core = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    subprocess.run(
        [sys.executable, str(HERE / "serving.py"), *OPTIONS, "--csv", str(file)], check=True, env=os.environ | one_core
    )
    return read(file)


def read(file: Path) -> dict[str, float]:
    """The ratios that are watched. Raises SystemExit where one is not in the file."""
    found = {(row["row"], row["column"]): float(row["value"]) for row in written(file)[1]}
    missing = [name for name, place in WATCHED.items() if place not in found]
    if missing:
        raise SystemExit(f"{file}: does not have {'; '.join(missing)}: python bench/guard.py --keep")
    return {name: found[place] for name, place in WATCHED.items()}


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
    if fallen(kept) and (names := fallen(kept)):
        raise SystemExit(
            f"{'; '.join(names)}: less than {LEAST:.0%} of what is kept. If that is meant: python bench/guard.py --keep"
        )


if __name__ == "__main__":
    main()
