"""Measures the demo family: the table of ACCURACY.md, written by `python bench/demo_family.py --evaluate`."""

from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from layerloom.composer import Family

from .demo_data import Example, test_questions
from .report import Cell, Report

COLUMNS = {
    f"{name} {kind}": (code, kind)
    for kind in ("maths", "reading")
    for name, code in (("English", "en"), ("Swahili", "sw"), ("Bengali", "bn"))
}

Weights = dict[str, torch.Tensor]

REPORT = """# The demo family, measured

Exact answers, {count} questions in each cell, greedy, bf16 weights as written. Averaged layers are summed in fp32 and
rounded once.

{table}

The outer and middle layers were trained together, all pairs of language and task included. So this shows that the
runtime composes; it is no evidence for the paper's claim, that layers of experts trained apart fit together. A model
with the generic middle layers can still get some maths right in its own language: its outer layers were trained with
the math middle layers too.

The questions use combinations of name, thing and numbers that no training story used; every pair of numbers occurred
in training with other names and things. "Reading" asks for what the story says: who, what, how many at first, how
many then. "Best constant guess" always gives the answer that is most frequent in the column.

    {command}

{versions}, transformers {transformers}, commit {commit}.
"""


def blend(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (0.5 * one.float() + 0.5 * other.float()).to(torch.bfloat16)


def soup(task: Weights, language: Weights) -> Weights:
    return {name: blend(task[name], language[name]) for name in task}


def swap(task: Weights, language: Weights, layers: int, bottom: int, top: int, transition: int = 0) -> Weights:
    """Stem and outer layers of the language expert; `transition` averaged layers at both ends of the rest."""
    middle = range(bottom, layers - top)
    averaged = {*middle[:transition], *middle[len(middle) - transition :]}
    composed = dict(language)
    for name in task:
        layer = int(name.split(".")[2]) if ".layers." in name else None
        if layer in averaged:
            composed[name] = blend(task[name], language[name])
        elif layer in middle:
            composed[name] = task[name]
    return composed


def compositions(experts: dict[str, Weights], layers: int, bottom: int, top: int) -> dict[str, Weights]:
    task, swahili, bengali = experts["math"], experts["swahili"], experts["bengali"]
    return {
        "soup of math and swahili": soup(task, swahili),
        "soup of math and bengali": soup(task, bengali),
        "math+swahili": swap(task, swahili, layers, bottom, top),
        "math+bengali": swap(task, bengali, layers, bottom, top),
        "math+swahili@bottom=1,top=1": swap(task, swahili, layers, 1, 1),
        "math+swahili@bottom=2,top=1": swap(task, swahili, layers, 2, 1),
        "math+swahili@bottom=3,top=3": swap(task, swahili, layers, 3, 3),
        "math+swahili@transition=1": swap(task, swahili, layers, bottom, top, transition=1),
    }


def answers(model: LlamaForCausalLM, tokenizer, questions: list[Example]) -> list[str]:
    chats = [[{"role": "user", "content": question}] for question, _ in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def shares(given: dict[str, list[str]], asked: dict[str, list[Example]]) -> list[float]:
    """Of right answers, column by column."""
    right = {
        column: sum(mine == answer for mine, (_, answer) in zip(given[column], questions, strict=True))
        for column, questions in asked.items()
    }
    return [count / len(asked[column]) for column, count in right.items()]


def best_constant_guess(questions: list[Example]) -> list[str]:
    return [Counter(answer for _, answer in questions).most_common(1)[0][0]] * len(questions)


def measure(family_path: Path, count: int, report: Report) -> str:
    """The text of ACCURACY.md; the report has the table, too."""
    family = Family.load(family_path)
    sources = {name: family.checkpoint(name) for name in ("base", *family.experts)}
    experts = {name: {tensor: source.read(tensor) for tensor in source.tensors} for name, source in sources.items()}
    model = AutoModelForCausalLM.from_pretrained(family.base.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(family.base.path, padding_side="left")
    models = experts | compositions(experts, family.depth, family.recipe.bottom, family.recipe.top)

    asked = {title: test_questions(code, kind, count) for title, (code, kind) in COLUMNS.items()}
    guesses = {column: best_constant_guess(questions) for column, questions in asked.items()}
    rows: list[list[Cell]] = [["best constant guess", *shares(guesses, asked)]]
    for title, weights in models.items():
        model.load_state_dict(weights)
        given = {column: answers(model, tokenizer, questions) for column, questions in asked.items()}
        rows.append([title if " " in title else f"`{title}`", *shares(given, asked)])
    report.table("Share of exact answers", ("model", *COLUMNS), rows)
    lines = [f"| {title} | {' | '.join(f'{share:.1%}' for share in found)} |" for title, *found in rows]
    table = [f"| | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS), *lines]
    return REPORT.format(table="\n".join(table), count=count, **report.facts)
