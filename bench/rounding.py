"""Are layerloom's answers those of stock vLLM on the merged checkpoint, and how far apart are stock's own?

    OMP_NUM_THREADS=1 python bench/rounding.py [--dtypes float32 bfloat16] [--csv out.csv]

A random Llama of 193 M parameters, whose next tokens are nearly as likely as each other. Two compositions, eight
prompts of 24 tokens, greedy. An engine is asked for each prompt alone, for all eight at once, and for all with answers
of different lengths and room for three, so that a prompt comes while others are answered. layerloom is asked the same
for each composition, and for both in every batch. Each is held against stock alone, and against stock in such a batch.

Expected: alone, and in a batch of one composition, layerloom gives stock's logprobs bit by bit, as it calls the same
products with the same rows. Batches of other sizes are multiplied by other code: in bfloat16, whose step is 1/256,
logprobs then differ by about 0.1 and some near ties fall otherwise, in stock vLLM as here; in float32 by 1e-5, and none
does.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.families import Model
from shared.judge import Key, Reference, from_outputs
from shared.materials import Materials, write_family
from shared.report import Cell, Report
from shared.streams import PROMPT, prompt
from shared.synthetic import SHAPE

LANGUAGES = ("language-0", "language-1")
PROMPTS = [prompt(number) for number in range(8)]
ROOM = 3
"""Answers at once where prompts come and go."""
ALONE, EIGHT, GOING = "alone", "eight at once", f"{ROOM} at once, coming and going"
MIXED = ", mixed"

Found = Mapping[str, Mapping[Key, Reference]]
"""Answers, by the batch they were in."""


def asked(model: Path, names: Sequence[str], tokens: int, dtype: str) -> Found:
    """What an engine answers under these names, all of them in every batch."""
    import engines  # of tests/server

    jobs = [(name, number) for number in range(len(PROMPTS)) for name in names]
    lengths = [4 + 5 * number % (tokens - 3) for number in range(len(PROMPTS))]
    options: dict[str, Any] = {"dtype": dtype, "enable_prefix_caching": False}

    def batch(some: Sequence[Key], limits: Sequence[int]) -> tuple[Any, Any, Any]:
        params = [engines.sampling(limits[number], logprobs=5) for _, number in some]
        return [name for name, _ in some], engines.prompts([PROMPTS[number] for _, number in some]), params

    alone = [[job for job in jobs if job[1] == number] for number in range(len(PROMPTS))]
    same = [tokens] * len(PROMPTS)
    *apart, together = engines.run(model, *(batch(some, same) for some in [*alone, jobs]), **options)
    (going,) = engines.run(model, batch(jobs, lengths), max_num_seqs=ROOM, **options)
    one_by_one = [output for outputs in apart for output in outputs]
    return {
        batch: dict(zip(jobs, from_outputs(outputs), strict=True))
        for batch, outputs in {ALONE: one_by_one, EIGHT: together, GOING: going}.items()
    }


def joined(some: Iterable[Found]) -> Found:
    """The answers of several compositions, each in batches of its own."""
    found: dict[str, dict[Key, Reference]] = {}
    for each in some:
        for batch, answers in each.items():
            found.setdefault(batch, {}).update(answers)
    return found


def row(found: Mapping[Key, Reference], *rights: Mapping[Key, Reference]) -> list[Cell]:
    """Answers; and of each that is right: how many are the same, and the largest difference of a logprob."""
    cells: list[Cell] = [len(found)]
    for right in rights:
        pairs = [(answer, right[key].cut(len(answer.tokens))) for key, answer in found.items()]
        cells += [
            sum(one.tokens == other.tokens for one, other in pairs),
            max(one.distance(other) for one, other in pairs),
        ]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    import engines  # of tests/server

    os.environ.update(engines.ENVIRONMENT)
    model = Model.of("llama", **{"num_hidden_layers": 16, **SHAPE})
    report = Report(
        args.csv,
        family=f"a random Llama of {model.bytes() / 2e6:.0f} M parameters",
        asked=f"{len(PROMPTS)} prompts of {PROMPT} tokens for {args.tokens} tokens, {len(LANGUAGES)} compositions",
    )
    with tempfile.TemporaryDirectory(prefix="layerloom-rounding-") as place:
        root = Path(place)
        (root / "family").mkdir()
        family = write_family(root / "family", model, LANGUAGES, len(LANGUAGES))
        materials = Materials(root, family, LANGUAGES, len(LANGUAGES), ())
        names = [materials.name(language) for language in range(len(LANGUAGES))]
        for dtype in args.dtypes:
            print(f"  {dtype}", file=sys.stderr, flush=True)
            checkpoints = [materials.merged(language).path for language in range(len(LANGUAGES))]
            stock = joined(
                asked(path, [name], args.tokens, dtype) for path, name in zip(checkpoints, names, strict=True)
            )
            found = {
                ("stock vLLM", ""): stock,
                ("layerloom", ""): joined(asked(family, [name], args.tokens, dtype) for name in names),
                ("layerloom", MIXED): asked(family, names, args.tokens, dtype),
            }
            rows = [
                [who, batch + mixed, *row(answers, stock[ALONE], stock[batch])]
                for (who, mixed), batches in found.items()
                for batch, answers in batches.items()
            ]
            report.table(
                f"{dtype}: next to stock vLLM alone, and in such a batch",
                ("who", "batch", "answers", "as alone", "logprobs", "as in such a batch", "logprobs there"),
                rows,
            )


if __name__ == "__main__":
    main()
