"""Language models that are part of larger ones, in the spellings of several versions, and fine-tunes of them alone."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import CONFIG, DEPTH, HIDDEN, make_tensors, write_checkpoint

from layerloom.composer import (
    Checkpoint,
    ComposeError,
    ComposeWarning,
    Family,
    FamilyError,
    extract,
    inspect,
    merge,
    open_source,
    verify,
)

TEXT = {**CONFIG, "architectures": ["PicoForCausalLM"], "model_type": "pico_text"}
NESTED = {
    "architectures": ["PicoForConditionalGeneration"],
    "model_type": "pico",
    "text_config": {key: value for key, value in TEXT.items() if key != "architectures"},
    "vision_config": {"num_hidden_layers": DEPTH + 4},
}
# What versions of transformers, and classes, put before the names of model.layers.0…, lm_head and what is around them.
SPELLINGS = {
    "before 4.52": ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.", "projector."),
    "in memory": ("model.language_model.", "lm_head.", "model.vision_tower.", "model.projector."),
    "without the wrapper": ("model.", "lm_head.", "visual.", "visual.merger."),
}


def spelled(tensors: dict[str, torch.Tensor], spelling: str) -> dict[str, torch.Tensor]:
    model, head, _, _ = SPELLINGS[spelling]
    return {re.sub(r"^lm_head\.", head, re.sub(r"^model\.", model, name)): tensors[name] for name in tensors}


def around(spelling: str, seed: int = 100) -> dict[str, torch.Tensor]:
    """A tower with more layers than the language model has, and a projector; of another dtype, as there are."""
    _, _, tower, projector = SPELLINGS[spelling]
    generator = torch.Generator().manual_seed(seed)
    names = [f"{tower}encoder.layers.{i}.{leaf}" for i in range(DEPTH + 4) for leaf in ("fc1.weight", "norm.bias")]
    made = {name: torch.randn(4, 4, generator=generator) for name in [*names, f"{projector}linear.weight"]}
    return {**made, f"{tower}embeddings.position_ids": torch.arange(4)}


def write_nested(path: Path, seed: int, spelling: str, tower: int = 100, config: dict | None = None) -> None:
    write_checkpoint(path, {**spelled(make_tensors(seed), spelling), **around(spelling, tower)}, config or NESTED)


def write_entries(root: Path) -> Path:
    experts = {"math": {"kind": "task", "path": "math"}, "swahili": {"kind": "language", "path": "swahili"}}
    path = root / "family.yaml"
    path.write_text(yaml.safe_dump({"base": "base", "experts": experts}))
    return path


@pytest.fixture
def expected(family, tmp_path):
    """math+swahili of the same language models, which are models of their own."""
    return load_file(merge(family, "math+swahili", tmp_path / "expected") / "model.safetensors")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_layers_of_a_tower_are_no_decoder_layers(spelling, tmp_path):
    write_nested(tmp_path / "base", 0, spelling)
    base = Checkpoint(tmp_path / "base")
    model, head, _, _ = SPELLINGS[spelling]
    assert base.depth == DEPTH
    assert base.stem == tuple(sorted((f"{head}weight", f"{model}embed_tokens.weight", f"{model}norm.weight")))
    assert all(name.startswith(f"{model}layers.") for i in range(DEPTH) for name in base.layer(i))
    assert set(base.outside) == around(spelling).keys()


@pytest.mark.parametrize("experts", SPELLINGS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_model_in_two_spellings(spelling, experts, tmp_path, expected):
    write_nested(tmp_path / "base", 0, spelling)
    write_nested(tmp_path / "math", 1, experts)
    write_nested(tmp_path / "swahili", 3, spelling)
    family = Family.load(write_entries(tmp_path))
    merged = merge(family, "math+swahili", tmp_path / "merged")
    found = load_file(merged / "model.safetensors")
    wanted = {**spelled(expected, spelling), **around(spelling)}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert verify(family, "math+swahili", merged) == []
    assert {row.layer for row in inspect(tmp_path)[0].rows} == {None, *range(DEPTH)}

    # As another version would have saved it.
    write_checkpoint(tmp_path / "again", {**spelled(expected, experts), **around(experts)}, NESTED)
    if "wrapper" not in spelling + experts or spelling == experts:
        assert verify(family, "math+swahili", tmp_path / "again") == []
    changed = spelled(expected, experts)
    changed[next(name for name in changed if "layers.3.mlp" in name)][0, 0] += 1
    write_checkpoint(tmp_path / "changed", {**changed, **around(experts, seed=101)}, NESTED)
    different = {difference.tensor for difference in verify(family, "math+swahili", tmp_path / "changed")}
    assert different >= {name for name in family.base.layer(3) if "mlp" in name}
    assert different > {name for name in family.base.outside if "position_ids" not in name}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("nested", ["base", "math"])
def test_a_fine_tune_of_the_language_model_alone(nested, spelling, tmp_path, expected):
    for seed, name in [(0, "base"), (1, "math"), (3, "swahili")]:
        if name == nested:
            write_nested(tmp_path / name, seed, spelling)
        else:
            write_checkpoint(tmp_path / name, make_tensors(seed), TEXT)
    merged = merge(Family.load(write_entries(tmp_path)), "math+swahili", tmp_path / "merged")
    wanted = {**spelled(expected, spelling), **around(spelling)} if nested == "base" else expected
    found = load_file(merged / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    written = (merged / "config.json").read_text(), (tmp_path / "base" / "config.json").read_text()
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "config, tensors, problem",
    [
        ({"model_type": "other"}, {}, "model_type is 'other', the base's is 'pico_text'"),
        ({"rope_theta": 5e5}, {}, "rope_theta is 500000.0, the base's is 10000.0"),
        ({}, {"model.layers.0.mlp.bias": torch.ones(4)}, "model.layers.0.mlp.bias: the base has no such tensor"),
    ],
)
def test_another_language_model_is_refused_with_both_classes(config, tensors, problem, tmp_path):
    write_nested(tmp_path / "base", 0, "before 4.52")
    write_nested(tmp_path / "math", 1, "before 4.52")
    write_checkpoint(tmp_path / "swahili", {**make_tensors(3), **tensors}, {**TEXT, **config})
    with pytest.raises(FamilyError) as raised:
        Family.load(write_entries(tmp_path))
    first, second = raised.value.problems
    assert "a PicoForCausalLM, the base a PicoForConditionalGeneration" in first
    assert second.startswith("swahili: ") and problem in second


def test_a_config_without_a_part_about_text(tmp_path):
    """As Qwen2-VL's first ones: the language model's keys are at the top, beside a vision_config."""
    flat = {**TEXT, **{key: value for key, value in NESTED.items() if key != "text_config"}}
    write_nested(tmp_path / "base", 0, "without the wrapper", config=flat)
    write_nested(tmp_path / "math", 1, "in memory")
    write_nested(tmp_path / "swahili", 3, "in memory", config=flat)
    assert Family.load(write_entries(tmp_path)).depth == DEPTH
    other = {**NESTED, "text_config": {**NESTED["text_config"], "hidden_size": HIDDEN + 1}}
    (tmp_path / "math" / "config.json").write_text(json.dumps(other))
    with pytest.raises(FamilyError, match="hidden_size is 17, the base's is 16"):
        Family.load(tmp_path)


def test_what_is_around_is_the_bases_and_it_is_said_once(tmp_path):
    write_nested(tmp_path / "base", 0, "before 4.52")
    write_nested(tmp_path / "math", 1, "in memory", tower=101)
    write_nested(tmp_path / "swahili", 3, "in memory")
    with pytest.warns(ComposeWarning) as warned:
        family = Family.load(write_entries(tmp_path))
    (said,) = warned
    assert "math: differs from the base outside its language model, in projector, vision_tower: " in str(said.message)
    found = load_file(merge(family, "math", tmp_path / "merged") / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in around("before 4.52").items())
    assert str(said.filename) == __file__
    with pytest.warns(ComposeWarning):
        reports = inspect(tmp_path)
    assert {row.tensor for row in reports[0].rows} == set(spelled(make_tensors(1), "before 4.52"))


def test_an_archive_of_a_nested_expert(tmp_path, expected):
    write_nested(tmp_path / "base", 0, "before 4.52")
    write_nested(tmp_path / "swahili", 3, "before 4.52")
    write_nested(tmp_path / "math", 1, "in memory", tower=101)
    with pytest.warns(ComposeWarning, match="vision_tower"):
        manifest = extract(tmp_path / "base", tmp_path / "math", tmp_path / "math.safetensors")
    assert manifest.tensors.keys() == spelled(make_tensors(1), "before 4.52").keys()
    shutil.rmtree(tmp_path / "math")
    path = write_entries(tmp_path)
    path.write_text(path.read_text().replace("path: math", "path: math.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge(Family.load(path), "math+swahili", tmp_path / "merged")
    found = load_file(merged / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in spelled(expected, "before 4.52").items())
    (report,) = inspect(tmp_path / "math.safetensors")
    assert {row.module for row in report.rows if row.layer == 0} == {
        "input_layernorm", "mlp.up_proj", "self_attn.q_norm", "self_attn.q_proj"
    }  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("trained", [*SPELLINGS, "alone"])
def test_an_adapter_trained_in_another_spelling(spelling, trained, tmp_path):
    write_nested(tmp_path / "base", 0, spelling)
    base = Checkpoint(tmp_path / "base")
    model, _, tower, projector = SPELLINGS.get(trained, ("model.", "lm_head.", "", ""))
    generator = torch.Generator().manual_seed(5)
    factors = {}
    for i in range(DEPTH):
        module = f"base_model.model.{model}layers.{i}.self_attn.q_proj"
        factors[f"{module}.lora_A.weight"] = torch.randn(2, HIDDEN, generator=generator)
        factors[f"{module}.lora_B.weight"] = torch.randn(HIDDEN, 2, generator=generator)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    if trained == spelling:
        # PEFT puts factors on the tower, too, where its modules have such names.
        for part, b in ((f"{tower}encoder.layers.0.fc1", torch.randn(4, 2)), (f"{projector}linear", torch.zeros(4, 2))):
            factors[f"base_model.model.{part}.lora_A.weight"] = torch.randn(2, 4)
            factors[f"base_model.model.{part}.lora_B.weight"] = b
        config["target_modules"] = ["q_proj", "fc1", "linear"]
    path = tmp_path / "adapter"
    path.mkdir()
    save_file(factors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    adapter = open_source(path, base)
    part = base.layout.common(tower).partition(".")[0]
    assert (f"in {part}: that is not composed" in (adapter.note or "")) == (trained == spelling)
    for i in range(DEPTH):
        name = f"{SPELLINGS[spelling][0]}layers.{i}.self_attn.q_proj.weight"
        module = f"base_model.model.{model}layers.{i}.self_attn.q_proj"
        product = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        wanted = base.read(name).double() + product.double()
        assert torch.allclose(adapter.read(name).double(), wanted, rtol=2**-8, atol=1e-6)
    assert all(torch.equal(adapter.read(name), base.read(name)) for name in base.outside)

    save_file({**factors, "base_model.model.elsewhere.q_proj.lora_A.weight": torch.ones(2, 4)},
              path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ComposeError, match=r"has no 'elsewhere\.q_proj\.weight'"):
        open_source(path, base)


@pytest.mark.parametrize("table", ["embed_tokens", "wte"])
def test_a_stack_that_may_be_of_another_part_is_refused(table, tmp_path):
    """Two language models in one; or one whose own layers are called otherwise, so that a tower's are the only ones."""
    two = {**spelled(make_tensors(0), "before 4.52"), **{f"talker.{n}": t for n, t in make_tensors(1).items()}}
    tower = {**around("before 4.52"), "text.h.0.weight": torch.ones(4), f"text.{table}.weight": torch.ones(4)}
    for tensors, shown in ((two, "language_model.model.layers, talker.model.layers"), (tower, "vision_tower")):
        write_checkpoint(tmp_path / "base", tensors, NESTED)
        with pytest.raises(ComposeError, match=rf"base: has layers in '{re.escape(shown)}.*beside an embed_tokens"):
            Checkpoint(tmp_path / "base")
