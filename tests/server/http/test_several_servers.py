"""Several API server processes and several engines: one family, the same names, ids and room everywhere."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Server, members, processes, serving, wait_until

DEMO = Path(__file__).parents[3] / "demo"
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
ANSWERS = {"math+swahili": "8", "swahili+math": "8", "tutor": "8", "math": "Asha", "swahili": "4", "base": "Asha"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two engines, and as many servers as vLLM starts for them: two. Room for two compositions at once in each."""
    options = ("--data-parallel-size", "2", "--allow-recipes", "--max-loras", "2", "--wait-for-room", "60")
    with serving(DEMO, tmp_path_factory.mktemp("several") / "log", *options) as server:
        assert len(processes(server, "EngineCore")) == 2
        wait_until(lambda: server.log.read_text().count("Application startup complete") == 2, 120)
        yield server


async def ask(client: httpx.AsyncClient, model: str, **options: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
    return await client.post("/v1/chat/completions", json=body | options)


def test_all_servers_and_engines_answer_alike(server: Server) -> None:
    """Over connections of their own, so that all servers are asked; more compositions than there is room for."""
    recipes = {f"math+swahili@weight=0.{n}": None for n in (1, 2, 3)}
    jobs = [*ANSWERS.items(), *recipes.items()] * 12

    async def one(model: str) -> str:
        async with httpx.AsyncClient(base_url=server.url, timeout=180) as client:
            response = await ask(client, model)
            assert response.status_code == 200, response.text
            content: str = response.json()["choices"][0]["message"]["content"]
            return content

    async def every() -> list[str]:
        limit = asyncio.Semaphore(16)

        async def limited(model: str) -> str:
            async with limit:
                return await one(model)

        return await asyncio.gather(*(limited(model) for model, _ in jobs))

    found = asyncio.run(every())
    for (model, wanted), content in zip(jobs, found, strict=True):
        assert content == (wanted or content), model
    assert server.healthy()


def test_they_greet_once(server: Server) -> None:
    wait_until(lambda: "is served at" in server.log.read_text(), 120)
    assert server.log.read_text().count("is served at") == 1


def test_names_are_the_same_everywhere(server: Server) -> None:
    listed = {tuple(card["id"] for card in server.get("/v1/models").json()["data"]) for _ in range(12)}
    names = ("base", "math", "swahili", "bengali", "math+swahili", "math+bengali", "tutor", "math+auto")
    assert listed == {names}
    refused = {server.post("/v1/completions", {"model": "maths", "prompt": "x"}).status_code for _ in range(12)}
    assert refused == {404}


def test_a_hang_up_frees_the_room_on_all(server: Server) -> None:
    async def hang_up(model: str) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            body = {"model": model, "prompt": "Asha", "max_tokens": 200, "ignore_eos": True, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                assert response.status_code == 200
                async for _ in response.aiter_lines():
                    return

    async def all_of_them() -> None:
        for round in range(3):
            await asyncio.gather(*(hang_up(f"math+bengali@weight=0.{n}{round}1") for n in range(1, 5)))
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            assert (await ask(client, "math+sw")).json()["choices"][0]["message"]["content"] == "8"

    asyncio.run(all_of_them())


def test_metrics_have_no_series_for_recipes(server: Server) -> None:
    assert not any("weight=" in server.get("/metrics").text for _ in range(4))


def test_loading_and_reloading_reach_all_engines(server: Server) -> None:
    """Whichever server is asked: connections are new ones each time."""

    def resident(name: str) -> set[bool]:
        return {server.get(f"/v1/models/{name}").json()["resident"] for _ in range(8)}

    def reloads() -> set[int]:
        return {server.get("/v1/bank").json()["reloads"] for _ in range(8)}

    (before,) = reloads()
    for round in range(1, 3):
        assert server.post("/v1/load_lora_adapter", {"lora_name": "math+bengali"}).status_code == 200
        assert resident("math+bengali") == {True}
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "math+bengali"}).status_code == 200
        wait_until(lambda: resident("math+bengali") == {False}, 10)
        answer = server.post("/v1/family/reload", {})
        assert answer.status_code == 200 and not answer.json()["changed"], answer.text
        assert reloads() == {before + round}
    test_names_are_the_same_everywhere(server)
    assert server.healthy()


def test_nothing_outlives_the_process_that_started_it(server: Server) -> None:
    """The last test of this server's. vLLM's engines would stay for ever."""
    assert len(members(server.process.pid)) > 5
    server.process.kill()
    wait_until(lambda: not members(server.process.pid), 20)
