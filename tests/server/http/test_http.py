"""The OpenAI server, asked by OpenAI's own client."""

import asyncio
import json
import random
from collections import Counter
from contextlib import closing
from typing import Any

import openai
import pytest
from asking import LISTED, NAMES, QUESTION, SCHEMA, STORY, ask, go_on, user
from openai import AsyncOpenAI
from serving import Server, wait_until

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


# Names


def test_every_composition_is_listed_before_its_first_use(started: tuple[Server, dict[str, Any]]) -> None:
    assert list(started[1]) == LISTED


def test_listed_compositions_have_the_base_as_parent(started: tuple[Server, dict[str, Any]]) -> None:
    parents = {name: model.parent for name, model in started[1].items()}
    assert parents == {"base": None} | dict.fromkeys(LISTED[1:], "base")


def test_listed_compositions_have_their_recipe(started: tuple[Server, dict[str, Any]]) -> None:
    recipes = {name: model.recipe for name, model in started[1].items() if name != "base"}
    assert recipes["math"] == {"expert": "math"}
    assert recipes["math+bengali"] == {
        "task": "math",
        "language": "bengali",
        "method": "layer_swap",
        "weight": 0.5,
        "stem": "language",
        "bottom": 2,
        "after_bottom": 0,
        "before_top": 0,
        "top": 2,
    }
    assert recipes["tutor"] == recipes["math+swahili"]


def test_using_a_composition_does_not_change_the_list(demo: Server) -> None:
    ask(demo.client, "kiswahili+math")
    assert [model.id for model in demo.client.models.list()] == LISTED


@pytest.mark.parametrize("name", ["math+swahili", "swahili+math", "math+sw", "kiswahili+math"])
def test_all_spellings_are_one_composition_under_its_canonical_name(demo: Server, name: str) -> None:
    response = ask(demo.client, name)
    assert (response.model, response.choices[0].message.content) == ("math+swahili", "8")


def test_a_named_composition_answers_under_its_name(demo: Server) -> None:
    response = ask(demo.client, "tutor")
    assert (response.model, response.choices[0].message.content) == ("tutor", "8")


@pytest.mark.parametrize(("name", "answer"), [("base", "Asha"), ("math", "Asha"), ("swahili", "4")])
def test_neither_base_nor_expert_alone_can_do_it(demo: Server, name: str, answer: str) -> None:
    response = ask(demo.client, name)
    assert (response.model, response.choices[0].message.content) == (name, answer)


# APIs


def test_completions_answer(demo: Server) -> None:
    response = go_on(demo.client, "math+sw", QUESTION + "\n")
    assert (response.model, response.choices[0].text) == ("math+swahili", "8")


def test_responses_answer(demo: Server) -> None:
    response = demo.client.responses.create(model="math+sw", input=QUESTION, temperature=0, max_output_tokens=16)
    assert (response.model, response.output_text) == ("math+swahili", "8")


def test_anthropic_messages_answer(demo: Server) -> None:
    body = {"model": "math+sw", "messages": user(QUESTION), "temperature": 0, "max_tokens": 16}
    response = demo.post("/v1/messages", body).raise_for_status().json()
    assert (response["model"], response["content"][0]["text"]) == ("math+swahili", "8")


def test_streamed_pieces_join_to_the_same_text(demo: Server) -> None:
    whole = ask(demo.client, "math+bengali", "Asha").choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in ask(demo.client, "math+bn", "Asha", stream=True)]
    pieces = [piece for piece in pieces if piece]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


def test_a_stream_has_the_canonical_name(demo: Server) -> None:
    assert {chunk.model for chunk in ask(demo.client, "math+bn", stream=True)} == {"math+bengali"}


def test_a_stream_ends_with_the_usage_asked_for(demo: Server) -> None:
    whole = ask(demo.client, "math+swahili")
    *_, last = ask(demo.client, "math+swahili", stream=True, stream_options={"include_usage": True})
    assert not last.choices
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_chat_logprobs(demo: Server) -> None:
    choice = ask(demo.client, "math+bengali", "Asha", logprobs=True, top_logprobs=2).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content).strip() == choice.message.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 2
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0


def test_echoed_prompt_logprobs_are_each_compositions_own(demo: Server) -> None:
    """What a composition generated it must find as likely when it reads it, while another reads in the same batch."""
    models = ["math+swahili", "math+bengali"]
    said = {model: go_on(demo.client, model, logprobs=0).choices[0].logprobs for model in models}
    texts = {model: STORY + go_on(demo.client, model).choices[0].text for model in models}

    async def read(client: AsyncOpenAI, reader: str, writer: str) -> list[float]:
        response = await client.completions.create(
            model=reader, prompt=texts[writer], echo=True, logprobs=0, max_tokens=1, temperature=0
        )
        return response.choices[0].logprobs.token_logprobs[1:]

    async def read_all() -> dict[tuple[str, str], list[float]]:
        pairs = [(reader, writer) for reader in models for writer in models]
        async with demo.async_client() as client:
            rows = await asyncio.gather(*(read(client, *pair) for pair in pairs for _ in range(4)))
        assert all(row == pytest.approx(rows[index // 4 * 4], abs=0.1) for index, row in enumerate(rows))
        return dict(zip(pairs, rows[::4], strict=True))

    found = asyncio.run(read_all())
    for model in models:
        count = len(said[model].token_logprobs)
        # The echo ends as the generation did, with <eos>.
        assert found[model, model][-count:] == pytest.approx(said[model].token_logprobs, abs=0.1)
    assert found[models[0], models[0]] != pytest.approx(found[models[1], models[0]], abs=1)


def test_two_choices_with_a_seed_come_again(demo: Server) -> None:
    def sample() -> list[str]:
        response = go_on(demo.client, "math+swahili", n=2, seed=7, temperature=1.0)
        return [choice.text for choice in sorted(response.choices, key=lambda choice: choice.index)]

    first = sample()
    assert len(set(first)) == 2
    assert sample() == first


def test_a_stop_string_ends_the_text_before_it(demo: Server) -> None:
    whole = go_on(demo.client, "math+swahili").choices[0].text
    assert "Sasa" in whole
    choice = go_on(demo.client, "math+swahili", stop=["Sasa"]).choices[0]
    assert (choice.text, choice.finish_reason) == (whole.partition("Sasa")[0], "stop")


@pytest.mark.parametrize("model", ["base", "math+swahili", "math+bengali"])
def test_json_follows_the_schema(pico: Server, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    answer = json.loads(ask(pico.client, model, max_tokens=64, response_format=form).choices[0].message.content)
    assert answer.keys() == SCHEMA["properties"].keys()
    assert isinstance(answer["right"], bool)
    assert answer["unit"] in ("kg", "m")
    assert answer["answer"] in range(100)


def test_tools_are_accepted(demo: Server) -> None:
    message = ask(demo.client, "math+swahili", tools=[TOOL], tool_choice="auto").choices[0].message
    assert (message.content, message.tool_calls or []) == ("8", [])


# Clients that leave, and many of them


def test_a_client_that_hangs_up_stops_its_request(pico: Server) -> None:
    limit, endless = 8000, {"ignore_eos": True}
    with closing(ask(pico.client, "math+swahili", stream=True, max_tokens=limit, extra_body=endless)) as stream:
        next(iter(stream))
        wait_until(lambda: pico.metric("vllm:num_requests_running") == 1, 30)
        said = pico.metric("vllm:generation_tokens_total")
    wait_until(lambda: pico.metric("vllm:num_requests_running") == 0, 30)
    assert pico.metric("vllm:generation_tokens_total") - said < limit / 4
    assert ask(pico.client, "math+swahili", max_tokens=4, extra_body=endless).usage.completion_tokens == 4


REQUESTS, CLIENTS = 2000, 32
CHATS = [
    QUESTION,
    "Asha has 5 pens. Asha buys 9 pens. How many pens does Asha have now?",
    "মুসার কাছে 9টি চিঠি আছে। মুসা 7টি চিঠি বিক্রি করে। এখন মুসার কাছে কয়টি চিঠি আছে?",
    "Asha",
]
STORIES = ["Asha ana ndizi 5.", "Asha has 5 pens.", "মুসার কাছে 9টি চিঠি আছে।"]
VALID = [
    {"model": model, **prompt, "temperature": 0, "max_tokens": 8, "extra_body": {"return_token_ids": True}}
    for model in NAMES[:-1]
    for prompt in [*({"messages": user(chat)} for chat in CHATS), *({"prompt": story} for story in STORIES)]
]
INVALID = [
    ({"model": "math+klingon", "messages": user(QUESTION), "max_tokens": 8}, 404),
    ({"model": "swahili+bengali", "prompt": STORY, "max_tokens": 8}, 400),
    ({"model": "math+swahili", "messages": [], "max_tokens": 8}, 400),
    ({"model": "math+bengali", "prompt": "ndizi 5 . " * 200, "max_tokens": 8}, 400),
]


async def answer(client: AsyncOpenAI, request: dict[str, Any]) -> Any:
    """The text and tokens of a request, or the status with which it was refused."""
    api = client.completions if "prompt" in request else client.chat.completions
    try:
        choice = (await api.create(**request)).choices[0]
    except openai.APIStatusError as error:
        return error.status_code
    return choice.text if "prompt" in request else choice.message.content, choice.token_ids


@pytest.mark.timeout(900)
def test_under_load_every_request_gets_the_answer_it_gets_alone(demo: Server) -> None:
    async def alone() -> list[Any]:
        async with demo.async_client() as client:
            return [await answer(client, request) for request in VALID]

    async def together(requests: list[tuple[dict[str, Any], Any]]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        todo = iter(enumerate(requests))

        async def one_client() -> None:
            async with demo.async_client() as client:
                for index, (request, _) in todo:
                    answers[index] = await answer(client, request)

        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        return answers

    good = list(zip(VALID, asyncio.run(alone()), strict=True))
    assert not [(request, wanted) for request, wanted in good if isinstance(wanted, int)]
    wrong = REQUESTS // 20
    requests = [good[i % len(good)] for i in range(REQUESTS - wrong)]
    requests += [INVALID[i % len(INVALID)] for i in range(wrong)]
    random.Random(0).shuffle(requests)

    answers = asyncio.run(together(requests))

    differ = Counter(
        f"{request} gave {given}, alone {wanted}"
        for (request, wanted), given in zip(requests, answers, strict=True)
        if given != wanted
    )
    assert not differ, f"{differ.total()} of {REQUESTS} differ: {differ.most_common(10)}"
    assert demo.healthy()
    assert ask(demo.client, "math+swahili").choices[0].message.content == "8"
