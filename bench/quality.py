"""What each codec costs: docs/codecs.md's table, for the demo and a pico family of the tests (random, 1.3 M).

    python bench/quality.py [--family demo] [--architecture llama] [--csv F]

`layerloom inspect FAMILY --quality` shows the same of any family.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from layerloom.composer import Family, Quality, quality
from shared.report import Report

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from pico import ARCHITECTURES, make_family


def table(report: Report, title: str, found: Quality) -> None:
    report.table(
        f"{title}: {found.name}, {found.prompts}",
        ("codec", "bytes", "of the tensors that differ, %", "weight error, %", "KL, mean", "same greedy token, %"),
        [
            (c.codec, c.bytes, 100 * c.bytes / c.plain, 100 * c.error, c.divergence, 100 * c.agreement)
            for c in found.costs
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("demo"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    report = Report(options.csv)
    table(report, str(options.family), quality(Family.load(options.family), "math+swahili"))
    with tempfile.TemporaryDirectory() as place:
        family = Family.load(make_family(Path(place), options.architecture))
        parameters = sum(torch.Size(info.shape).numel() for info in family.base.tensors.values())
        title = f"pico {options.architecture}, {parameters / 1e6:.1f} M parameters"
        table(report, title, quality(family, "math+swahili"))


if __name__ == "__main__":
    main()
