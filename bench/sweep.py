"""A sweep over recipes next to what people do without one: merge, start stock vLLM on that, evaluate, for each.

    OMP_NUM_THREADS=1 python bench/sweep.py [--merged 45] [--questions 200] [--csv out.csv]
    OMP_NUM_THREADS=1 python bench/sweep.py --family DIR --language french --data FILE.jsonl --score logprob …

The demo's math+swahili, its own held-out questions, exact answers and the log-probability of the right one; or another
family's, asked what is in a file. `--merged` says how many of the grid's recipes are merged, too, each in a process of
its own as a script would; where that is fewer than all, the time of all is computed from theirs. Expected: starting an
engine takes 15 s or so, asking 200 questions 1 s, so that 45 recipes are ten times faster in one engine; scores are the
same to the last digit, but for what larger models round otherwise in other batches.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from layerloom.composer import Family, merge
from shared.demo_data import test_questions
from shared.report import Report

DEMO = Path(__file__).parents[1] / "demo"
Scores = dict[str, float]
"""Of a question, by kind."""


def evaluate(checkpoint: Path, args: argparse.Namespace) -> None:
    """Prints the scores of a checkpoint under stock vLLM, in a process of its own."""
    from vllm import LLM

    from layerloom.server.sweep.examiner import Examiner
    from layerloom.server.sweep.questions import Manner, read_questions

    class Stock:
        """Says of one checkpoint what a runtime says of a composition."""

        def __init__(self) -> None:
            self.family = Family.load(args.family)
            self.llm = LLM(str(checkpoint), enforce_eager=True, disable_log_stats=True)

        def generate(self, models: list[str], prompts: list[object], params: list[object]) -> list[object]:
            return self.llm.generate(prompts, params, use_tqdm=False)

    pair = f"{args.task}+{args.language}"
    asked = read_questions(args.data)[: args.questions]
    manner = Manner(tuple(args.score.split(",")))
    found = Examiner(Stock(), pair, asked, manner).examine([pair], range(len(asked)))
    print("SCORES", json.dumps([found[pair, row] for row in range(len(asked))]), flush=True)


def swept(folder: Path, args: argparse.Namespace) -> tuple[float, dict[str, list[Scores]]]:
    """Seconds, and the scores of every recipe, in the grid's order."""
    said = ("task", "language", "bottom", "top", "transition", "score", "data")
    options = [part for name in said for part in (f"--{name}", str(getattr(args, name)))]
    options += ["--limit", str(args.questions), "-o", str(folder)]
    command = [str(Path(sys.executable).with_name("layerloom")), "sweep", str(args.family), *options]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - began
    found: dict[str, list[Scores]] = {}
    for line in islice((folder / "scores.jsonl").open(), 1, None):
        row = json.loads(line)
        found.setdefault(row["recipe"], []).append(row["scores"])
    return took, found


def difference(one: Sequence[Scores], other: Sequence[Scores]) -> float:
    """The largest of a score of a question."""
    return max(abs(a[kind] - b[kind]) for a, b in zip(one, other, strict=True) for kind in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=DEMO)
    parser.add_argument("--task", default="math")
    parser.add_argument("--language", default="swahili")
    parser.add_argument("--data", type=Path, help="questions, as `layerloom sweep` reads them; by default the demo's")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--bottom", default="0..4")
    parser.add_argument("--top", default="0..4")
    parser.add_argument("--transition", default="0,1")
    parser.add_argument("--score", default="exact,logprob")
    parser.add_argument("--merged", type=int, default=45, help="recipes")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if args.evaluate:
        return evaluate(args.evaluate, args)
    report = Report(
        args.csv,
        family=args.family.name,
        questions=f"{args.questions} of {args.data.name if args.data else 'the demo'}, scored by {args.score}",
    )
    family = Family.load(args.family)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        given = sys.argv[1:]
        if args.data is None:
            args.data = folder / "questions.jsonl"
            lines = (json.dumps({"question": q, "answer": a}) for q, a in test_questions("sw", "maths", args.questions))
            args.data.write_text("\n".join(lines))
            given += ["--data", str(args.data)]
        took, scores = swept(folder / "sweep", args)
        found: list[float] = []
        together = 0.0
        for name in islice(scores, args.merged):
            began = time.perf_counter()
            checkpoint = merge(family, name, folder / "merged")
            command = [sys.executable, __file__, *given, "--evaluate", str(checkpoint)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            together += time.perf_counter() - began
            said = next(line for line in done.stdout.splitlines() if line.startswith("SCORES "))
            found.append(difference(json.loads(said.removeprefix("SCORES ")), scores[name]))
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
            shutil.rmtree(checkpoint)
    each = together / len(found)
    compared = each * len(scores) / took, found.count(0.0), max(found)
    columns = ("way", "recipes", "seconds", "seconds each", "of the sweep's", "the same scores", "most of a difference")
    report.table(
        "Recipes: seconds",
        columns,
        [
            ["a sweep", len(scores), took, took / len(scores), 1.0, None, None],
            ["merge, load, evaluate", len(found), together, each, *compared],
        ],
    )


if __name__ == "__main__":
    main()
