import json
import sys

import pytest
import torch
from pico import make_family
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_tensors, write_family
from transformers import AutoModelForCausalLM, AutoTokenizer

from layerloom.composer import ComposeError, Family, merge, tensors, verify

TABLE = {
    "method": "table",
    "layers": {
        "0-2": {"attention": "language", "mlp": {"task": 0.3, "language": 0.5}, "norm": "base"},
        "3": {"math": 0.1, "code": 0.2, "swahili": 0.7},
        "4-7": "base",
    },
    "stem": {"code": 0.9},
}
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def blended(loaded, name, weights):
    """Written down independently: fp32, the base first and then by name, rounded once."""
    rest = 1.0 - sum(weights[expert] for expert in sorted(weights))
    shares = ([("base", rest)] if rest else []) + sorted(weights.items())
    if len(shares) == 1 and shares[0][1] == 1.0:
        return loaded[shares[0][0]][name]
    total = loaded[shares[0][0]][name].to(torch.float32) * shares[0][1]
    for source, weight in shares[1:]:
        total = total + loaded[source][name].to(torch.float32) * weight
    return total.to(loaded["base"][name].dtype)


def expected_weights(case, name):
    layer = int(name.split(".")[2]) if ".layers." in name else None
    if case == "swap":
        if layer is None or layer < 2 or layer == 7:
            return {"swahili": 1.0}
        return {"swahili": 0.25, "math": 0.75} if layer in (2, 6) else {"math": 1.0}
    if case == "soup":
        return {"swahili": 0.6, "math": 0.3} if layer is not None else {}
    if layer is None:
        return {"code": 0.9}
    if layer < 3:
        if "norm" in name:
            return {}
        return {"swahili": 1.0} if "self_attn" in name else {"math": 0.3, "swahili": 0.5}
    return {"math": 0.1, "code": 0.2, "swahili": 0.7} if layer == 3 else {}


@pytest.mark.parametrize("dtype", BITS)
def test_merge_is_the_formula_bit_by_bit(tmp_path, dtype):
    compositions = {
        "swap": "math+swahili@bottom=2,top=1,weight=0.25",
        "soup": {
            "task": "math",
            "language": "swahili",
            "recipe": {"method": "soup", "weights": {"language": 0.6, "task": 0.3}, "stem": "base"},
        },
        "table": {"task": "math", "language": "swahili", "recipe": TABLE},
    }
    family = Family.load(write_family(tmp_path, dtype, compositions=compositions))
    loaded = {name: load_file(tmp_path / name / "model.safetensors") for name in ("base", *family.experts)}
    for case in compositions:
        out = merge(family, case, tmp_path / f"merged-{case}")
        merged = load_file(out / "model.safetensors")
        assert merged.keys() == loaded["base"].keys()
        for name, tensor in merged.items():
            wanted = blended(loaded, name, expected_weights(case, name))
            assert tensor.dtype == dtype
            assert torch.equal(tensor.view(BITS[dtype]), wanted.view(BITS[dtype])), (case, name)
        assert verify(family, case, out) == []


def test_one_expert_is_copied_whatever_its_bits_are(root):
    odd = make_tensors(1)
    odd["model.norm.weight"].view(torch.int16)[:4] = torch.tensor([0x7FC1, -0x8000, 0x7F80, 0x0001], dtype=torch.int16)
    save_file(odd, root / "math" / "model.safetensors")
    family = Family.load(root)
    out = merge(family, "math", root / "out")
    assert verify(family, "math", out) == verify(family, "math", root / "math") == []
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[name].view(torch.int16), odd[name].view(torch.int16)) for name in odd)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_transformers_loads_a_merge(tmp_path, architecture):
    family = Family.load(make_family(tmp_path, architecture, experts={"math": "task", "swahili": "language"}))
    out = merge(family, "math+swahili", tmp_path / "made" / "on the way")
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    parameters = dict(model.named_parameters())
    for name, tensor in tensors(family, family.plan("math+swahili")):
        assert torch.equal(parameters[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "habari"}], tokenize=False)
    assert chat == "<bos>user: habari\n"
    kept = {file.name for file in (tmp_path / "base").iterdir()}
    assert {file.name for file in out.iterdir()} == kept
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards(root, family):
    out = merge(family, "math+swahili", root / "out", max_shard_bytes=4096)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for _, t in tensors(family, family.plan("math+swahili")))
    for file in files:
        assert sum(t.nbytes for t in load_file(out / file).values()) <= 4096
    assert verify(family, "math+swahili", out) == []


def test_merge_overwrites_nothing(root, family, tmp_path):
    with pytest.raises(ComposeError, match="not an empty directory"):
        merge(family, "math", root / "math")
    with pytest.raises(ComposeError, match="not an empty directory"):
        merge(family, "math", root / "family.yaml")
    with pytest.raises(ComposeError, match="cannot be written"):
        merge(family, "math", root / "family.yaml" / "out")
    (tmp_path / "empty").mkdir()
    assert merge(family, "math", tmp_path / "empty") == tmp_path / "empty"


def test_a_failed_merge_leaves_nothing(family, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules[merge.__module__], "save_file", full)
    with pytest.raises(ComposeError, match="No space left"):
        merge(family, "math", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_merging_the_same_twice_gives_the_same_bytes(family, tmp_path):
    first, second = (merge(family, "math+swahili", tmp_path / name) for name in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_verify_finds_every_difference(family, tmp_path):
    out = merge(family, "math+swahili", tmp_path / "out")
    stored = load_file(out / "model.safetensors")
    stored["lm_head.weight"].view(torch.int16)[3, 5] ^= 1
    stored["model.norm.weight"] = stored["model.norm.weight"].float()
    stored["model.layers.0.input_layernorm.weight"] = torch.zeros(3, dtype=torch.bfloat16)
    del stored["model.layers.1.mlp.up_proj.weight"]
    stored["more.weight"] = torch.zeros(7)
    save_file(stored, out / "model.safetensors")
    found = {difference.tensor: difference for difference in verify(family, "math+swahili", out)}
    assert found.keys() == {
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.mlp.up_proj.weight",
        "more.weight",
    }
    assert found["lm_head.weight"].count == 1
    assert found["lm_head.weight"].reason == "1 of 512 elements differ, the first at (3, 5)"
    assert "dtype F32" in found["model.norm.weight"].reason
    assert "shape (3,)" in found["model.layers.0.input_layernorm.weight"].reason
    assert found["model.layers.1.mlp.up_proj.weight"].reason == "missing"
    assert found["more.weight"].count == 7


def test_verify_against_nothing(family, tmp_path):
    with pytest.raises(ComposeError, match="no such directory"):
        verify(family, "math", tmp_path / "none")
