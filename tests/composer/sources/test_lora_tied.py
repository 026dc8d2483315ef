"""Adapters of a base whose embeddings are tied: what changes one side alone is no checkpoint."""

import pytest
import torch
from lora import EMBEDDING, HEAD, both_sides, factors, noise, write
from tiny import CONFIG, HIDDEN, VOCAB, make_tensors, write_checkpoint

from layerloom.composer import Adapter, Checkpoint, ComposeError

TARGETS = ["q_proj", "up_proj", "embed_tokens", "lm_head"]
ROWS = "token_adapter.trainable_tokens_delta"


@pytest.fixture
def tied(root):
    tensors = make_tensors(0)
    del tensors["lm_head.weight"]
    write_checkpoint(root / "tied", tensors, {**CONFIG, "tie_word_embeddings": True})
    return Checkpoint(root / "tied")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter"


def embedding(adapter):
    assert "lm_head.weight" not in adapter.tensors
    return adapter.read("model.embed_tokens.weight")


@pytest.mark.parametrize(
    "modules", [["embed_tokens"], ["lm_head"], ["model.embed_tokens"], ["embed_tokens", "lm_head"]]
)
@pytest.mark.parametrize("ensured", [True, False])
def test_equal_sides_are_one_matrix(tied, path, modules, ensured):
    saved = noise(VOCAB, HIDDEN)
    tensors = {**factors(), f"{EMBEDDING}.weight": saved, f"{HEAD}.weight": saved.clone()}
    adapter = Adapter(write(path, tensors, modules_to_save=modules, ensure_weight_tying=ensured), tied)
    assert torch.equal(embedding(adapter), saved.bfloat16())


@pytest.mark.parametrize("config", [{"target_modules": TARGETS}, {"ensure_weight_tying": True}])
def test_equal_factors_are_added_once(tied, path, config):
    config = {"target_modules": ["q_proj", "up_proj", "model.embed_tokens"], **config}
    made = both_sides()
    adapter = Adapter(write(path, {**factors(), **made}, **config), tied)
    a, b = (made[f"{EMBEDDING}.lora_embedding_{side}"].double() for side in "AB")
    wanted = tied.read("model.embed_tokens.weight").double() + 2.0 * (b @ a).T
    assert torch.allclose(embedding(adapter).double(), wanted, rtol=2**-8, atol=1e-6)


def test_equal_factors_on_a_matrix_that_is_stored(tied, path):
    under = noise(VOCAB, HIDDEN, seed=3)
    layers = {f"{EMBEDDING}.base_layer.weight": under, f"{HEAD}.base_layer.weight": under.clone()}
    made = both_sides()
    adapter = Adapter(write(path, {**made, **layers}, target_modules=["embed_tokens", "lm_head"]), tied)
    a, b = (made[f"{EMBEDDING}.lora_embedding_{side}"].double() for side in "AB")
    wanted = under.bfloat16().double() + 2.0 * (b @ a).T
    assert torch.allclose(embedding(adapter).double(), wanted, rtol=2**-8, atol=1e-6)
    # PEFT stores the base's own matrix so.
    layers[f"{HEAD}.base_layer.weight"] = layers[f"{HEAD}.base_layer.weight"] + 1
    with pytest.raises(ComposeError, match="two different ones"):
        Adapter(write(path, {**made, **layers}, target_modules=["embed_tokens", "lm_head"]), tied)


SIDES = both_sides()
EMBEDDED = {key: SIDES[key] for key in SIDES if "embed" in key}
WHOLE = {f"{EMBEDDING}.weight": noise(VOCAB, HIDDEN), f"{HEAD}.weight": noise(VOCAB, HIDDEN, seed=6)}


@pytest.mark.parametrize("ensured", [True, False])
@pytest.mark.parametrize(
    "changed, config, message",
    [
        (EMBEDDED, {"target_modules": TARGETS[:3]}, "the adapter changes one side alone"),
        ({key: SIDES[key] for key in SIDES if "head" in key}, {"target_modules": TARGETS}, "changes one side alone"),
        (
            {f"{EMBEDDING}.weight": WHOLE[f"{EMBEDDING}.weight"]},
            {"modules_to_save": ["embed_tokens"]},
            "one side alone",
        ),
        ({f"{HEAD}.weight": WHOLE[f"{HEAD}.weight"]}, {"modules_to_save": ["lm_head"]}, "changes one side alone"),
        ({f"{HEAD}.weight": WHOLE[f"{HEAD}.weight"]}, {}, "changes one side alone"),
        ({f"{HEAD}.{ROWS}": noise(2, HIDDEN)}, {"trainable_token_indices": {"lm_head": [3, 4]}}, "one side alone"),
        (WHOLE, {"modules_to_save": ["embed_tokens", "lm_head"]}, "makes two different ones"),
        ({**SIDES, f"{HEAD}.lora_B.weight": noise(VOCAB, 4)}, {"target_modules": TARGETS}, "makes two different ones"),
        (SIDES, {"target_modules": TARGETS, "alpha_pattern": {"lm_head": 1}}, "makes two different ones"),
        (
            {**EMBEDDED, f"{HEAD}.weight": WHOLE[f"{HEAD}.weight"]},
            {"target_modules": TARGETS[:3]},
            "two different ones",
        ),
        (
            {f"{EMBEDDING}.{ROWS}": noise(1, HIDDEN), f"{HEAD}.{ROWS}": noise(1, HIDDEN)},
            {"trainable_token_indices": {"lm_head": [3], "embed_tokens": [4]}},
            "two different ones",
        ),
    ],
)
def test_sides_that_differ_are_refused(tied, path, changed, config, message, ensured):
    write(path, {**factors(), **changed}, **config, ensure_weight_tying=ensured)
    with pytest.raises(ComposeError, match=rf"adapter_model.safetensors: .*it ties its embeddings.*{message}"):
        Adapter(path, tied)


@pytest.mark.parametrize("indices", [[3, 4], {"embed_tokens": [3, 4]}, {"embed_tokens": [3, 4], "lm_head": [3, 4]}])
def test_rows_are_of_both_sides(tied, path, indices):
    rows = noise(2, HIDDEN)
    tensors = {**factors(), f"{EMBEDDING}.{ROWS}": rows}
    adapter = Adapter(write(path, tensors, trainable_token_indices=indices), tied)
    wanted = tied.read("model.embed_tokens.weight")
    wanted[3], wanted[4] = rows.bfloat16()
    assert torch.equal(embedding(adapter), wanted)


def test_other_layers_know_nothing_of_it(tied, path):
    adapter = Adapter(write(path, factors()), tied)
    assert torch.equal(embedding(adapter), tied.read("model.embed_tokens.weight"))
