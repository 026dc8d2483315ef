import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import CONFIG, EXPERTS, TOKENIZER, make_tensors, write_checkpoint

from layerloom.composer import ComposeError, ComposeWarning, Family, FamilyError
from layerloom.composer.family import family as family_module


def problems(path) -> list[str]:
    with pytest.raises(FamilyError) as caught:
        Family.load(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_names_and_description(family, pristine):
    pairs = ["math+swahili", "math+bengali", "code+swahili", "code+bengali"]
    assert family.names() == ["base", *EXPERTS, *pairs]
    assert (family.path, family.root, family.depth) == (pristine / "family.yaml", pristine, 8)
    assert family.describe("base") == {"parent": None, "recipe": {}}
    assert family.describe("sw") == {"parent": "base", "recipe": {"expert": "swahili"}}
    assert family.describe("sw+math@bottom=2")["recipe"] == {
        **{"task": "math", "language": "swahili", "method": "layer_swap", "weight": 0.5, "stem": "language"},
        **{"bottom": 2, "after_bottom": 1, "before_top": 1, "top": 1},
    }
    assert all(json.dumps(family.describe(name)) for name in family.names())


def test_plans(family):
    assert family.plan("base").is_base
    assert family.plan("math").stem == (("math", 1.0),)
    plan = family.plan("sw+math")
    assert (plan.name, plan.experts) == ("math+swahili", ("math", "swahili"))
    assert [layer.describe() for layer in plan.layers[:3]] == ["swahili", "0.5 math + 0.5 swahili", "math"]


def test_the_digest_follows_the_weights_and_not_the_name(family, root):
    assert family.plan("math+swahili").digest == family.plan("kiswahili+math").digest
    assert family.plan("math+swahili").digest == family.plan("math+swahili@bottom=1").digest
    digests = {name: family.plan(name).digest for name in [*family.names(), "math+swahili@weight=0.25"]}
    assert len(set(digests.values())) == len(digests)

    before = Family.load(root)
    write_checkpoint(root / "swahili", make_tensors(9))
    after = Family.load(root)
    for name in before.names():
        changed = before.plan(name).digest != after.plan(name).digest
        assert changed == ("swahili" in name), name


def test_a_replaced_file_does_not_change_what_is_read(root):
    family = Family.load(root)
    before = family.checkpoint("math").read("lm_head.weight").clone()
    write_checkpoint(root / "new", make_tensors(9))
    os.replace(root / "new" / "model.safetensors", root / "math" / "model.safetensors")
    assert torch.equal(family.checkpoint("math").read("lm_head.weight"), before)


def test_named_compositions(edit):
    table = {"method": "table", "layers": {"0-7": {"math": 0.5, "code": 0.25}}, "stem": "base"}
    entries = {
        "tutor": "sw+math@bottom=3",
        "coach": {"task": "math", "language": "bn", "recipe": {"preset": "unreasonable"}},
        "mixed": {"recipe": table},
        "plain": {"language": "swahili"},
    }
    family = Family.load(edit(compositions=entries))
    assert family.names()[-4:] == list(entries)
    assert family.parse("tutor").name == "tutor"
    assert family.plan("tutor").digest == family.plan("math+swahili@bottom=3").digest
    assert family.plan("coach").digest == family.plan("math+bengali@preset=unreasonable").digest
    assert family.plan("mixed").layers[5].describe() == "0.25 base + 0.25 code + 0.5 math"
    assert family.plan("plain").digest == family.plan("swahili").digest
    assert all(json.dumps(family.describe(name)) for name in family.names())


def test_a_recipe_of_the_family(edit):
    plan = Family.load(edit(recipe={"method": "soup"})).plan("math+swahili")
    assert {layer.describe() for layer in plan.layers} == {"0.5 math + 0.5 swahili"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bases": "x"}, "bases: there is no such key (did you mean 'base'?)"),
        ({"base": None}, "base: "),
        ({"base": {"hub": "a/b"}}, "base: hub and revision"),
        ({"base": {"path": "a", "hub": "a/b", "revision": "x"}}, "base: give either path"),
        ({"experts": {}}, "experts: "),
        (
            {"experts": {"m": {"kind": "tsk", "path": "m"}}},
            "experts.m.kind: input should be 'task' or 'language', not 'tsk'",
        ),
        ({"experts": {"m": {"path": "m"}}}, "experts.m.kind: is missing"),
        ({"experts": {"m": {"kind": "task"}}}, "experts.m: give either path"),
        (
            {"experts": {"m": {"kind": "task", "path": "m", "alias": ["x"]}}},
            "alias: there is no such key (did you mean 'aliases'?)",
        ),
        ({"recipe": {"botom": 1}}, "recipe.botom: there is no such key (did you mean 'bottom'?)"),
        ({"recipe": {"method": "swap"}}, "recipe: a recipe is a mapping whose method is"),
        ({"recipe": {"preset": "papers"}}, "recipe.preset: "),
        ({"compositions": {"t": 5}}, "compositions.t: "),
        ({"compositions": {"t": {}}}, "compositions.t: give a task"),
    ],
)
def test_a_key_that_is_wrong_is_named(edit, change, message):
    assert any(message in problem for problem in problems(edit(**change)))


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: [", "line 1"),
        ("base: a\nbase: b\n", "'base' is given twice"),
        ("- a", "is not a mapping"),
        ("", "is not a mapping"),
        ("base: \x07", "special characters"),
    ],
)
def test_broken_yaml(tmp_path, text, message):
    path = tmp_path / "family.yaml"
    path.write_text(text)
    assert message in problems(path)[0]


@pytest.mark.parametrize("path", ["nowhere", "nowhere/family.yaml"])
def test_no_such_family(tmp_path, path):
    with pytest.raises(ComposeError, match=r"family|nowhere"):
        Family.load(tmp_path / path)


def test_norwegian(root, edit):
    shutil.copytree(root / "swahili", root / "norsk")
    path = root / "family.yaml"
    path.write_text(path.read_text() + "  norsk: {kind: language, code: no, path: norsk}\n")
    assert Family.load(path).parse("math+no").name == "math+norsk"


def test_names_that_collide_are_all_reported(edit):
    experts = {
        **EXPERTS,
        "bengali": {**EXPERTS["bengali"], "code": "sw", "aliases": ["math"]},
        "base": EXPERTS["math"],
        "Upper": EXPERTS["math"],
        "x" * 65: EXPERTS["math"],
        "a+b": {**EXPERTS["math"], "aliases": ["auto", "c d"]},
    }
    found = problems(edit(experts=experts, compositions={"swahili": "math", "math": "code"}))
    for part in (
        "experts.bengali: 'sw' is already the name of experts.swahili",
        "experts.bengali: 'math' is already the name of experts.math",
        "experts.base: 'base' has a meaning of its own",
        "experts.Upper: 'Upper' is no name",
        "experts.xxx",
        "experts.a+b: 'a+b' is no name",
        "experts.a+b: 'auto' has a meaning",
        "experts.a+b: 'c d' is no name",
        "compositions.swahili: 'swahili' is already the name of experts.swahili",
        "compositions.math: 'math' is already the name of experts.math",
    ):
        assert any(part in problem for problem in found), part


def test_recipes_and_compositions_that_do_not_fit_are_all_reported(edit):
    compositions = {
        "a": "math+swahilli",
        "b": {"task": "swahili"},
        "c": {"task": "math", "language": "klingon"},
    }
    found = problems(edit(compositions=compositions))
    for part in (
        "compositions.a: there is no model",
        "compositions.b: task: 'swahili' is not a task",
        "compositions.c",
    ):
        assert any(part in problem for problem in found), part
    table = {"method": "table", "layers": {"0-7": {"maths": 1.0}}, "stem": "base"}
    found = problems(edit(recipe={"bottom": 9}, compositions={"d": {"recipe": table}, "e": "math+sw@top=8"}))
    for part in (
        "recipe: zones overlap",
        "compositions.d: there is no expert 'maths' (did you mean 'math'?)",
        "compositions.e",
    ):
        assert any(part in problem for problem in found), part


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


def test_loading_reads_no_weights(root, monkeypatch):
    monkeypatch.setattr(family_module.Checkpoint, "read", lambda self, name: pytest.fail(name))
    Family.load(root)


def test_experts_from_the_hub(root, edit, monkeypatch):
    asked = []

    def download(repository: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        if repository == "org/none":
            raise OSError("404 not found\nlong explanation")
        return str(root / "math")

    monkeypatch.setattr(family_module.huggingface_hub, "snapshot_download", download)
    hub = {"kind": "task", "hub": "org/math", "revision": "abc"}
    family = Family.load(edit(experts={**EXPERTS, "math": hub}))
    assert asked == [("org/math", "abc")]
    assert family.checkpoint("math").path == root / "math"
    found = problems(edit(experts={**EXPERTS, "math": {**hub, "hub": "org/none"}}))
    assert found == ["math: org/none at abc: cannot be downloaded: 404 not found"]


def test_unknown_expert(family):
    with pytest.raises(ComposeError, match="did you mean 'math'"):
        family.checkpoint("maths")


def test_paths_are_relative_to_the_file(root, monkeypatch, tmp_path):
    path = root / "family.yaml"
    content = yaml.safe_load(path.read_text())
    content["base"] = {"path": str(root / "base")}
    path.write_text(yaml.safe_dump(content))
    monkeypatch.chdir(root.parent)
    assert Family.load(Path(root.name)).base.path == root / "base"
