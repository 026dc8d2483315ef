"""maths: what the task files call: questions from a folder, put in their language, and how an answer is marked."""

import json
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

# lm-eval loads this file by its path.
sys.path.append(str(Path(__file__).parent))
from numerals import answer_of
from tongues import TONGUES

PROMPTS = ("chat", "text", "bare")


def load(data: str | None = None, language: str = "", prompt: str = "chat", **_: Any) -> Any:
    """For lm-eval's `custom_dataset`: the test split. `data` and `prompt` come with its --metadata."""
    from datasets import Dataset

    if data is None:
        raise ValueError('say where the questions are: --metadata \'{"data": "DIRECTORY"}\'')
    return {"test": Dataset.from_list(questions(Path(data), language, prompt))}


def questions(data: Path, language: str, prompt: str) -> list[dict[str, Any]]:
    """MGSM-Rev2's LANG.jsonl or MSVAMP's test_LANGUAGE.json, whichever is there.

    Raises ValueError that says what is wrong, and FileNotFoundError.
    """
    if prompt not in PROMPTS:
        raise ValueError(f"prompt is {prompt!r}; there are {', '.join(PROMPTS)}")
    file = file_of(data, language)
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                said = json.loads(line)
                question = said["m_query"] if "m_query" in said else said["question"]
                answer = str(said["response"] if "response" in said else said["answer"])
                gold(answer)
            except (ValueError, KeyError, TypeError, InvalidOperation) as error:
                what = f"has no {error}" if isinstance(error, KeyError) else f"is not one of the data: {error}"
                raise ValueError(f'{file}: line {number} {what}; a line is {{"question": …, "answer": "8"}}') from error
            asked = {
                "id": said.get("id", number),
                "language": language,
                "answer": answer,
                "ends": ends(language, prompt),
            }
            found.append(asked | {"prompt": put(question, language, prompt)})
    if not found:
        raise ValueError(f"{file}: has no question")
    return found


def file_of(data: Path, language: str) -> Path:
    if language not in TONGUES:
        raise ValueError(f"no language {language!r}; there are {', '.join(TONGUES)}")
    names = f"{language}.jsonl", f"test_{TONGUES[language].name}.json"
    for name in names:
        if (data / name).is_file():
            return data / name
    raise FileNotFoundError(
        f"{data} has neither {names[0]} nor {names[1]}; bench/tasks/README.md says where to get them"
    )


def put(question: str, language: str, prompt: str) -> str:
    """`chat`: with an instruction; `text`: as the beginning of a text; `bare`: as it is."""
    tongue = TONGUES[language]
    if prompt == "text":
        return f"{tongue.question}: {question}\n{tongue.instruction}\n{tongue.steps}:"
    return f"{question}\n{tongue.instruction}" if prompt == "chat" else question


def ends(language: str, prompt: str) -> str:
    """What a text's answer ends before: some models go on with a question of their own. Empty for other prompts."""
    return f"\n{TONGUES[language].question}:" if prompt == "text" else ""


def gold(answer: str) -> Decimal:
    """The data's own answers are written in English in every language: 276,000 and 145.0."""
    return Decimal(answer.replace(",", ""))


def mark(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """For lm-eval's `process_results`."""
    text = results[0].partition(doc["ends"])[0] if doc["ends"] else results[0]
    said = answer_of(text, doc["language"])
    return {"acc": float(said == gold(doc["answer"])), "no_number": float(said is None)}
