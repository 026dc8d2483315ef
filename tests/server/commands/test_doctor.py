"""layerloom doctor: what would keep a family from being served, and what fits."""

import json
import shutil
from pathlib import Path

import pytest
from pico import make_family
from typer.testing import CliRunner

from layerloom.composer import Family
from layerloom.server.commands.app import app
from layerloom.server.commands.findings import FINE, NOTE, STOP
from layerloom.server.commands.machine import look_at_machine
from layerloom.server.commands.room import LEAST_CACHE, PROCESSES, look_at_room
from layerloom.server.commands.software import look_at_names

DEMO = Path(__file__).resolve().parents[3] / "demo"


def test_a_machine_that_can_serve_and_a_family_that_cannot_be(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    shutil.copytree(DEMO, root)
    (root / "math.safetensors").write_bytes(b"x" * 100)
    result = CliRunner().invoke(app, ["doctor", str(root), "--json"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said.keys() == {"ok", "versions", "device", "memory", "family", "findings"}
    assert (said["ok"], said["device"], said["family"]) == (False, "cpu", None)
    assert said["versions"]["vllm"] and said["memory"]["free"] <= said["memory"]["total"]
    (stop,) = [finding for finding in said["findings"] if finding["level"] == STOP]
    assert stop["about"] == "family" and "math.safetensors" in stop["text"] and stop["next"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    kinds = {"math": "task", "code": "task", "swahili": "language", "bengali": "language"}
    return Family.load(make_family(tmp_path_factory.mktemp("room"), experts=kinds))


def test_how_many_fit_at_once(family: Family) -> None:
    found, room = look_at_room(family, 10**12, gpu=False)
    assert [finding.level for finding in found] == [FINE, FINE]
    assert room.compositions == room.at_once == 8
    # Of a pair the outer layers are the language's, and the middle is shared with the task's.
    assert 0 < room.smallest <= room.largest < room.all < 8 * room.largest
    (file,) = (family.root / "base").glob("*.safetensors")
    assert 0 < file.stat().st_size - room.base < 20_000


def test_where_some_do_not_fit(family: Family) -> None:
    _, room = look_at_room(family, 10**12, gpu=False)
    free = PROCESSES + LEAST_CACHE + room.base + room.all - 1
    found, less = look_at_room(family, free, gpu=False)
    assert 0 < less.at_once < 8 and found[-1].level == NOTE
    assert f"--max-loras {less.at_once} --bank-memory" in found[-1].next
    found, none = look_at_room(family, PROCESSES, gpu=False)
    assert none.at_once == 0 and found[-1].level == STOP and found[-1].next


def test_plugins_that_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "layerloom")
    (finding,) = look_at_names()
    assert finding.level == NOTE and "leaves out" in finding.text
    monkeypatch.setenv("VLLM_PLUGINS", "layerlom")
    (finding,) = look_at_names()
    assert "there is no layerlom" in finding.text


def test_places_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/proc/nothing")
    (finding,) = [each for each in look_at_machine({}) if each.about == "files"]
    assert finding.level == NOTE and "/proc/nothing" in finding.text and finding.next
