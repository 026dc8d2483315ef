"""LangChain's ChatOpenAI."""

import asyncio
from typing import Any

from facts import ASKED, ENDLESS, KEY, PICO, URL, aborted, fact, tell, user
from langchain_openai import ChatOpenAI


def model(name: str, url: str = URL, **options: Any) -> ChatOpenAI:
    options = {"api_key": KEY, "temperature": 0, "max_tokens": 16, "max_retries": 0, "timeout": 60, **options}
    return ChatOpenAI(model=name, base_url=f"{url}/v1", **options)


def said(answer: Any) -> dict[str, Any]:
    about, usage = answer.response_metadata, answer.usage_metadata
    return {
        "model": about["model_name"],
        "text": answer.content,
        "stop": about["finish_reason"],
        "usage": [usage["input_tokens"], usage["output_tokens"]],
    }


@fact
def chat() -> Any:
    return said(model("math+swahili").invoke(ASKED["question"]))


@fact
def stream() -> Any:
    whole = None
    for chunk in model("math+swahili", stream_usage=True).stream(ASKED["question"]):
        whole = chunk if whole is None else whole + chunk
    return said(whole)


@fact
def spellings() -> Any:
    return [said(model(name).invoke(ASKED["question"])) for name in ASKED["spellings"]]


@fact
def auto() -> Any:
    chat = model("math+auto", include_response_headers=True)
    answers = [chat.invoke(text).response_metadata for text in ASKED["languages"]]
    return [[answer["model_name"], answer["headers"]["x-layerloom-model"]] for answer in answers]


@fact
def unknown() -> Any:
    return model("math+swahli").invoke("Asha")


@fact
def unknown_streams() -> Any:
    return list(model("math+swahli").stream("Asha"))


@fact
def key() -> Any:
    return model("math+swahili", api_key="wrong").invoke("Asha")


@fact
def system() -> Any:
    return model("math+swahili").invoke([("system", "Be brief."), ("user", "Asha")])


@fact
def turns() -> Any:
    return said(model("math+swahili", PICO).invoke(ASKED["thread"]))["text"]


@fact
def logprobs() -> Any:
    found = model("math+bengali", logprobs=True, top_logprobs=2).invoke(ASKED["question"])
    entries = found.response_metadata["logprobs"]["content"]
    return [[entry["token"], entry["logprob"], len(entry["top_logprobs"])] for entry in entries]


@fact
def form() -> Any:
    bound = model("math+swahili", PICO, max_tokens=64)
    schema = {"title": "answer", **ASKED["schema"]}
    return bound.with_structured_output(schema, method="json_schema", strict=True).invoke(ASKED["question"])


@fact
def tools() -> Any:
    answer = model("math+swahili").bind_tools([ASKED["tool"]]).invoke(ASKED["question"])
    return [answer.content, [call["name"] for call in answer.tool_calls]]


@fact
def forced() -> Any:
    bound = model("math+swahili", PICO, max_tokens=64).bind_tools([ASKED["tool"]], tool_choice="add")
    answer = bound.invoke(ASKED["question"])
    (call,) = answer.tool_calls
    return {"name": call["name"], "arguments": call["args"]}


@fact
async def together() -> Any:
    asked = (model(name).ainvoke(user(ASKED["question"])) for name in ASKED["names"])
    return [[answer["model"], answer["text"]] for answer in map(said, await asyncio.gather(*asked))]


@fact
def abort() -> Any:
    def leave() -> None:
        stream = model("math+swahili", PICO, max_tokens=ENDLESS, extra_body={"ignore_eos": True}).stream("Asha")
        next(stream)
        stream.close()

    return aborted(leave)


@fact
def responses() -> Any:
    answer = model("math+swahili", use_responses_api=True).invoke(ASKED["question"])
    return [answer.response_metadata["model_name"], answer.text]


tell()
