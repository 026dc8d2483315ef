"""Compositions that come, wait for room, and go: what a request needs is never let go of."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pico import make_family
from serving import LONG_STREAMS, Server, events, serving, wait_until

PATIENCE = 3
# What leases do, whatever pages are.
of_one_kind = pytest.mark.parametrize("server", ["packed"], indirect=True)
NAMES = ["math", "swahili", "bengali", "math+swahili", "math+bengali"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("residency"), max_position_embeddings=32768).parent


@pytest.fixture(scope="module", params=["packed", "arena"])
def server(request: pytest.FixtureRequest, root: Path) -> Iterator[Server]:
    """Room for one composition that is a whole model of its own, or two that share half of it."""
    model = (root / "base" / "model.safetensors").stat().st_size
    options = ("--max-loras", "1", "--bank-memory", str(int(1.8 * model)), "--wait-for-room", str(PATIENCE))
    with serving(root, root / "log", *options, "--pages", request.param, "--allow-recipes", *LONG_STREAMS) as server:
        yield server


def ask(server: Server, model: str, **options: Any) -> httpx.Response:
    body = {"model": model, "prompt": "diso heri", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **options}
    return server.post("/v1/completions", body)


def ask_again(server: Server, model: str) -> httpx.Response:
    """As a client does who is told to come again: at this size a stream can keep the server busier than its timers."""
    until = time.monotonic() + 60
    while (response := ask(server, model)).status_code == 503 and time.monotonic() < until:
        time.sleep(float(response.headers["retry-after"]))
    return response


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    answer: str = response.json()["choices"][0]["text"]
    return answer


@contextmanager
def in_use(server: Server, model: str, tokens: int = 32000) -> Iterator[Iterator[str]]:
    """The rest of a stream of this composition's, which has begun."""
    body = {"model": model, "prompt": "diso", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
        rest = events(response)
        assert next(rest).startswith("{")
        yield rest


def test_they_take_turns_and_answer_as_alone(server: Server) -> None:
    names = [*NAMES, "base", *(f"math+swahili@bottom={bottom},top=1,transition=0" for bottom in range(1, 7))]
    alone = {name: text(ask(server, name)) for name in names}
    assert len(set(alone.values())) > 8, "or the test shows nothing"
    with ThreadPoolExecutor(8) as pool:
        jobs = [names[i * 7 % len(names)] for i in range(8 * len(names))]
        found = list(pool.map(lambda name: ask(server, name), jobs))
    refused = [response for response in found if response.status_code == 503]
    for name, response in zip(jobs, found, strict=True):
        if response.status_code != 503:
            assert text(response) == alone[name], name
    assert len(refused) < len(jobs) / 4, "most get their turn in time"
    assert server.healthy()


@of_one_kind
def test_without_room_in_time_it_is_503_and_when_to_come_again(server: Server) -> None:
    with in_use(server, "math"):
        began = time.monotonic()
        response = ask(server, "swahili")
        assert PATIENCE - 0.5 < time.monotonic() - began < PATIENCE + 60
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("ServiceUnavailableError", 503)
        assert "all room for compositions was in use by others for 3 s" in error["message"]
        # The same one, and the base, need none.
        assert text(ask(server, "math")) and text(ask(server, "base"))
    # A client that hung up holds nothing.
    assert text(ask_again(server, "swahili"))


@of_one_kind
def test_who_waits_gets_the_room_as_soon_as_there_is_some(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool, in_use(server, "math", 60) as rest:
        waiting = [pool.submit(ask, server, name) for name in ("swahili", "bengali")]
        assert list(rest)[-1] == "[DONE]"
        for future in waiting:
            assert text(future.result(PATIENCE + 5))


@of_one_kind
def test_what_everybody_asks_for_starves_nobody(server: Server) -> None:
    """One composition that always has a request, of one client or another, and somebody who wants another."""
    answered = Event()

    def again_and_again(number: int) -> int:
        count = 0
        # A second answer each, however slow the machine: nobody of the crowd is starved either.
        while not answered.is_set() or count < 2:
            assert text(ask(server, "math", max_tokens=20 + 7 * number))
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        crowd = [pool.submit(again_and_again, number) for number in range(6)]
        time.sleep(1)
        try:
            assert text(ask_again(server, "swahili"))
        finally:
            answered.set()
        assert all(future.result(60) > 1 for future in crowd)


@of_one_kind
def test_who_hangs_up_while_waiting_is_forgotten(server: Server) -> None:
    with in_use(server, "math"):
        for name in ("swahili", "bengali", "math+swahili@bottom=3"):
            with closing(HTTPConnection(urlsplit(server.url).netloc)) as connection:
                body = json.dumps({"model": name, "prompt": "x"})
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                time.sleep(0.5)
    assert text(ask_again(server, "bengali"))
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0, 30)


@of_one_kind
def test_what_can_never_fit_is_refused_at_once(server: Server) -> None:
    """The layers of one expert and the stem of another: two stems are more than there is."""
    with in_use(server, "math"):
        assert ask(server, "math+swahili@bottom=9").status_code == 400
    assert server.healthy()


@pytest.mark.parametrize("damage", ["truncated", "rewritten"])
def test_an_expert_damaged_after_its_first_use(server: Server, root: Path, damage: str) -> None:
    """It was used, was let go of, and its file is not what it was: an error, for it alone, until it is restored."""
    file = root / "bengali" / "model.safetensors"
    content, before = file.read_bytes(), text(ask(server, "bengali"))
    assert text(ask(server, "math")) and text(ask(server, "swahili")), "which leaves no room for bengali"
    try:
        with file.open("r+b") as raw:
            if damage == "truncated":
                raw.truncate(len(content) // 2)
            else:
                raw.write((root / "math" / "model.safetensors").read_bytes())
        for name in ("bengali", "math+bengali", "math+bengali@bottom=2"):
            response = ask(server, name)
            assert 400 <= response.status_code < 600 and response.status_code != 500, response.text
            assert "model.safetensors" in response.text and "assembled" in response.text
        assert text(ask(server, "math")) and text(ask(server, "swahili")) and server.healthy()
    finally:
        file.write_bytes(content)
    assert text(ask(server, "bengali")) == before


def test_recipes_leave_nothing_behind(server: Server) -> None:
    """The next one costs what the first did, and the metrics have no series for any."""
    recipes = [f"math+swahili@weight=0.{n:03d}1" for n in range(120)]
    times = []
    for recipe in recipes:
        began = time.monotonic()
        assert ask(server, recipe, max_tokens=1).status_code == 200
        times.append(time.monotonic() - began)
    first, last = (sorted(part)[len(part) // 2] for part in (times[:40], times[-40:]))
    assert last < 2 * first + 0.05, f"{first:.3f} s, later {last:.3f} s"
    series = server.get("/metrics").text
    assert "weight=" not in series
    assert sum(line.startswith("vllm:lora_requests_info{") for line in series.splitlines()) <= 1
    assert "weight=" not in json.dumps(server.get("/v1/models").json())
