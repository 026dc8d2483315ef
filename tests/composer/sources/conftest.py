"""An archive to read, and one to break."""

import shutil

import pytest

from layerloom.composer import Checkpoint, extract
from layerloom.composer.sources.codecs import Int4


@pytest.fixture(scope="session")
def made(tmp_path_factory, pristine):
    """An int4 archive of `math`."""
    path = tmp_path_factory.mktemp("made") / "math.safetensors"
    extract(pristine / "base", pristine / "math", path, Int4())
    return path


@pytest.fixture
def path(made, tmp_path):
    return shutil.copy(made, tmp_path / "math.safetensors")


@pytest.fixture
def base(pristine):
    return Checkpoint(pristine / "base")
