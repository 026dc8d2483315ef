"""The studio with 212 compositions of 28 experts, which are three checkpoints under many names."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browsing import PHONE, visiting
from serving import Server

TASKS = ("math", "code", "law", "medicine", "physics", "chemistry", "history", "tutoring", "grading", "writing")
LANGUAGES = {
    **{"swahili": "sw", "bengali": "bn", "arabic": "ar", "urdu": "ur", "hindi": "hi", "tamil": "ta", "telugu": "te"},
    **{"thai": "th", "yoruba": "yo", "zulu": "zu", "hausa": "ha", "amharic": "am", "persian": "fa", "hebrew": "he"},
    **{"korean": "ko", "japanese": "ja", "vietnamese": "vi", "turkish": "tr"},
}
QUILT = {
    "method": "table",
    "layers": {
        "0-1": "swahili",
        "2": {"math": 0.5, "swahili": 0.25},
        "3-6": {"attention": "math", "mlp": {"math": 0.75}, "norm": "base"},
        "7": "swahili",
    },
    "stem": "swahili",
}


@pytest.fixture(scope="module")
def many(pico: Server) -> Iterator[Server]:
    """The family of `pico` is another one, until these tests have ended."""
    path = pico.log.parent / "family.yaml"
    before = path.read_text()
    experts: dict[str, Any] = {name: {"kind": "task", "path": "math"} for name in TASKS}
    for number, (name, code) in enumerate(LANGUAGES.items()):
        experts[name] = {"kind": "language", "code": code, "path": ("swahili", "bengali")[number % 2]}
    soup = {"task": "math", "language": "swahili", "recipe": {"method": "soup"}}
    said = {
        "base": "base",
        "experts": experts,
        "compositions": {"tutor": "math+sw", "blend": soup, "quilt": {"recipe": QUILT}},
    }
    try:
        change(pico, path, yaml.safe_dump(said, sort_keys=False))
        yield pico
    finally:
        change(pico, path, before)


def change(server: Server, path: Path, text: str) -> None:
    path.write_text(text)
    response = server.post("/v1/family/reload", None)
    assert response.status_code == 200, response.text


def test_it_stays_quick(many: Server, browser: Any) -> None:
    with visiting(browser, many) as visitor:
        began = time.monotonic()
        page = visitor.go("compositions")
        page.locator(".card").first.wait_for()
        assert time.monotonic() - began < 10
        assert page.locator(".card").count() < 100, "what is far below is not drawn"
        page.get_by_text("212 compositions").last.wait_for()
        filter, found = page.get_by_label("Filter"), page.locator(".toolbar [role=status]")
        for text, said in (("vi law", "1 of 212"), ("soup", "1 of 212"), ("hebrew", "11 of 212"), ("", "212 comp")):
            began = time.monotonic()
            filter.fill(text)
            found.get_by_text(said).wait_for()
            assert time.monotonic() - began < 5, text
        for _ in range(40):
            page.keyboard.press("End")
            page.mouse.wheel(0, 20_000)
            if page.locator(".card").count() == 212:
                break
            page.wait_for_timeout(50)
        assert page.locator(".card").count() == 212, "and then it is"
        assert page.evaluate("document.querySelectorAll('*').length") < 20_000


def test_experts_beyond_the_twelfth_have_a_pattern(many: Server, browser: Any) -> None:
    with visiting(browser, many, viewport=PHONE) as visitor:
        page = visitor.go("compositions")
        page.get_by_role("button", name="Show all 28 experts").click()
        experts = page.locator(".experts li")
        for number, pattern in ((0, 0), (11, 0), (12, 1), (27, 2)):
            filled = (
                experts.nth(number).locator("svg [fill]").evaluate_all("all => all.map(e => e.getAttribute('fill'))")
            )
            assert filled == ([f"url(#pattern-{pattern})"] if pattern else []), number
        assert not visitor.violations()


def test_soups_and_tables_are_drawn_in_proportion(many: Server, browser: Any) -> None:
    with visiting(browser, many) as visitor:
        page = visitor.go("compositions")
        page.get_by_role("button", name="Named").click()
        cards = page.locator(".card")
        assert cards.locator("h2").all_inner_texts() == ["tutor", "blend", "quilt"]
        spoken = cards.nth(2).locator(".stack").get_attribute("aria-label")
        assert spoken == (
            "quilt: layers 0–1 swahili; layer 2 25% base + 50% math + 25% swahili; "
            "layers 3–6 attention math, mlp 25% base + 75% math, norm base; layer 7 swahili; stem swahili"
        )
        # The seventh row from the top is layer 2; rows of three kinds have more pieces.
        widths = (
            cards.nth(2)
            .locator(".stack > g")
            .nth(2)
            .locator("rect")
            .evaluate_all("all => all.map(each => each.getAttribute('width'))")
        )
        base, math, swahili = map(float, widths)
        assert math == pytest.approx(2 * base) and swahili == pytest.approx(base)
        assert cards.nth(2).locator(".stack > g").nth(4).locator("rect").count() == 4


def test_a_family_that_changes_is_seen(many: Server, browser: Any) -> None:
    path = many.log.parent / "family.yaml"
    before = path.read_text()
    with visiting(browser, many) as visitor:
        page = visitor.go("memory")
        page.get_by_role("heading", name="Memory", exact=True).wait_for()
        try:
            change(many, path, before.replace("tutor:", "mentor:"))
            page.locator("#view-compositions", has_text="base").locator(".card").first.wait_for(state="attached")
            page.evaluate("location.hash = '#compositions'")
            page.get_by_label("Filter").fill("mentor")
            page.get_by_text("1 of 212").wait_for()
        finally:
            change(many, path, before)
