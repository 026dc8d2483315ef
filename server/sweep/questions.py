"""questions: what a sweep asks, from a file of JSON lines."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from layerloom.composer import ComposeError
from layerloom.composer.files import naming, read_bytes

Text = Annotated[
    str, Field(min_length=1), BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)
]
MOST = 1 << 30
"""Bytes of the largest file that is read."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


KINDS = {
    "exact": "share of answers that are right, greedily decoded",
    "choice": "share of questions whose right answer is the most probable of its choices",
    "logprob": "mean log-probability of the right answer, in nats",
}


@dataclass(frozen=True)
class Manner:
    """How it is asked: `template` has {question}; `chat` says whether it is a conversation or a text to go on."""

    kinds: tuple[str, ...] = ("logprob",)
    template: str = "{question}"
    chat: bool = True
    before: str = ""
    """Text between a prompt and an answer whose probability is looked at, such as a blank."""
    max_tokens: int = 16


class Message(BaseModel):
    """Of a conversation; what else it has goes to the chat template."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str


class Question(BaseModel):
    """A line: {"question": …, "answer": …}, or `messages` in place of the question; `choices` hold the answer."""

    question: str | None = Field(default=None, min_length=1, validation_alias=AliasChoices("question", "prompt"))
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    answer: Text
    choices: list[Text] = Field(default=[])

    @model_validator(mode="after")
    def _whole(self) -> "Question":
        if (self.question is None) == (self.messages is None):
            raise ValueError("give either question or messages")
        if self.choices and self.answer not in self.choices:
            raise ValueError(f"choices do not hold the answer, {self.answer!r}")
        return self


@dataclass(frozen=True)
class Asked:
    """A question as token ids: what is said before an answer, and the answers, of which the right one is first."""

    prompt: list[int]
    answers: list[list[int]]
    answer: str


def read_questions(path: Path) -> list[Question]:
    """Raises ComposeError with the file and the line that is wrong."""
    with naming(path):
        lines = read_bytes(path, MOST).decode("utf-8").split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(Question.model_validate_json(line))
            except ValidationError as error:
                raise ComposeError(f"{path}: line {number}: {reason(error)}") from error
    if not found:
        raise ComposeError(f'{path}: has no question; a line is {{"question": …, "answer": …}}')
    return found


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    detail = error.errors(include_url=False)[0]
    if detail["type"] == "model_type" and not detail["loc"]:
        return 'is no object; a line is {"question": …, "answer": …}'
    if detail["type"] == "json_invalid":
        return detail["msg"].replace("Invalid JSON", "is no JSON", 1)
    where = ".".join(map(str, detail["loc"]))
    return f"{where and f'{where}: '}{detail['msg'].removeprefix('Value error, ')}"


def digest_of(questions: Sequence[Question], *said: object) -> str:
    """Tells whether results are of the same questions, asked in the same way."""
    content = [question.model_dump() for question in questions], said
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_right(text: str, answer: str) -> bool:
    """Whether an answer is the one that is looked for: by its last number where that is a number, else by its text."""
    wanted = number_in(answer) if NUMBER.fullmatch(answer.strip()) else None
    return text.strip() == answer.strip() if wanted is None else number_in(text) == wanted


def number_in(text: str) -> float | None:
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None
