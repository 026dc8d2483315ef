"""What `make docs` makes is committed as it is, and versions that are written twice are the same."""

import re
import subprocess
import sys

import yaml
from pages import DOCS, ROOT

STALE = "run: make docs"


def test_the_page_of_all_options(tmp_path):
    made = tmp_path / "cli.md"
    options = ("--name", "layerloom", "--title", "All options", "--output", made)
    command = [sys.executable, "-m", "typer", "layerloom.server.commands.app", "utils", "docs", *options]
    subprocess.run(command, check=True, capture_output=True)
    assert made.read_text() == (DOCS / "cli.md").read_text(), STALE


def test_the_chart_of_speed(tmp_path):
    made = tmp_path / "speed.svg"
    subprocess.run([sys.executable, ROOT / "bench/speed_chart.py", "--out", made], check=True)
    assert made.read_text() == (DOCS / "images/speed.svg").read_text(), STALE


def test_versions_that_are_written_twice():
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE))
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repository["rev"] for repository in hooks if "ruff" in repository["repo"])
    assert ruff == f"v{pins['ruff']}"
    (makes,) = set(re.findall(r"torch==\S+", (ROOT / "Makefile").read_text()))
    assert makes in (ROOT / "Dockerfile.cpu").read_text()


def test_images_are_of_a_supported_vllm():
    project = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r"vllm>=([0-9.]+)", project)
    assert oldest and f"ARG VLLM=v{oldest[1]}" in (ROOT / "Dockerfile").read_text()
