"""README's chart of speed, from what bench/serving.py has measured.

    python bench/speed_chart.py [--results bench/results/serving-….csv] [--out docs/images/speed.svg]

By default from the newest of bench/results. Light or dark, as the reader's system is.
"""

import argparse
from html import escape
from pathlib import Path

from shared.report import written

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs/images/speed.svg"

ROWS = {
    "stock": ("stock vLLM, one checkpoint", "other"),
    "one": ("layerloom, one composition", "ours"),
    "four": ("layerloom, four in one batch", "ours"),
    "turns": ("four stock engines taking turns", "other"),
}
TABLE, CLOCK = "Speed relative to stock, round by round", "CPU time"
MEDIAN = f"{CLOCK}, median"
WIDTH, LEFT, TOP, STEP, BAR = 860, 280, 92, 48, 26
FULL = 400
"""Of a bar as fast as stock vLLM."""

STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933 }
.head { font-weight: 600; font-size: 17px }
.small { font-size: 12.5px; fill: #52606d }
.label { text-anchor: end }
.sheet { fill: #ffffff; stroke: #d5dbe1 }
.ours { fill: #17998f } .other { fill: #a3aeb9 } .range { stroke: #1f2933; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #a3b1bf } .sheet { fill: #12171e; stroke: #30363d }
.ours { fill: #19877f } .other { fill: #66717d } .range { stroke: #e6edf3 }
}
"""


def newest() -> Path:
    return max((ROOT / "bench/results").glob("serving-*.csv"), key=lambda path: path.stem[-10:])


def read(path: Path) -> tuple[dict[str, str], dict[tuple[str, str], float]]:
    """What was measured on, and the numbers by row and column."""
    facts, rows = written(path)
    return facts, {(row["row"], row["column"]): float(row["value"]) for row in rows if row["table"] == TABLE}


def draw(path: Path) -> str:
    facts, found = read(path)
    processor = facts["CPU"].partition(",")[0]
    asked = facts["asked"].partition(", OMP_")[0]
    small = [f"{facts['model']}; {asked}", f"one core of {processor}; {facts['versions']}"]
    source = f"bench/results/{path.name}, commit {facts['commit'][:7]}"
    height = TOP + STEP * len(ROWS) + 66
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">',
        f'<title id="title">{escape("; ".join(f"{ROWS[row][0]}: {found[row, MEDIAN]:.2f}" for row in ROWS))}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="sheet" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>',
        text(24, 38, "Throughput next to stock vLLM", "head"),
        text(24, 62, f"1 is stock vLLM on one merged checkpoint; {CLOCK}; lines are from the worst round to the best"),
    ]
    for number, (row, (label, kind)) in enumerate(ROWS.items()):
        top, middle = TOP + STEP * number, TOP + STEP * number + BAR / 2
        ratio, least, most = (found[row, f"{CLOCK}, {of}"] for of in ("median", "min", "max"))
        parts += [
            text(LEFT - 12, middle + 5, label, "label"),
            f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{FULL * ratio:.0f}" height="{BAR}" rx="3"/>',
            f'<path class="range" d="M{LEFT + FULL * least:.1f} {middle}H{LEFT + FULL * most:.1f}"/>',
            text(LEFT + FULL * max(most, ratio) + 12, middle + 5, f"{ratio:.2f} · {found[row, 'tok/s']:.0f} tok/s"),
        ]
    bottom = TOP + STEP * len(ROWS) + 6
    parts += [text(24, bottom + 18 * i, line, "small") for i, line in enumerate((*small, source))]
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, said: str, kind: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(said)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.write_text(draw(options.results or newest()))


if __name__ == "__main__":
    main()
