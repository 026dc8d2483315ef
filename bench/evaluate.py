"""Compositions side by side on maths questions in many languages: lm-eval asks a running server.

    make eval-tools                                 # lm-eval, in .venv-eval
    layerloom serve FAMILY                          # in another terminal
    python bench/evaluate.py --url http://localhost:8000/v1 --data DIRECTORY \\
        --models base,math,swahili,math+swahili,soup --languages sw,bn [--limit 50] [--csv out.csv]

Each model is asked every question of MGSM-Rev2, or of MSVAMP with `--benchmark msvamp`, in each language, greedily;
bench/tasks/README.md says where to get them and how a number is read out of an answer. A row is a model in a
language: the share of right answers with its 95% interval (Wilson's); its difference to the first model's, on the
same questions, with a bootstrap's interval over these questions; and the share of answers in which no number is.
"all" is the mean over languages. Translations of a question are not independent: the bootstrap draws them together,
and Wilson's interval counts them as one, which makes it rather too wide.

Models are asked at the same time, `--at-once` of them, which one engine answers in one batch. The server's key is
taken from OPENAI_API_KEY.
"""

import argparse
import hashlib
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from shared.harness import TASKS, VENV, Harness, Marks, version
from shared.intervals import less, wilson
from shared.report import Cell, Report

sys.path.append(str(TASKS))
from maths import PROMPTS, ends, file_of, questions

BENCHMARKS = ("mgsm_rev2", "msvamp")
PATIENCE = 600.0
"""Seconds for a first token, which a composition may have to be made for."""
UNUSUAL = re.compile(r"[^\w+-]")


class Refused(Exception):
    """One line that says what is wrong, and what would be right."""


def names(text: str) -> list[str]:
    """Between commas, but for those between the options of a composition: math+swahili@bottom=6,top=2."""
    found = [name.strip() for name in re.split(r",(?!\s*[\w-]+=)", text)]
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r}: name each once, with commas between them")
    return found


def number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="with /v1")
    parser.add_argument("--models", required=True, type=names, help="the first is what others are compared with")
    parser.add_argument("--languages", required=True, type=names, help="codes: sw,bn")
    parser.add_argument("--data", required=True, type=Path, help="directory of the questions")
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="mgsm_rev2")
    parser.add_argument("--prompt", choices=PROMPTS, default="chat", help="how it is asked; chat by default")
    parser.add_argument("--limit", type=number, help="only so many questions of each language")
    parser.add_argument("--max-tokens", type=number, default=512)
    parser.add_argument("--concurrent", type=number, default=16, help="requests at once for each model; 16 by default")
    parser.add_argument("--at-once", type=number, default=4, help="models at once; 4 by default")
    parser.add_argument("--output", type=Path, help="new directory for all answers; by default they are not kept")
    parser.add_argument("--csv", type=Path)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Raises Refused for what would fail only when lm-eval is at work."""
    if version() is None:
        raise Refused(f"lm-eval is not in {VENV}; `make eval-tools` installs it")
    if args.output and args.output.exists():
        raise Refused(f"{args.output} is there; name a new directory")
    if args.csv and not args.csv.parent.is_dir():
        raise Refused(f"{args.csv.parent} is no directory for {args.csv.name}")
    for language in args.languages:
        if not (TASKS / args.benchmark / f"{language}.yaml").exists():
            known = sorted(file.stem for file in (TASKS / args.benchmark).glob("??.yaml"))
            raise Refused(f"{args.benchmark} has no {language!r}; it has {', '.join(known)}")
    try:
        first, *_ = [questions(args.data, language, args.prompt)[0]["prompt"] for language in args.languages]
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from error
    for model in args.models:
        greet(args, model, first)


def greet(args: argparse.Namespace, model: str, prompt: str) -> None:
    """Asks for one token, so that a wrong name, key or prompt is told now, and in the server's words."""
    asked: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0}
    if args.prompt == "text":
        path, asked["prompt"] = "completions", prompt
    else:
        path, asked["messages"] = "chat/completions", [{"role": "user", "content": prompt}]
    key = os.environ.get("OPENAI_API_KEY", "none")
    try:
        answer = httpx.post(
            f"{args.url}/{path}", json=asked, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"no answer from {args.url}: {error}; give the server's address with /v1") from error
    if not answer.is_success:
        raise Refused(f"{model}: the server at {args.url} says {answer.status_code}: {reason(answer)}")


def reason(answer: httpx.Response) -> str:
    try:
        said = answer.json()
        return str(said.get("error", said).get("message", said))
    except (ValueError, AttributeError):
        return answer.text.strip()[:200]


def ask(args: argparse.Namespace, folder: Path) -> dict[str, Marks]:
    stops = sorted({ends(language, args.prompt) for language in args.languages} - {""})
    harness = Harness(
        url=args.url,
        data=args.data.resolve(),
        benchmark=args.benchmark,
        languages=args.languages,
        prompt=args.prompt,
        stops=stops,
        limit=args.limit,
        max_tokens=args.max_tokens,
        concurrent=args.concurrent,
    )

    def one(at: int, model: str) -> Marks:
        began = time.perf_counter()
        marks = harness.run(model, folder / f"{at}-{UNUSUAL.sub('_', model)}")
        print(f"{model}: {len(marks)} answers, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        return marks

    pool = ThreadPoolExecutor(args.at_once)
    try:
        asked = {model: pool.submit(one, at, model) for at, model in enumerate(args.models, 1)}
        for done in as_completed(asked.values()):
            done.result()
        return {model: done.result() for model, done in asked.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        harness.stop()


def rows(found: dict[str, Marks], languages: list[str]) -> list[list[Cell]]:
    first = next(iter(found))
    table: list[list[Cell]] = []
    for language in languages:
        for model, marks in found.items():
            asked = [question for question in found[first] if question[0] == language]
            right = [marks[question][0] for question in asked]
            low, high = wilson(sum(right), len(right))
            other = None if model == first else [found[first][question][0] for question in asked]
            none = fmean(marks[question][1] for question in asked)
            table.append(row(language, model, len(asked), (fmean(right), low, high), right, other, none))
    ids = [{which for of, which in found[first] if of == language} for language in languages]
    if len(languages) > 1 and all(these == ids[0] for these in ids):
        means = {model: by_question(marks, languages, sorted(ids[0])) for model, marks in found.items()}
        for model, right in means.items():
            none = fmean(none for _, none in found[model].values())
            other = None if model == first else means[first]
            low, high = wilson(sum(right), len(right))
            table.append(row("all", model, len(found[model]), (fmean(right), low, high), right, other, none))
    return table


def row(
    language: str,
    model: str,
    count: int,
    share: tuple[float, float, float],
    right: list[float],
    other: list[float] | None,
    none: float,
) -> list[Cell]:
    differs: tuple[Cell, ...] = (None,) * 3 if other is None else tuple(100 * each for each in less(right, other))
    return [language, model, count, *(100 * each for each in share), *differs, 100 * none]


def by_question(marks: Marks, languages: list[str], ids: list[Any]) -> list[float]:
    return [fmean(marks[language, which][0] for language in languages) for which in ids]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = arguments()
    args.url = args.url.rstrip("/")
    try:
        check(args)
        with ExitStack() as stack:
            folder = args.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found = ask(args, folder)
    except (Refused, RuntimeError) as error:
        sys.exit(f"evaluate: {error}")
    files = [file_of(args.data, language) for language in args.languages]
    digests = (f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" for file in files)
    command = [Path(sys.argv[0]).name, *(args.data.name if each == str(args.data) else each for each in sys.argv[1:])]
    report = Report(
        args.csv,
        command=shlex.join(command),
        harness=f"lm-eval {version()}",
        questions=f"{args.benchmark}; sha256 of {', '.join(digests)}",
    )
    first = args.models[0]
    report.table(
        f"{args.benchmark}: right answers in %",
        (
            *("language", "model", "questions", "right", "right, low", "right, high"),
            *(f"less {first}", f"less {first}, low", f"less {first}, high", "no number"),
        ),
        rows(found, args.languages),
    )


if __name__ == "__main__":
    main()
