"""What Prometheus sees: compositions by the family's names, and nothing that clients made up."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from serving import Server, events, wait_until

DASHBOARD = Path(__file__).parents[3] / "server" / "http" / "grafana.json"
PAIRS = ["math+swahili", "math+bengali"]
BODY = {"prompt": "diso heri", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(params=["pico", "two"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def series(server: Server) -> dict[str, float]:
    lines = [line for line in server.get("/metrics").text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def total(found: dict[str, float], name: str, *labels: str) -> float:
    return sum(
        value for key, value in found.items() if key.startswith(name + "{") and all(label in key for label in labels)
    )


def ask(server: Server, model: str, **more: object) -> int:
    return server.post("/v1/completions", {"model": model, **BODY, **more}).status_code


def test_requests_count_under_the_familys_names(server: Server) -> None:
    before = series(server)
    asked = {"base": 1, "math": 2, "math+sw": 3, "math+swahili@bottom=3": 2}
    for name, count in asked.items():
        for _ in range(count):
            assert ask(server, name) == 200
    for number in range(20):
        assert ask(server, f"made-up-{number}") == 404
    found = series(server)

    def more(name: str, *labels: str) -> float:
        return total(found, name, *labels) - total(before, name, *labels)

    for name, count in {"base": 1, "math": 2, "math+swahili": 5}.items():
        label = f'model_name="{name}"'
        assert more("layerloom:requests_total", label, 'outcome="length"') == count
        assert more("layerloom:generation_tokens_total", label) == 8 * count
        assert more("layerloom:prompt_tokens_total", label) > 0
        for histogram in ("time_to_first_token_seconds", "queue_time_seconds"):
            assert more(f"layerloom:{histogram}_count", label) == count
    names = set(re.findall(r'(?:model_name|adapter_name)="([^"]*)"', "\n".join(found)))
    assert names <= {"base", "math", "swahili", "bengali", "math+swahili", "math+bengali"}
    assert "made-up" not in "\n".join(found) and "bottom=" not in "\n".join(found)


def test_the_bank_and_its_adapters_under_vllms_names(server: Server) -> None:
    assert ask(server, "math+bengali") == 200 and ask(server, "math+bengali@bottom=4") == 200
    bank = server.get("/v1/bank").json()
    loaded = 'vllm:lora_adapter_loaded{adapter_name="math+bengali",level="gpu",pinned="false"}'
    wait_until(lambda: any(loaded.rstrip("}") in key and value for key, value in series(server).items()), 10)
    time.sleep(1.5)
    found = series(server)

    def value(name: str) -> float:
        return sum(v for key, v in found.items() if key.partition("{")[0] == name)

    assert value("vllm:num_gpu_loaded_lora_adapters") == bank["compositions"]
    assert value("vllm:num_cpu_loaded_lora_adapters") == 0 and value("vllm:max_gpu_lora_adapters") >= 6
    assert value("vllm:lora_adapter_load_seconds_count") >= 1
    assert value("layerloom:assemblies_total") == bank["assemblies"] > 0
    assert value("layerloom:bank_budget_bytes") == bank["budget"]
    assert total(found, "layerloom:bank_bytes", 'kind="layers"') == bank["bytes"]["layers"] > 0
    assert "vllm:lora_requests_info" in server.get("/metrics").text
    assert server.post("/v1/unload_lora_adapter", {"lora_name": "math+bengali"}).status_code == 200
    wait_until(lambda: server.get("/v1/bank").json()["compositions"] < bank["compositions"], 5)


def test_vllms_own_benchmark(server: Server, tmp_path: Path) -> None:
    """`vllm bench serve --lora-modules`; the command itself does not start from vLLM's wheel for CPUs."""
    run = "import argparse; from vllm.benchmarks.serve import *; p = argparse.ArgumentParser(); add_cli_args(p); "
    tokenizer = str(server.log.parent / "base")
    options = ["--base-url", server.url, "--model", "base", "--tokenizer", tokenizer, "--dataset-name", "random"]
    options += ["--random-input-len", "16", "--random-output-len", "8", "--ignore-eos", "--num-prompts", "40"]
    options += ["--lora-modules", *PAIRS, "--lora-assignment", "round-robin"]
    options += ["--save-result", "--result-filename", str(tmp_path / "result.json")]
    before = series(server)
    done = subprocess.run(
        [sys.executable, "-c", f"{run}main(p.parse_args())", *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (40, 0, 320)
    found = series(server)
    for name in PAIRS:
        asked = "layerloom:requests_total", f'model_name="{name}"', 'outcome="length"'
        assert total(found, *asked) - total(before, *asked) >= 20


def test_an_abort_and_a_reload_count(server: Server) -> None:
    before = series(server)
    assert server.post("/v1/family/reload", {}).status_code == 200
    body = {"model": "math", **BODY, "max_tokens": 8000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        next(events(response))

    def more(name: str, *labels: str) -> float:
        return total(series(server), name, *labels) - total(before, name, *labels)

    wait_until(lambda: more("layerloom:requests_total", 'model_name="math"', 'outcome="abort"') == 1, 10)
    assert more("layerloom:family_reloads_total", 'outcome="good"') >= 1


def test_the_dashboard_asks_for_series_that_are_there(server: Server) -> None:
    board = json.loads(DASHBOARD.read_text())
    assert ask(server, "swahili") == 200
    there = {key.partition("{")[0] for key in series(server)}
    asked = set()
    for panel in board["panels"]:
        assert panel["title"] and panel["gridPos"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel.get("targets", ()):
            asked |= set(re.findall(r"(?:layerloom|vllm):\w+", target["expr"]))
    assert len(asked) > 12 and asked <= there, asked - there


def test_grafana_reads_the_dashboard_whole() -> None:
    """As Grafana's own library has its schema: nothing is unknown to it, or of another type."""
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    def kept(ours: object, theirs: object) -> bool:
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return all(key in theirs and kept(value, theirs[key]) for key, value in ours.items())
        if isinstance(ours, list) and isinstance(theirs, list):
            return len(ours) == len(theirs) and all(map(kept, ours, theirs))
        return ours == theirs

    board = json.loads(DASHBOARD.read_text())
    plugins.register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert kept(board, read) and not kept({**board, "panel": []}, read)
