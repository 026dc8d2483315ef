"""references: what stock vLLM answers on each merged checkpoint, and what taking one engine for another takes."""

import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from .judge import ASKED, Key, Reference, Right
from .served import Served, on_cores, served, stock
from .systems import Setting

AT_ONCE = 8


def references(setting: Setting, languages: int) -> tuple[Right, Setting]:
    """The answers to all prompts of so many languages, alone and AT_ONCE; and the setting with `restart` measured.

    Languages that have the same files have the same answers, and are asked for once.
    """
    materials = setting.materials
    found: dict[Key, Sequence[Reference]] = {}
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
            answers = [all_answers(running, path, setting, at_once) for at_once in (1, AT_ONCE)]
            for same in range(language, languages, materials.distinct):
                name = materials.name(same)
                found |= {(name, number): each for number, each in enumerate(zip(*answers, strict=True))}
            ended = time.perf_counter()
    return Right(found), replace(setting, restart=statistics.median(restarts) if restarts else 0.0)


def all_answers(running: Served, path: Path, setting: Setting, at_once: int) -> list[Reference]:
    with ThreadPoolExecutor(at_once) as pool:
        numbers = range(len(setting.prompts))
        return list(pool.map(lambda number: ask(running, path, setting, number, setting.tokens), numbers))


def ask(running: Served, path: Path, setting: Setting, number: int, tokens: int) -> Reference:
    body = {"model": str(path), "prompt": list(setting.prompts[number]), "max_tokens": tokens, **ASKED}
    return Reference.of(running.server.post("/v1/completions", body).raise_for_status().json()["choices"][0])
