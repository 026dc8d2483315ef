"""Experts and bases that do not fit are reported, one line for one cause."""

import json

import pytest
import torch
from tiny import CONFIG, EXPERTS, TOKENIZER, make_tensors, problems, write_checkpoint

from layerloom.composer import ComposeError, ComposeWarning, Family


def test_experts_that_do_not_fit_the_base_are_all_reported(root, edit):
    def rewrite(expert, config=None, **changes):
        tensors = make_tensors(1)
        for name, tensor in changes.items():
            name = name.replace("__", ".")
            if tensor is None:
                del tensors[name]
            else:
                tensors[name] = tensor
        write_checkpoint(root / expert, tensors, {**CONFIG, **(config or {})})

    rewrite("math", model__norm__weight=None, extra__weight=torch.zeros(2))
    rewrite(
        "code",
        {"vocab_size": 33, "rope_theta": 1e6},
        lm_head__weight=torch.zeros(33, 16),
        model__norm__weight=torch.zeros(16),
    )
    rewrite("swahili", {"architectures": ["QwenForCausalLM"]})
    (root / "swahili" / "tokenizer.json").write_text(json.dumps(TOKENIZER).replace("habari", "jambo"))
    shallow = {name: t for name, t in make_tensors(1).items() if ".7." not in name}
    write_checkpoint(root / "bengali", shallow, {**CONFIG, "num_hidden_layers": 7, "quantization_config": {}})
    experts = {**EXPERTS, "gone": {"kind": "task", "path": "gone"}}
    found = problems(edit(experts=experts))
    for start, part in (
        ("math", "model.norm.weight: is missing"),
        ("math", "math/model.safetensors: extra.weight: the base has no such tensor"),
        ("code", "code/config.json: vocab_size is 33, the base's is 32"),
        ("code", "config.json: rope_theta is 1000000.0"),
        ("code", "code/model.safetensors: lm_head.weight: shape (33, 16), the base's is (32, 16)"),
        ("swahili", "architectures is ['QwenForCausalLM']"),
        ("swahili", "swahili/tokenizer.json: is not the base's tokenizer"),
        ("bengali", "has 7 layers, the base 8"),
        ("bengali", "the expert is quantized"),
        ("gone", "no such directory"),
    ):
        assert any(problem.startswith(f"{start}: ") and part in problem for problem in found), (start, part)


def test_one_line_for_one_cause(root):
    narrow = {
        name: t[:, :8].clone() if t.dim() > 1 else t for name, t in make_tensors(1).items() if ".q_norm." not in name
    }
    write_checkpoint(root / "math", narrow)
    file = f"math: {root}/math/model.safetensors"
    layers = "model.layers.0.{0}.weight, model.layers.1.{0}.weight and 6 more"
    assert problems(root) == [
        f"{file}: lm_head.weight, model.embed_tokens.weight: shape (32, 8), the base's is (32, 16)",
        f"{file}: {layers.format('mlp.up_proj')}: shape (33, 8), the base's is (33, 16)",
        f"math: {root}/math: {layers.format('self_attn.q_norm')}: is missing; the base has it",
        f"{file}: {layers.format('self_attn.q_proj')}: shape (16, 8), the base's is (16, 16)",
    ]


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_fine_tune_in_another_dtype_is_rounded_once(root, stored):
    tensors = make_tensors(1, stored)
    write_checkpoint(root / "math", tensors, {**CONFIG, "dtype": str(stored)})
    word = {torch.float32: "F32", torch.float16: "F16"}[stored]
    with pytest.warns(ComposeWarning, match=rf"/math: {word} tensors are read as BF16, the base.s, each number"):
        family = Family.load(root)
    source = family.checkpoint("math")
    for name, tensor in tensors.items():
        assert source.tensors[name].dtype == "BF16"
        assert torch.equal(source.read(name), tensor.bfloat16())


def test_numbers_too_large_for_the_base_are_an_error_when_read(root):
    for name in ("base", *EXPERTS):
        write_checkpoint(root / name, make_tensors(0, torch.float16))
    write_checkpoint(root / "math", {**make_tensors(1), "model.norm.weight": torch.full((16,), 1e6).bfloat16()})
    source = Family.load(root).checkpoint("math")
    with pytest.raises(
        ComposeError, match=r"math/model.safetensors: model.norm.weight: has numbers that are too large"
    ):
        source.read("model.norm.weight")


def test_norms_may_have_a_dtype_of_their_own(root):
    """As some trainers keep them. But not some of them, as they are rounded together."""

    def write(name, change):
        write_checkpoint(root / name, {n: t.float() if change(n) else t for n, t in make_tensors(0).items()})

    for name in ("base", *EXPERTS):
        write(name, lambda tensor: "norm" in tensor)
    Family.load(root)
    write("base", lambda tensor: "q_norm" in tensor)
    (found,) = [problem for problem in problems(root) if "base" in problem and "dtype" in problem]
    assert found.startswith(
        f"base: {root}/base: layer 0, layer 1 and 6 more: norm tensors are of BF16 and F32; save them in one"
    )


def test_a_base_without_a_head(root):
    tensors = make_tensors(0)
    del tensors["lm_head.weight"]
    write_checkpoint(root / "base", tensors)
    assert any("base: has no lm_head.weight, and config.json does not tie" in problem for problem in problems(root))


def test_a_base_that_cannot_be_composed_on(root):
    tensors = {**make_tensors(0), "model.norm.weight": torch.zeros(16, dtype=torch.int8)}
    write_checkpoint(root / "base", tensors, {**CONFIG, "quantization_config": {"quant_method": "gptq"}})
    found = problems(root)
    assert any("base/config.json: the base is quantized (gptq)" in problem for problem in found)
    assert any("model.norm.weight: dtype I8 is none of BF16, F16, F32" in problem for problem in found)
