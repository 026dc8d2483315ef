"""What the studio asks the server, without a browser."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from asking import ask
from serving import KEY, Server, wait_until

STATIC = [file.name for file in (Path(__file__).parents[3] / "server" / "studio").iterdir()]
DATA = ("family", "plans?name=math", "live", "changes", "suggestion?name=math%2Bsw")


def test_the_page_is_open_and_its_data_are_not(demo: Server) -> None:
    for path in ("", *STATIC):
        response = httpx.get(f"{demo.url}/studio/{path}")
        assert response.status_code == 200, path
        assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        again = httpx.get(f"{demo.url}/studio/{path}", headers={"If-None-Match": response.headers["ETag"]})
        assert again.status_code == 304
        assert httpx.head(f"{demo.url}/studio/{path}").status_code == 200
    for path in DATA:
        assert httpx.get(f"{demo.url}/studio/{path}").status_code == 401, path
    for path in ("x", "../family.yaml", "..%2f..%2fpyproject.toml", "%2e%2e/server/options.py", "app.js/x"):
        assert httpx.get(f"{demo.url}/studio/{path}").status_code == 401, path
        assert demo.get(f"/studio/{path}").status_code == 404, path


def test_the_address_without_a_slash_leads_there_from_under_any_prefix(demo: Server) -> None:
    response = httpx.get(f"{demo.url}/studio")
    assert response.status_code == 307 and response.headers["Location"] == "studio/"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(demo: Server) -> None:
    page = httpx.get(f"{demo.url}/studio/").text
    assert "style=" not in page and "<style" not in page and "onclick" not in page
    for name in STATIC:
        text = httpx.get(f"{demo.url}/studio/{name}").text
        text = text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text, name


def test_one_look_at_the_bank_for_many_who_look(demo: Server) -> None:
    """An idle engine is left alone: what it said last is told again, until a request may have changed it."""

    def live() -> dict[str, Any]:
        return demo.get("/studio/live").json()

    def names() -> set[str]:
        return {shown["name"] for shown in live()["compositions"]}

    ask(demo.client, "math+swahili")
    wait_until(lambda: live()["age"] > 1.5, 30)
    assert "math+swahili" in names() and live()["bank"] == demo.get("/v1/bank").json()
    if "math+bengali" in names():
        assert demo.post("/v1/unload_lora_adapter", {"lora_name": "math+bengali"}).status_code == 200
        wait_until(lambda: "math+bengali" not in names(), 30)
    ask(demo.client, "math+bengali")
    wait_until(lambda: "math+bengali" in names(), 30)
    wait_until(lambda: live()["age"] > 1.5, 30)


def test_plans_by_any_name_and_what_a_name_cannot_mean(demo: Server) -> None:
    found = demo.get("/studio/plans?name=math%2Bsw&name=maths&name=math%2Bsw@bottom=3").json()
    pair, unknown, recipe = found["compositions"]
    assert pair["name"] == "math+swahili" and [found["blends"][layer] for layer in pair["layers"][:3]] == [
        {"all": {"swahili": 1.0}},
        {"all": {"swahili": 1.0}},
        {"all": {"math": 1.0}},
    ]
    assert "Did you mean 'math'" in unknown["error"] and "--allow-recipes" in recipe["error"]
    assert demo.get("/studio/plans?" + "&".join(["name=math"] * 33)).status_code == 400
    assert demo.get("/studio/plans").status_code == 400
    assert demo.get("/studio/plans?name=" + "x" * 5000).json()["compositions"][0]["error"]


def test_where_experts_change_is_measured_once_for_all_who_ask(pico: Server) -> None:
    offer = pico.get("/studio/changes").json()
    size = (pico.log.parent / "base" / "model.safetensors").stat().st_size
    assert offer["bytes"] == 0 or 5.9 * size < offer["bytes"] <= 6 * size, "three experts, and the base beside each"

    def measure(_: int) -> list[dict]:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.stream("POST", f"{pico.url}/studio/changes", headers=headers, timeout=120) as response:
            return [json.loads(line) for line in response.iter_lines()]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(measure, range(4)))
    results = [lines[-1]["changes"] for lines in answers]
    assert all(result == results[0] for result in results)
    assert [expert["name"] for expert in results[0]["experts"]] == ["math", "swahili", "bengali"]
    assert all(0 < share < 2 for row in results[0]["experts"][0]["change"] for share in row)
    assert pico.get("/studio/changes").json()["changes"] == results[0]
    found = pico.get("/studio/suggestion?name=math%2Bswahili").json()
    assert found["name"].startswith("math+swahili@bottom=") and "heuristic" in found["reasoning"]
    refused = pico.get("/studio/suggestion?name=math")
    assert refused.status_code == 400 and "a split is between" in refused.json()["error"]["message"]
