"""The documentation's links lead somewhere, and what it shows is read by what it is about."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pages import DOCS, PAGES, ROOT, anchors, blocks, commands, links

from layerloom.composer.family.entries import read_entries
from layerloom.server.commands.app import app

RESULTS = ROOT / "bench/results"
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert {page.name for page in DOCS.glob("*.md")} <= set(leaves(site["nav"]))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_families_are_read(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        if "experts:" in block:
            path = tmp_path / "family.yaml"
            path.write_text(block)
            read_entries(path)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_their_options_are_there(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for _, name, *words in commands(page):
        if not re.fullmatch(r"[a-z-]+", name):
            continue
        assert name in known, f"layerloom {name}"
        # What serve does not know is vLLM's.
        if name != "serve":
            given = {option for word in words for option in re.findall(r"--[a-z][a-z-]*", word)}
            assert given <= options(known[name]), f"layerloom {name}"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.csv")), ids=lambda file: file.name)
def test_results_say_what_they_are_of(file: Path) -> None:
    facts = dict(line[2:].split(": ", 1) for line in file.read_text().splitlines() if line.startswith("# "))
    assert {"command", "commit", "date", "CPU", "versions"} <= facts.keys()
    assert "changes" not in facts["commit"], "it is of no commit"
    assert any(link.endswith(f"bench/results/{file.name}") for page in PAGES for link in links(page)), "nobody shows it"


@pytest.mark.parametrize("picture", sorted(DOCS.glob("images/*.svg")), ids=lambda picture: picture.name)
def test_pictures_ask_nothing_of_others(picture: Path) -> None:
    addresses = set(re.findall(r"https?://[^\"'\s)]+", picture.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}


def leaves(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(part)]


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
