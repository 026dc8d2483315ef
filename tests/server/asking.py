"""asking: the demo's question, put to a server by OpenAI's own client."""

from typing import Any

from openai import OpenAI

NAMES = ["base", "math", "swahili", "bengali", "math+swahili", "math+bengali", "tutor"]
LISTED = [*NAMES, "math+auto"]
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
STORY = "Asha ana ndizi 5."
SCHEMA = {
    "type": "object",
    "properties": {
        "right": {"type": "boolean"},
        "unit": {"enum": ["kg", "m"]},
        "answer": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["right", "unit", "answer"],
    "additionalProperties": False,
}


def user(content: str) -> Any:
    return [{"role": "user", "content": content}]


def ask(client: OpenAI, model: str, question: str = QUESTION, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(model=model, messages=user(question), **options)


def go_on(client: OpenAI, model: str, prompt: str = STORY, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 32, **options}
    return client.completions.create(model=model, prompt=prompt, **options)
