"""Files that change while they are open: what is read is what was there at first, or an error; nothing else, ever."""

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_tensors, write_checkpoint

from layerloom.composer import Archive, Checkpoint, ComposeError, extract
from layerloom.composer.sources.tensorfile import TensorFile

BEFORE, LATER = "model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "model", make_tensors(0))
    return tmp_path / "model" / "model.safetensors"


@pytest.fixture
def old(path):
    return Path(shutil.copy2(path, path.with_name("old")))


@pytest.fixture
def new(tmp_path):
    write_checkpoint(tmp_path / "new", make_tensors(1))
    return tmp_path / "new" / "model.safetensors"


def rewrite(path, source):
    with path.open("r+b") as file:
        file.write(source.read_bytes())


def with_its_time(change, path, *args):
    times = path.stat()
    change(path, *args)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def bit(path, tensor, at=0):
    """Another lowest bit in one number of one tensor."""
    with path.open("r+b") as file:
        file.seek(TensorFile(path).tensors[tensor].start + at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


CHANGES = {
    "cut short": lambda path, new: os.truncate(path, 3000),
    "emptied": lambda path, new: os.truncate(path, 0),
    "emptied and written": lambda path, new: path.write_bytes(new.read_bytes()),
    "written over": rewrite,
    "written over, with its time": lambda path, new: with_its_time(rewrite, path, new),
    "copied over": lambda path, new: shutil.copyfile(new, path),
    "copied over with the other's time": lambda path, new: shutil.copy2(new, path),
    "written over with zeros": lambda path, new: path.write_bytes(bytes(path.stat().st_size)),
}
HARMLESS = {
    "mode": lambda path, new: path.chmod(0o640),
    "link": lambda path, new: path.with_name("link").hardlink_to(path),
    "renamed": lambda path, new: path.rename(path.with_name("renamed")),
    "deleted": lambda path, new: path.unlink(),
    "replaced": lambda path, new: os.replace(new, path),
    "put back with its time": lambda path, new: with_its_time(put_back, path, new),
}
NEW_TIME = {
    "touched": lambda path, new: os.utime(path),
    "added to": lambda path, new: path.write_bytes(path.read_bytes() + b"more"),
    "put back": lambda path, new: put_back(path, new),
}
FORGED = {
    "one byte": lambda path, new: with_its_time(bit, path, LATER),
    "written over": CHANGES["written over, with its time"],
}


def put_back(path, new):
    content = path.read_bytes()
    rewrite(path, new)
    path.write_bytes(content)


def refused(checkpoint, name):
    with pytest.raises(ComposeError, match=r"model/model.safetensors: was written to after it was opened \(.*Put") as e:
        checkpoint.read(name)
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


@pytest.mark.parametrize("change", CHANGES)
def test_other_content_is_refused(path, old, new, change):
    checkpoint, wanted = Checkpoint(path.parent), make_tensors(0)
    assert torch.equal(checkpoint.read(BEFORE), wanted[BEFORE])
    CHANGES[change](path, new)
    for name in (BEFORE, LATER, BEFORE):
        refused(checkpoint, name)
    shutil.copy2(old, path)  # in place, and with its time
    for name in wanted:
        assert torch.equal(checkpoint.read(name), wanted[name])


@pytest.mark.parametrize("change", HARMLESS)
def test_what_leaves_the_content_as_it_was(path, new, change):
    checkpoint, wanted = Checkpoint(path.parent), make_tensors(0)
    assert torch.equal(checkpoint.read(BEFORE), wanted[BEFORE])
    HARMLESS[change](path, new)
    for name in wanted:
        assert torch.equal(checkpoint.read(name), wanted[name])


@pytest.mark.parametrize("change", NEW_TIME)
@pytest.mark.parametrize("known", [False, True])
def test_a_new_time_is_forgiven_where_the_content_is_known(path, new, change, known):
    """It is once there is a revision, of this process or remembered, whatever was read before."""
    checkpoint, wanted = Checkpoint(path.parent), make_tensors(0)
    revision = Checkpoint(path.parent).revision if known else None
    NEW_TIME[change](path, new)
    if revision is None:
        refused(checkpoint, LATER)
        with pytest.raises(ComposeError, match=r"was written to after it was opened \(.*what it was is lost"):
            _ = checkpoint.revision
        return
    for name in wanted:
        assert torch.equal(checkpoint.read(name), wanted[name])
    assert checkpoint.revision == revision


@pytest.mark.parametrize("known", [False, True])
def test_one_bit_of_one_tensor(path, known):
    checkpoint, wanted = Checkpoint(path.parent), make_tensors(0)
    revision = checkpoint.revision if known else None
    with_its_time(bit, path, BEFORE)
    refused(checkpoint, BEFORE)
    if not known:
        refused(checkpoint, LATER)
        return
    assert torch.equal(checkpoint.read(LATER), wanted[LATER])
    assert checkpoint.revision == revision != Checkpoint(path.parent).revision


@pytest.mark.parametrize("change", FORGED)
def test_what_time_and_samples_do_not_tell(path, new, tmp_path, monkeypatch, change):
    """No other bytes are read under a revision, whether it is known before they are written or asked for after."""
    monkeypatch.setattr(TensorFile, "_sampled", lambda file: b"")
    asked, remembered, unknown = (Checkpoint(path.parent) for _ in range(3))
    before = asked.revision
    FORGED[change](path, new)
    assert remembered.revision == before
    refused(asked, LATER)
    refused(remembered, LATER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    now = Checkpoint(path.parent)
    assert unknown.revision == now.revision != before
    assert torch.equal(unknown.read(LATER), now.read(LATER))


def test_a_write_right_after_opening_is_seen(path, new):
    """However coarse the clock of files is: had it not moved on, the new content would have the old time."""
    contents = [path.read_bytes(), new.read_bytes()]
    for turn in range(50):
        path.write_bytes(contents[turn % 2])
        checkpoint = Checkpoint(path.parent)
        path.write_bytes(contents[1 - turn % 2])
        refused(checkpoint, BEFORE)


def test_an_archive_an_adapter_and_their_base(root):
    extract(root / "base", root / "math", root / "math.safetensors")
    os.truncate(root / "math" / "model.safetensors", 0)
    base = Checkpoint(root / "base")
    archive = Archive(root / "math.safetensors", base)
    rewrite(root / "math.safetensors", root / "base" / "model.safetensors")
    with pytest.raises(ComposeError, match=r"math.safetensors: was written to"):
        archive.read(BEFORE)
    os.truncate(root / "base" / "model.safetensors", 9)
    with pytest.raises(ComposeError, match=r"base/model.safetensors: was written to"):
        archive.read(BEFORE)


CUT = """
import os, sys; from pathlib import Path; from layerloom.composer import Checkpoint, ComposeError
path = Path(sys.argv[1]); checkpoint = Checkpoint(path.parent)
for size in (path.stat().st_size - 1, 4096, 100, 0):
    os.truncate(path, size)
    for name in checkpoint.tensors:
        try: checkpoint.read(name)
        except ComposeError: continue
        sys.exit(f"{name} was read from {size} bytes")
print("alive")
"""


def test_a_file_cut_short_does_not_end_the_process(path):
    run = subprocess.run([sys.executable, "-c", CUT, path], capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "alive\n"), run.stderr


def test_threads_read_while_a_file_is_written(tmp_path):
    """What is read is the old content or an error, and the old content again when the writer has put it back."""
    first, second = (torch.full((512, 2048), value, dtype=torch.int16) for value in (1, 2))
    path, written = tmp_path / "a.safetensors", {}
    for value, tensor in enumerate((first, second), 1):
        save_file({f"t{i}": tensor + 16 * i for i in range(6)}, path)
        written[value] = path.read_bytes()
    path.write_bytes(written[1])
    file, end, counts = TensorFile(path), time.monotonic() + 4.0, {"read": 0, "refused": 0}
    wrong: list[str] = []
    assert file.digest

    def read(number):
        while time.monotonic() < end:
            for i in range(number % 2, 6):
                try:
                    tensor = file.read(f"t{i}")
                except ComposeError:
                    counts["refused"] += 1
                    continue
                counts["read"] += 1
                if not bool((tensor == 1 + 16 * i).all()):
                    wrong.append(f"t{i}")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    turn = 0
    while time.monotonic() < end:
        turn += 1
        if turn % 4 == 0:
            os.truncate(path, 3000)
        with path.open("r+b") as out:
            out.write(written[1 + turn % 2])
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(counts.values()) > 10
    path.write_bytes(written[1])
    assert bool((file.read("t0") == 1).all())


def test_what_was_read_is_not_written_over(tmp_path):
    """Memory is used again only when nothing of the tensor is left, a view neither."""
    save_file({f"t{i}": torch.full((1 << 20,), i, dtype=torch.float32) for i in range(6)}, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    kept = {name: file.read(name)[5:].view(torch.int32)[:7] for name in file.tensors}
    for name in (*file.tensors, *file.tensors):
        file.read(name)
    assert all(bool((view.view(torch.float32) == float(name[1:])).all()) for name, view in kept.items())
