"""demo_agreement: whether experts that were trained are as well held as random ones, on the demo's own questions."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from .demo_data import test_questions
from .loads import AGREEMENT, Ask, Load, agreement
from .materials import Materials
from .references import references
from .report import Cell, Report
from .side_by_side import FAILURES
from .systems import Limits, Setting, make_systems

DEMO = Path(__file__).resolve().parents[2] / "demo"
LANGUAGES = {"swahili": "sw", "bengali": "bn"}
RANKS = (16, 64)
SYSTEMS = ("base", "layerloom", "layerloom-int4", "layerloom-sign", *(f"lora-{rank}" for rank in RANKS))
QUESTIONS, TOKENS, CLIENTS, SECONDS = 16, 8, 8, 60.0
"""In each language, of an answer, and of the load."""


def on_the_demo(report: Report, root: Path, options: Sequence[str]) -> None:
    """Whether experts that were trained are as well held: the table of agreement alone."""
    materials = Materials(root, DEMO / "family.yaml", list(LANGUAGES), len(LANGUAGES), RANKS)
    prompts, asks = questions(materials.base)
    setting = Setting(materials, options, len(LANGUAGES), prompts, TOKENS, root)
    right, setting = references(setting, len(LANGUAGES))
    rows: list[list[Cell]] = []
    for name in SYSTEMS:
        print(f"  demo: {name}", file=sys.stderr, flush=True)
        (system,) = make_systems([name], setting)
        try:
            for language in range(len(LANGUAGES)):
                system.add(language)
            load = Load("closed", "uniform", len(LANGUAGES))
            answers = asyncio.run(system.run(load, asks, Limits(CLIENTS, SECONDS, 1.0))).answers
            rows.append([name, len(answers), *agreement(answers, right, materials.name)])
        except FAILURES as error:
            report.facts[f"not measured, {name}, demo"] = f"{error!r}"[:500].replace("\n", " ")
        finally:
            system.close()
    report.table("Agreement on the demo's trained experts", ("system", "answers", *AGREEMENT), rows)


def questions(base: Path) -> tuple[list[list[int]], list[Ask]]:
    """Prompts, and requests that ask each of its own language."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts: list[list[int]] = []
    asks: list[Ask] = []
    for language, code in enumerate(LANGUAGES.values()):
        for question, _ in test_questions(code, "maths", QUESTIONS):
            messages = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            asks.append(Ask(language, len(prompts), 0.0))
            prompts.append(tokenizer.encode(text, add_special_tokens=False))
    return prompts, asks
