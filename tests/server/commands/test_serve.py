"""What `layerloom serve` shows: its start, what it serves, what is wrong, and how it ends."""

import asyncio
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pico import make_family
from serving import COMMAND, ENVIRONMENT, LONG_STREAMS, OPTIONS, free_port, members, wait_until
from terminal import CONTROL_C, Terminal, ordinary, terminal
from typer.testing import CliRunner

from layerloom.composer import Family
from layerloom.server.commands.app import app
from layerloom.server.commands.room import room_of

# Nothing that vLLM's log is asked for with.
QUIET = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_LOGGING_LEVEL"}
LIMIT = 300.0
QUESTION = "bada dede gi"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_family(tmp_path_factory.mktemp("greeted"), max_position_embeddings=32768)
    file = path / "family.yaml" if path.is_dir() else path
    file.write_text(file.read_text() + f"example: {QUESTION}\npreload: [math+swahili]\n")
    return path


@pytest.fixture(scope="module")
def greeted(family: Path) -> Iterator[Terminal]:
    options = ("--port", free_port(), *OPTIONS, *LONG_STREAMS, "--api-key", "secret")
    with terminal("serve", family, *options, **QUIET) as shown:
        shown.wait_for("is served at", LIMIT)
        shown.wait_for(QUESTION, 10)
        yield shown


def address(shown: Terminal) -> str:
    found = re.search(r"is served at (http://\S+)", shown.text)
    assert found
    return found[1]


def test_it_says_what_it_does_and_then_what_is_served(greeted: Terminal, family: Path) -> None:
    text = greeted.text
    for step in ("starting vLLM", "loading the base", "making the compositions"):
        assert step in text
    for said in ("  models  ", "math+swahili", "math+auto", "MB for compositions; 1 made yet", "/docs", "/studio"):
        assert said in text
    # What doctor says beforehand.
    bank = re.search(r"bank +([\d.]+) MB", text)
    assert bank and float(bank[1]) == pytest.approx(room_of(Family.load(family), 10**12).all / 1e6, rel=0.1)
    # Neither vLLM's log nor what its libraries complain of.
    assert not re.search(r"pid=\d+|WARNING|INFO|Warning|Triton", text)
    url = address(greeted)
    assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/docs").status_code == 200
    assert httpx.get(f"{url}/studio", follow_redirects=True).status_code == 200


def test_its_line_works_as_it_stands(greeted: Terminal) -> None:
    line = greeted.text[greeted.text.index("  curl ") :].partition("\n\n")[0]
    done = subprocess.run(line, shell=True, capture_output=True, env={**os.environ, "API_KEY": "secret"}, check=True)
    assert json.loads(done.stdout)["model"] == "math+swahili"


def test_a_second_interrupt_ends_it_at_once(greeted: Terminal) -> None:
    """The last test of this server."""

    async def ask() -> int:
        body = {"model": "math", "prompt": QUESTION, "max_tokens": 30000, "stream": True, "ignore_eos": True}
        parts = 0
        async with (
            httpx.AsyncClient(headers={"Authorization": "Bearer secret"}, timeout=60) as client,
            client.stream("POST", f"{address(greeted)}/v1/completions", json=body) as response,
        ):
            try:
                async for _ in response.aiter_bytes():
                    parts += 1
                    if parts == 3:
                        greeted.type(CONTROL_C)
                        await asyncio.to_thread(greeted.wait_for, "stopping after 1 requests, within 30 s", 10)
                    if parts == 10:
                        greeted.type(CONTROL_C)
            except httpx.HTTPError:
                pass
        return parts

    assert asyncio.run(ask()) >= 10
    began = time.monotonic()
    assert greeted.wait(30) == 130
    assert time.monotonic() - began < 10
    wait_until(lambda: not members(greeted.process.pid), 5)
    assert "Traceback" not in greeted.text and "leaked" not in greeted.text


def test_an_interrupt_ends_a_start(family: Path) -> None:
    with terminal("serve", family, "--port", free_port(), *OPTIONS, **QUIET) as shown:
        shown.wait_for("starting the engine's workers", LIMIT)
        shown.type(CONTROL_C)
        assert shown.wait(30) == 130
        assert shown.text.rstrip().endswith("stopped")
        wait_until(lambda: not members(shown.process.pid), 5)


def start(family: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """A start that fails, where there is no terminal."""
    command = [COMMAND, "serve", family, *OPTIONS, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env={**ordinary(), **QUIET}, timeout=LIMIT)


def test_a_start_that_fails_in_an_engine_says_why_and_where_its_log_is(family: Path) -> None:
    done = start(family, "--port", free_port(), "--bank-memory", "1K")
    assert done.returncode == 1
    *steps, reason, log = done.stderr.strip().splitlines()
    assert reason.startswith("error: the server did not start: any 6 of ") and "--bank-memory" in reason
    assert all(
        re.fullmatch(r"\d\d:\d\d:\d\d [a-z].*|warning: Failed to create oneDNN linear.*|", line) for line in steps
    )
    assert any(line.endswith("loading the base") for line in steps)
    file = Path(log.removeprefix("vLLM's log of it: "))
    assert "Traceback" in file.read_text() and "--bank-memory" in file.read_text()
    file.unlink()
    file.parent.rmdir()


def test_a_port_that_somebody_has(family: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = start(family, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert re.search(r"error: 127.0.0.1:\d+: Address already in use: choose another --port", done.stderr)


def test_options_of_vllm() -> None:
    result = CliRunner().invoke(app, ["serve", "--vllm-help", "max-model-len"])
    assert result.exit_code == 0 and "--max-model-len" in result.stdout
