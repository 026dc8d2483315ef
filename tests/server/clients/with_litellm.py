"""LiteLLM's SDK; `hosted_vllm/` before a name says what kind of server it is."""

import asyncio
from typing import Any

import litellm
from facts import ASKED, ENDLESS, KEY, PICO, URL, aborted, fact, tell, user

litellm.suppress_debug_info = True


def asking(name: str, messages: Any = None, url: str = URL, **options: Any) -> dict[str, Any]:
    return {
        "model": f"hosted_vllm/{name}",
        "messages": messages or user(ASKED["question"]),
        "api_base": f"{url}/v1",
        "api_key": KEY,
        "temperature": 0,
        "max_tokens": 16,
        "num_retries": 0,
        "timeout": 60,
        **options,
    }


def ask(*asked: Any, **options: Any) -> Any:
    return litellm.completion(**asking(*asked, **options))


def said(answer: Any) -> dict[str, Any]:
    choice, usage = answer.choices[0], answer.usage
    return {
        "model": answer.model.removeprefix("hosted_vllm/"),
        "text": choice.message.content,
        "stop": choice.finish_reason,
        "usage": [usage.prompt_tokens, usage.completion_tokens],
    }


@fact
def chat() -> Any:
    return said(ask("math+swahili"))


@fact
def stream() -> Any:
    chunks = list(ask("math+swahili", stream=True, stream_options={"include_usage": True}))
    return said(litellm.stream_chunk_builder(chunks))


@fact
def spellings() -> Any:
    return [said(ask(name)) for name in ASKED["spellings"]]


@fact
def auto() -> Any:
    answers = [ask("math+auto", user(text), max_tokens=4) for text in ASKED["languages"]]
    headers = [answer._hidden_params["additional_headers"] for answer in answers]
    return [
        [said(answer)["model"], found["llm_provider-x-layerloom-model"]]
        for answer, found in zip(answers, headers, strict=True)
    ]


@fact
def unknown() -> Any:
    return ask("math+swahli")


@fact
def unknown_streams() -> Any:
    return list(ask("math+swahli", stream=True))


@fact
def key() -> Any:
    return ask("math+swahili", api_key="wrong")


@fact
def system() -> Any:
    return ask("math+swahili", [{"role": "system", "content": "Be brief."}, *user("Asha")])


@fact
def turns() -> Any:
    return said(ask("math+swahili", ASKED["thread"], PICO))["text"]


@fact
def logprobs() -> Any:
    found = ask("math+bengali", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    return [[entry["token"], entry["logprob"], len(entry["top_logprobs"])] for entry in found]


@fact
def form() -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": ASKED["schema"]}}
    return ask("math+swahili", url=PICO, max_tokens=64, response_format=form).choices[0].message.content


@fact
def tools() -> Any:
    answer = ask("math+swahili", tools=[ASKED["tool"]], tool_choice="auto").choices[0].message
    return [answer.content, [call.function.name for call in answer.tool_calls or []]]


@fact
def forced_loosely() -> Any:
    """It leaves out that a tool is strict."""
    chosen = {"type": "function", "function": {"name": "add"}}
    answer = ask("math+swahili", url=PICO, tools=[ASKED["tool"]], tool_choice=chosen, max_tokens=64)
    (call,) = answer.choices[0].message.tool_calls
    return {"name": call.function.name, "arguments": call.function.arguments}


@fact
async def together() -> Any:
    answers = await asyncio.gather(*(litellm.acompletion(**asking(name)) for name in ASKED["names"]))
    return [[answer["model"], answer["text"]] for answer in map(said, answers)]


@fact
def abort() -> Any:
    def leave() -> None:
        stream = ask("math+swahili", url=PICO, stream=True, max_tokens=ENDLESS, ignore_eos=True)
        next(stream)
        # One that is only dropped goes on.
        stream.close()

    return aborted(leave)


@fact
def completions() -> Any:
    options = {"api_base": f"{URL}/v1", "api_key": KEY, "temperature": 0, "max_tokens": 16}
    answer = litellm.text_completion(model="hosted_vllm/math+sw", prompt=ASKED["question"] + "\n", **options)
    return [answer.model.removeprefix("hosted_vllm/"), answer.choices[0].text]


@fact
def responses() -> Any:
    answer = litellm.responses(
        model="hosted_vllm/math+swahili",
        input=ASKED["question"],
        api_base=f"{URL}/v1",
        api_key=KEY,
        temperature=0,
        max_output_tokens=16,
    )
    return [answer.model.removeprefix("hosted_vllm/"), answer.output[-1].content[0].text]


@fact
def anthropic() -> Any:
    """With the key in X-Api-Key."""
    answer = litellm.completion(
        model="anthropic/math+swahili",
        messages=user(ASKED["question"]),
        api_base=URL,
        api_key=KEY,
        temperature=0,
        max_tokens=16,
    )
    return said(answer)


tell()
