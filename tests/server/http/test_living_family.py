"""A family that changes while it is served: replaced whole or not at all, and no answer is of two weights."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import Server, events, wait_until

PROMPT = {"prompt": "diso heri", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


class Family:
    """A family's files, and the server that serves them."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root = root
        self.server = server
        self.first = (root / "family.yaml").read_text()

    def write(self, **experts: str | None) -> None:
        """family.yaml as it was at first but for some experts, put in its place at once."""
        said = yaml.safe_load(self.first)
        for name, path in experts.items():
            if path is None:
                del said["experts"][name]
            else:
                said["experts"][name] = {**said["experts"].get(name, {"kind": "language"}), "path": path}
        self.put(yaml.safe_dump(said, sort_keys=False))

    def put(self, text: str) -> None:
        other = self.root / ".family.yaml"
        other.write_text(text)
        other.replace(self.root / "family.yaml")

    def digest(self) -> str:
        found: str = self.server.get("/v1/bank").json()["family"]
        return found

    def reload(self) -> httpx.Response:
        return self.server.post("/v1/family/reload", {})

    def ask(self, name: str) -> str:
        response = self.server.post("/v1/completions", {"model": name, **PROMPT})
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["text"]
        return text


@pytest.fixture(params=["pico", "two"])
def family(request: pytest.FixtureRequest) -> Iterator[Family]:
    """With one server process, and with two; left as it was."""
    server: Server = request.getfixturevalue(request.param)
    found = Family(server.log.parent, server)
    (found.root / "broken").mkdir(exist_ok=True)
    yield found
    found.put(found.first)
    assert found.reload().status_code == 200
    settle(found)


def settle(family: Family) -> None:
    """Waits until all server processes list the family of this moment."""
    names = {"base", *yaml.safe_load((family.root / "family.yaml").read_text())["experts"]}

    def listed() -> bool:
        return all(
            {card["id"] for card in family.server.get("/v1/models").json()["data"] if "+" not in card["id"]} == names
            for _ in range(8)
        )

    wait_until(listed, 30)


def test_names_come_and_go(family: Family) -> None:
    before = family.digest()
    family.write(newcomer="bengali", bengali=None)
    answer = family.reload()
    assert answer.status_code == 200, answer.text
    settle(family)
    assert answer.json()["family"] == family.digest() != before and answer.json()["compositions"] == 6
    assert family.ask("math+newcomer") != family.ask("math+swahili")
    for _ in range(4):
        gone = family.server.post("/v1/completions", {"model": "math+bengali", **PROMPT})
        assert gone.status_code == 404, gone.text


def test_new_weights_under_an_old_name_and_running_requests_on_the_old(family: Family) -> None:
    swahili, bengali = family.ask("swahili"), family.ask("bengali")
    assert swahili != bengali
    body = {"model": "swahili", **PROMPT, "max_tokens": 1500, "stream": True}
    with httpx.stream("POST", f"{family.server.url}/v1/completions", json=body, timeout=120) as response:
        stream = events(response)
        begun = next(stream)
        family.write(swahili="bengali")
        assert family.reload().status_code == 200
        settle(family)
        wait_until(lambda: all(family.ask("swahili") == bengali for _ in range(4)), 10)
        text = "".join(
            json.loads(e)["choices"][0]["text"] for e in [begun, *stream] if e != "[DONE]" and "choices" in e
        )
    family.put(family.first)
    assert family.reload().status_code == 200
    wait_until(lambda: all(family.ask("swahili") == swahili for _ in range(4)), 10)
    whole = family.server.post("/v1/completions", {"model": "swahili", **PROMPT, "max_tokens": 1500}).json()
    assert text == whole["choices"][0]["text"], "as if nothing had happened"


@pytest.mark.parametrize(
    "text, said",
    [
        ("{", "line 1"),
        ("base: base\nexperts: {math: {kind: task, path: nowhere}}\n", "nowhere"),
        ("base: base\nexperts: {math: {kind: task, path: broken}}\n", "config.json"),
        ("base: math\nexperts: {math: {kind: task, path: math}}\n", "restart the server"),
        ("base: base\nexperts: {math: {kind: task, path: math}}\npinned: [klingon]\n", "pinned"),
    ],
)
def test_a_broken_one_changes_nothing(family: Family, text: str, said: str) -> None:
    before, digest = family.ask("math+swahili"), family.digest()
    family.put(text)
    answer = family.reload()
    assert answer.status_code == 400 and said in answer.text, answer.text
    assert str(family.root) not in answer.text
    assert family.digest() == digest and family.ask("math+swahili") == before
    assert "the family stays as it was" in family.server.log.read_text()


def test_a_change_of_the_file_is_seen(family: Family) -> None:
    family.write(newcomer="bengali")
    wait_until(lambda: "newcomer" in family.server.get("/v1/models").text, 30)
    settle(family)
    assert family.ask("newcomer")


def test_hangup_means_reload(family: Family) -> None:
    """What experts hold may have changed, and family.yaml not."""
    swahili, bengali, kept = family.ask("swahili"), family.ask("bengali"), family.root / "kept"
    shutil.copytree(family.root / "swahili", kept)
    try:
        for name in ("model.safetensors", "config.json"):
            copy = family.root / "copy"
            shutil.copy(family.root / "bengali" / name, copy)
            copy.replace(family.root / "swahili" / name)
        assert family.ask("swahili") == swahili, "until somebody says so"
        os.kill(family.server.process.pid, signal.SIGHUP)
        wait_until(lambda: all(family.ask("swahili") == bengali for _ in range(4)), 30, family.server.tail)
    finally:
        (kept / "model.safetensors").replace(family.root / "swahili" / "model.safetensors")
        shutil.rmtree(kept)
    assert family.reload().status_code == 200
    wait_until(lambda: all(family.ask("swahili") == swahili for _ in range(4)), 10)


def test_many_reloads_under_load(family: Family) -> None:
    """Good and broken ones in turn, two at once: no request fails, no token is another's, nothing is left behind."""
    alone = {name: family.ask(name) for name in ("math", "swahili", "math+swahili", "math+bengali")}
    wrong: list[Any] = []
    ended = threading.Event()

    def ask_on(name: str) -> None:
        while not ended.is_set():
            response = family.server.post("/v1/completions", {"model": name, **PROMPT})
            if response.status_code != 200 or response.json()["choices"][0]["text"] != alone[name]:
                wrong.append((name, response.text))

    crowd = [threading.Thread(target=ask_on, args=(name,)) for name in alone]
    for thread in crowd:
        thread.start()
    try:
        for number in range(8):
            if number % 2:
                family.put("{")
            else:
                family.write(**({"newcomer": "bengali"} if number % 4 else {}))
            both = [threading.Thread(target=family.reload) for _ in range(2)]
            for thread in both:
                thread.start()
            for thread in both:
                thread.join()
    finally:
        ended.set()
        for thread in crowd:
            thread.join()
    assert not wrong, wrong[:3]
    assert family.server.healthy()
