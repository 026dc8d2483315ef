"""LiteLLM's proxy before the server, with the configuration in examples/, and examples/langchain_chat.py."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from asking import LISTED, QUESTION, ask
from installed import PYTHON, QUIET, ROOT, need
from openai import OpenAI
from serving import KEY, Server, free_port, stop, wait_until

STARTS = 180.0
"""Seconds that the proxy may take."""


@pytest.fixture(scope="module")
def proxy(demo: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of it."""
    need(PYTHON)
    log, url, key = (
        tmp_path_factory.mktemp("proxy") / "log",
        f"http://127.0.0.1:{(port := free_port())}",
        f"sk-{secrets.token_hex(32)}",
    )
    command = [PYTHON.with_name("litellm"), "--config", "examples/litellm.yaml", "--host", "127.0.0.1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            env=environment(demo, LITELLM_MASTER_KEY=key),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/health/readiness").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(up, STARTS, log.read_text)
        with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60) as client:
            yield client
    finally:
        stop(process)


def environment(demo: Server, **more: str) -> dict[str, str]:
    return {**os.environ, **QUIET, "OPENAI_BASE_URL": f"{demo.url}/v1", "OPENAI_API_KEY": KEY, **more}


@pytest.mark.parametrize("name", ["math+swahili", "tutor", "Math + SW"])
def test_every_composition_is_behind_the_wildcard(proxy: OpenAI, name: str) -> None:
    assert ask(proxy, f"layerloom/{name}").choices[0].message.content == "8"


def test_the_proxy_lists_what_the_family_has(proxy: OpenAI) -> None:
    assert [model.id for model in proxy.models.list()] == [f"layerloom/{name}" for name in LISTED]


def test_the_proxy_streams(proxy: OpenAI) -> None:
    *chunks, last = ask(proxy, "layerloom/math+swahili", stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "8"
    assert last.usage.completion_tokens == 2


def test_the_proxy_hands_on_what_auto_chose(proxy: OpenAI) -> None:
    answer = proxy.chat.completions.with_raw_response.create(
        model="layerloom/math+auto", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=4
    )
    assert answer.parse().choices[0].message.content == "8"
    assert answer.headers["llm_provider-X-Layerloom-Model"] == "math+swahili"


def test_the_proxy_hands_on_why_a_model_is_not_found(proxy: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'math\+swahili'\?"):
        ask(proxy, "layerloom/math+swahli")


def test_the_example_for_langchain(demo: Server) -> None:
    need(PYTHON)
    done = subprocess.run(
        [PYTHON, Path("examples/langchain_chat.py"), "math+auto", QUESTION],
        cwd=ROOT,
        env=environment(demo),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout, done.returncode) == ("8\n", 0), done.stderr
