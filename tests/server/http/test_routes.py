"""Every route of the running server: behind the API key, and never an answer of another model than was asked for."""

import re

import httpx
import pytest
from serving import KEY, Server

DOCS = {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
OPEN = {"/health", "/ping", "/version", *DOCS, "/studio", "/studio/"}
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
ANSWERS = {"math+swahili": "8", "math": "Asha", "swahili": "4", "base": "Asha"}


def routes(demo: Server) -> list[tuple[str, str]]:
    """(method, path) of all that the running app has: what vLLM prints at its start, and what the schema adds."""
    found = set()
    for path, methods in re.findall(r"Route: (\S+), Methods: (.+)", demo.log.read_text()):
        found |= {(method.strip(), path) for method in methods.split(",")}
    for path in re.findall(r"Route: (\S+), Endpoint:", demo.log.read_text()):
        found.add(("GET", path))
    for path, methods in demo.get("/openapi.json").json()["paths"].items():
        found |= {(method.upper(), path) for method in methods}
    return sorted((method, re.sub(r"\{[^}]*\}", "x", path)) for method, path in found)


def test_only_health_version_and_docs_are_open(demo: Server) -> None:
    every = routes(demo)
    assert len(every) > 40 and {"/metrics", "/invocations", "/tokenize", "/v1/chat/completions"} <= {
        p for _, p in every
    }
    for method, path in every:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"X-Api-Key": "wrong"}):
            status = httpx.request(method, demo.url + path, headers=headers, timeout=30).status_code
            assert (status == 401) == (path not in OPEN), (method, path, headers, status)
    for path in ("/health/", "//health", "/nowhere", "/v1/models/x", "/metrics/"):
        assert httpx.get(demo.url + path, timeout=30).status_code == 401, path
    assert demo.healthy()


def ask(demo: Server, path: str, model: object, **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 16}
    key = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(demo.url + path, json=body, headers=key | headers, timeout=120)


@pytest.mark.parametrize("path", ["/invocations", "/v1/chat/completions", "/v1/chat/completions/batch"])
def test_the_model_that_was_asked_for_answers(demo: Server, path: str) -> None:
    for model, answer in ANSWERS.items():
        response = ask(demo, path, model)
        if path.endswith("batch"):
            assert response.status_code >= 400 or response.json()["model"] == model
            continue
        assert response.status_code == 200, response.text
        found = response.json()
        assert (found["model"], found["choices"][0]["message"]["content"]) == (model, answer)
    for model in ("maths", "math+klingon", "x\r\nHost: y", "\u0441wahili"):
        response = ask(demo, path, model)
        assert response.status_code in (400, 404, 422), response.text
        assert "choices" not in response.json()


def test_sagemakers_header_names_the_model_too(demo: Server) -> None:
    header = {"X-Amzn-SageMaker-Adapter-Identifier": "math+sw"}
    found = ask(demo, "/invocations", "base", **header).json()
    assert (found["model"], found["choices"][0]["message"]["content"]) == ("math+swahili", "8")
    assert (
        ask(demo, "/invocations", "math", **{**header, "X-Amzn-SageMaker-Adapter-Identifier": "no"}).status_code == 404
    )


def test_a_completion_at_sagemakers_route(demo: Server) -> None:
    body = {"model": "math+sw", "prompt": QUESTION + "\n", "max_tokens": 4, "temperature": 0}
    key = {"Authorization": f"Bearer {KEY}"}
    found = httpx.post(demo.url + "/invocations", json=body, headers=key, timeout=60).json()
    assert (found["model"], found["choices"][0]["text"]) == ("math+swahili", "8")
    for content in (b"", b"[]", b'{"model": 5}', b"{", b'{"model": "math+sw"}'):
        headers = key | {"Content-Type": "application/json"}
        response = httpx.post(demo.url + "/invocations", content=content, headers=headers, timeout=60)
        assert 400 <= response.status_code < 500, (content, response.text)


def test_text_alone_needs_no_weights(demo: Server) -> None:
    body = {"model": "math+bengali", "prompt": "Asha"}
    key = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(demo.url + "/tokenize", json=body, headers=key, timeout=60)
    assert response.json()["count"] > 0
    assert httpx.post(demo.url + "/tokenize", json=body | {"model": "x"}, headers=key).status_code == 404
