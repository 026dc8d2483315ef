"""The examples as they are run. Those for LangChain and LiteLLM are in tests of clients, which have those installed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import ENVIRONMENT, START_LIMIT, free_port, stop, wait_until

ROOT = Path(__file__).resolve().parents[3]
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?"
BENGALI = "আশার 5টি কলা আছে। সে আরও 3টি কেনে। এখন তার কাছে কয়টি কলা আছে?"
QUIET = {**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}


@pytest.fixture(scope="module")
def tutor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log, port = tmp_path_factory.mktemp("tutor") / "log", free_port()
    command = [sys.executable, "examples/tutor.py"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**QUIET, "PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(url).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(up, START_LIMIT, log.read_text)
        yield url
    finally:
        stop(process)


def ask(pupil: httpx.Client, text: str) -> httpx.Response:
    return pupil.post("/ask", json=text)


def test_the_tutor_answers_in_the_pupils_language(tutor: str) -> None:
    with httpx.Client(base_url=tutor, timeout=60) as pupil:
        assert "Tutor" in pupil.get("/").text
        answer = ask(pupil, QUESTION)
        assert (answer.text, answer.headers["X-Model"]) == ("8", "math+swahili")
        assert ask(pupil, "5 + 3?").headers["X-Model"] == "math+swahili", "the thread is kept"
        assert ask(pupil, BENGALI).headers["X-Model"] == "math+bengali"
        assert ask(pupil, "5 + 3?").headers["X-Model"] == "math+bengali"
    with httpx.Client(base_url=tutor, timeout=60) as other:
        other.get("/")
        assert ask(other, "5 + 3?").headers["X-Model"] == "math", "each pupil has a thread"


def test_the_tutor_is_bounded(tutor: str) -> None:
    with httpx.Client(base_url=tutor, timeout=60) as pupil:
        assert ask(pupil, QUESTION).status_code == 422, "no cookie"
        pupil.get("/")
        assert ask(pupil, "a" * 301).status_code == 422
        for _ in range(12):
            assert ask(pupil, QUESTION).status_code == 200
        # More tokens than the demo's context has.
        long = ask(pupil, "5?" * 150)
        assert long.status_code == 400
        assert "maximum context length" in long.json()["detail"]


def test_the_batch_script() -> None:
    asked = [
        {"id": 1, "model": "math+swahili", "messages": [{"role": "user", "content": QUESTION}]},
        {"id": 2, "model": "math", "prompt": f"{QUESTION}\n"},
        {"id": 3, "model": "math+auto", "prompt": f"{BENGALI}\n"},
        {"id": 4, "model": "maths", "prompt": QUESTION},
        {"id": 5, "model": "math"},
    ]
    lines = "\n".join([*map(json.dumps, asked), "[]", "no JSON", *map(json.dumps, asked[:3] * 100)])
    command = [sys.executable, "examples/batch.py", "demo"]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = list(map(json.loads, done.stdout.splitlines()))
    assert rows[0] == {"id": 1, "model": "math+swahili", "text": "8"}
    assert rows[1] == {"id": 2, "model": "math", "text": "Asha"}
    assert rows[2]["model"] == "math+bengali"
    reasons = ["UnknownName: there is no model 'maths'", "KeyError: 'prompt'", "TypeError", "JSONDecodeError"]
    for row, reason in zip(rows[3:7], reasons, strict=True):
        assert row["error"].startswith(reason)
    assert rows[7:] == rows[:3] * 100
