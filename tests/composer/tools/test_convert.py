import json
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from pico import make_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import CONFIG, make_tensors, write_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from layerloom.composer import Checkpoint, ComposeError, Family, convert, verify
from layerloom.server.commands.app import app


def pickled(path, tensors, file="pytorch_model.bin", config=CONFIG, **options):
    path.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path / file, **options)
    (path / "config.json").write_text(json.dumps(config))
    return path


def same(directory, tensors):
    stored = {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor), name


def sharded(path):
    names = sorted(make_tensors(1))
    weight_map = {name: f"pytorch_model-{1 + i % 3:05d}-of-00003.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        pickled(path, {name: make_tensors(1)[name] for name in names if weight_map[name] == file}, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_an_expert_of_a_family(root, zipped):
    """Also one in the format before PyTorch 1.6, which cannot be mapped."""
    tensors = make_tensors(1)
    old = pickled(root / "old", OrderedDict(tensors), _use_new_zipfile_serialization=zipped)
    (old / "tokenizer_config.json").write_text("{}")
    (old / "training_args.bin").write_bytes(b"x")
    made = convert(old)
    assert (made.path, made.notes) == (root / "old-safetensors", ())
    assert {file.name for file in made.path.iterdir()} == {"config.json", "tokenizer_config.json", "model.safetensors"}
    with safe_open(made.path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (made.path / "model.safetensors").stat().st_mode == (old / "pytorch_model.bin").stat().st_mode
    assert verify(Family.load(root), "math", made.path) == []


def test_shards(tmp_path):
    old = sharded(tmp_path / "old")
    made = convert(old, tmp_path / "new")
    files = sorted(file.name for file in made.path.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    same(made.path, make_tensors(1))
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in make_tensors(1).values())
    assert Checkpoint(made.path).depth == CONFIG["num_hidden_layers"]
    # Without the index all shards are read, if they are all there.
    (old / "pytorch_model.bin.index.json").unlink()
    same(convert(old, tmp_path / "again").path, make_tensors(1))
    (old / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ComposeError, match="has 2 of 3 shards"):
        convert(old, tmp_path / "third")


def test_a_large_file_becomes_several(tmp_path):
    made = convert(pickled(tmp_path / "old", make_tensors(1)), max_shard_bytes=4096)
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in made.path.glob("*.safetensors")]
    assert len(sizes) > 2 and max(sizes) <= 4096
    same(made.path, make_tensors(1))
    assert Checkpoint(made.path).depth == CONFIG["num_hidden_layers"]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_tied_head_is_left_out_as_transformers_does(tmp_path, architecture):
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        architecture, vocab_size=64, num_hidden_layers=1, head_dim=16, tie_word_embeddings=True, **shape
    )
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(tmp_path / "wanted")
    make_tokenizer().save_pretrained(tmp_path / "wanted")
    said = json.loads((tmp_path / "wanted" / "config.json").read_text())
    if architecture == "gemma2":
        said.pop("tie_word_embeddings", None)
    state = model.state_dict()
    assert "lm_head.weight" in state
    made = convert(pickled(tmp_path / "old", state, config=said))
    same(made.path, load_file(tmp_path / "wanted" / "model.safetensors"))
    assert not any(AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)[1].values())


def test_what_shares_memory_is_copied_where_nothing_is_tied(tmp_path):
    tensors = make_tensors(1)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    whole = torch.arange(64, dtype=torch.float16)
    tensors |= {"halves.0": whole[:32], "halves.1": whole[32:], "turned": whole.view(8, 8).T}
    tensors |= {
        "steps": torch.tensor(7),
        "mask": torch.tensor([True]),
        "empty.0": torch.zeros(0),
        "empty.1": torch.zeros(0),
    }
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
    same(convert(pickled(tmp_path / "old", tensors)).path, {name: t.detach() for name, t in tensors.items()})


def test_an_adapter(tmp_path):
    tensors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3),
        "base_model.model.q.lora_B.weight": torch.ones(3, 2),
    }
    old = pickled(tmp_path / "old", tensors, "adapter_model.bin")
    (old / "adapter_config.json").write_text("{}")
    made = convert(old, max_shard_bytes=8)
    assert {file.name for file in made.path.glob("adapter*")} == {"adapter_model.safetensors", "adapter_config.json"}
    same(made.path, tensors)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "whatever"])
def test_a_state_dict_in_a_dict(tmp_path, wrap):
    content = {wrap: make_tensors(1), "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1)}}, "lr": 0.1}}
    made = convert(pickled(tmp_path / "old", content))
    same(made.path, make_tensors(1))
    assert made.notes == (f"{tmp_path}/old/pytorch_model.bin: took '{wrap}', without 'epoch', 'optimizer'",)


class Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"weight": torch.ones(1), "more": Code()}, r"its pickle calls \w+.mkdir, which could run any code"),
        (
            {"model": {"a": torch.ones(1)}, "ema": {"a": torch.ones(1)}},
            "'model', 'ema' are all state dicts; save",
        ),
        ({"epoch": 1, "model": {"a": torch.ones(1), "b": 2}}, "no state dict in 'epoch', 'model'"),
        ({}, "is empty"),
        ([torch.ones(1)], "holds a list, not a state dict"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        ({"a": torch.ones(1), "step": 5, "b": None}, "'step' is a int, not a tensor; 'b' is a NoneType, not a tensor"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, "'3' is no name"),
        ({"a": torch.eye(3).to_sparse()}, r"'a' is a tensor \(sparse_coo, float32\) that safetensors does not have"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, r"'a' is a tensor \(strided, complex128\)"),
        ({"a": torch.ones(1, device="meta")}, r"'a' is a tensor \(meta\)"),
    ],
)
def test_what_cannot_be_converted(tmp_path, monkeypatch, content, problem):
    monkeypatch.chdir(tmp_path)
    old = pickled(tmp_path / "old", content)
    with pytest.raises(ComposeError, match=rf"old/pytorch_model.bin: .*{problem}|old/pytorch_model.bin: {problem}"):
        convert(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_broken_files(tmp_path):
    old = pickled(tmp_path / "old", make_tensors(1))
    whole = (old / "pytorch_model.bin").read_bytes()
    plain = pickle.dumps({"a": 1})
    for content in (b"", b"x", whole[:-1000], whole[:200], whole[:2000] + bytes(4000) + whole[6000:], plain[:-3]):
        (old / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ComposeError, match=r"old/pytorch_model.bin: "):
            convert(old)
    (old / "pytorch_model.bin").unlink()
    os.mkfifo(old / "pytorch_model.bin")
    with pytest.raises(ComposeError, match="is a FIFO, not a regular file"):
        convert(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_broken_indices(tmp_path):
    old = sharded(tmp_path / "old")
    index = json.loads((old / "pytorch_model.bin.index.json").read_text())
    for change, problem in [
        ({"x.weight": "pytorch_model-00001-of-00003.bin"}, "00001-of-00003.bin: lacks 'x.weight', which"),
        ({"x.weight": "../x.bin"}, "'../x.bin' is not the name of a file beside it"),
        ({"x.weight": "none.bin"}, "none.bin: No such file"),
    ]:
        changed = {"weight_map": index["weight_map"] | change}
        (old / "pytorch_model.bin.index.json").write_text(json.dumps(changed))
        with pytest.raises(ComposeError, match=problem):
            convert(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_nothing_is_overwritten_and_nothing_to_convert_is_said(tmp_path):
    old = pickled(tmp_path / "old", make_tensors(1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(ComposeError, match="full: exists and is not an empty directory"):
        convert(old, tmp_path / "full")
    write_checkpoint(tmp_path / "new", make_tensors(1))
    with pytest.raises(ComposeError, match=r"has model.safetensors, which is safetensors already"):
        convert(tmp_path / "new")
    with pytest.raises(ComposeError, match="no such directory"):
        convert(tmp_path / "none")
    (old / "pytorch_model.bin").rename(old / "model.pt")
    with pytest.raises(ComposeError, match=r"has none of pytorch_model.bin.* \(there is model.pt: rename"):
        convert(old)
    (old / "model.pt").rename(old / "consolidated.00.pth")
    with pytest.raises(ComposeError, match=r"consolidated.00.pth: Meta's own format has other names"):
        convert(old)
    with pytest.raises(ComposeError, match=r"has neither .*: give the model in Hugging Face's format"):
        Checkpoint(old)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]
)
def test_who_meets_pickled_weights_is_told_of_the_command(root, file):
    (root / "math" / "model.safetensors").rename(root / "math" / file)
    with pytest.raises(ComposeError, match=rf"it has {re.escape(file)}, which is pickled: `layerloom convert"):
        Family.load(root)
    (root / "math" / file).rename(root / "math" / "other")
    with pytest.raises(ComposeError, match=r"has neither model.safetensors nor model.safetensors.index.json$"):
        Family.load(root)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled(Path("old"), {"model": make_tensors(1)})
    result = CliRunner().invoke(app, ["convert", "old"])
    assert (result.exit_code, result.stdout) == (0, f"wrote {tmp_path}/old-safetensors\n")
    assert "took 'model'" in result.stderr
    same(tmp_path / "old-safetensors", make_tensors(1))
    result = CliRunner().invoke(app, ["convert", "old", "-o", "old"])
    assert result.exit_code == 2 and "exists and is not an empty directory" in result.stderr
