"""Configs are compared by what the model computes: each change is tried on a real model, and refused if it matters."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import ARCHITECTURES, SHAPE
from tiny import CONFIG, make_tensors, write_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from layerloom.composer import Family, FamilyError
from layerloom.composer.family.configs import config_problems

BASE, EXPERT = Path("base/config.json"), Path("expert/config.json")
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}
USED = {"use_sliding_window": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64, "rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
LONG |= {"original_max_position_embeddings": 128}


def make_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """A small config as transformers 5 would write it, with changes; a key that is set to None is left out."""
    model_type, special = ARCHITECTURES.get(architecture, (architecture, {}))
    settings = {**SHAPE, **special, "num_hidden_layers": 2}
    if model_type.startswith("gemma"):
        settings["layer_types"] = ["sliding_attention", "full_attention"]
    config = json.loads(AutoConfig.for_model(model_type, **settings).to_json_string(use_diff=True))
    config |= {"architectures": [type(AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))).__name__]}
    return {key: deepcopy(value) for key, value in (config | changes).items() if value is not None}


def found(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    before = deepcopy((ours, theirs))
    problems = config_problems(BASE, ours, EXPERT, theirs)
    assert (ours, theirs) == before
    return problems


def logits(
    config: dict[str, Any], weights: dict[str, torch.Tensor] | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = (
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**deepcopy(config)), attn_implementation="eager")
        .float()
        .eval()
    )
    if weights is None:
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: 0.3 * torch.randn(each.shape, generator=generator) for name, each in model.state_dict().items()
        }
    model.load_state_dict(weights)
    with torch.inference_mode():
        return model(torch.arange(4, 204)[None]).logits, weights


MATTERS = [
    ("llama", {"rope_theta": 1e6, "rope_parameters": None}, "rope_theta is 1000000.0, the base's is 10000.0"),
    ("llama", {"rope_parameters": LINEAR}, "rope_type is 'linear', the base's is 'default'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}}, "rs.factor is 4.0"),
    ("llama", {"rope_parameters": YARN}, "'yarn'"),
    ("llama", {"rope_parameters": LLAMA3}, "low_freq_factor"),
    ("llama", {"rms_norm_eps": 0.01}, "rms_norm_eps is 0.01, the base's is 1e-06"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', the base's is 'silu'"),
    ("mistral", {"sliding_window": 8}, "sliding_window is 8, the base's is 4096 (by default)"),
    ("qwen2", {"sliding_window": 8, "max_window_layers": 1, "layer_types": None} | USED, "layer_types"),
    ("gemma2", {"final_logit_softcapping": 5.0}, "final_logit_softcapping is 5.0, the base's is 30.0"),
    ("gemma2", {"attn_logit_softcapping": 1.0}, "attn_logit_softcapping"),
    ("gemma2", {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar is 256, the base's is 32"),
    ("gemma2", {"sliding_window": 32}, "sliding_window is 32, the base's is 64"),
    ("gemma2", {"layer_types": ["full_attention", "full_attention"]}, "layer_types"),
    ("gemma3", {"rope_parameters": None, "rope_local_base_freq": 5e3}, "sliding_attention.rope_theta is 5000.0"),
    ("gemma3", {"rope_parameters": {"full_attention": LINEAR}}, "full_attention.factor is 4.0"),
]  # fmt: skip
PASSES = [
    ("llama", {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None}),
    ("llama", {"rope_parameters": None}),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 1.0}}),
    ("llama", {"rope_parameters": DEFAULT | {"type": "default", "factor": 2.0, "low_freq_factor": 1.0}}),
    ("llama", {"dtype": None, "torch_dtype": "float16", "use_cache": False, "transformers_version": "4.40.0"}),
    ("llama", {"attention_dropout": 0.1, "initializer_range": 0.5, "pretraining_tp": 2, "_name_or_path": "a/b"}),
    ("llama", {"eos_token_id": [2, 3], "bos_token_id": 7, "pad_token_id": None, "max_position_embeddings": 4096}),
    ("llama", {"rms_norm_eps": 9.999999974752427e-07, "head_dim": None, "mlp_bias": None}),
    ("llama", {"unsloth_version": "2025.1", "wandb_run": 3, "lr": {"start": 1e-5}, "auto_map": {"AutoConfig": "x.Y"}}),
    ("llama", {"id2label": {"0": "yes"}, "num_labels": 10**12, "problem_type": "regression"}),
    ("llama", {"architectures": ["LlamaModel"]}),
    ("llama", {"architectures": ["FSDPLlamaForCausalLM"]}),
    ("llama", {"architectures": None}),
    ("llama", {"sliding_window": None, "layer_types": ["full_attention", "full_attention"]}),
    ("qwen2", {"sliding_window": 131072, "max_window_layers": 1, "layer_types": None}),
    ("qwen3", {"use_sliding_window": None, "sliding_window": None, "max_window_layers": None, "layer_types": None}),
    ("gemma2", {"layer_types": None, "tie_word_embeddings": None, "attn_logit_softcapping": 50.0}),
    ("gemma3", {"rope_parameters": None, "rope_theta": 1000000.0, "rope_local_base_freq": 10000}),
    ("gemma3", {"layer_types": None, "sliding_window_pattern": 2}),
]  # fmt: skip


@pytest.fixture(scope="module")
def bases() -> dict[str, Any]:
    made = {name: make_config(name) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")}
    return {name: (config, *logits(config, None)) for name, config in made.items()}


@pytest.mark.parametrize(("architecture", "changes", "said"), MATTERS)
def test_what_changes_the_logits_is_refused(bases, architecture, changes, said):
    ours, expected, weights = bases[architecture]
    theirs = make_config(architecture, **changes)
    assert not torch.equal(logits(theirs, weights)[0], expected)
    (problem,) = [line for line in found(ours, theirs) if said in line]
    assert problem.startswith("expert/config.json: ") and "correct this file" in problem
    assert found(theirs, ours)
    assert found(theirs, theirs) == []


@pytest.mark.parametrize(("architecture", "changes"), PASSES)
def test_what_leaves_the_logits_is_taken(bases, architecture, changes):
    ours, expected, weights = bases[architecture]
    theirs = make_config(architecture, **changes)
    readable = {key: value for key, value in theirs.items() if key not in ("num_labels", "id2label", "problem_type")}
    assert torch.equal(logits(readable, weights)[0], expected)
    assert found(ours, theirs) == found(theirs, ours) == []


@pytest.mark.parametrize("rope", [LINEAR, YARN, LLAMA3 | {"original_max_position_embeddings": 64}])
def test_one_rope_in_two_spellings(rope):
    old = {("type" if key == "rope_type" else key): value for key, value in rope.items() if key != "rope_theta"}
    ours = make_config("llama", rope_parameters=None, rope_theta=5e5, rope_scaling=old)
    theirs = make_config("llama", rope_parameters=rope | {"rope_theta": 500000, "beta_fast": None})
    assert found(ours, theirs) == []
    (line,) = found(ours, make_config("llama", rope_parameters=theirs["rope_parameters"] | {"factor": 16}))
    assert "rope_parameters.factor is 16, the base's is" in line
    ours = make_config("gemma3", rope_parameters=None, rope_theta=1e6, rope_scaling=LINEAR)
    theirs = make_config("gemma3", rope_parameters={"full_attention": LINEAR | {"rope_theta": 1e6}})
    assert found(ours, theirs) == []


def test_one_line_for_a_rope_and_for_a_depth():
    ours = make_config("qwen2")
    assert len(found(ours, make_config("qwen2", rope_parameters=YARN | {"beta_fast": 16}))) == 1
    deeper = make_config("qwen2", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    (line,) = found(ours, deeper)
    assert "num_hidden_layers is 3, the base's is 2" in line


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0}, LONG])
def test_positions_count_where_rope_is_computed_from_them(rope):
    architecture = "phi3" if rope is LONG else "llama"
    more = {"original_max_position_embeddings": 128} if rope is LONG else {}
    ours, theirs = (
        make_config(architecture, rope_parameters=rope, max_position_embeddings=most, **more) for most in (512, 1024)
    )
    assert "max_position_embeddings is 1024, the base's is 512" in "\n".join(found(ours, theirs))
    assert found(ours, ours) == []


@pytest.mark.parametrize(("key", "value"), [("is_causal", False), ("logit_scale", 0.5), ("qk_norm", True)])
def test_keys_that_the_engine_reads_though_no_class_declares_them(key, value):
    ours = make_config("llama")
    assert f"{key} is {value}, the base's is" in found(ours, ours | {key: value})[0]
    assert key in found(ours | {key: value}, ours)[0]
    assert found(ours, ours | {key: not value if isinstance(value, bool) else 1.0}) == []
    part = ours | {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}
    assert "rope_parameters.partial_rotary_factor is 0.5, the base's is not set" in found(ours, part)[0]


def test_windows_of_a_class_without_layer_types():
    ours = make_config("mistral", sliding_window=64)
    assert found(ours, ours | {"layer_types": ["sliding_attention"] * 2}) == []
    (line,) = found(ours, ours | {"layer_types": ["sliding_attention", "full_attention"]})
    assert "layer_types is ['sliding_attention', 'full_attention'], the base's is 'sliding_attention'" in line


def test_other_models():
    ours = make_config("llama")
    (line,) = found(ours, make_config("mistral"))
    assert "model_type is 'mistral', the base's is 'llama'" in line
    (line,) = found(ours, ours | {"architectures": ["LlamaBidirectionalModel"]})
    assert "architectures is ['LlamaBidirectionalModel'], the base's is ['LlamaForCausalLM']" in line
    assert found(ours, {key: value for key, value in ours.items() if key != "model_type"}) == []


def test_an_unknown_model_type_is_compared_as_written():
    ours = {"model_type": "novel", "auto_map": {"AutoConfig": "evil.Config"}, "twist": 3, "rope_theta": 1e4}
    ours |= {"rope_scaling": None, "use_cache": True, "text": None}
    same = {"model_type": "novel", "twist": 3.0, "rope_parameters": DEFAULT, "torch_dtype": "float16"}
    assert found(ours, same) == []
    (line,) = found(ours, same | {"twist": 4})
    assert "twist is 4, the base's is 3" in line
    (line,) = found(ours, same | {"extra": 4})
    assert "extra is 4, the base's is not set" in line


def composite(**text: Any) -> dict[str, Any]:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    inner = make_config("gemma3", **text)
    whole = AutoConfig.for_model("gemma3", text_config=inner, vision_config=vision)
    return json.loads(whole.to_json_string()) | {"architectures": ["Gemma3ForConditionalGeneration"]}


def test_models_with_a_text_config():
    ours, text = composite(), make_config("gemma3")
    assert found(ours, composite(use_cache=False, eos_token_id=5)) == []
    assert found(ours, text) == found(text, ours) == []
    (line,) = found(ours, composite(final_logit_softcapping=5.0))
    assert "text_config.final_logit_softcapping is 5.0, the base's is not set" in line
    (line,) = found(ours, make_config("gemma3", final_logit_softcapping=5.0))
    assert ": final_logit_softcapping is 5.0, the base's is not set" in line
    (line,) = found(text, composite(sliding_window=32))
    assert "sliding_window is 32, the base's is 64" in line
    assert "model_type" in found(ours, make_config("llama"))[0]
    # Mistral3's class takes embeddings for tied, and Mistral's does not; only what is stated counts.
    inner = make_config("mistral", tie_word_embeddings=None)
    whole = {"model_type": "mistral3", "text_config": inner, "vision_config": {"model_type": "pixtral"}}
    assert found(whole, inner) == found(inner, whole) == []
    (line,) = found(whole | {"tie_word_embeddings": False}, inner | {"tie_word_embeddings": True})
    assert ": tie_word_embeddings is True, the base's is False" in line
    # The tower is the base's in every composition.
    assert found(whole, whole | {"vision_config": {"model_type": "pixtral", "hidden_size": 512}}) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": "many"}, "; hidden_size is 'many', the base's is 128; correct the file"),
        ({"num_attention_heads": 0}, "cannot read it as a config of 'llama'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "cannot read it as a config of 'llama'"),
        ({"rope_scaling": "all of it"}, "cannot read it as a config of 'llama'"),
        ({"num_hidden_layers": 10**12}, "'num_hidden_layers' is 1000000000000"),
        ({"vision_config": {"num_hidden_layers": 10**12}}, "'num_hidden_layers' is 1000000000000"),
        ({"layer_types": ["x" * 10**6] * 9}, "layer_types"),
        ({f"key{index}": "x" for index in range(10**5)} | {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"attention_bias": [[[[]]]]}, "cannot read it"),
    ],
)
def test_absurd_values_are_bounded_and_named(changes, said, capfd):
    (line,) = found(make_config("llama"), make_config("llama", **changes))
    assert line.startswith("expert/config.json: ") and said in line and "\n" not in line
    assert len(line) < 1500
    assert capfd.readouterr() == ("", "")


def test_what_is_nested_too_deeply():
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    (line,) = config_problems(BASE, make_config("llama"), EXPERT, {**make_config("llama"), "deep": deep})
    assert line.startswith("expert/config.json: is nested too deeply")


def test_a_base_that_cannot_be_read_is_compared_as_written():
    ours = make_config("llama", num_attention_heads=5)
    assert found(ours, ours | {"torch_dtype": "float16"}) == []
    lines = found(ours, ours | {"rms_norm_eps": 0.5})
    assert "rms_norm_eps is 0.5, the base's is 1e-06" in lines[0]
    assert "base/config.json: transformers" in lines[1]


def test_families_are_loaded_without_transformers_unless_configs_differ(root):
    write_checkpoint(root / "math", make_tensors(1), {**CONFIG, "use_cache": False, "transformers_version": "4.1"})
    script = "import sys; from layerloom.composer import Family; Family.load(sys.argv[1])\n"
    script += "print('transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("False\n", "")
    write_checkpoint(root / "math", make_tensors(1), {**CONFIG, "rope_parameters": {"type": "novel", "factor": 2.0}})
    with pytest.raises(
        FamilyError, match=r"^math: .*math/config.json: rope_parameters.rope_type is 'novel', the base's"
    ):
        Family.load(root)
