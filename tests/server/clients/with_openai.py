"""OpenAI's client, which holds every answer against its own types."""

import asyncio
from typing import Any

from facts import ASKED, ENDLESS, KEY, PICO, URL, aborted, fact, tell, user
from openai import AsyncOpenAI, OpenAI

OPTIONS: dict[str, Any] = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True}
demo = OpenAI(base_url=f"{URL}/v1", api_key=KEY, **OPTIONS)
pico = OpenAI(base_url=f"{PICO}/v1", api_key=KEY, **OPTIONS)

RESPONSE: dict[str, Any] = {"model": "math+sw", "max_output_tokens": 16, "temperature": 0}


def ask(model: str, messages: Any = None, client: OpenAI = demo, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(model=model, messages=messages or user(ASKED["question"]), **options)


def said(answer: Any) -> dict[str, Any]:
    choice, usage = answer.choices[0], answer.usage
    return {
        "model": answer.model,
        "text": choice.message.content,
        "stop": choice.finish_reason,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


@fact
def models() -> Any:
    return [model.id for model in demo.models.list()]


@fact
def retrieve() -> Any:
    return [demo.models.retrieve(name).id for name in ASKED["spellings"]]


@fact
def chat() -> Any:
    return said(ask("math+swahili"))


@fact
def stream() -> Any:
    chunks = list(ask("math+swahili", stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "model": "".join({chunk.model for chunk in chunks}),
        "text": "".join(choice.delta.content or "" for choice in choices),
        "stop": choices[-1].finish_reason,
        "usage": [chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens],
    }


@fact
def spellings() -> Any:
    return [said(ask(name)) for name in ASKED["spellings"]]


@fact
def auto() -> Any:
    answers = [
        demo.chat.completions.with_raw_response.create(model="math+auto", messages=user(text), max_tokens=4)
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
    return demo.with_options(api_key="wrong").models.list()


@fact
def system() -> Any:
    return ask("math+swahili", [{"role": "system", "content": "Be brief."}, *user("Asha")])


@fact
def turns() -> Any:
    return said(ask("math+swahili", ASKED["thread"], pico))["text"]


@fact
def logprobs() -> Any:
    found = ask("math+bengali", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    return [[entry.token, entry.logprob, len(entry.top_logprobs)] for entry in found]


@fact
def form() -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ASKED["schema"]}}
    return ask("math+swahili", client=pico, max_tokens=64, response_format=form).choices[0].message.content


@fact
def tools() -> Any:
    answer = ask("math+swahili", tools=[ASKED["tool"]], tool_choice="auto").choices[0].message
    return [answer.content, [call.function.name for call in answer.tool_calls or []]]


@fact
def forced() -> Any:
    chosen = {"type": "function", "function": {"name": "add"}}
    answer = ask("math+swahili", client=pico, tools=[ASKED["tool"]], tool_choice=chosen, max_tokens=64)
    (call,) = answer.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": call.function.arguments}


@fact
def forced_streams() -> Any:
    chosen = {"type": "function", "function": {"name": "add"}}
    options = {"tools": [ASKED["tool"]], "tool_choice": chosen, "max_tokens": 64, "stream": True}
    chunks = [chunk.choices[0] for chunk in ask("math+swahili", client=pico, **options) if chunk.choices]
    calls = [call.function for chunk in chunks for call in chunk.delta.tool_calls or []]
    return {
        "name": "".join(call.name or "" for call in calls),
        "arguments": "".join(call.arguments or "" for call in calls),
    }


@fact
async def together() -> Any:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, **OPTIONS) as client:
        asked = (
            client.chat.completions.create(model=name, messages=user(ASKED["question"]), temperature=0, max_tokens=16)
            for name in ASKED["names"]
        )
        return [[answer.model, answer.choices[0].message.content] for answer in await asyncio.gather(*asked)]


@fact
def abort() -> Any:
    options: dict[str, Any] = {"client": pico, "max_tokens": ENDLESS, "extra_body": {"ignore_eos": True}}

    def leave() -> None:
        with ask("math+swahili", stream=True, **options) as stream:
            next(iter(stream))

    return aborted(leave)


@fact
def completions() -> Any:
    answer = demo.completions.create(model="math+sw", prompt=ASKED["question"] + "\n", max_tokens=16, temperature=0)
    return [answer.model, answer.choices[0].text]


@fact
def completions_stream() -> Any:
    # OpenAI's own streams have null as the reason for which they have not ended, which its types do not know.
    with OpenAI(base_url=f"{URL}/v1", api_key=KEY) as client:
        chunks = client.completions.create(
            model="math+sw", prompt=ASKED["question"] + "\n", max_tokens=16, temperature=0, logprobs=1, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)


@fact
def responses() -> Any:
    answer = demo.responses.create(input=ASKED["question"], **RESPONSE)
    again = demo.responses.retrieve(answer.id)
    return [answer.model, answer.output_text if again.output_text == answer.output_text else again]


@fact
def responses_stream() -> Any:
    events = list(demo.responses.create(input=ASKED["question"], stream=True, **RESPONSE))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    return [events[0].response.model, text, events[-1].type]


@fact
def unknown_responses() -> Any:
    return demo.responses.create(model="math+swahli", input="Asha")


tell()
