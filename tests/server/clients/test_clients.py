"""What other people's clients find here. Each has a script, which tells facts in a process of its own (see facts.py).

`make clients` installs them; what is not there is skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import pytest
from asking import LISTED, NAMES, QUESTION, SCHEMA, ask, user
from installed import HERE, PYTHON, QUIET, need
from serving import KEY, Server

BENGALI = "আশার 5টি কলা আছে। সে আরও 3টি কেনে। এখন তার কাছে কয়টি কলা আছে?"
ENGLISH = "How many bananas does Asha have now?"
NUMBER = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["a"],
    "additionalProperties": False,
}
ASKED = {
    "question": QUESTION,
    "languages": [QUESTION, BENGALI, ENGLISH],
    "spellings": ["math+swahili", "Math + SW", "base:math+swahili"],
    "names": [*NAMES, "math+sw"],
    "thread": [
        {"role": "system", "content": "Be brief."},
        *user("Asha"),
        {"role": "assistant", "content": "5"},
        *user("5 + 3?"),
    ],
    "schema": SCHEMA,
    "tool": {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "strict": True, "parameters": NUMBER},
    },
    "endless": 8000,
}
SAID = {"model": "math+swahili", "text": "8", "stop": "stop", "usage": [18, 2]}


SAID = {"model": "math+swahili", "text": "8", "stop": "stop", "usage": [18, 2]}
CHOSEN = ["math+swahili", "math+bengali", "math"]

EXPECTED: dict[str, Any] = {
    "models": LISTED,
    "retrieve": ["math+swahili"] * 3,
    **dict.fromkeys(("chat", "stream", "anthropic", "anthropic_streams"), SAID),
    "spellings": [SAID] * 3,
    "auto": [[name, name] for name in CHOSEN],
    "auto_names": CHOSEN,
    "tools": ["8", []],
    "together": [
        ["base", "Asha"],
        ["math", "Asha"],
        ["swahili", "4"],
        ["bengali", "3"],
        ["math+swahili", "8"],
        ["math+bengali", "4"],
        ["tutor", "8"],
        ["math+swahili", "8"],
    ],
    "abort": 1,
    "completions": ["math+swahili", "8"],
    "completions_stream": "8",
    "responses": ["math+swahili", "8"],
    "responses_stream": ["math+swahili", "8", "response.completed"],
    "token": "8",
    "count": 18,
}
UNKNOWN = (404, "NotFoundError", "Did you mean 'math+swahili'?")
REFUSED = {
    **dict.fromkeys(("unknown", "unknown_streams", "unknown_responses", "anthropic_unknown"), UNKNOWN),
    "key": (401, "AuthenticationError", "the API key is missing or wrong"),
    "system": (400, "BadRequestError", "leave the messages of other roles out"),
}
CALLS = ("forced", "forced_streams", "forced_loosely")

BOTH = [
    "chat",
    "stream",
    "spellings",
    "unknown",
    "unknown_streams",
    "key",
    "system",
    "turns",
    "form",
    "tools",
    "together",
    "abort",
]
MOST = [*BOTH, "auto", "forced"]
OPENAI = [*MOST, *["models", "retrieve", "logprobs", "completions", "responses"]]
PYTHONS = [*OPENAI, *["completions_stream", "responses_stream", "unknown_responses", "forced_streams"]]
CLIENTS: dict[str, tuple[str, str, list[str]]] = {
    "openai": (sys.executable, "with_openai.py", PYTHONS),
    "openai, older": (str(PYTHON), "with_openai.py", PYTHONS),
    "openai, Node": ("node", "node/with_openai.mjs", OPENAI),
    "Anthropic": (str(PYTHON), "with_anthropic.py", [*MOST, "models", "retrieve", "token", "count"]),
    "LangChain": (str(PYTHON), "with_langchain.py", [*MOST, "logprobs", "responses"]),
    "LiteLLM": (
        str(PYTHON),
        "with_litellm.py",
        [*BOTH, "auto", "forced_loosely", "logprobs", "completions", "responses", "anthropic"],
    ),
    "llama-index": (str(PYTHON), "with_llama_index.py", [*BOTH, "auto_names", "forced", "models", "completions"]),
    "Vercel": ("node", "node/with_vercel.mjs", [*MOST, "anthropic", "anthropic_streams", "anthropic_unknown"]),
}
"""What runs a client's script, and the facts it tells."""

Told = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def told(demo: Server, pico: Server) -> Told:
    """The facts of a client, whose script runs once."""
    asked = json.dumps({**ASKED, "url": demo.url, "pico": pico.url, "key": KEY})

    @cache
    def run(client: str) -> dict[str, Any]:
        program, script, _ = CLIENTS[client]
        need(program)
        environment = {**os.environ, **QUIET, "LAYERLOOM_ASKED": asked}
        done = subprocess.run([program, script], cwd=HERE, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        print(done.stderr)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


def with_facts(*names: str) -> Any:
    """Of every client those that it has."""
    pairs = [(client, fact) for client, (*_, facts) in CLIENTS.items() for fact in facts if fact in names]
    return pytest.mark.parametrize(("client", "fact"), pairs)


@pytest.mark.parametrize("client", CLIENTS)
def test_all_that_a_client_tells_is_checked(told: Told, client: str) -> None:
    facts = set(CLIENTS[client][2])
    assert told(client).keys() == facts <= {*EXPECTED, *REFUSED, *CALLS, "turns", "logprobs", "form"}


@with_facts(*EXPECTED)
def test_clients_find_what_they_should(told: Told, client: str, fact: str) -> None:
    assert told(client)[fact] == EXPECTED[fact]


@with_facts(*REFUSED)
def test_refusals_are_the_clients_own_errors_and_say_why(told: Told, client: str, fact: str) -> None:
    status, kind, reason = REFUSED[fact]
    found = told(client)[fact]
    assert found["status"] == status
    assert reason in found["message"]
    assert ("APICallError" if client == "Vercel" else kind) in found["kinds"]


@with_facts("turns")
def test_conversations_arrive_whole(told: Told, pico: Server, client: str, fact: str) -> None:
    answer = pico.client.chat.completions.create(
        model="math+swahili", messages=ASKED["thread"], temperature=0, max_tokens=16
    )
    assert told(client)[fact] == answer.choices[0].message.content


@with_facts("logprobs")
def test_logprobs_arrive(told: Told, demo: Server, client: str, fact: str) -> None:
    entries = ask(demo.client, "math+bengali", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    found = told(client)[fact]
    assert [[token, count] for token, _, count in found] == [[entry.token, 2] for entry in entries]
    assert [logprob for _, logprob, _ in found] == pytest.approx([entry.logprob for entry in entries], abs=0.1)


@with_facts("form")
def test_answers_have_the_form_that_was_asked_for(told: Told, client: str, fact: str) -> None:
    jsonschema.validate(parsed(told(client)[fact]), SCHEMA)


@with_facts(*CALLS)
def test_calls_are_well_formed(told: Told, client: str, fact: str) -> None:
    call = told(client)[fact]
    assert call["name"] == "add"
    arguments = parsed(call["arguments"])
    if fact != "forced_loosely":
        jsonschema.validate(arguments, NUMBER)


def parsed(found: Any) -> Any:
    return json.loads(found) if isinstance(found, str) else found
