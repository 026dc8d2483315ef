"""sweep: the command that looks for the recipe that answers best."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import FamilyPath, err, hush_vllm, need_vllm, say, show
from .progress import load_family, progress
from .tables import show_table

SHOWN = 20
"""Recipes of a table."""


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
    keep: Annotated[int, typer.Option(min=1, help="with --screen: how many are the best")] = 8,
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

    Asks a task and a language under every recipe of a grid, in one engine, and ranks them. Writes no model.

    In the directory: scores.jsonl, with which it goes on after a stop; grid.png; best.yaml, for family.yaml.
    """
    need_vllm()
    hush_vllm()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from layerloom.composer import ComposeError
    from layerloom.server.sweep.questions import KINDS, Manner, digest_of, read_questions
    from layerloom.server.sweep.recipes import grid, numbers
    from layerloom.server.sweep.results import draw_grid, rows_of, write_best
    from layerloom.server.sweep.sweep import Kept, ask_all, ranked

    kinds = tuple(kind.strip() for kind in score.split(","))
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong:
        raise ComposeError(f"--score {score}: there is no {wrong[0]!r}; valid: {', '.join(KINDS)}")
    if "{question}" not in template:
        raise ComposeError(f"--template {template}: has no {{question}} in it")
    ranges: dict[str, Any] = {
        "bottom": numbers("bottom", bottom),
        "top": numbers("top", top),
        "transition": numbers("transition", transition),
    }
    if stem:
        ranges["stem"] = [word.strip() for word in stem.split(",")]
    loaded = load_family(family)
    names = grid(loaded, f"{task}+{language}", ranges)
    questions = read_questions(data)[:limit]
    if "choice" in kinds and not all(question.choices for question in questions):
        raise ComposeError(f"{data}: a question without choices, which --score choice is about")
    manner = Manner(kinds, template, chat, before, max_tokens)
    digest = digest_of(questions, manner, loaded.voice(names[0]))
    kept = Kept(output / "scores.jsonl", digest, lambda name: loaded.plan(name).digest)
    with err.status("starting the engine"):
        from layerloom.server.runtime.runtime import Runtime
        from layerloom.server.sweep.examiner import Examiner

        runtime = Runtime(family, enforce_eager=True, disable_log_stats=True)
    with runtime:
        examiner = Examiner(runtime, names[0], questions, manner)
        rows = range(min(screen or len(questions), len(questions)))
        later = range(len(questions))
        total = len(names) * len(rows) + (min(keep, len(names)) * len(later) if screen else 0)
        with progress("asking", total, in_bytes=False) as advance:
            ask_all(examiner, kept, names, rows, lambda done: advance("", done))
            best = ranked(kept.scores, names, rows, kinds[0])
            if screen:
                best = best[:keep]
                ask_all(examiner, kept, best, later, lambda done: advance("the best", done))
                best = ranked(kept.scores, best, later, kinds[0])
    found = rows_of(kept.scores, best, later if screen else rows)
    draw_grid(loaded, rows_of(kept.scores, names, rows), kinds[0], output / "grid.png")
    write_best(loaded, best[0], found[0], output / "best.yaml")
    if as_json:
        show(json.dumps({"questions": len(questions), "recipes": len(names), "best": best[0], "results": found}))
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
