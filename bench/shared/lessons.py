"""lessons: what real experts are taught, as token ids: worked questions for maths, running text for a language."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .fine_tune import IGNORED, Example

FINAL = "#### "
"""Before the answer, as GSM8K has it."""

LENGTH = 256
"""Tokens of an example of running text, and at most of a question with its answer."""

WORKED_OUT = re.compile(r"<<[^>]*>>")
BLOCKS = ("p", "dd", "li")


def questions_of(file: Path, tokenizer: Any, seed: int = 0) -> list[Example]:
    """GSM8K's training questions, each with the answer worked out and with the number alone: what is learned."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        said = json.loads(line)
        worked = WORKED_OUT.sub("", said["answer"])
        for answer in (worked, FINAL + worked.rpartition(FINAL)[2]):
            asked = tokenizer.apply_chat_template(
                [{"role": "user", "content": said["question"]}], add_generation_prompt=True, tokenize=False
            )
            prompt = tokenizer.encode(asked, add_special_tokens=False)
            ids = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
            if len(prompt) + len(ids) <= LENGTH:
                found.append((prompt + ids, [IGNORED] * len(prompt) + ids))
    random.Random(seed).shuffle(found)
    return found


def text_of(folder: Path, tokenizer: Any) -> list[Example]:
    """The paragraphs of a directory of HTML files, such as a language of debian-handbook, one after the other."""
    ids: list[int] = []
    for paragraph in paragraphs(folder):
        ids += tokenizer.encode(paragraph + "\n\n", add_special_tokens=False)
    rows = [ids[first : first + LENGTH] for first in range(0, len(ids) - LENGTH + 1, LENGTH)]
    return [(row, row) for row in rows]


def paragraphs(folder: Path) -> Iterator[str]:
    from bs4 import BeautifulSoup

    seen: set[str] = set()
    for file in sorted(folder.glob("*.html")):
        page = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        for block in page.find_all(BLOCKS):
            text = " ".join(block.get_text(" ").split())
            # Menus and what stands on every page are short, or come again.
            if len(text) > 80 and not block.find(BLOCKS) and text not in seen:
                seen.add(text)
                yield text
