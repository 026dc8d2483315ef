"""What operators' tools do with a running server: list, load, watch, unload, and look at its memory."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml
from pico import make_family
from serving import KEY, Server, serving

ADMIN = "open sesame"
PAIRS = ["math+swahili", "math+bengali"]


@contextmanager
def full_disk(place: Path) -> Iterator[Path]:
    """A disk of its own without a byte left, where this user may mount one; else a folder nobody can make files in."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        yield Path("/proc")
        return
    try:
        with suppress(OSError), (place / "full").open("wb", buffering=0) as file:
            while file.write(bytes(1024)):
                pass
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Room for two pairs beside the pinned one; and none on the disk of the cache directory."""
    root = tmp_path_factory.mktemp("operators")
    family = make_family(root)
    said = yaml.safe_load(family.read_text())
    said |= {"pinned": ["swahili"], "preload": ["math+sw"], "compositions": {"tutor": "math+swahili"}}
    family.write_text(yaml.safe_dump(said, sort_keys=False))
    model = (root / "base" / "model.safetensors").stat().st_size
    with pytest.MonkeyPatch.context() as patch, full_disk(root / "cache") as full:
        # As charts for vLLM set it; with it vLLM has routes of its own for /adapters.
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        patch.setenv("XDG_CACHE_HOME", str(full))
        patch.setenv("LAYERLOOM_ADMIN_KEY", ADMIN)
        options = ("--allow-recipes", "--api-key", KEY, "--max-loras", "1", "--bank-memory", str(int(3.3 * model)))
        with serving(family, root / "log", *options, "--pages", "arena", "--preload", "bengali") as server:
            yield server


def change(server: Server, path: str, **body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}", "X-Admin-Key": ADMIN}
    return httpx.post(server.url + path, json=body, headers=headers, timeout=120)


def load(server: Server, name: object, **more: object) -> httpx.Response:
    return change(server, "/v1/load_lora_adapter", lora_name=name, **more)


def unload(server: Server, name: str) -> httpx.Response:
    return change(server, "/v1/unload_lora_adapter", lora_name=name)


def cards(server: Server) -> dict[str, dict]:
    return {card["id"]: card for card in server.get("/v1/models").json()["data"]}


def resident(server: Server) -> set[str]:
    return {name for name, card in cards(server).items() if card["resident"]}


def test_what_the_family_and_the_operator_want_is_there_at_start(server: Server) -> None:
    assert resident(server) == {"base", "swahili", "bengali", "math+swahili", "tutor"}
    shown = {card["name"]: card for card in server.get("/v1/compositions").json()["data"]}
    assert {name: card["pinned"] for name, card in shown.items()} == {
        "swahili": True,
        "math+swahili": False,
        "bengali": False,
    }


def test_as_a_controller_does_it(server: Server) -> None:
    """AIBrix's: list, load what is not there, look until it is, and unload it again."""
    assert not cards(server)["math+bengali"]["resident"]
    answer = load(server, "math+bengali", lora_path="math+bengali")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'math+bengali' added successfully.")
    assert cards(server)["math+bengali"]["resident"]
    assert load(server, "math+bn").status_code == 200, "again, by another of its names"
    answer = unload(server, "math+bengali")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'math+bengali' removed successfully.")
    assert not cards(server)["math+bengali"]["resident"]
    assert unload(server, "math+bengali").status_code == 404
    # SageMaker's names for the same.
    assert change(server, "/adapters", name="math+bengali", src="math+bengali").status_code == 200
    assert cards(server)["math+bengali"]["resident"]
    headers = {"Authorization": f"Bearer {KEY}", "X-Admin-Key": ADMIN}
    assert httpx.delete(f"{server.url}/adapters/math+bengali", headers=headers, timeout=60).status_code == 200
    assert not cards(server)["math+bengali"]["resident"]


@pytest.mark.parametrize(
    "name, path, status, said",
    [
        ("math+klingon", None, 404, "math+klingon"),
        ("math+swahili", "/models/lora", 400, "leave lora_path out"),
        ("math+swahili", "s3://bucket/lora", 400, "come from the family"),
        ("math+swahili@bottom=99", None, 400, "bottom"),
        ("", None, 404, "there is no model"),
        ("base", None, 200, "added"),
        ("x" * 5000, None, 400, "4096"),
        (5, None, 400, "string"),
    ],
)
def test_what_cannot_be_loaded(server: Server, name: object, path: str | None, status: int, said: str) -> None:
    answer = load(server, name, lora_path=path)
    assert answer.status_code == status and said in answer.text, answer.text
    assert len(answer.text) < 2000 and server.healthy()


def test_pinned_ones_stay(server: Server) -> None:
    answer = unload(server, "sw")
    assert answer.status_code == 400 and "pinned" in answer.json()["error"]["message"]
    for number in range(1, 6):
        assert load(server, f"math+bengali@bottom={number}").status_code == 200
    assert "swahili" in resident(server), "and others had to go"
    assert server.get("/v1/bank").json()["evictions"] > 0


def test_the_bank_adds_up(server: Server) -> None:
    assert load(server, "math+swahili").status_code == 200 and load(server, "swahili").status_code == 200
    bank, shown = server.get("/v1/bank").json(), server.get("/v1/compositions").json()["data"]
    kinds = bank["bytes"]
    assert kinds["layers"] + kinds["stems"] + kinds["deltas"] + bank["free"] == pytest.approx(bank["budget"], rel=0.01)
    assert bank["compositions"] == len(shown) and 0 <= bank["fragmentation"] < 1
    by_name = {card["name"]: card for card in shown}
    assert by_name["math+swahili"]["shared_bytes"] > 0, "its outer layers are swahili's"
    assert sum(card["bytes"] - card["shared_bytes"] for card in shown) < kinds["layers"] + kinds["stems"]
    assert bank["assemblies"] >= 3 and bank["assembly_bytes"] > 0 and bank["longest_assembly"] > 0
    hits = bank["hits"]
    time.sleep(1.5)
    assert load(server, "swahili").status_code == 200
    assert server.get("/v1/bank").json()["hits"] == hits + 1


def test_a_composition_layer_by_layer(server: Server) -> None:
    found = server.get("/v1/compositions/math+sw").json()
    assert found["name"] == "math+swahili" and len(found["layers"]) == 9
    assert {layer["blend"] for layer in found["layers"]} >= {"math", "swahili"}
    assert found["layers"][-1] == {"layer": "stem", "blend": "swahili", "weights": {"all": {"swahili": 1.0}}}
    assert found["recipe"]["task"] == "math"
    assert server.get("/v1/compositions/base").json()["resident"]
    assert server.get("/v1/compositions/klingon").status_code == 404


def test_one_model_by_any_name(server: Server) -> None:
    """The openai client writes the name into the path as it is; others write %2B."""
    found = server.client.models.retrieve("math+swahili")
    assert found.id == "math+swahili"
    for path in ("math%2Bswahili", "math+sw"):
        assert server.get(f"/v1/models/{path}").json() == server.get("/v1/models/math+swahili").json()
    assert server.get("/v1/models/nobody").status_code == 404
    assert server.get("/v1/models/math+klingon").status_code == 404


def test_cards_stay_as_they_are_and_show_no_path(server: Server) -> None:
    before = server.get("/v1/models")
    time.sleep(1.1)
    assert before.json() == server.get("/v1/models").json()
    assert str(server.log.parent) not in before.text


def test_changing_needs_the_admin_key(server: Server) -> None:
    body = {"lora_name": "math"}
    for headers, status in [
        ({}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 403),
        ({"Authorization": f"Bearer {KEY}", "X-Admin-Key": "x"}, 403),
        ({"X-Admin-Key": ADMIN}, 401),
        ({"Authorization": f"Bearer {ADMIN}"}, 200),
    ]:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            found = httpx.post(server.url + path, json=body, headers=headers, timeout=60)
            assert found.status_code == status, (path, headers, found.text)
    assert httpx.post(server.url + "/v1/family/reload", headers={"Authorization": f"Bearer {KEY}"}).status_code == 403
    assert ADMIN not in server.log.read_text()


def test_the_schema_is_kept(server: Server, tmp_path: Path) -> None:
    """Random requests, made from the server's own OpenAPI, get no 5xx and what it says."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"]
    headers = ["--header", f"Authorization: Bearer {KEY}", "--header", f"X-Admin-Key: {ADMIN}"]
    paths = r"^/v1/(models|compositions|bank|family|load_lora|unload_lora)|^/adapters"
    checks = ["--checks", "not_a_server_error,response_schema_conformance", "--max-examples", "25", "--workers", "1"]
    done = subprocess.run(
        [*command, *headers, "--include-path-regex", paths, *checks, "--phases", "examples,coverage,fuzzing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert server.healthy()
