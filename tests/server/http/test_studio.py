"""The studio on the demo family, behind an API key, as a visitor has it."""

from typing import Any

import pytest
from asking import QUESTION
from browsing import DESKTOP, PHONE, REFUSED, visiting
from serving import KEY, Server

VIEWS = ("ask", "compositions", "memory", "change")


def answers(page: Any) -> list[str]:
    page.locator("button.stop").wait_for(state="hidden")
    return [text.strip() for text in page.locator(".said > .text").all_inner_texts()]


def put(page: Any, question: str = QUESTION) -> list[str]:
    page.get_by_label("Prompt").fill(question)
    with page.expect_response("**/v1/chat/completions"):
        page.get_by_role("button", name="Ask", exact=True).click()
    return answers(page)


def test_it_asks_for_the_key_and_says_when_it_is_wrong(demo: Server, browser: Any) -> None:
    with visiting(browser, demo, allowed=REFUSED) as visitor:
        page = visitor.go(path="/studio")
        key = page.get_by_label("Key", exact=True)
        key.fill("ключ")
        key.press("Enter")
        assert "ASCII" in page.get_by_role("alert").inner_text()
        key.fill("wrong")
        key.press("Enter")
        page.get_by_text("did not take this key: the API key is missing or wrong").wait_for()
        assert page.locator(".lane").count() == 0
        key.fill(KEY)
        key.press("Enter")
        page.locator(".lane").first.wait_for()
        assert page.evaluate("localStorage.length && JSON.stringify(localStorage)").find(f'"{KEY}"') < 0
        page.reload()
        page.locator(".lane").first.wait_for()
        page.get_by_role("button", name="API key").click()
        page.get_by_role("button", name="Forget it").click()
        page.get_by_label("Key", exact=True).wait_for()


def test_one_prompt_to_three_compositions(demo: Server, browser: Any) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.enter()
        page.locator(".lane").first.wait_for()
        shown = page.locator(".lane select").evaluate_all("all => all.map(each => each.value)")
        shown = [name for name in shown if "stem" not in name and name != "language"]
        assert shown == ["math", "swahili", "math+swahili"]
        assert put(page) == ["Asha", "4", "8"]
        figures = page.locator(".lane > .figures").all_inner_texts()
        assert all("first token" in said and "2 tokens" in said for said in figures), figures
        assert all("assembled for this" in said or "were in memory" in said for said in figures), figures
        page.locator(".lane .badge.there").nth(2).wait_for()
        assert put(page) == ["Asha", "4", "8"]
        assert all("were in memory" in said for said in page.locator(".lane > .figures").all_inner_texts())
        page.reload()
        assert page.get_by_label("Prompt").input_value() == QUESTION
        assert page.locator(".lane").count() == 3


def test_the_language_found_by_itself(demo: Server, browser: Any) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.enter()
        lane = page.locator(".lane").first
        lane.get_by_label("Composition").select_option("math+auto")
        lane.locator(".unknown").wait_for()
        assert put(page)[0] == "8"
        assert lane.locator(".chosen").inner_text() == "answered by math+swahili"
        assert "layers 2–5 math" in (lane.locator(".stack").get_attribute("aria-label") or "")


def test_the_servers_words_when_it_refuses(demo: Server, browser: Any) -> None:
    with visiting(browser, demo, allowed=REFUSED) as visitor:
        page = visitor.enter()
        page.get_by_text("Options", exact=True).click()
        page.get_by_label("Most tokens").fill("100000")
        put(page)
        assert "max_model_len=256" in page.locator(".lane .trouble").first.inner_text()
        lane = page.locator(".lane").nth(2)
        lane.get_by_text("Adjust the recipe").click()
        assert "--allow-recipes" in lane.inner_text() and lane.locator("input[type=range]:visible").count() == 0


def test_the_family_and_its_stacks(demo: Server, browser: Any) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.enter("compositions")
        page.locator(".card").first.wait_for()
        assert page.locator(".card h2").all_inner_texts() == [
            "base",
            "math",
            "swahili",
            "bengali",
            "math+swahili",
            "math+bengali",
            "tutor",
        ]
        assert "language · sw · kiswahili" in page.locator(".experts").inner_text()
        spoken = page.locator(".card .stack").nth(4).get_attribute("aria-label")
        assert spoken == "math+swahili: layers 0–1 swahili; layers 2–5 math; layers 6–7 swahili; stem swahili"
        assert "the same as math+swahili" in page.locator(".card").nth(6).inner_text()
        page.get_by_label("Filter").fill("bn")
        page.get_by_text("2 of 7 compositions").wait_for()
        page.get_by_role("button", name="math+bengali").click()
        dialog = page.get_by_role("dialog")
        assert "bengali: embeddings, final norm, output head" in dialog.inner_text()
        assert not visitor.violations()
        dialog.get_by_role("button", name="Bring into memory").or_(dialog.get_by_text("Let go of it")).first.wait_for()
        dialog.get_by_role("button", name="Ask it").click()
        assert page.locator(".lane").nth(2).get_attribute("aria-label") == "math+bengali"


def test_what_is_in_memory_comes_and_goes(demo: Server, browser: Any) -> None:
    """Let go of, and brought back, while the bank is looked at in another tab."""
    with visiting(browser, demo) as visitor, visiting(browser, demo) as other:
        bank = other.enter("memory")
        page = visitor.enter("compositions")
        page.get_by_role("button", name="math+bengali").click()
        dialog = page.get_by_role("dialog")
        for asked, then in (("Bring into memory", 1), ("Let go of it", 0), ("Bring into memory", 1)):
            button = dialog.get_by_role("button", name=asked)
            if not then or button.is_visible():
                button.click()
            dialog.get_by_role("button", name="Let go of it" if then else "Bring into memory").wait_for()
            bank.locator(".list th[scope=row]", has_text="math+bengali").nth(0).wait_for(
                state="attached" if then else "detached"
            )
        assert "pieces" in bank.locator("#cloth-title + p").inner_text()
        assert bank.locator(".cloth svg text").count() == bank.locator(".list tbody tr").count()
        assert "assembled" in bank.locator(".tiles").inner_text()


def test_where_experts_change(demo: Server, browser: Any) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.enter("change")
        page.locator(".offer:visible, .map").first.wait_for()
        if page.get_by_role("button", name="Measure it").is_visible():
            assert "archives" in page.locator(".offer").inner_text()
            page.get_by_role("button", name="Measure it").click()
        page.locator(".map").nth(2).wait_for()
        rows = page.locator(".map").first.locator("tbody tr").all_inner_texts()
        assert [row.split()[0] for row in rows] == ["attention", "mlp", "norm"]
        assert page.locator(".map").first.locator("td.none").count() == 3 * 4, (
            "math is the base in four of eight layers"
        )
        page.get_by_role("button", name="Every module").click()
        assert page.locator(".map").first.locator("tbody tr").count() == 9
        page.locator(".proposal", has_text="math+swahili@bottom=2,top=2,transition=0").wait_for()
        page.reload()
        page.locator(".map").nth(2).wait_for()
        assert not page.get_by_role("button", name="Measure it").is_visible(), "known, so shown at once"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_use_it(demo: Server, browser: Any, scheme: str, viewport: dict[str, int]) -> None:
    demo.post("/studio/changes", None)
    with visiting(browser, demo, color_scheme=scheme, viewport=viewport) as visitor:
        page = visitor.enter()
        put(page)
        page.locator(".lane details.recipe:visible summary").first.click()
        for view in VIEWS:
            page.get_by_role("navigation").get_by_role("link", name=view.capitalize()).click()
            if view != "ask":
                page.locator(f"#view-{view} .card, #view-{view} .list tr, #view-{view} .map").first.wait_for()
            assert not visitor.violations(), view
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is too wide"


def test_the_theme_can_be_chosen(demo: Server, browser: Any) -> None:
    with visiting(browser, demo, color_scheme="light") as visitor:
        page = visitor.enter()

        def paper() -> int:
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            return int(colour.partition("(")[2].partition(",")[0])

        assert paper() > 200
        button = page.get_by_role("button", name="Theme")
        button.click()
        button.click()
        assert button.get_attribute("aria-label") == "Theme: dark" and paper() < 50
        page.reload()
        assert paper() < 50


def test_by_keyboard_alone(demo: Server, browser: Any) -> None:
    with visiting(browser, demo) as visitor:
        page = visitor.enter()
        page.locator(".lane").nth(2).wait_for()
        reached, unseen = [], []
        for _ in range(60):
            page.keyboard.press("Tab")
            found = page.evaluate(
                "(() => { const e = document.activeElement, s = getComputedStyle(e);"
                " return [e.tagName, e.id || e.textContent.trim() || e.getAttribute('aria-label'), s.outlineStyle] })()"
            )
            if found[0] == "BODY":
                break
            reached.append(found[1])
            if found[2] == "none":
                unseen.append(found)
        assert not unseen, "each shows that it has the focus"
        for wanted in (
            "Skip to the content",
            "Memory",
            "theme-button",
            "prompt",
            "Ask",
            "Options",
            "Adjust the recipe",
        ):
            assert wanted in reached, (wanted, reached)
        page.get_by_label("Prompt").focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(QUESTION)
        page.keyboard.press("Control+Enter")
        page.locator(".text.brief").nth(2).wait_for()
        assert answers(page) == ["Asha", "4", "8"]
        for _ in range(3):
            page.keyboard.press("Tab")
        page.keyboard.type("tutor")
        page.locator(".lane[aria-label=tutor] .stack").wait_for()
        visitor.go("compositions")
        card = page.get_by_role("button", name="math+swahili")
        card.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="detached")
        assert page.evaluate("document.activeElement.textContent") == "math+swahili"
