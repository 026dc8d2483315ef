import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import EXPERTS, make_tensors, problems, write_checkpoint

from layerloom.composer import ComposeError, Family
from layerloom.composer.family import family as family_module
from layerloom.composer.family import locations


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

    monkeypatch.setattr(locations.huggingface_hub, "snapshot_download", download)
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


def test_a_language_that_is_left_open(edit):
    family = Family.load(edit(fallback="tutor", compositions={"tutor": "sw+math@bottom=3", "teacher": "math+auto"}))
    assert (family.fallback.to, family.fallback.below) == ("tutor", 0.5)
    assert family.describe("auto+math")["recipe"]["language"] == "auto"
    assert family.parse("teacher").is_auto
    for name in ("math+auto", "teacher"):
        with pytest.raises(ComposeError, match=r"in the language of what is asked.*as in math\+swahili"):
            family.plan(name)


@pytest.mark.parametrize(
    "fallback, message",
    [
        ("tutr", "fallback: there is no model 'tutr'"),
        ("math+auto", "fallback: math\\+auto is in the language of what is asked"),
        ({"to": "math", "below": 2}, "fallback.below: .*less than or equal to 1"),
        ({"too": "math"}, "fallback.too: there is no such key .did you mean 'to'"),
    ],
)
def test_a_fallback_that_cannot_be(edit, fallback, message):
    with pytest.raises(ComposeError, match=message):
        Family.load(edit(fallback=fallback))
