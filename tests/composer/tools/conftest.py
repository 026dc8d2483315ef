"""A configuration of mergekit made into a family."""

from pathlib import Path

import pytest
import yaml

from layerloom.composer import import_mergekit


@pytest.fixture
def imported(root, monkeypatch):
    """Imports a configuration from the family's directory."""
    monkeypatch.chdir(root)
    (root / "family.yaml").unlink()

    def run(config, file="swap.yml", **options):
        Path(file).write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        return import_mergekit(Path(file), Path("family.yaml"), **options)

    return run
