"""What the OpenAI server refuses: in OpenAI's form, saying what would be right, and going on."""

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from asking import NAMES, QUESTION, ask, go_on, user
from serving import KEY, Server

DEMO = Path(__file__).parents[3] / "demo"


def test_an_unknown_model_is_not_found_and_told_what_there_is(demo: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(demo.client, "math+swahli")
    assert "Did you mean 'math+swahili'?" in caught.value.message
    assert f"Valid: {', '.join(NAMES)}" in caught.value.message


@pytest.mark.parametrize("api", ["completions", "responses", "chat/completions", "messages"])
def test_every_api_refuses_an_unknown_model(demo: Server, api: str) -> None:
    prompt = {"completions": {"prompt": "Asha"}, "responses": {"input": "Asha"}}.get(api, {"messages": user("Asha")})
    response = demo.post(f"/v1/{api}", {"model": "math+swahli", "max_tokens": 4, **prompt})
    assert response.status_code == 404
    assert "Did you mean 'math+swahili'?" in response.json()["error"]["message"]


def test_a_message_is_all_that_the_field_says(demo: Server) -> None:
    response = demo.post("/v1/chat/completions", {"model": "swahili+bengali", "messages": user(QUESTION)})
    error = response.json()["error"]
    assert error["param"] == "model" and "parameter=" not in error["message"]


@pytest.mark.parametrize("name", ["Math+Swahili", "math + SW", "base:math+swahili", " BASE: Kiswahili + Math "])
def test_what_makes_no_difference_in_a_name(demo: Server, name: str) -> None:
    answer = ask(demo.client, name)
    assert (answer.model, answer.choices[0].message.content) == ("math+swahili", "8")


@pytest.mark.parametrize("name", ["Base", "base:base", " base "])
def test_the_base_by_other_spellings(demo: Server, name: str) -> None:
    assert (ask(demo.client, name).model, ask(demo.client, name).choices) == ("base", ask(demo.client, "base").choices)


@pytest.mark.parametrize("name", ["math%2Bswahili", "math swahili"])
def test_names_that_an_address_has_changed(demo: Server, name: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'math\+swahili'"):
        ask(demo.client, name)


JSON = {"response_format": {"type": "json_object"}}
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}
FORMS = {
    "chat/completions": ({"messages": user(QUESTION)}, JSON),
    "completions": ({"prompt": QUESTION}, {"structured_outputs": {"choice": ["zzz", "yyy"]}}),
    "responses": ({"input": QUESTION}, {"text": {"format": {"type": "json_object"}}}),
    "chat/completions ": ({"messages": user(QUESTION)}, SCHEMA),
}


@pytest.mark.parametrize("api", FORMS)
def test_a_form_that_the_vocabulary_cannot_write(demo: Server, api: str) -> None:
    body, form = FORMS[api]
    response = demo.post(f"/v1/{api.strip()}", {"model": "math+swahili", **body, **form})
    assert_refused(response, 400)
    assert "this model's vocabulary has no token that the form allows" in response.json()["error"]["message"]
    assert demo.healthy()


def test_the_demo_says_that_it_knows_no_system_messages(demo: Server) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *user(QUESTION)]
    response = demo.post("/v1/chat/completions", {"model": "math+swahili", "messages": messages})
    assert_refused(response, 400)
    assert "leave the messages of other roles out" in response.json()["error"]["message"]


def test_recipes_need_the_flag(demo: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="--allow-recipes"):
        ask(demo.client, "math+swahili@bottom=1")


def assert_refused(response: httpx.Response, status: int) -> None:
    """In OpenAI's form, and short."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"]
    assert error["code"] == status
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("swahili+bengali", 400),
        ("math+swahili+bengali", 400),
        ("math+math", 400),
        ("math+", 404),
        ("MATHS", 404),
        ("../../etc/passwd", 404),
        (str(DEMO / "math"), 404),
        ("https://example.org/model", 404),
        ("math\n+swahili\x00", 404),
        ("\x1b[31mmath", 404),
        ("\u202emath", 404),
        ("m" * 10_240, 404),
        ("math+" * 2_000 + "swahili", 404),
        (5, 400),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_bad_names_are_refused(demo: Server, name: Any, status: int) -> None:
    response = demo.post("/v1/chat/completions", {"model": name, "messages": user(QUESTION), "max_tokens": 4})
    assert_refused(response, status)
    assert response.json()["error"]["message"].replace("\n", " ").isprintable()
    assert demo.healthy()


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": user("ndizi 5 . " * 200)},
        {"max_tokens": 4000},
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_logprobs": 1000, "logprobs": True},
    ],
    ids=["no messages", "too long", "too many tokens", "no tokens", "cold", "many logprobs"],
)
def test_bad_requests_are_refused(demo: Server, wrong: dict[str, Any]) -> None:
    body = {"model": "math+swahili", "messages": user(QUESTION), "max_tokens": 4, **wrong}
    assert_refused(demo.post("/v1/chat/completions", body), 400)
    assert demo.healthy()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_body_that_is_no_request_is_refused(demo: Server, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{demo.url}/v1/completions", content=body, headers=headers)
    assert_refused(response, 400)
    assert demo.healthy()


# Recipes in names


def test_a_recipe_in_the_name_is_served(pico: Server) -> None:
    response = go_on(pico.client, "kiswahili+math@top=1,bottom=3", max_tokens=8)
    assert response.model == "math+swahili@bottom=3,top=1"
    assert response.usage.completion_tokens == 8


def test_a_recipe_in_the_name_changes_the_model(pico: Server) -> None:
    texts = {go_on(pico.client, f"math+swahili{at}").choices[0].text for at in ("", "@bottom=3,top=1", "@stem=task")}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bottm=3", "Did you mean 'bottom'? Valid: preset, bottom, top, transition, weight, stem"),
        ("bottom=three", "bottom is a whole number below 1000, as in 6"),
        ("preset=papper", "preset is one of paper, unreasonable, lighton, not 'papper'. Did you mean 'paper'?"),
        ("stem=tree", "stem is one of language, task, base, average"),
        ("weight=2", "weight is a decimal from 0 to 1, as in 0.5"),
        ("bottom=1,bottom=1", "bottom is given twice"),
        ("bottom=300", "the model has 8"),
        ("", "Valid: preset, bottom, top, transition, weight, stem"),
    ],
)
def test_a_wrong_recipe_is_told_the_right_ones(pico: Server, options: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        go_on(pico.client, f"math+swahili@{options}")
    assert message in caught.value.message
    assert pico.healthy()


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/adapters"])
def test_adapters_are_not_loaded_by_path(demo: Server, path: str) -> None:
    body = {"lora_name": "math", "lora_path": "/etc", "name": "math", "src": "/etc"}
    response = demo.post(path, body)
    assert response.status_code == 400
    assert "compositions come from the family" in response.text
    assert ask(demo.client, "math").choices[0].message.content == "Asha"
