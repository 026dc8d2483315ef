"""What each codec costs: README's table, for the demo and for a pico family of the tests (random, 1.3 M parameters).

    python bench/quality.py [--family demo] [--architecture llama]

`layerloom inspect FAMILY --quality` shows the same of any family.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from layerloom.composer import Family, Quality, quality

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from pico import ARCHITECTURES, make_family


def table(title: str, found: Quality) -> str:
    rows = [
        f"| {cost.codec} | {cost.bytes:,} | {cost.bytes / cost.plain:.1%} | {cost.error:.2%} | {cost.divergence:.2g} "
        f"| {cost.agreement:.1%} |"
        for cost in found.costs
    ]
    heading = "| codec | bytes | of the tensors that differ | weight error | KL, mean | same greedy token |"
    return "\n".join([f"\n{title}: {found.name}, {found.prompts}\n", heading, "|---|" + "---:|" * 5, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("demo"))
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    options = parser.parse_args()
    print(table(str(options.family), quality(Family.load(options.family), "math+swahili")))
    with tempfile.TemporaryDirectory() as place:
        family = Family.load(make_family(Path(place), options.architecture))
        parameters = sum(torch.Size(info.shape).numel() for info in family.base.tensors.values())
        title = f"pico {options.architecture}, {parameters / 1e6:.1f} M parameters"
        print(table(title, quality(family, "math+swahili")))


if __name__ == "__main__":
    main()
