"""Only regular files are read, of bounded size, and as many as a family has."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys

import pytest
from tiny import make_tensors, write_checkpoint

from layerloom.composer import ComposeError, Family
from layerloom.composer.sources.tensorfile import TensorFile


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "model", make_tensors(0))
    return tmp_path / "model" / "model.safetensors"


def special(kind, path):
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    else:
        path.symlink_to("/dev/zero")


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "directory"])
@pytest.mark.parametrize(
    "name",
    [
        "family.yaml",
        "base/config.json",
        "math/config.json",
        "base/model.safetensors",
        "math/model.safetensors",
        "math/model.safetensors.index.json",
        "math.safetensors",
        "math/other.safetensors",
        "math/adapter_config.json",
        "math/adapter_model.safetensors",
        "base/tokenizer.json",
        "math/tokenizer.json",
    ],
)
def test_only_regular_files_are_opened(root, name, kind):
    if name == "math.safetensors":
        (root / "family.yaml").write_text((root / "family.yaml").read_text().replace("path: math", f"path: {name}"))
    elif name in ("math/model.safetensors.index.json", "math/other.safetensors"):
        (root / "math" / "model.safetensors").unlink()
    elif "adapter" in name:
        (root / "math" / "model.safetensors").unlink()
        (root / "math" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    elif "tokenizer" in name:
        shutil.copy(root / "base" / "tokenizer.json", root / "math")
    special(kind, root / name)
    if kind == "directory" and name in ("family.yaml", "base/tokenizer.json", "math.safetensors"):
        return  # means something else, or nothing
    reason = r"is an? \w+, not a regular file|is neither a file nor a directory"
    with pytest.raises(ComposeError, match=rf"{name}: ({reason})"):
        Family.load(root / "family.yaml")


def test_a_sidecar_that_does_not_end(root):
    with (root / "math" / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(ComposeError, match=r"math/config.json: has more than 268,435,456 bytes"):
        Family.load(root)


def test_many_files_are_open_at_once(path):
    """More than the soft limit allows, which is 1024 at most places."""
    script = (
        "import resource, sys; from pathlib import Path; from layerloom.composer import Checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (60, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "print(len([Checkpoint(Path(sys.argv[1])) for _ in range(100)]))"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 200:
        pytest.skip("few files may be open here")
    run = subprocess.run([sys.executable, "-c", script, path.parent], capture_output=True, text=True, timeout=300)
    assert run.stdout == "100\n", run.stderr


def test_files_are_closed(path):
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        TensorFile(path)
    assert len(os.listdir("/dev/fd")) == before
