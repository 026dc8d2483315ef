import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import CONFIG, EXPERTS, make_tensors, write_checkpoint, write_family

from layerloom.composer import Archive, Checkpoint, ComposeError, Family, FamilyError, extract, merge, verify
from layerloom.composer.sources.codecs import Int4, Int8, Lowrank, Sign, error

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def left_in(path):
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize("dtype", BITS)
def test_merge_from_exact_archives_is_merge_from_checkpoints(tmp_path, dtype):
    root = write_family(tmp_path / "family", dtype).parent
    odd = make_tensors(1, dtype)
    bits = odd["model.norm.weight"].view(BITS[dtype])
    bits[:4] = torch.tensor([-1, 1, torch.iinfo(bits.dtype).min, torch.iinfo(bits.dtype).max], dtype=bits.dtype)
    save_file(odd, root / "math" / "model.safetensors")
    before = Family.load(root)
    experts = {name: {**entry, "path": f"{name}.safetensors"} for name, entry in EXPERTS.items()}
    for name in experts:
        extract(root / "base", root / name, root / f"{name}.safetensors")
    path = root / "archives.yaml"
    path.write_text(str({"base": "base", "experts": experts}))
    after = Family.load(path)
    assert isinstance(after.checkpoint("math"), Archive)
    for composition in ("math", "math+swahili", "code+bengali@weight=0.3,stem=average"):
        out = merge(after, composition, tmp_path / composition)
        assert verify(before, composition, out) == []
        assert verify(after, composition, out) == []
        assert before.plan(composition).digest != after.plan(composition).digest
    stored = load_file(tmp_path / "math" / "model.safetensors")
    assert all(torch.equal(stored[name].view(BITS[dtype]), odd[name].view(BITS[dtype])) for name in odd)


@pytest.mark.parametrize("codec", [Int8(), Int4(), Sign(), Lowrank(rank=4)])
def test_lossy_codecs_take_the_matrices_of_the_layers(root, codec):
    out = root / "math.safetensors"
    manifest = extract(root / "base", root / "math", out, codec)
    base, expert = Checkpoint(root / "base"), Checkpoint(root / "math")
    archive = Archive(out, base)
    assert archive.manifest == manifest
    assert archive.tensors.keys() == base.tensors.keys()
    for name, stored in manifest.tensors.items():
        matrix = "layers" in name and "norm" not in name
        assert stored.codec.codec == (codec.codec if matrix else "exact"), name
        decoded = archive.read(name)
        assert (decoded.dtype, tuple(decoded.shape)) == (torch.bfloat16, base.tensors[name].shape)
        assert stored.error == error(decoded, expert.read(name), base.read(name))
        assert (stored.error > 0) == matrix
        assert stored.change == pytest.approx(
            float((expert.read(name).double() - base.read(name).double()).norm() / base.read(name).double().norm())
        )


def test_everything_and_the_error_bound(root):
    manifest = extract(root / "base", root / "math", root / "all.safetensors", Int8(), everything=True)
    assert {stored.codec.codec for stored in manifest.tensors.values()} == {"int8"}
    thin = extract(root / "base", root / "math", root / "thin.safetensors", Lowrank(rank=1), everything=True)
    assert {s.codec.codec for name, s in thin.tensors.items() if "norm" in name} == {"exact"}
    manifest = extract(root / "base", root / "math", root / "auto.safetensors", error_bound=0.2)
    assert all(stored.error <= 0.2 for stored in manifest.tensors.values())
    assert {stored.codec.codec for stored in manifest.tensors.values()} >= {"exact", "int4"}


def test_what_did_not_change_is_not_stored(root):
    tensors = make_tensors(0)
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    write_checkpoint(root / "math", tensors)
    seen = []
    manifest = extract(root / "base", root / "math", root / "a.safetensors", progress=lambda *done: seen.append(done))
    assert list(manifest.tensors) == ["model.layers.3.mlp.up_proj.weight"]
    assert [name for name, _ in seen] == sorted(name for name, _ in seen if "layers" not in name) + [
        name for name, _ in seen if "layers" in name
    ]
    assert sum(size for _, size in seen) == sum(tensor.nbytes for tensor in tensors.values())
    with safe_open(root / "a.safetensors", "pt") as file:
        assert list(file.keys()) == ["model.layers.3.mlp.up_proj.weight:bytes"]
    nothing = extract(root / "base", root / "base", root / "b.safetensors")
    assert nothing.tensors == {}
    archive = Archive(root / "b.safetensors", Checkpoint(root / "base"))
    assert all(torch.equal(archive.read(name), tensor) for name, tensor in make_tensors(0).items())


def test_the_same_twice_is_the_same_bytes(root):
    for name in "ab":
        extract(root / "base", root / "math", root / f"{name}.safetensors", error_bound=0.3)
    assert (root / "a.safetensors").read_bytes() == (root / "b.safetensors").read_bytes()


def test_models_that_do_not_fit(root):
    write_checkpoint(root / "math", make_tensors(0, torch.float16), {**CONFIG, "hidden_size": 17})
    with pytest.raises(FamilyError, match="hidden_size is 17") as caught:
        extract(root / "base", root / "math", root / "a.safetensors")
    assert len(caught.value.problems) == 1
    assert not (root / "a.safetensors").exists()


def test_bad_arguments(root):
    out = root / "a.safetensors"
    for options, message in (
        ({"codec": Int4(), "error_bound": 0.1}, "either a codec or an error bound"),
        ({"error_bound": float("nan")}, "error bound must be finite"),
        ({"error_bound": -1.0}, "error bound must be finite"),
    ):
        with pytest.raises(ComposeError, match=message):
            extract(root / "base", root / "math", out, **options)
    with pytest.raises(ComposeError, match=r"must end in .safetensors"):
        extract(root / "base", root / "math", root / "a.bin")
    with pytest.raises(ComposeError, match="no such directory"):
        extract(root / "base", root / "none", out)
    out.write_text("mine")
    with pytest.raises(ComposeError, match=r"a.safetensors: exists"):
        extract(root / "base", root / "math", out)
    assert out.read_text() == "mine"


def test_what_is_not_finite_is_named_and_leaves_nothing(root):
    tensors = make_tensors(1)
    tensors["model.layers.2.mlp.up_proj.weight"][1, 1] = torch.nan
    write_checkpoint(root / "math", tensors)
    before = left_in(root)
    with pytest.raises(
        ComposeError, match=r"math/model.safetensors: model.layers.2.mlp.up_proj.weight: .*only the codec"
    ):
        extract(root / "base", root / "math", root / "a.safetensors", Int4())
    assert left_in(root) == before
    manifest = extract(root / "base", root / "math", root / "a.safetensors", error_bound=0.5)
    stored = manifest.tensors["model.layers.2.mlp.up_proj.weight"]
    assert (stored.codec.codec, stored.change, stored.error) == ("exact", None, 0.0)


@pytest.mark.parametrize("full", ["in the middle", "at the end"])
def test_a_full_disk_leaves_nothing(root, full, monkeypatch):
    import layerloom.composer.sources.writer as writer

    def fail(*args):
        raise OSError(28, "No space left on device")

    if full == "at the end":
        monkeypatch.setattr(writer.shutil, "copyfileobj", fail)
    else:
        monkeypatch.setattr(writer.Writer, "add", fail)
    before = left_in(root)
    with pytest.raises(ComposeError, match=r"a.safetensors: cannot be written: No space left"):
        extract(root / "base", root / "math", root / "a.safetensors")
    assert left_in(root) == before


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes, where that is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk]
        if (
            os.geteuid() != 0
            or shutil.which("mount") is None
            or subprocess.run(command, stderr=subprocess.PIPE).returncode
        ):
            pytest.skip("may not mount a file system")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["in the middle", "at the end"])
def test_a_disk_that_is_really_full(root, small_disk, share):
    """What is collected, and then the file made of it, each take the archive's size."""
    extract(root / "base", root / "math", root / "a.safetensors")
    disk = small_disk(int(share * (root / "a.safetensors").stat().st_size))
    with pytest.raises(ComposeError, match=r"disk/a.safetensors: cannot be written: No space left"):
        extract(root / "base", root / "math", disk / "a.safetensors")
    assert left_in(disk) == []


def test_a_file_that_may_not_grow_leaves_nothing(root):
    script = (
        "import sys, resource; from pathlib import Path; from layerloom.composer import extract\n"
        "r = Path(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "extract(r / 'base', r / 'math', r / 'a.safetensors')"
    )
    before = left_in(root)
    run = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True)
    assert run.returncode == 1 and "ComposeError" in run.stderr
    assert run.stderr.strip().endswith("a.safetensors: cannot be written: File too large")
    assert left_in(root) == before


def test_ctrl_c_leaves_nothing(root):
    script = (
        "import signal, sys, time; from pathlib import Path; from layerloom.composer import extract\n"
        # Whoever started the tests in the background may have had it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler); r = Path(sys.argv[1])\n"
        "def slow(name, size): print(name, flush=True); time.sleep(0.2)\n"
        "extract(r / 'base', r / 'math', r / 'a.safetensors', progress=slow)"
    )
    before = left_in(root)
    with subprocess.Popen([sys.executable, "-c", script, root], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, printed = run.communicate(timeout=60)
    assert run.returncode != 0 and b"KeyboardInterrupt" in printed
    assert left_in(root) == before


def test_a_file_that_changes_meanwhile(root):
    """Another file in its place does not matter; one that is written to is refused."""
    write_checkpoint(root / "new", make_tensors(7))
    ours, new = root / "math" / "model.safetensors", root / "new" / "model.safetensors"

    def change(how):
        return lambda name, size: how(new, ours) if name == "lm_head.weight" else None

    extract(root / "base", root / "math", root / "a.safetensors")
    extract(root / "base", root / "math", root / "b.safetensors", progress=change(os.replace))
    assert (root / "b.safetensors").read_bytes() == (root / "a.safetensors").read_bytes()

    write_checkpoint(root / "new", make_tensors(1))
    with pytest.raises(ComposeError, match=r"math/model.safetensors: was written to after it was opened"):
        extract(root / "base", root / "math", root / "c.safetensors", progress=change(shutil.copyfile))
    assert not (root / "c.safetensors").exists()
