"""llama-index' OpenAILike."""

import asyncio
from typing import Any

from facts import ASKED, ENDLESS, KEY, PICO, URL, aborted, fact, tell
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def model(name: str, url: str = URL, **options: Any) -> OpenAILike:
    options = {"api_key": KEY, "temperature": 0, "max_tokens": 16, "max_retries": 0, "timeout": 60, **options}
    return OpenAILike(model=name, api_base=f"{url}/v1", is_chat_model=True, is_function_calling_model=True, **options)


def messages(*turns: dict[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role=turn["role"], content=turn["content"]) for turn in turns]


QUESTION = messages({"role": "user", "content": ASKED["question"]})


def said(answer: Any) -> dict[str, Any]:
    raw = answer.raw
    return {
        "model": raw.model,
        "text": answer.message.content,
        "stop": raw.choices[0].finish_reason,
        "usage": [raw.usage.prompt_tokens, raw.usage.completion_tokens],
    }


@fact
def models() -> Any:
    return [found.id for found in model("base")._get_client().models.list()]


@fact
def chat() -> Any:
    return said(model("math+swahili").chat(QUESTION))


@fact
def stream() -> Any:
    usage = {"stream_options": {"include_usage": True}}
    parts = list(model("math+swahili", additional_kwargs=usage).stream_chat(QUESTION))
    ended = [part.raw for part in parts if part.raw.choices and part.raw.choices[0].finish_reason]
    return {
        "model": parts[-1].raw.model,
        "text": "".join(part.delta or "" for part in parts),
        "stop": ended[0].choices[0].finish_reason,
        "usage": [parts[-1].raw.usage.prompt_tokens, parts[-1].raw.usage.completion_tokens],
    }


@fact
def spellings() -> Any:
    return [said(model(name).chat(QUESTION)) for name in ASKED["spellings"]]


@fact
def auto_names() -> Any:
    asked = (messages({"role": "user", "content": text}) for text in ASKED["languages"])
    return [said(model("math+auto", max_tokens=4).chat(each))["model"] for each in asked]


@fact
def unknown() -> Any:
    return model("math+swahli").chat(QUESTION)


@fact
def unknown_streams() -> Any:
    return list(model("math+swahli").stream_chat(QUESTION))


@fact
def key() -> Any:
    return model("math+swahili", api_key="wrong").chat(QUESTION)


@fact
def system() -> Any:
    return model("math+swahili").chat([*messages({"role": "system", "content": "Be brief."}), *QUESTION])


@fact
def turns() -> Any:
    return said(model("math+swahili", PICO).chat(messages(*ASKED["thread"])))["text"]


@fact
def form() -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ASKED["schema"]}}
    return said(model("math+swahili", PICO, max_tokens=64).chat(QUESTION, response_format=form))["text"]


@fact
def tools() -> Any:
    answer = model("math+swahili").chat(QUESTION, tools=[ASKED["tool"]], tool_choice="auto")
    return [
        answer.message.content,
        [call.tool_name for call in model("base").get_tool_calls_from_response(answer, False)],
    ]


@fact
def forced() -> Any:
    chosen = {"type": "function", "function": {"name": "add"}}
    answer = model("math+swahili", PICO, max_tokens=64).chat(QUESTION, tools=[ASKED["tool"]], tool_choice=chosen)
    (call,) = model("base").get_tool_calls_from_response(answer)
    return {"name": call.tool_name, "arguments": call.tool_kwargs}


@fact
async def together() -> Any:
    answers = await asyncio.gather(*(model(name).achat(QUESTION) for name in ASKED["names"]))
    return [[answer["model"], answer["text"]] for answer in map(said, answers)]


@fact
def abort() -> Any:
    chat = model("math+swahili", PICO, max_tokens=ENDLESS, additional_kwargs={"extra_body": {"ignore_eos": True}})

    async def leave() -> None:
        said = asyncio.Event()

        async def listen() -> None:
            async for _ in await chat.astream_chat(QUESTION):
                said.set()

        listening = asyncio.create_task(listen())
        await said.wait()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    return aborted(lambda: asyncio.run(leave()))


@fact
def completions() -> Any:
    asked = OpenAILike(
        model="math+sw", api_base=f"{URL}/v1", api_key=KEY, temperature=0, max_tokens=16, is_chat_model=False
    )
    answer = asked.complete(ASKED["question"] + "\n")
    return [answer.raw.model, answer.text]


tell()
