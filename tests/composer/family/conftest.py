"""A base with a tokenizer, and an expert with the same."""

import json
import shutil
from pathlib import Path

import pytest
from pico import make_tokenizer
from tokens import LLAMA


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base/config.json").write_text(json.dumps(LLAMA))
    return tmp_path / "base"


@pytest.fixture
def expert(base: Path) -> Path:
    return Path(shutil.copytree(base, base.parent / "expert"))
