"""Anthropic's client, which holds every answer against its own types."""

import asyncio
from typing import Any

from anthropic import Anthropic, AsyncAnthropic
from facts import ASKED, ENDLESS, KEY, PICO, URL, aborted, fact, tell, user

OPTIONS: dict[str, Any] = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True}
GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}
"""Newer versions have no argument for it."""

demo = Anthropic(base_url=URL, api_key=KEY, **OPTIONS)
lenient = Anthropic(base_url=URL, api_key=KEY)
"""For models, which are listed as OpenAI lists them."""

pico = Anthropic(base_url=PICO, api_key=KEY, **OPTIONS)

function = ASKED["tool"]["function"]
TOOL = {**function, "input_schema": function["parameters"]}
del TOOL["parameters"]


def ask(model: str, content: str = ASKED["question"], client: Anthropic = demo, **options: Any) -> Any:
    options = {"messages": user(content), "max_tokens": 16, **GREEDY, **options}
    return client.messages.create(model=model, **options)


def said(answer: Any) -> dict[str, Any]:
    return {
        "model": answer.model,
        "text": "".join(block.text for block in answer.content if block.type == "text"),
        "stop": {"end_turn": "stop"}.get(answer.stop_reason, answer.stop_reason),
        "usage": [answer.usage.input_tokens, answer.usage.output_tokens],
    }


@fact
def models() -> Any:
    return [model.id for model in lenient.models.list()]


@fact
def retrieve() -> Any:
    return [lenient.models.retrieve(name).id for name in ASKED["spellings"]]


@fact
def chat() -> Any:
    return said(ask("math+swahili"))


@fact
def stream() -> Any:
    question = user(ASKED["question"])
    with demo.messages.stream(model="math+swahili", messages=question, max_tokens=16, **GREEDY) as stream:
        text = "".join(stream.text_stream)
        return said(stream.get_final_message()) | {"text": text}


@fact
def spellings() -> Any:
    return [said(ask(name)) for name in ASKED["spellings"]]


@fact
def auto() -> Any:
    answers = [
        demo.messages.with_raw_response.create(model="math+auto", messages=user(text), max_tokens=4)
        for text in ASKED["languages"]
    ]
    return [[answer.parse().model, answer.headers["X-Layerloom-Model"]] for answer in answers]


@fact
def unknown() -> Any:
    return ask("math+swahli")


@fact
def unknown_streams() -> Any:
    return list(ask("math+swahli", stream=True))


@fact
def key() -> Any:
    return ask("math+swahili", client=demo.with_options(api_key="wrong"))


@fact
def token() -> Any:
    with Anthropic(base_url=URL, auth_token=KEY, **OPTIONS) as client:
        return said(ask("math+swahili", client=client))["text"]


@fact
def system() -> Any:
    return ask("math+swahili", system="Be brief.")


@fact
def turns() -> Any:
    system, *thread = ASKED["thread"]
    return said(ask("math+swahili", client=pico, system=system["content"], messages=thread))["text"]


@fact
def tools() -> Any:
    answer = ask("math+swahili", tools=[TOOL], tool_choice={"type": "auto"})
    return [said(answer)["text"], [block.name for block in answer.content if block.type == "tool_use"]]


@fact
def forced() -> Any:
    chosen = {"type": "tool", "name": TOOL["name"]}
    answer = ask("math+swahili", client=pico, tools=[TOOL], tool_choice=chosen, max_tokens=64)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    return {"name": call.name, "arguments": call.input}


@fact
def form() -> Any:
    output = {"format": {"type": "json_schema", "schema": ASKED["schema"]}}
    return said(ask("math+swahili", client=pico, max_tokens=64, output_config=output))["text"]


@fact
def count() -> Any:
    return demo.messages.count_tokens(model="math+swahili", messages=user(ASKED["question"])).input_tokens


@fact
async def together() -> Any:
    async with AsyncAnthropic(base_url=URL, api_key=KEY, **OPTIONS) as client:
        asked = (
            client.messages.create(model=name, messages=user(ASKED["question"]), max_tokens=16, **GREEDY)
            for name in ASKED["names"]
        )
        return [[answer["model"], answer["text"]] for answer in map(said, await asyncio.gather(*asked))]


@fact
def abort() -> Any:
    options: dict[str, Any] = {"max_tokens": ENDLESS, "extra_body": {"ignore_eos": True}}

    def leave() -> None:
        with pico.messages.stream(model="math+swahili", messages=user("Asha"), **options) as stream:
            next(stream.text_stream)

    return aborted(leave)


tell()
