"""A revision is of bytes alone: the same on every host that has them, another where one differs."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from lora import LORA, factors, write
from safetensors.torch import save_file
from tiny import flip, make_tensors

from layerloom.composer import Archive, Checkpoint, Family, extract, open_source

SOURCES = ("checkpoint", "shards", "archive", "adapter")
PATHS = ("math", "code", "bengali.safetensors", "lora")
FILES = ("math/model.safetensors", "code/b.safetensors", "bengali.safetensors", "lora/adapter_model.safetensors")


@pytest.fixture
def host(root):
    """A family with an expert of each kind."""
    make_sources(root)
    experts = {name: {"kind": "task", "path": path} for name, path in zip(SOURCES, PATHS, strict=True)}
    experts["swahili"] = {"kind": "language", "path": "swahili"}
    (root / "family.yaml").write_text(json.dumps({"base": "base", "experts": experts}))
    return root


def make_sources(root):
    tensors = make_tensors(2)
    (root / "code" / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, root / "code" / file)
    index = {name: file for file, held in parts.items() for name in held}
    (root / "code" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    extract(root / "base", root / "bengali", root / "bengali.safetensors")
    write(root / "lora", factors())


def plans(root):
    family = Family.load(root)
    return {name: family.plan(name).digest for name in family.names()}


def test_hosts_with_the_same_bytes_agree(host, tmp_path, monkeypatch):
    here = plans(host)
    shutil.copytree(host, tmp_path / "there", copy_function=shutil.copyfile)
    for number, file in enumerate((tmp_path / "there").rglob("*")):
        os.utime(file, (number, number))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "its own"))
    assert plans(tmp_path / "there") == here
    assert Family.load(tmp_path / "there").digest == Family.load(host).digest


def test_touched_and_moved(host, tmp_path):
    before = plans(host)
    for file in FILES:
        os.utime(host / file)
        (host / file).chmod(0o640)
    assert plans(host) == before
    host.rename(tmp_path / "moved")
    assert plans(tmp_path / "moved") == before


@pytest.mark.parametrize(("name", "file"), [*zip(SOURCES, FILES, strict=True)])
def test_one_byte_with_size_and_time_as_they_were(host, name, file):
    """It is remembered what the file was; that does not matter, in this process or the next."""
    before = plans(host)
    flip(host / file)
    after = plans(host)
    assert {other for other in before if before[other] != after[other]} == {name, f"{name}+swahili"}
    script = (
        "import sys; from layerloom.composer import Family; print(Family.load(sys.argv[1]).plan(sys.argv[2]).digest)"
    )
    run = subprocess.run([sys.executable, "-c", script, host, name], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == after[name], run.stderr


def test_a_byte_of_the_header(root):
    tensors, before = make_tensors(0), Checkpoint(root / "base").revision
    save_file(tensors, root / "base" / "model.safetensors", {"format": "np"})
    assert Checkpoint(root / "base").revision != before


def test_the_base_is_in_it_where_tensors_are_its(host):
    before = plans(host)
    base = Checkpoint(host / "base")
    archive, adapter = Archive(host / PATHS[2], base).revision, open_source(host / "lora", base).revision
    shutil.copytree(host / "base", host / "other")
    flip(host / "other" / "model.safetensors")
    extract(host / "other", host / "bengali", host / "other.safetensors")
    assert open_source(host / "lora", Checkpoint(host / "other")).revision != adapter
    assert Archive(host / "other.safetensors", Checkpoint(host / "other")).revision != archive
    (host / "lora" / "adapter_config.json").write_text(json.dumps({**LORA, "lora_alpha": 9}))
    assert open_source(host / "lora", base).revision != adapter
    assert plans(host)["base"] == before["base"]


def test_the_name_of_a_file_is_in_it(host):
    base = Checkpoint(host / "base")
    before = Archive(host / PATHS[2], base).revision
    (host / PATHS[2]).rename(host / "renamed.safetensors")
    assert Archive(host / "renamed.safetensors", base).revision != before
