"""`layerloom serve` with pages in an arena: compositions are read on a thread while others are answered."""

import asyncio

import pytest
from pico import make_family
from serving import serving

NAMES = ["math", "swahili", "math+swahili", "math+bengali", "math+swahili@bottom=2", "base"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("arena")
    path = make_family(root)
    # Memory for two whole models and a page: the six must make room for each other.
    model = sum(file.stat().st_size for file in (root / "base").glob("*.safetensors"))
    options = ("--pages", "arena", "--bank-memory", str(int(2.3 * model)), "--max-loras", "2")
    with serving(path, root / "log", *options, "--allow-recipes") as server:
        yield server


def test_all_at_once_answer_as_each_alone(server):
    async def ask(client, name: str, i: int) -> str:
        prompt = [3 + (17 * i + k) % 400 for k in range(12 + i)]
        found = await client.completions.create(model=name, prompt=prompt, max_tokens=12, temperature=0)
        return found.choices[0].text

    async def all_of_them(parallel: int) -> list[str]:
        limit = asyncio.Semaphore(parallel)

        async def one(name: str, i: int) -> str:
            async with limit:
                return await ask(client, name, i)

        async with server.async_client() as client:
            return await asyncio.gather(*(one(name, i) for i in range(4) for name in NAMES))

    together = asyncio.run(all_of_them(24))
    alone = asyncio.run(all_of_them(1))
    assert together == alone
    assert len(set(alone)) > 12, "or the test shows nothing"
    assert server.healthy()


def test_what_cannot_be_made_is_a_clear_error(server):
    answer = server.post("/v1/completions", {"model": "math+swahili@bottom=7,top=7", "prompt": "x"})
    assert answer.status_code == 400
    assert "zones overlap" in answer.json()["error"]["message"]
    assert server.healthy()
