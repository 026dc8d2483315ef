"""The studio where recipes are taken: sliders; and what answers may hold."""

import json
from typing import Any

from browsing import REFUSED, visiting
from proxy import behind
from serving import Server, wait_until

RIGHT_TO_LEFT = "لدى سارة خمس\nتفاحات 5 + 3"
MARKUP = "<img src=x onerror=alert(1)> &amp; <b>8</b>"


def forced(page: Any, text: str) -> None:
    """Has the model say this, by vLLM's structured outputs."""

    def with_choice(route: Any) -> None:
        body = json.loads(route.request.post_data) | {"structured_outputs": {"choice": [text]}}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", with_choice)


def ask(page: Any, question: str = "kiba") -> None:
    page.get_by_label("Prompt").fill(question)
    with page.expect_response("**/v1/chat/completions"):
        page.get_by_label("Prompt").press("Control+Enter")


def test_sliders_make_a_recipe(pico: Server, browser: Any) -> None:
    with visiting(browser, pico) as visitor:
        page = visitor.go()
        lane = page.locator(".lane").nth(2)
        lane.get_by_text("Adjust the recipe").click()
        lane.get_by_role("slider", name="Bottom").fill("3")
        lane.get_by_role("slider", name="Transition").fill("1")
        lane.get_by_role("slider", name="Top").fill("2")
        lane.get_by_label("Stem", exact=True).select_option("task")
        name = "math+swahili@bottom=3,top=2,transition=1,stem=task"
        page.locator(f'.lane .stack[aria-label^="{name}: layers 0–2 swahili; layer 3 50% math"]').wait_for()
        assert lane.locator("code.name").inner_text() == name
        page.get_by_label("Most tokens").evaluate("each => (each.value = 8)")
        ask(page)
        page.locator("button.stop").wait_for(state="hidden")
        assert "8 tokens" in lane.locator(".figures").first.inner_text()
        assert pico.get(f"/v1/models/{name}").json()["resident"]
        page.reload()
        assert page.locator(".lane").nth(2).get_by_label("Composition").input_value() == name, "remembered"


def test_a_recipe_that_cannot_be_is_refused_in_the_servers_words(pico: Server, browser: Any) -> None:
    with visiting(browser, pico, allowed=REFUSED) as visitor:
        page = visitor.go()
        lane = page.locator(".lane").nth(2)
        lane.get_by_text("Adjust the recipe").click()
        bottom = lane.get_by_role("slider", name="Bottom")
        bottom.focus()
        page.keyboard.press("End")
        lane.get_by_text("zones overlap: bottom 8").first.wait_for()
        ask(page)
        lane.locator(".said .trouble").get_by_text("zones overlap").wait_for()
        lane.get_by_role("button", name="The family's recipe").click()
        lane.locator('.stack[aria-label^="math+swahili: "]').wait_for()


def test_answers_keep_their_lines_and_their_direction(pico: Server, browser: Any) -> None:
    with visiting(browser, pico) as visitor:
        page = visitor.go()
        forced(page, RIGHT_TO_LEFT)
        ask(page)
        text = page.locator(".said > .text").first
        page.locator("button.stop").wait_for(state="hidden")
        assert text.text_content() == RIGHT_TO_LEFT and "\n" in text.inner_text()
        assert text.evaluate("each => getComputedStyle(each).direction") == "rtl"
        page.get_by_label("Prompt").fill("سؤال")
        assert page.get_by_label("Prompt").evaluate("each => each.matches(':dir(rtl)')")


def test_markup_in_an_answer_is_text(pico: Server, browser: Any) -> None:
    with visiting(browser, pico) as visitor:
        page = visitor.go()
        forced(page, MARKUP)
        ask(page)
        page.locator("button.stop").wait_for(state="hidden")
        text = page.locator(".said > .text").first
        assert text.text_content() == MARKUP and text.locator("*").count() == 0


def test_a_stream_can_be_stopped(pico: Server, browser: Any) -> None:
    with visiting(browser, pico) as visitor:
        page = visitor.go()
        page.get_by_text("Options", exact=True).click()
        page.get_by_label("Most tokens").fill("8000")
        forced_long(page)
        # Three streams of a model that is as quick as this keep a busy machine from all else.
        page.get_by_role("button", name="Remove math", exact=True).click()
        page.get_by_role("button", name="Remove swahili", exact=True).click()
        ask(page)
        page.locator(".text.coming:not(:empty)").wait_for()
        cursor = "each => getComputedStyle(each, '::after').animationName"
        assert page.locator(".text.coming").first.evaluate(cursor) == "none", "who wants no motion gets none"
        page.keyboard.press("Escape")
        page.locator("button.stop").wait_for(state="hidden")
        assert all("stopped" in said for said in page.locator(".lane > .figures").all_inner_texts())
        wait_until(lambda: pico.metric("vllm:num_requests_running") == 0, 30)


def forced_long(page: Any) -> None:
    def endless(route: Any) -> None:
        route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True}))

    page.route("**/v1/chat/completions", endless)


def test_behind_a_proxy_that_has_it_under_a_path(pico: Server, browser: Any) -> None:
    with behind("/tools/loom", pico.url) as url, visiting(browser, pico, url=url) as visitor:
        page = visitor.go(path="/studio")
        page.locator(".lane").first.wait_for()
        assert page.url.startswith(f"{url}/studio/")
        forced(page, "8")
        ask(page)
        page.locator("button.stop").wait_for(state="hidden")
        assert page.locator(".said > .text").first.inner_text() == "8"
