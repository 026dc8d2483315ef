"""Start-up time of `layerloom serve` next to stock vLLM's server on the base: from the command to /health.

    python bench/startup.py [FAMILY] [--rounds 3] [--compiled] [--csv F]

The two start alternately, each alone, with the same options; eager unless --compiled.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shared.report import Report, spread
from shared.served import layerloom, served, stock

OPTIONS = ("--kv-cache-memory-bytes", "1G")


def seconds_to_health(command: Sequence[str]) -> float:
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR"}
    with tempfile.TemporaryDirectory() as place, served(command, Path(place) / "log", quiet) as running:
        return running.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", type=Path, default=Path("demo"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    options = OPTIONS if given.compiled else (*OPTIONS, "--enforce-eager")
    mode = "compiled" if given.compiled else "eager"
    report = Report(given.csv, asked=f"{given.family}, {mode}, {given.rounds} rounds")
    ours, theirs = [], []
    for _ in range(given.rounds):
        theirs.append(seconds_to_health(stock(given.family / "base", *options)))
        ours.append(seconds_to_health(layerloom(given.family, *options)))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    report.table(
        "From the command to /health",
        ("server", "seconds, median", "of stock's, median", "min", "max"),
        [
            ("stock vLLM on the base", statistics.median(theirs), 1.0, 1.0, 1.0),
            ("layerloom", statistics.median(ours), *spread(ratios)),
        ],
    )


if __name__ == "__main__":
    main()
