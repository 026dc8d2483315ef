import json
import struct

import pytest
import torch
from pico import make_family
from safetensors.torch import save_file
from tiny import CONFIG, make_tensors, write_checkpoint

from layerloom.composer import Checkpoint, ComposeError, Family, verify


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "model", make_tensors(0))
    return tmp_path / "model"


def shard(path):
    """Splits the checkpoint in two files with an index."""
    tensors = make_tensors(0)
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:10], names[10:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("sharded", [False, True])
def test_tensors(path, sharded):
    if sharded:
        shard(path)
    checkpoint = Checkpoint(path)
    expected = make_tensors(0)
    assert checkpoint.depth == 8
    assert checkpoint.stem == ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight")
    assert {*checkpoint.stem, *(name for i in range(8) for name in checkpoint.layer(i))} == expected.keys()
    for name, tensor in expected.items():
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape) == ("BF16", tuple(tensor.shape))
        assert info.file.parent == path
        assert torch.equal(checkpoint.read(name), tensor)
    with pytest.raises(ComposeError, match="has no tensor 'nope'"):
        checkpoint.read("nope")


def test_tied_heads_and_rotary_buffers_are_passed_over(path):
    tensors = {**make_tensors(0), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_checkpoint(path, tensors)
    assert Checkpoint(path).tensors.keys() == make_tensors(0).keys()
    for config in ({"tie_word_embeddings": True}, {"model_type": "gemma2"}):
        kept = {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
        write_checkpoint(path, tensors, {**kept, **config})
        assert Checkpoint(path).stem == ("model.embed_tokens.weight", "model.norm.weight")


def test_a_head_of_its_own_in_a_tied_checkpoint_is_an_error(path):
    """Not passed over: transformers 5 and vLLM 0.32 keep it, others do not."""
    tied = {**CONFIG, "tie_word_embeddings": True}
    changed = make_tensors(0)["model.embed_tokens.weight"].clone()
    changed[-1, -1] += 1
    for head in (make_tensors(0)["lm_head.weight"], changed):
        write_checkpoint(path, {**make_tensors(0), "lm_head.weight": head}, tied)
        with pytest.raises(ComposeError, match=r"lm_head.weight: is another matrix than model.embed_tokens.weight"):
            Checkpoint(path)


def test_two_copies_of_the_weights(path):
    """transformers reads model.safetensors, vLLM what the index says, and with consolidated.safetensors that."""
    whole = (path / "model.safetensors").read_bytes()
    weight_map = shard(path)
    save_file({"layers.0.attention.wq.weight": torch.zeros(2)}, path / "consolidated.safetensors")
    assert {info.file.name for info in Checkpoint(path).tensors.values()} == {*weight_map.values()}
    (path / "model.safetensors").write_bytes(whole)
    with pytest.raises(ComposeError, match=r"model-00001-of-00002.safetensors, model-00002-of-.*: two copies"):
        Checkpoint(path)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "model.safetensors")}))
    assert {info.file.name for info in Checkpoint(path).tensors.values()} == {"model.safetensors"}
    for rest in (index, path / "model.safetensors"):
        rest.unlink()
    with pytest.raises(ComposeError, match=r"it has model-00001-of-00002.safetensors, .*, whose index is missing"):
        Checkpoint(path)
    for part in path.glob("model-*"):
        part.unlink()
    with pytest.raises(ComposeError, match=r"it has consolidated.safetensors, in the names of its maker's own code"):
        Checkpoint(path)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
OVERLAP = {**HEADER, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 5) + b"{nope",
        struct.pack("<Q", len(json.dumps(HEADER))) + json.dumps(HEADER).encode() + b"1234",
        struct.pack("<Q", len(json.dumps(OVERLAP))) + json.dumps(OVERLAP).encode() + bytes(12),
    ],
    ids=["empty", "cut", "header larger than the file", "no json", "truncated", "overlapping"],
)
def test_a_broken_file_is_named(path, content):
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(ComposeError, match=r"model/model.safetensors: "):
        Checkpoint(path)


def test_every_truncation_is_noticed(path):
    whole = (path / "model.safetensors").read_bytes()
    for size in (*range(0, 24), len(whole) // 2, len(whole) - 1):
        (path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(ComposeError, match=r"model.safetensors"):
            Checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_broken_config_is_named(path, content):
    (path / "config.json").write_bytes(content)
    with pytest.raises(ComposeError, match=r"config.json: "):
        Checkpoint(path)


def test_missing_files(path, tmp_path):
    weight_map = shard(path)
    (path / weight_map["lm_head.weight"]).unlink()
    with pytest.raises(ComposeError, match=r"model-0000.-of-00002.safetensors: No such file"):
        Checkpoint(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(ComposeError, match=r"has neither model.safetensors nor"):
        Checkpoint(path)
    with pytest.raises(ComposeError, match="no such directory"):
        Checkpoint(tmp_path / "none")


@pytest.mark.parametrize("file", ["../model/model.safetensors", "/etc/passwd", "..", "", "a\0b", 5])
def test_an_index_cannot_point_elsewhere(path, file):
    shard(path)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(ComposeError, match="model"):
        Checkpoint(path)


def test_an_index_that_promises_too_much(path):
    weight_map = shard(path)
    weight_map["more.weight"] = weight_map["lm_head.weight"]
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ComposeError, match=r"lacks more.weight"):
        Checkpoint(path)


def test_depth_must_be_what_the_config_says(path):
    write_checkpoint(path, make_tensors(0), {**CONFIG, "num_hidden_layers": 9})
    with pytest.raises(ComposeError, match="num_hidden_layers '9'"):
        Checkpoint(path)
    tensors = {name: tensor for name, tensor in make_tensors(0).items() if ".3." not in name}
    write_checkpoint(path, tensors)
    with pytest.raises(ComposeError, match="7 layers numbered 0 to 7"):
        Checkpoint(path)
    write_checkpoint(path, {"a.weight": torch.zeros(2)})
    with pytest.raises(ComposeError, match="no tensors of decoder layers"):
        Checkpoint(path)


def test_sharded_files_of_transformers(tmp_path):
    family = Family.load(make_family(tmp_path, "gemma3", max_shard_size="200KB", experts={"math": "task"}))
    assert len({info.file for info in family.base.tensors.values()}) > 2
    assert verify(family, "math", tmp_path / "math") == []
