import shutil
import struct

import pytest
import torch
from archives import edit, join, split
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import CONFIG, DEPTH, make_tensors, write_checkpoint

from layerloom.composer import Archive, Checkpoint, ComposeError, Family, open_source

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def test_it_reads_like_a_checkpoint(path, base):
    archive = Archive(path, base)
    assert (archive.depth, archive.stem, archive.config) == (base.depth, base.stem, base.config)
    assert all(archive.layer(i) == base.layer(i) for i in range(DEPTH))
    assert archive.tensors[Q_PROJ].file == path
    assert (archive.tensors[Q_PROJ].dtype, archive.tensors[Q_PROJ].shape) == ("BF16", (16, 16))
    with pytest.raises(ComposeError, match="has no tensor 'nope'"):
        archive.read("nope")


def test_the_file_is_plain_safetensors_with_aligned_parts(path):
    header, data = split(path)
    ends = 0
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            assert start == ends
            assert start % {"U8": 1, "I32": 4, "F32": 4, "BF16": 2}[entry["dtype"]] == 0
            ends = end
    assert ends == len(data)
    with safe_open(path, "pt") as file:
        assert file.get_tensor(f"{Q_PROJ}:words").shape == (16, 2)
        assert file.get_tensor(f"{Q_PROJ}:scales").dtype == torch.bfloat16


def test_another_base_is_refused_by_name(path, root):
    tensors = make_tensors(0)
    tensors["model.norm.weight"].view(torch.int16)[0] ^= 1
    write_checkpoint(root / "other", tensors)
    with pytest.raises(ComposeError, match=r"math.safetensors: is for the base 'base' \(sha256 .*other \(sha256"):
        Archive(path, Checkpoint(root / "other"))


def test_a_base_of_another_depth_or_shape_is_refused(path, root):
    fewer = {name: tensor for name, tensor in make_tensors(0).items() if ".7." not in name}
    write_checkpoint(root / "other", fewer, {**CONFIG, "num_hidden_layers": 7})
    with pytest.raises(ComposeError, match=r"math.safetensors: its base 'base' has 8 layers, and .*other has 7"):
        Archive(path, Checkpoint(root / "other"))
    write_checkpoint(root / "other", {**make_tensors(0), Q_PROJ: torch.zeros(4, 4)})
    with pytest.raises(ComposeError, match=rf"{Q_PROJ}: is BF16 \(16, 16\), and F32 \(4, 4\) in the base"):
        Archive(path, Checkpoint(root / "other"))
    missing = {name: tensor for name, tensor in make_tensors(0).items() if name != Q_PROJ}
    write_checkpoint(root / "other", missing)
    with pytest.raises(ComposeError, match=rf"{Q_PROJ}: the base .*other has no such tensor"):
        Archive(path, Checkpoint(root / "other"))


def test_every_truncation_is_noticed(path, base):
    whole = path.read_bytes()
    for size in (*range(0, 24), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ComposeError, match=r"math.safetensors"):
            Archive(path, base)


@pytest.mark.parametrize("size", [10**12, 4 * 2**30, 2**63])
def test_a_header_that_claims_too_much(path, base, size):
    path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])
    with pytest.raises(ComposeError, match=r"math.safetensors: "):
        Archive(path, base)


def overlap(header):
    header[f"{Q_PROJ}:words"]["data_offsets"][0] -= 4


def drop(header):
    del header[f"{Q_PROJ}:words"]


def wrong_dtype(header):
    header[f"{Q_PROJ}:words"]["dtype"] = "F32"


def wrong_shape(header):
    header[f"{Q_PROJ}:words"]["shape"] = [2, 16]


@pytest.mark.parametrize("change", [overlap, drop, wrong_dtype, wrong_shape])
def test_a_part_that_is_wrong_is_named(path, base, change):
    header, data = split(path)
    change(header)
    join(path, header, data)
    with pytest.raises(ComposeError, match=r"math.safetensors: "):
        Archive(path, base)


def test_parts_that_are_missing_or_too_many(path, base, made):
    with safe_open(made, "pt") as file:
        metadata = file.metadata()
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    words = f"{Q_PROJ}:words"
    cases = [
        ({name: part for name, part in parts.items() if name != words}, f"{words} is missing"),
        ({**parts, "more:words": parts[words].clone()}, "'more:words' is not in the metadata"),
        ({**parts, words: parts[words].float()}, rf"{words} is F32 \(16, 2\), and must be I32"),
        ({**parts, words: parts[words].view(2, 16).contiguous()}, rf"{words} is I32 \(2, 16\), and must be"),
    ]
    for stored, message in cases:
        save_file(stored, path, metadata)
        with pytest.raises(ComposeError, match=message):
            Archive(path, base)
    for value in (torch.nan, torch.inf):
        scales = torch.full_like(parts[f"{Q_PROJ}:scales"], value)
        save_file({**parts, f"{Q_PROJ}:scales": scales}, path, metadata)
        with pytest.raises(
            ComposeError, match=rf"math.safetensors: {Q_PROJ}: int4: scales has numbers that are not fin"
        ):
            Archive(path, base).read(Q_PROJ)


def at(*keys, value):
    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (at("version", value=3), "is of format version 3, and this layerloom reads 1 and 2"),
        (at("version", value=1), "exact of version 2"),
        (at("version", value="1"), "version"),
        (at("more", value=1), "more: "),
        (at("base", "digest", value="x"), r"base\.digest: "),
        (at("base", "depth", value=0), r"base\.depth: "),
        (at("base", "depth", value=10**9), r"base\.depth: "),
        (at("tensors", value=[]), "tensors: "),
        (at("tensors", Q_PROJ, "codec", "codec", value="int3"), rf"tensors\.{Q_PROJ}\.codec: .*'int3'"),
        (at("tensors", Q_PROJ, "codec", "group", value=0), rf"tensors\.{Q_PROJ}\..*group"),
        (at("tensors", Q_PROJ, "codec", "more", value=0), rf"tensors\.{Q_PROJ}\..*more"),
        (at("tensors", Q_PROJ, "dtype", value="I8"), rf"tensors\.{Q_PROJ}\.dtype"),
        (at("tensors", Q_PROJ, "shape", value=[16, -1]), rf"tensors\.{Q_PROJ}\.shape"),
        (at("tensors", Q_PROJ, "shape", value=[16, 2**62]), Q_PROJ),
        (at("tensors", Q_PROJ, "shape", value=[16] * 9), rf"tensors\.{Q_PROJ}\.shape"),
        (at("tensors", Q_PROJ, "shape", value=[0, 16]), rf"{Q_PROJ}: int4 does not store"),
        (at("tensors", Q_PROJ, "codec", value={"codec": "lowrank", "rank": 2}), f"{Q_PROJ}:lora_A is missing"),
        (at("tensors", "../../etc/passwd", value={}), "'../../etc/passwd' is no name"),
        (at("tensors", "/etc/passwd", value={}), "is no name"),
        (at("tensors", "a\0b", value={}), "is no name"),
        (at("tensors", "a" * 513, value={}), "is no name"),
    ],
)
def test_metadata_that_is_wrong_is_named(path, base, change, message):
    edit(path, change)
    with pytest.raises(ComposeError, match=rf"math.safetensors: .*{message}"):
        Archive(path, base)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"version": 1}', '{"version": true}'])
def test_metadata_that_is_no_manifest(path, base, text):
    header, data = split(path)
    header["__metadata__"]["layerloom"] = text
    join(path, header, data)
    with pytest.raises(ComposeError, match=r"math.safetensors: metadata: "):
        Archive(path, base)


def test_other_files(base, pristine, tmp_path):
    with pytest.raises(ComposeError, match=r"is no delta archive"):
        Archive(pristine / "math" / "model.safetensors", base)
    with pytest.raises(ComposeError, match=r"none.safetensors: No such file"):
        Archive(tmp_path / "none.safetensors", base)


def test_sources_are_told_by_their_files(path, base, pristine, tmp_path):
    assert isinstance(open_source(path, base), Archive)
    assert isinstance(open_source(tmp_path, base), Archive)
    assert isinstance(open_source(pristine / "math", base), Checkpoint)
    shutil.copy(path, tmp_path / "second.safetensors")
    with pytest.raises(ComposeError, match="has 2 archives"):
        open_source(tmp_path, base)
    with pytest.raises(ComposeError, match="no such directory"):
        open_source(tmp_path / "none", base)


def test_a_family_names_the_expert(path, root):
    shutil.copy(path, root / "broken.safetensors")
    edit(root / "broken.safetensors", at("version", value=9))
    (root / "family.yaml").write_text(
        "{base: base, experts: {math: {kind: task, path: broken.safetensors}, sw: {kind: language, path: swahili}}}"
    )
    with pytest.raises(ComposeError, match=r"^math: .*broken.safetensors: is of format version 9"):
        Family.load(root)
