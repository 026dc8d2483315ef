"""Fixtures: a tiny family to read, and one to break."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import write_family

from layerloom.composer import Family


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digests are remembered here, not in the home of whoever runs the tests."""
    path = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("pristine")).parent


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A family of one's own, to break."""
    return Path(shutil.copytree(pristine, tmp_path / "family"))


@pytest.fixture
def edit(root: Path) -> Callable[..., Path]:
    """Changes keys of family.yaml."""

    def edited(**entries: Any) -> Path:
        path = root / "family.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **entries}, sort_keys=False))
        return path

    return edited


@pytest.fixture(scope="session")
def family(pristine: Path) -> Family:
    return Family.load(pristine)
