"""`math+auto` through every API: the composition in the language of what is asked, and the answer says which."""

import json
from typing import Any

import httpx
import pytest
from asking import LISTED, QUESTION, ask, go_on, user
from serving import KEY, Server, events

BENGALI = "আশার 5টি কলা আছে। সে আরও 3টি কেনে। এখন তার কাছে কয়টি কলা আছে?"
ENGLISH = "How many bananas does Asha have now?"

BODIES = {
    "chat/completions": {"messages": user(QUESTION), "max_tokens": 8},
    "completions": {"prompt": QUESTION + "\n", "max_tokens": 8},
    "responses": {"input": QUESTION, "max_output_tokens": 8},
    "messages": {"messages": user(QUESTION), "max_tokens": 8},
}


@pytest.mark.parametrize("api", BODIES)
def test_every_api_finds_the_language(demo: Server, api: str) -> None:
    response = demo.post(f"/v1/{api}", {"model": "math+auto", "temperature": 0, **BODIES[api]})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == response.headers["X-Layerloom-Model"] == "math+swahili"
    same = demo.post(f"/v1/{api}", {"model": "math+swahili", "temperature": 0, **BODIES[api]})
    assert "X-Layerloom-Model" not in same.headers
    assert said(response.json()) == said(same.json())


@pytest.mark.parametrize("api", BODIES)
def test_streams_say_it_at_once(demo: Server, api: str) -> None:
    body = {"model": "Math + AUTO", "temperature": 0, "stream": True, **BODIES[api]}
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", f"{demo.url}/v1/{api}", json=body, headers=headers, timeout=60) as response:
        assert response.headers["X-Layerloom-Model"] == "math+swahili"
        first = json.loads(next(events(response)).rpartition("data: ")[2])
    assert (first.get("response") or first.get("message") or first)["model"] == "math+swahili"


def test_each_conversation_has_its_own(demo: Server) -> None:
    chosen = {text: ask(demo.client, "math+auto", text).model for text in (QUESTION, BENGALI, ENGLISH)}
    assert list(chosen.values()) == ["math+swahili", "math+bengali", "math"]


def test_a_thread_stays_in_its_language(demo: Server) -> None:
    thread = [*user(BENGALI), {"role": "assistant", "content": "8"}, *user("5 + 3?")]
    answer = demo.client.chat.completions.create(model="math+auto", messages=thread, max_tokens=4)
    assert answer.model == "math+bengali"


def test_a_response_stays_in_the_language_of_those_before_it(demo: Server) -> None:
    first = demo.client.responses.create(model="math+auto", input=BENGALI, max_output_tokens=4)
    then = demo.client.responses.create(
        model="math+auto", input="5 + 3?", max_output_tokens=4, previous_response_id=first.id
    )
    assert (first.model, then.model) == ("math+bengali", "math+bengali")


def test_a_client_may_give_a_hint(demo: Server) -> None:
    hint = {"Accept-Language": "bn-BD, en;q=0.5"}
    assert ask(demo.client, "math+auto", "5 + 3 = ?", extra_headers=hint).model == "math+bengali"
    assert ask(demo.client, "math+auto", "5 + 3 = ?").model == "math"


def test_prompts_of_tokens_are_read(demo: Server) -> None:
    tokens = demo.post("/tokenize", {"model": "math+auto", "prompt": QUESTION})
    assert tokens.headers["X-Layerloom-Model"] == "math+swahili"
    assert go_on(demo.client, "math+auto", tokens.json()["tokens"]).model == "math+swahili"


@pytest.mark.parametrize("messages", ["text", [], [5], [{"role": "user", "content": [[[5]]]}]])
def test_what_is_no_conversation_is_refused_as_ever(demo: Server, messages: Any) -> None:
    body = {"model": "math+auto", "messages": messages, "max_tokens": 4}
    assert demo.post("/v1/chat/completions", body).status_code == 400
    assert demo.healthy()


def test_it_is_listed_and_has_no_weights_of_its_own(demo: Server) -> None:
    listed = {card["id"]: card for card in demo.get("/v1/models").json()["data"]}
    assert list(listed) == LISTED
    assert listed["math+auto"]["recipe"]["language"] == "auto"
    assert demo.client.models.retrieve("math + auto").id == "math+auto"
    asked = demo.get("/v1/compositions/math+auto"), demo.post("/v1/load_lora_adapter", {"lora_name": "math+auto"})
    for response in asked:
        assert response.status_code == 400
        assert "as in math+swahili" in response.json()["error"]["message"]


def said(answer: dict[str, Any]) -> Any:
    """The part of an answer that is text."""
    found = answer.get("choices") or answer.get("output") or answer.get("content")
    return [part.get("text") or (part.get("message") or part)["content"] for part in found]
