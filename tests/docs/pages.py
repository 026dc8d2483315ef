"""pages: what the documentation's files say: links, headings and blocks of code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OTHERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "composer/ARCHIVE.md", "demo/ACCURACY.md")
PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in OTHERS)]

FENCE = re.compile(r"^(```+) *([\w-]*)[^\n]*\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    """The blocks of code in these languages."""
    return [code for _, language, code in FENCE.findall(page.read_text()) if language in languages]


def links(page: Path) -> list[str]:
    """Where its links and pictures go, code left out."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    return LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """What a link can name after a #, as GitHub and mkdocs make it of headings."""
    titles = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def commands(page: Path) -> list[list[str]]:
    """The words of each `layerloom …` in its blocks; lines that are indented, or follow a backslash, belong to it."""
    found: list[list[str]] = []
    for block in blocks(page, "sh", "console", ""):
        open_ended = False
        for line in block.splitlines():
            said = line.partition(" #")[0].removeprefix("$ ")
            if said.startswith("layerloom "):
                found.append([])
            elif not (found and (open_ended or line[:1].isspace())):
                open_ended = False
                continue
            found[-1] += said.split()
            open_ended = said.endswith("\\")
    return found
