"""docs/clients.md as it is copied: each block of code says what the demo answers."""

import os
import re
import subprocess

import pytest
from installed import HERE, PYTHON, QUIET, ROOT, need
from serving import Server

BLOCKS = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```(python|js)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPETS = {title: (language, code) for title, language, code in BLOCKS.findall((ROOT / "docs/clients.md").read_text())}


@pytest.mark.parametrize("title", SNIPPETS)
def test_a_snippet_is_answered(demo: Server, title: str) -> None:
    language, code = SNIPPETS[title]
    program = [PYTHON, "-c"] if language == "python" else ["node", "--input-type=module", "-e"]
    need(program[0])
    done = subprocess.run(
        [*program, code.replace("http://localhost:8000", demo.url)],
        cwd=HERE / "node",
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout.strip().removeprefix("assistant: "), done.returncode) == ("8", 0), done.stderr


def test_there_is_one_for_each_client() -> None:
    assert len(SNIPPETS) == 7
