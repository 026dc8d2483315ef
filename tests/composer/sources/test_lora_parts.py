"""What an adapter stores beside factors: biases, rows of tokens, layers as a whole."""

import pytest
import torch
from lora import EMBEDDING, HEAD, UP, Q, factors, noise, prefix, write
from tiny import HIDDEN, VOCAB, make_tensors, write_checkpoint

from layerloom.composer import Adapter, Checkpoint, ComposeError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter"


def test_a_state_with_both_copies_of_a_saved_module(base, path):
    saved = noise(VOCAB, HIDDEN)
    tensors = {
        **factors(),
        f"{HEAD}.original_module.weight": base.read("lm_head.weight"),
        f"{HEAD}.modules_to_save.default.weight": saved,
    }
    adapter = Adapter(write(path, tensors, modules_to_save=["lm_head"]), base)
    assert torch.equal(adapter.read("lm_head.weight"), saved.bfloat16())


def test_a_layer_stored_beneath_its_factors(base, path):
    under = noise(VOCAB, HIDDEN, seed=9)
    a, b = noise(4, VOCAB, seed=1), noise(HIDDEN, 4, seed=2)
    tensors = {
        f"{EMBEDDING}.base_layer.weight": under,
        f"{EMBEDDING}.lora_embedding_A": a,
        f"{EMBEDDING}.lora_embedding_B": b,
    }
    adapter = Adapter(write(path, tensors, target_modules=["embed_tokens"], use_rslora=True), base)
    wanted = under.bfloat16().double() + 4.0 * (b.double() @ a.double()).T
    assert torch.allclose(adapter.read("model.embed_tokens.weight").double(), wanted, rtol=2**-8, atol=1e-6)


def test_rows_of_tokens(base, path):
    rows = noise(3, HIDDEN)
    key = f"{EMBEDDING}.token_adapter.trainable_tokens_delta"
    adapter = Adapter(write(path, {**factors(), key: rows}, trainable_token_indices=[7, 0, 31]), base)
    wanted = base.read("model.embed_tokens.weight")
    for row, index in enumerate([7, 0, 31]):
        wanted[index] = rows[row].bfloat16()
    assert torch.equal(adapter.read("model.embed_tokens.weight"), wanted)
    assert adapter.tensors["lm_head.weight"] == base.tensors["lm_head.weight"]
    for indices, message in [
        ([7, 0], r"shape \(3, 16\), 2 trainable_token_indices on this base need \(2, 16\)"),
        ([7, 0, 32], "trainable_token_indices: 32: the base's are 0 to 31"),
        ([7, 0, -1], "trainable_token_indices: -1: the base's are"),
        ([7, 0, 7], "has a token twice"),
        ({"lm_head": [7, 0, 31]}, "does not say of which tokens"),
        ({"embed_tokens": [7, 0, 31], "lm_head": [1]}, "'lm_head': their rows .* are not in adapter_model.safetensors"),
    ]:
        with pytest.raises(ComposeError, match=message):
            Adapter(write(path, {**factors(), key: rows}, trainable_token_indices=indices), base)


@pytest.fixture
def biased(root):
    """A base with the biases of q_proj."""
    tensors = make_tensors(0)
    tensors |= {f"model.layers.{layer}.{Q}.bias": noise(HIDDEN, seed=layer).bfloat16() for layer in range(8)}
    write_checkpoint(root / "biased", tensors)
    return Checkpoint(root / "biased")


def biases(name, layers=range(8)):
    return {f"{prefix(layer, Q)}.{name}": noise(HIDDEN, seed=50 + layer) for layer in layers}


@pytest.mark.parametrize("config, scale", [({}, 2.0), ({"use_rslora": True, "alpha_pattern": {"q_proj": 6}}, 3.0)])
def test_the_bias_of_the_second_factor_is_added_scaled(biased, path, config, scale):
    tensors = {**factors(modules=[Q]), **biases("lora_B.bias")}
    config = {**config, "lora_bias": True, "target_modules": ["q_proj"]}
    adapter = Adapter(write(path, tensors, **config), biased)
    for layer in range(8):
        name = f"model.layers.{layer}.{Q}.bias"
        wanted = (biased.read(name).float() + scale * tensors[f"{prefix(layer, Q)}.lora_B.bias"]).bfloat16()
        assert torch.equal(adapter.read(name), wanted)
    assert adapter.packing(adapter.layer(0)) is not None
    with pytest.raises(ComposeError, match=r"lora_B.bias: there are no factors beside it, or .* has no lora_bias"):
        Adapter(write(path, tensors, target_modules=["q_proj"]), biased)
    del tensors[f"{prefix(3, Q)}.lora_B.bias"]
    with pytest.raises(ComposeError, match=r"layers.3.self_attn.q_proj: has no lora_B.bias, and .* has lora_bias"):
        Adapter(write(path, tensors, **config), biased)


@pytest.mark.parametrize("kind", ["all", "lora_only"])
@pytest.mark.parametrize("infix", ["base_layer.", ""])
def test_trained_biases_replace_the_base_s(biased, path, kind, infix):
    tensors = {**factors(modules=[Q]), **biases(f"{infix}bias")}
    adapter = Adapter(write(path, tensors, bias=kind, target_modules=["q_proj"]), biased)
    for layer in range(8):
        assert torch.equal(adapter.read(f"model.layers.{layer}.{Q}.bias"), noise(HIDDEN, seed=50 + layer).bfloat16())
    del tensors[f"{prefix(3, Q)}.{infix}bias"]
    with pytest.raises(ComposeError, match=rf"bias '{kind}': .*layers.3.self_attn.q_proj.bias is not in adapter_model"):
        Adapter(write(path, tensors, bias=kind, target_modules=["q_proj"]), biased)


def test_biases_that_the_base_has_not(base, biased, path):
    with pytest.raises(ComposeError, match=r"adapter_config.json: bias 'all': the base .* has none there"):
        Adapter(write(path, factors(), bias="all"), base)
    with pytest.raises(ComposeError, match=r"bias 'lora_only': the base .* has none there"):
        Adapter(write(path, factors(modules=[UP]), bias="lora_only", target_modules=["up_proj"]), biased)


def test_a_bias_without_factors(root, path):
    tensors = {**make_tensors(0), "model.norm.bias": noise(HIDDEN).bfloat16()}
    write_checkpoint(root / "normed", tensors)
    key = "base_model.model.model.norm.lora_B.bias"
    with pytest.raises(ComposeError, match=rf"{key}: there are no factors beside it"):
        write(path, {**factors(), key: noise(HIDDEN)}, lora_bias=False)
        Adapter(path, Checkpoint(root / "normed"))


def test_rows_of_what_is_no_embedding(base, path):
    key = "base_model.model.model.norm.token_adapter.trainable_tokens_delta"
    with pytest.raises(ComposeError, match=r"has rows of model.norm.weight, which is no embedding"):
        Adapter(write(path, {**factors(), key: noise(1)}, trainable_token_indices={"norm": [1]}), base)


@pytest.mark.parametrize("targets", ["all-linear", None])
def test_a_file_with_nothing_in_it(base, path, targets):
    with pytest.raises(ComposeError, match=r"adapter_model.safetensors: has nothing of an adapter in it"):
        Adapter(write(path, {}, target_modules=targets), base)
