"""browsing: the studio in a headless Chromium, watched for whatever a visitor's console would show."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from serving import KEY, Server

NAMES = ("chromium", "chromium-browser", "google-chrome")
# As root, and with nothing asked of other hosts.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What Chromium itself writes on the console for an answer of 4xx."""


@dataclass
class Visitor:
    """A page of the studio, and what was wrong with it."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)

    def go(self, view: str = "ask", path: str = "/studio/") -> Any:
        self.page.goto(f"{self.url}{path}#{view}")
        return self.page

    def enter(self, view: str = "ask", key: str = KEY) -> Any:
        """With an API key, which the page keeps for its tab."""
        self.page.add_init_script(f"sessionStorage.setItem('layerloom.key', '{key}')")
        return self.go(view)

    def violations(self) -> list[str]:
        """What axe finds that is serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [
            f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]


Visits = Callable[..., Any]


@contextmanager
def chromium() -> Iterator[Any]:
    """Skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements/dev.txt has it")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Any, server: Server, allowed: str = "", url: str = "", **options: Any) -> Iterator[Visitor]:
    """A visitor with a profile of its own. Fails for console messages, but those `allowed`, and for other hosts."""
    options = {"viewport": DESKTOP, "reduced_motion": "reduce", **options}
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    visitor = Visitor(context.new_page(), url or server.url)

    def said(message: Any) -> None:
        if message.type in ("error", "warning") and not (allowed and allowed in message.text):
            visitor.problems.append(f"{message.type}: {message.text}")

    def asked(request: Any) -> None:
        if not request.url.startswith(visitor.url + "/"):
            visitor.problems.append(f"asked {request.url}")

    visitor.page.on("console", said)
    visitor.page.on("pageerror", lambda error: visitor.problems.append(f"uncaught: {error}"))
    visitor.page.on("request", asked)
    try:
        yield visitor
        assert not visitor.problems, visitor.problems
    finally:
        context.close()
