"""references: what stock vLLM answers on each merged checkpoint, and what taking one engine for another takes."""

import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .judge import ASKED, Key, Reference
from .served import Served, on_cores, served, stock
from .systems import Setting

AT_ONCE = 8


def references(setting: Setting, languages: int) -> tuple[dict[Key, Reference], Setting]:
    """The answers to all prompts of so many languages, by composition; and the setting with `restart` measured.

    Languages that have the same files have the same answers, and are asked for once.
    """
    materials = setting.materials
    found: dict[Key, Reference] = {}
    restarts: list[float] = []
    ended: float | None = None
    for language in range(min(languages, materials.distinct)):
        print(f"  reference: {materials.name(language)}", file=sys.stderr, flush=True)
        path = materials.merged(language).path
        asking = ended or time.perf_counter()
        with served(stock(path, *setting.options), setting.place / "reference.log", on_cores(1)) as running:
            ask(running, path, setting, 0, 1)
            if ended is not None:
                restarts.append(time.perf_counter() - asking)
            for same in range(language, languages, materials.distinct):
                name = materials.name(same)
                if same == language:
                    answers = all_answers(running, path, setting)
                found |= {(name, number): answer for number, answer in answers.items()}
            ended = time.perf_counter()
    return found, replace(setting, restart=statistics.median(restarts) if restarts else 0.0)


def all_answers(running: Served, path: Path, setting: Setting) -> Mapping[int, Reference]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        numbers = range(len(setting.prompts))
        return dict(enumerate(pool.map(lambda number: ask(running, path, setting, number, setting.tokens), numbers)))


def ask(running: Served, path: Path, setting: Setting, number: int, tokens: int) -> Reference:
    body = {"model": str(path), "prompt": list(setting.prompts[number]), "max_tokens": tokens, **ASKED}
    return Reference.of(running.server.post("/v1/completions", body).raise_for_status().json()["choices"][0])
