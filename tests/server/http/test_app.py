"""create_app in somebody else's program: under a prefix, beside the program's own routes, which outlive the engine."""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import uvicorn
from asking import NAMES, QUESTION, user
from engines import settings
from fastapi import FastAPI
from openai import AsyncOpenAI
from serving import free_port

from layerloom.composer import ComposeError

DEMO = Path(__file__).resolve().parents[3] / "demo"
KEYS = ["secret", "other"]
ADMIN = "boss"
ENGINE = {**settings({}), "disable_log_stats": False}
LONG = {"max_tokens": 200, "ignore_eos": True}


@dataclass
class Host:
    """A program that has an app of ours at /llm, and what it said while the engine was starting."""

    loop: asyncio.Runner
    url: str
    meanwhile: dict[str, httpx.Response] = field(default_factory=dict)

    def get(self, path: str, key: str = KEYS[0], **options: Any) -> httpx.Response:
        return self.loop.run(self._ask("GET", path, key, **options))

    def post(self, path: str, body: Any = None, key: str = KEYS[0], **options: Any) -> httpx.Response:
        return self.loop.run(self._ask("POST", path, key, json=body, **options))

    async def _ask(self, method: str, path: str, key: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as client:
            return await client.request(method, path, **options)

    def openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/llm/v1", api_key=KEYS[1], max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def host(engine_environment: None) -> Iterator[Host]:
    from layerloom.server import create_app

    llm = create_app(DEMO, allow_recipes=True, api_key=KEYS, admin_key=ADMIN, wait=False, **ENGINE)
    app = FastAPI(lifespan=llm.router.lifespan_context)
    app.mount("/llm", llm)

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    with asyncio.Runner() as loop:
        host = Host(loop, f"http://127.0.0.1:{port}")
        serving = loop.get_loop().create_task(server.serve())
        while not server.started:
            loop.run(asyncio.sleep(0.05))
        for path in ("/hello", "/llm/health", "/llm/v1/models"):
            host.meanwhile[path] = host.get(path)
        while host.get("/llm/health").status_code != 200:
            loop.run(asyncio.sleep(0.2))
        yield host
        server.should_exit = True
        loop.run(asyncio.wait_for(serving, 60))
    assert not engines()


def engines() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if "EngineCore" in " ".join(child.cmdline()):
                found.append(child)
    return found


def reason(response: httpx.Response) -> str:
    found: str = response.json()["error"]["message"]
    return found


def test_the_program_serves_while_the_engine_starts(host: Host) -> None:
    assert host.meanwhile.pop("/hello").json() == "hello"
    for response in host.meanwhile.values():
        assert response.status_code == 503
        assert "the engine is starting" in reason(response)


def test_an_app_whose_lifespan_nobody_runs_says_so(host: Host) -> None:
    from layerloom.server import create_app

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(program), base_url="http://program") as client:
            return await client.get("/llm/health")

    program = FastAPI()
    program.mount("/llm", create_app(DEMO, **ENGINE))
    response = host.loop.run(ask())
    assert response.status_code == 503
    assert "FastAPI(lifespan=app.router.lifespan_context)" in reason(response)


def test_openais_client(host: Host) -> None:
    async def ask() -> None:
        async with host.openai() as client:
            assert [model.id async for model in await client.models.list()] == [*NAMES, "math+auto"]
            options: Any = {"messages": user(QUESTION), "max_tokens": 8, "temperature": 0}
            answer = await client.chat.completions.create(model="math+auto", **options)
            assert (answer.model, answer.choices[0].message.content) == ("math+swahili", "8")
            recipe = await client.chat.completions.create(model="math+swahili@bottom=3", **options)
            assert recipe.model == "math+swahili@bottom=3"
            text = ""
            async for part in await client.chat.completions.create(model="math+swahili", stream=True, **options):
                text += part.choices[0].delta.content or ""
            assert text == "8"

    host.loop.run(ask())


@pytest.mark.parametrize("api", ["completions", "responses", "messages"])
def test_the_other_apis(host: Host, api: str) -> None:
    asked = {"completions": {"prompt": QUESTION}, "responses": {"input": QUESTION}}.get(api)
    body = {"model": "math+sw", "max_tokens": 8, **(asked or {"messages": user(QUESTION)})}
    assert host.post(f"/llm/v1/{api}", body).status_code == 200


@pytest.mark.parametrize("path", ["/v1/compositions", "/v1/bank", "/metrics", "/studio/", "/docs", "/openapi.json"])
def test_what_people_look_at(host: Host, path: str) -> None:
    assert host.get(f"/llm{path}").status_code == 200
    assert host.get(path).status_code == (200 if path in ("/docs", "/openapi.json") else 404)


def test_keys(host: Host) -> None:
    assert host.get("/llm/v1/models", key="wrong").status_code == 401
    assert host.get("/llm/metrics", key="wrong").status_code == 401
    assert host.get("/llm/health", key="wrong").status_code == 200
    assert host.get("/hello", key="wrong").status_code == 200
    # As Anthropic's clients send it.
    assert host.get("/llm/v1/models", key="wrong", headers={"X-Api-Key": KEYS[0]}).status_code == 200
    assert host.post("/llm/v1/family/reload").status_code == 403
    assert host.post("/llm/v1/family/reload", key=ADMIN).json()["changed"] is False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_lora": 3}, "'max_lora' is no option of `vllm serve`. Did you mean 'max_loras'?"),
        ({"port": 8001}, "port is for the server that the app runs in"),
        ({"max_model_len": "x"}, "--max-model-len: invalid"),
        ({"enable_auto_tool_choice": True}, "requires --tool-call-parser"),
        ({"quantization": "fp8"}, "layerloom sets quantization itself"),
        ({"preload": ["maths"]}, "no model 'maths'"),
        ({"bank_memory": "8 apples"}, "is no amount of memory"),
    ],
)
def test_options_that_do_not_fit(host: Host, options: dict[str, Any], said: str) -> None:
    from layerloom.server import create_app

    with pytest.raises(ComposeError, match=re.escape(said)):
        create_app(DEMO, **options)


def test_another_app_of_the_program_has_the_same_routes(host: Host) -> None:
    from layerloom.server import create_app

    running = host.get("/llm/openapi.json").json()["paths"]
    assert list(create_app(DEMO).openapi()["paths"]) == list(running)


def test_options_are_those_of_the_command_line(host: Host) -> None:
    from layerloom.server.http.app import words

    options = {"max_model_len": 64, "enforce_eager": False, "disable_log_stats": False, "max_num_seqs": None}
    lists = {"api_key": ["a", "b"], "allowed_origins": ["*"], "middleware": ["a.B", "c.D"]}
    said = ["--max-model-len=64", "--no-enforce-eager", "--api-key", "a", "b", '--allowed-origins=["*"]']
    assert words({**options, **lists}) == [*said, "--middleware=a.B", "--middleware=c.D"]


def test_the_program_outlives_the_engine(host: Host) -> None:
    """Last, as the tests above need it."""

    async def stream(client: AsyncOpenAI) -> str:
        options: Any = {"messages": user(QUESTION), "max_tokens": 200, "extra_body": {"ignore_eos": True}}
        try:
            async for _ in await client.chat.completions.create(model="math+swahili", stream=True, **options):
                for engine in engines():
                    engine.kill()
        except Exception as error:
            return type(error).__name__
        return "nothing"

    async def ask() -> list[str]:
        async with host.openai() as client:
            return await asyncio.wait_for(asyncio.gather(*(stream(client) for _ in range(4))), 20)

    assert set(host.loop.run(ask())) <= {"APIError", "InternalServerError"}
    until = time.monotonic() + 7  # longer than a server of its own would have taken to end
    while time.monotonic() < until:
        for path in ("/llm/health", "/llm/v1/models"):
            response = host.get(path)
            assert response.status_code == 503
            assert reason(response) == "the engine has ended"
        assert host.get("/hello").json() == "hello"
        host.loop.run(asyncio.sleep(0.5))
    assert not engines()
