"""sweep: the command that looks for the recipe that answers best."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import FamilyPath, hush_vllm, need_vllm, say, show
from .failures import Told
from .progress import load_family, progress
from .tables import show_table

if TYPE_CHECKING:
    from layerloom.server.sweep.examiner import Examiner
    from layerloom.server.sweep.sweep import Answered

SHOWN = 20
"""Recipes of a table."""

KEPT = 8
"""Recipes that are asked everything after a screen."""

STEPS = {0.1: 1, 0.2: 2, 0.5: 5, 1.0: 10}
"""In tenths."""


def need_optuna() -> None:
    """Raises Told where what searches is not installed."""
    missing = [package for package in ("optuna", "cmaes") if find_spec(package) is None]
    if missing:
        raise Told(f"--search needs {' and '.join(missing)}: pip install 'layerloom[search]'")


def sweep(
    family: FamilyPath,
    task: Annotated[str, typer.Option(help="the task expert")],
    language: Annotated[str, typer.Option(help="the language expert")],
    data: Annotated[
        Path, typer.Option(help='questions, a line each: {"question": …, "answer": …}, and "choices": […] if any')
    ],
    bottom: Annotated[str, typer.Option(help="layers of the language at the bottom: 0..8, or 0,2,4")] = "0..8",
    top: Annotated[str, typer.Option(help="and at the top")] = "0..4",
    transition: Annotated[str, typer.Option(help="averaged layers on either side")] = "0,1",
    stem: Annotated[str, typer.Option(help="who supplies embeddings, final norm and head: language,task,…")] = "",
    search: Annotated[
        Literal["tpe", "cma", "random", "nsga2"] | None,
        typer.Option(help="ask not the whole grid, but what this sampler of optuna's proposes in it, round by round"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="with --search: how many recipes it proposes in all")] = 100,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="with --search: each layer has a share of its own, whatever the ranges")
    ] = False,
    step: Annotated[float, typer.Option(help="of such a share: 0.1, 0.2, 0.5 or 1")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="with --search: of what the sampler draws")] = 0,
    score: Annotated[
        str, typer.Option(help="exact, choice and logprob, those that are wanted; the first decides")
    ] = "exact,logprob",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="directory for what comes out; a sweep goes on in it")
    ] = Path("sweep"),
    limit: Annotated[int | None, typer.Option(min=1, help="of the questions, ask this many")] = None,
    screen: Annotated[
        int | None, typer.Option(min=1, help="ask all recipes this many questions, and only the best of them all")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=1, help="with --screen: how many are the best; by default 8", show_default=False)
    ] = None,
    template: Annotated[str, typer.Option(help="what is asked: a text with {question} in it")] = "{question}",
    chat: Annotated[
        bool, typer.Option("--chat/--text", help="ask in the family's chat template, or give a text to go on")
    ] = True,
    before: Annotated[
        str, typer.Option(help="text between a prompt and the answer that is scored, such as a blank")
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="of an answer")] = 16,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object: recipes, from the best on, with scores and standard errors")
    ] = False,
) -> None:
    """Look for the recipe that answers best.

    Asks a task and a language under every recipe of a grid, or those that --search proposes, in one engine, and ranks
    them. Writes no model.

    In the directory: scores.jsonl, with which it goes on after a stop; grid.png; best.yaml, for family.yaml.
    """
    if search:
        need_optuna()
    elif per_layer:
        raise Told("--per-layer: there are too many such recipes for a grid: give --search tpe, cma, random or nsga2")
    if keep and not screen:
        raise Told("--keep: says how many of a --screen N are asked everything")
    if step not in STEPS:
        raise Told(f"--step {step:g}: is one of {', '.join(f'{known:g}' for known in STEPS)}")
    need_vllm()
    hush_vllm()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from layerloom.composer import ComposeError
    from layerloom.server.sweep.questions import KINDS, Manner, digest_of, read_questions
    from layerloom.server.sweep.recipes import grid, numbers, pair_of, tenths
    from layerloom.server.sweep.results import draw_grid, draw_layers, rows_of, write_best
    from layerloom.server.sweep.sweep import AT_ONCE, Kept, ask_all, ask_in_rounds, ranked

    kinds = tuple(kind.strip() for kind in score.split(","))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise ComposeError(f"--score {score}: there is no {wrong[0]!r}; valid: {', '.join(KINDS)}")
    if "{question}" not in template:
        raise ComposeError(f"--template {template}: has no {{question}} in it")
    ranges: dict[str, Any] = {"layers": tenths(STEPS[step])}
    if not per_layer:
        given = {"bottom": bottom, "top": top, "transition": transition}
        ranges = {option: numbers(option, text) for option, text in given.items()}
    if stem:
        ranges["stem"] = [word.strip() for word in stem.split(",")]
    loaded = load_family(family)
    pair = pair_of(loaded, task, language)
    names = [] if search else grid(loaded, pair, ranges)
    questions = read_questions(data)[:limit]
    if "choice" in kinds and not all(question.choices for question in questions):
        raise ComposeError(f"{data}: a question without choices, which --score choice is about")
    manner = Manner(kinds, template, chat, before, max_tokens)
    digest = digest_of(questions, manner, loaded.voice(pair))
    searched = None
    if search:
        from layerloom.server.sweep.search import Search

        searched = Search(loaded, pair, ranges, search, seed, kinds)
    kept = Kept(output / "scores.jsonl", digest, cache(lambda name: loaded.plan(name).digest))
    rows = range(min(screen or len(questions), len(questions)))
    later = range(len(questions))
    count = trials if search else len(names)
    most = keep or KEPT
    total = count * len(rows) + (min(most, count) * len(later) if screen else 0)
    with ExitStack() as stack:
        advance = stack.enter_context(progress("asking", total, in_bytes=False))

        @cache
        def examiner() -> "Examiner":
            advance("(starting the engine)", 0)
            from layerloom.server.runtime.runtime import Runtime
            from layerloom.server.sweep.examiner import Examiner

            # A family of few names would mix as few in a batch.
            runtime = Runtime(family, max_loras=AT_ONCE, enforce_eager=True, disable_log_stats=True)
            return Examiner(stack.enter_context(runtime), pair, questions, manner)

        def ask(names: Sequence[str], rows: Sequence[int]) -> "Answered":
            return examiner().examine(names, rows)

        if searched:
            names = ask_in_rounds(searched, ask, kept, trials, rows, lambda done: advance("", done))
        else:
            ask_all(ask, kept, names, rows, lambda done: advance("", done))
        best = ranked(kept.scores, names, rows, kinds)
        if screen:
            best = best[:most]
            ask_all(ask, kept, best, later, lambda done: advance("the best", done))
            best = ranked(kept.scores, best, later, kinds)
    found = rows_of(kept.scores, best, later if screen else rows)
    if per_layer:
        draw_layers(loaded, found, kinds[0], output / "grid.png")
    else:
        draw_grid(loaded, rows_of(kept.scores, names, rows), kinds[0], output / "grid.png")
    write_best(loaded, best[0], found[0], output / "best.yaml")
    if as_json:
        counts = {"questions": len(questions), "recipes": len(names), **({"trials": trials} if search else {})}
        show(json.dumps({**counts, "best": best[0], "results": found}))
        return
    heads = [word for kind in kinds for word in (kind, "±")]
    show_table(
        f"{len(names)} recipes, {len(questions)} questions",
        ["recipe", *heads],
        [
            [row["recipe"], *(f"{row[key]:.4g}" for kind in kinds for key in (kind, f"{kind}_error"))]
            for row in found[:SHOWN]
        ],
        right=heads,
    )
    say(f"wrote {output / 'scores.jsonl'}, grid.png and best.yaml")
