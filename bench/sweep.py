"""A sweep over recipes next to what people do without one: merge, start stock vLLM on that, evaluate, for each.

    OMP_NUM_THREADS=1 python bench/sweep.py [--recipes 45] [--merged 45] [--questions 200] [--csv out.csv]

The demo's math+swahili, its own held-out questions, exact answers and the log-probability of the right one. `--merged`
says how many of the recipes are merged, too, each in a process of its own as a script would; where that is fewer than
all, the time of all is computed from theirs. Expected: starting an engine takes 15 s or so, asking 200 questions 1 s,
so that 45 recipes are ten times faster in one engine; scores are the same to the last digit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from layerloom.composer import Family, merge
from shared.demo_data import test_questions
from shared.report import Report

DEMO = Path(__file__).parents[1] / "demo"
PAIR = "math+swahili"


def evaluate(checkpoint: Path, questions: Path) -> None:
    """Prints the scores of a checkpoint under stock vLLM, in a process of its own."""
    from vllm import LLM

    from layerloom.server.sweep.examiner import Examiner
    from layerloom.server.sweep.questions import Manner, read_questions

    class Stock:
        """Says of one checkpoint what a runtime says of a composition."""

        def __init__(self) -> None:
            self.family = Family.load(DEMO)
            self.llm = LLM(str(checkpoint), enforce_eager=True, disable_log_stats=True)

        def generate(self, models: list[str], prompts: list[object], params: list[object]) -> list[object]:
            return self.llm.generate(prompts, params, use_tqdm=False)

    asked = read_questions(questions)
    found = Examiner(Stock(), PAIR, asked, Manner(("exact", "logprob"))).examine([PAIR], range(len(asked)))
    print("SCORES", json.dumps([found[PAIR, row] for row in range(len(asked))]), flush=True)


def swept(folder: Path, questions: Path, count: int) -> tuple[float, dict[str, list[dict[str, float]]]]:
    """Seconds, and the scores of every recipe, in the grid's order."""
    options = ["--task", "math", "--language", "swahili", "--bottom", "0..4", "--top", "0..4", "--data", str(questions)]
    command = [str(Path(sys.executable).with_name("layerloom")), "sweep", str(DEMO), *options, "-o", str(folder)]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - began
    found: dict[str, list[dict[str, float]]] = {}
    for line in islice((folder / "scores.jsonl").open(), 1, None):
        said = json.loads(line)
        found.setdefault(said["recipe"], []).append(said["scores"])
    return took, dict(islice(found.items(), count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=45)
    parser.add_argument("--merged", type=int, default=45)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--evaluate", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if args.evaluate:
        return evaluate(*args.evaluate)
    report = Report(args.csv, questions=f"{args.questions}, {PAIR} of the demo")
    family = Family.load(DEMO)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        questions = folder / "questions.jsonl"
        lines = (json.dumps({"question": q, "answer": a}) for q, a in test_questions("sw", "maths", args.questions))
        questions.write_text("\n".join(lines))
        took, scores = swept(folder / "sweep", questions, args.recipes)
        same = together = 0
        for number, name in enumerate(islice(scores, args.merged)):
            began = time.perf_counter()
            checkpoint = merge(family, name, folder / f"merged-{number}")
            command = [sys.executable, __file__, "--evaluate", str(checkpoint), str(questions)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            together += time.perf_counter() - began
            said = next(line for line in done.stdout.splitlines() if line.startswith("SCORES "))
            same += json.loads(said.removeprefix("SCORES ")) == scores[name]
            print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    merged = min(args.merged, len(scores))
    each = together / merged
    report.table(
        "Recipes: seconds",
        ("way", "recipes", "seconds", "seconds each", "of the sweep's", "recipes with the same scores"),
        [
            ["a sweep", len(scores), took, took / len(scores), 1.0, None],
            ["merge, load, evaluate", merged, together, each, each * len(scores) / took, same],
        ],
    )


if __name__ == "__main__":
    main()
