"""What was found out about files is used again as long as it is true, and believed only then."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny import flip, make_tensors, write_checkpoint

from layerloom.composer import Checkpoint, ComposeError
from layerloom.composer.sources import remembered
from layerloom.composer.sources.stream import digest
from layerloom.composer.sources.tensorfile import TensorFile

LARGE = 1 << 23
"""Bytes of a file whose reading shows in what the process has read."""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "layerloom" / "digests"


def bytes_read():
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


@pytest.fixture
def large(tmp_path):
    write_checkpoint(tmp_path / "large", {**make_tensors(0), "lm_head.weight": torch.rand(LARGE // 4)})
    return tmp_path / "large"


def taken(path):
    """The revision, and the bytes that were read for it."""
    checkpoint, before = Checkpoint(path), bytes_read()
    return checkpoint.revision, bytes_read() - before


def test_it_does_not_hang_on_threads(large, cache, monkeypatch):
    found = set()
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        shutil.rmtree(cache, ignore_errors=True)
        found.add(Checkpoint(large).revision)
    assert len(found) == 1


def test_nothing_is_hashed_before_it_is_needed(large, cache):
    before = bytes_read()
    checkpoint = Checkpoint(large)
    checkpoint.read("model.norm.weight")
    assert bytes_read() - before < LARGE // 4
    assert not cache.exists()


def test_what_is_remembered_is_used(large, cache):
    first, read = taken(large)
    assert read >= LARGE
    again, read = taken(large)
    assert again == first
    assert read < LARGE // 4
    flip(large / "model.safetensors")
    other, read = taken(large)
    assert other != first
    assert read >= LARGE


DAMAGE = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "emptied": lambda file: os.truncate(file, 0),
    "another byte": lambda file: flip(file),
    "another size": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "another's": lambda file: file.write_bytes(file.with_name("another").read_bytes()),
    "text": lambda file: file.write_text("0" * 64),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a FIFO": lambda file: (file.unlink(), os.mkfifo(file)),
    "not to be read": lambda file: file.chmod(0),
    "endless": lambda file: os.truncate(file, 1 << 40),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_not_believed(large, root, cache, damage):
    first, wanted = Checkpoint(large).revision, digest(Checkpoint(root / "base"))
    remembered.remember("another", b"x" * 32)
    for file in sorted(cache.iterdir()):
        if file.name != "another":
            DAMAGE[damage](file)
    assert Checkpoint(large).revision == first
    assert digest(Checkpoint(root / "base")) == wanted
    assert not [file for file in cache.iterdir() if file.name.startswith(".")]


def no_home(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))


def a_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


def read_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")


def full(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", write)


@pytest.mark.parametrize("place", [no_home, a_file, read_only, full])
def test_where_nothing_can_be_kept(large, root, cache, tmp_path, monkeypatch, place):
    first, wanted = Checkpoint(large).revision, digest(Checkpoint(root / "base"))
    shutil.rmtree(cache)
    place(tmp_path, monkeypatch)
    for _ in range(2):
        assert taken(large) == (first, pytest.approx(LARGE, rel=0.1))
        assert digest(Checkpoint(root / "base")) == wanted
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_read_only_directory_is_read(large, cache):
    first, _ = taken(large)
    cache.chmod(0o500)
    try:
        assert taken(large) == (first, pytest.approx(0, abs=LARGE // 4))
    finally:
        cache.chmod(0o700)


def test_what_is_not_used_makes_room(large, cache, monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 8)
    first, _ = taken(large)
    for number in range(20):
        remembered.remember(f"{number:x}", b"")
    for number, file in enumerate(sorted(cache.iterdir())):
        os.utime(file, (number, number))
    taken(large)
    remembered.make_room.cache_clear()
    remembered.remember("new", b"")
    assert len(list(cache.iterdir())) == 5
    assert taken(large) == (first, pytest.approx(0, abs=LARGE // 4))


def test_several_threads_hash_once(large, cache):
    checkpoint, before = Checkpoint(large), bytes_read()
    found = in_threads(lambda: checkpoint.revision)
    assert len(set(found)) == 1
    assert bytes_read() - before < 2 * LARGE


def test_several_that_have_opened_it_at_once(large, cache):
    found = in_threads(lambda: Checkpoint(large).revision)
    assert set(found) == {Checkpoint(large).revision}
    assert len(list(cache.iterdir())) == 1


def in_threads(do, count=6):
    found, together = [], threading.Barrier(count)

    def one():
        together.wait()
        found.append(do())

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == count
    return found


def test_processes_at_once(large, cache):
    script = "import sys; from pathlib import Path; from layerloom.composer import Checkpoint as C;"
    command = [sys.executable, "-c", f"{script} print(C(Path(sys.argv[1])).revision)", large]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {run.communicate(timeout=300)[0].strip() for run in runs} == {Checkpoint(large).revision}


def test_a_change_while_it_is_hashed(large, cache, monkeypatch):
    checkpoint, hashed = Checkpoint(large), []
    digests = TensorFile._digests

    def and_a_change(file, places, into=None):
        found = digests(file, places, into)
        flip(large / "model.safetensors")
        hashed.append(len(places))
        return found

    monkeypatch.setattr(TensorFile, "_digests", and_a_change)
    with pytest.raises(ComposeError, match=r"model.safetensors: was written to after it was opened \(.*Put"):
        _ = checkpoint.revision
    monkeypatch.undo()
    assert hashed and not cache.exists()


def test_a_base_is_told_from_its_tensors_and_not_from_its_file_alone(root, cache):
    """Whether the head counts is said by config.json."""
    table = make_tensors(0)["model.embed_tokens.weight"]
    write_checkpoint(root / "base", {**make_tensors(0), "lm_head.weight": table.clone()})
    before = digest(Checkpoint(root / "base"))
    config = json.loads((root / "base" / "config.json").read_text())
    (root / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert digest(Checkpoint(root / "base")) != before
