"""installed: the environments of other people's clients, which `make clients` makes."""

import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
VENV = ROOT / os.environ.get("CLIENTS_VENV", ".venv-clients")
PYTHON = VENV / "bin" / "python"
MODULES = HERE / "node" / "node_modules"

QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "AI_SDK_LOG_WARNINGS": "false"}
"""Asks nobody else for anything."""


def need(program: Path | str) -> None:
    """Skips a test where what runs its client is not there."""
    if str(program) == "node" and shutil.which("node") is None:
        pytest.skip("there is no Node")
    for name, folder in (("node", MODULES), (str(PYTHON), VENV)):
        if str(program) == name != sys.executable and not (folder / ".installed").exists():
            pytest.skip(f"`make clients` has not installed {folder.relative_to(ROOT)}")
