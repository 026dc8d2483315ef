"""mergekit's configurations as families. What mergekit 0.1.5 would write is written down here in plain torch."""

from functools import reduce
from operator import add
from pathlib import Path

import pytest
import torch
import yaml
from pico import make_family
from safetensors.torch import load_file
from tiny import DEPTH, make_tensors, write_checkpoint
from typer.testing import CliRunner

from layerloom.composer import ComposeError, Family, FamilyError, import_mergekit, kind_of, tensors
from layerloom.server.commands.app import app

LINEAR = {"merge_method": "linear", "dtype": "float32", "out_dtype": "bfloat16", "base_model": "base"}


def source(model, first, end, weight=None, **parameters):
    given = {**({} if weight is None else {"weight": weight}), **parameters}
    return {"model": model, "layer_range": [first, end], **({"parameters": given} if given else {})}


def slices(*sliced, **keys):
    return {**LINEAR, **keys, "slices": [{"sources": sources} for sources in sliced]}


def models(*weights, **keys):
    return {**LINEAR, **keys, "models": [{"model": m, "parameters": {"weight": weight}} for m, weight in weights]}


@pytest.fixture
def imported(root, monkeypatch):
    """Imports a configuration from the family's directory."""
    monkeypatch.chdir(root)
    (root / "family.yaml").unlink()

    def run(config, file="swap.yml", **options):
        Path(file).write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
        return import_mergekit(Path(file), Path("family.yaml"), **options)

    return run


def check(root, made, expected):
    """Compares every tensor with `expected(layer, name)`, a list of (model, weight) that is summed and divided."""
    loaded = {path.parent.name: load_file(path) for path in root.glob("*/model.safetensors")}
    family = Family.load(made.path)
    for name, tensor in tensors(family, family.plan(made.name)):
        terms = expected(int(name.split(".")[2]) if ".layers." in name else None, name)
        total = sum(loaded[model][name].float() * weight for model, weight in terms)
        wanted = (total / sum(weight for _, weight in terms)).to(tensor.dtype)
        assert torch.equal(wanted.view(torch.int16), tensor.view(torch.int16)), name


SWAP = slices(
    [source("swahili", 0, 2, 1)],
    [source("swahili", 2, 3, 0.5), source("math", 2, 3, 0.5)],
    [source("math", 3, 6, 1.0)],
    [source("math", 6, 7, 3), source("swahili", 6, 7, 1)],
    [source("swahili", 7, 8, 1)],
)


def test_a_layer_swap(root, imported):
    made = imported(SWAP)
    assert (made.name, made.experts, made.notes) == ("swap", {"swahili": "language", "math": "task"}, ())

    def expected(layer, name):
        averaged = {2: [("swahili", 0.5), ("math", 0.5)], 6: [("math", 3), ("swahili", 1)]}
        return averaged.get(layer, [("math", 1)] if layer in (3, 4, 5) else [("swahili", 1)])

    check(root, made, expected)
    written = yaml.safe_load(made.path.read_text())
    assert written["base"] == {"path": "base"}
    assert written["experts"]["math"] == {"kind": "task", "path": "math"}
    recipe = written["compositions"]["swap"]["recipe"]
    assert recipe["method"] == "table" and list(recipe["layers"]) == ["0-1", "2", "3-5", "6", "7"]


def test_passthrough_takes_layers_as_they_are(root, imported):
    config = slices([source("swahili", 0, 4)], [source("math", 4, 7)], [source("swahili", 7, 8, scale=1)])
    made = imported({**config, "merge_method": "passthrough"})
    check(root, made, lambda layer, name: [("math" if layer in (4, 5, 6) else "swahili", 1)])


def test_soups(root, imported):
    made = imported(models(("math", 1), ("swahili", 3), ("base", 4)), name="My Soup!")
    assert (made.name, set(made.experts.values()), made.notes) == ("my-soup", {"task"}, ())
    check(root, made, lambda layer, name: [("math", 1), ("swahili", 3), ("base", 4)])
    assert yaml.safe_load(made.path.read_text())["compositions"]["my-soup"]["recipe"] == {
        "method": "soup",
        "weights": {"base": 0.5, "math": 0.125, "swahili": 0.375},
        "stem": "average",
    }


def test_a_gradient_goes_along_the_slice(root, imported):
    config = models(("math", [0, 1, 1, 1, 1, 1, 1, 0.5]), ("swahili", [1, 0, 0, 0, 0, 0, 0, 0.5]), ("base", 0))
    made = imported(config)
    assert made.experts == {"math": "task", "swahili": "language"}

    def expected(layer, name):
        if layer in (0, None):
            return [("swahili", 1)]
        return [("math", 1), ("swahili", 1)] if layer == DEPTH - 1 else [("math", 1)]

    check(root, made, expected)


def test_a_gradient_is_interpolated_and_a_slice_of_one_layer_has_its_end(root, imported):
    ramp, back = [0, 1], [1, 0]
    made = imported(
        slices(
            [source("math", 0, 1, [0.75, 0.5]), source("swahili", 0, 1, [0.25, 0.5])],
            [source("math", 1, 6, ramp), source("swahili", 1, 6, back)],
            [source("math", 6, 8, 0.75), source("swahili", 6, 8, 0.25)],
        )
    )

    def expected(layer, name):
        if layer == 0:
            return [("math", 0.5), ("swahili", 0.5)]
        share = (layer - 1) / 4 if layer in range(1, 6) else 0.75
        return [("math", share), ("swahili", 1 - share)]

    check(root, made, expected)


def test_filters_tell_kinds(root, imported):
    weight = [{"filter": "norm", "value": 0.25}, {"filter": "self_attn", "value": [0.5, 1]}, {"value": 0.75}]
    other = [{"filter": "norm", "value": 0.75}, {"filter": "self_attn", "value": [0.5, 0]}]
    config = models(("math", weight), ("swahili", other), parameters={"weight": 0.25})
    config["models"].append({"model": "base", "parameters": {"weight": 0}})
    # The stem is one blend, so the final norm must be weighed as the embeddings are.
    config["models"][0]["parameters"]["weight"].insert(0, {"filter": "model.norm", "value": 0.75})
    config["models"][1]["parameters"]["weight"].insert(0, {"filter": "model.norm", "value": 0.25})
    made = imported(config)

    def expected(layer, name):
        kind = "mlp" if layer is None else kind_of(name)
        t = 0 if layer is None else layer / (DEPTH - 1)
        share, rest = {"norm": (0.25, 0.75), "mlp": (0.75, 0.25), "attention": ((1 - t) * 0.5 + t, (1 - t) * 0.5)}[kind]
        return [("math", share), ("swahili", rest)]

    check(root, made, expected)
    assert "attention: math, mlp: 0.75 math" in Family.load(made.path).plan(made.name).layers[7].describe()


def test_what_a_model_does_not_say_its_slice_and_the_file_say(root, imported):
    config = slices(
        [source("math", 0, 4), source("swahili", 0, 4, 3)],
        [source("math", 4, 8, [{"filter": "no tensor", "value": 9}]), source("swahili", 4, 8)],
        parameters={"weight": 1, "normalize": "no", "int8_mask": True},
    )
    config["slices"][0]["parameters"] = {"normalize": [True, False, "yes"]}
    config["slices"][1]["parameters"] = {"weight": 0.5}
    with pytest.raises(FamilyError, match=r"slices\[0\]: weights 1, 3 for model.layers.2.* sum to 4"):
        imported(config)
    config["slices"][0]["parameters"] = {"normalize": "yes"}
    config["slices"].append({"sources": [source("math", 7, 8, 0.25), source("swahili", 7, 8, 0.75)]})
    config["slices"][1]["sources"] = [{**given, "layer_range": [4, 7]} for given in config["slices"][1]["sources"]]
    made = imported(config)
    assert made.notes == ("int8_mask: mean nothing to linear, in mergekit too",)
    middle, outer = [("math", 0.5), ("swahili", 0.5)], [("math", 0.25), ("swahili", 0.75)]
    check(root, made, lambda layer, name: middle if layer in (4, 5, 6) else outer)


def test_the_last_slice_gives_norm_and_head_from_as_many_models_as_the_first_has(root, imported):
    made = imported(slices([source("math", 0, 4, 1)], [source("math", 4, 8, 0.25), source("swahili", 4, 8, 0.75)]))
    assert "of the last slice's models mergekit takes math alone" in made.notes[0]
    both = [("math", 0.25), ("swahili", 0.75)]
    check(root, made, lambda layer, name: [("math", 1)] if layer in (None, 0, 1, 2, 3) else both)


def test_one_module_may_be_named(root, imported):
    config = models(("math", 1), ("swahili", 1), base_model=None)
    made = imported(
        {**LINEAR, "modules": {"default": {"models": [*config["models"], {"model": "base"}]}}}
        | {"parameters": {"weight": 0}}
    )
    check(root, made, lambda layer, name: [("math", 1), ("swahili", 1)])


def test_weights_that_only_nearly_sum_to_one_let_no_base_in(root, imported):
    made = imported(models(("math", 0.2), ("swahili", 0.1), ("code", 0.7), ("base", 0)))
    family = Family.load(made.path)
    assert 0.7 + 0.2 + 0.1 != 1.0
    assert reduce(add, (weight for _, weight in family.plan(made.name).stem)) == 1.0
    rounded, order = made.notes
    assert rounded.startswith("0.2 math + 0.1 swahili + 0.7 code: products with such weights do not fit float32")
    assert "mergekit adds up in the order of the file" in order


@pytest.mark.parametrize(
    "changes, note",
    [
        ({"dtype": "bfloat16"}, "dtype: bfloat16: layerloom sums in float32 and rounds once"),
        ({"out_dtype": "float32"}, "mergekit would write float32; a composition has the dtype of the base, bfloat16"),
        ({"chat_template": "chatml"}, "chat_template is not taken"),
        ({"tokenizer_source": "math"}, "the tokenizer of math is not taken"),
        (
            {"tokenizer": {"source": "base"}},
            "where embeddings have more rows than the tokenizer has tokens, mergekit cuts",
        ),
        ({"models": models(("math", 1), ("swahili", 2), ("base", 0))["models"]}, "adds up first and then divides"),
        ({"models": models(("math", 1))["models"]}, "base_model has no weight, and 0 here"),
    ],
)
def test_notes(imported, changes, note):
    made = imported({**models(("math", 0.5), ("swahili", 0.5), ("base", 0)), **changes})
    assert any(note in line for line in made.notes), made.notes


SOUP = models(("math", 0.5), ("swahili", 0.5), ("base", 0))


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"merge_method": "slerp"}, "merge_method slerp: it goes along a sphere"),
        ({"merge_method": "dare_ties"}, "merge_method dare_ties: it drops changes at random"),
        ({"merge_method": "task_arithmetic"}, "merge_method task_arithmetic: .* write it as linear, with the base"),
        ({"merge_method": "linaer"}, "there is no 'linaer' .did you mean 'linear'"),
        ({"merge_method": "passthrough"}, "models: passthrough takes one model, not 3"),
        ({"dtype": "int4"}, "dtype: 'int4' is none of bfloat16"),
        ({"tokenizer_source": "union"}, "tokenizer_source: union makes a vocabulary of its own"),
        ({"tokenizer": {}}, "tokenizer.source: union makes a vocabulary of its own"),
        ({"tokenizer": {"source": "base", "tokens": {"<x>": {}}}}, "tokenizer.tokens: a composition has the base's"),
        ({"base_model": None}, "has no base_model: give --base DIRECTORY"),
        ({"base_model": "nowhere"}, "'nowhere': no such directory, and no name of the hub's"),
        ({"base_model": 5}, "base_model: is no model: give a directory or org/name, not '5'"),
        ({"base_model": "base+math"}, "'base.math': a base is no adapter"),
        ({"weight": 1}, "swap.yml: weight: there is no such key$"),
        ({"basemodel": "base"}, "basemodel: there is no such key .did you mean 'base_model'"),
        ({"parameters": {"normalize": "perhaps"}}, "normalize: 'perhaps' is no boolean"),
        ({"modules": {"text": {"models": SOUP["models"]}}, "models": None}, "modules.text: only language models"),
        (models(("math", 1.5), ("swahili", -0.5)), "models: weights 1.5, -0.5, 0: a composition's are finite and not"),
        (models(("math", 0), ("swahili", 0)), "models: weights 0, 0, 0: nothing can be divided by a sum of 0"),
        (models(("math", float("nan"))), "weights nan, 0: a composition's are finite"),
        (models(("math", "half")), "models: weight: 'half' is no number"),
        (models(("math", 0.5), ("./math", 0.5)), "models: './math' is listed twice"),
        (models(("base", 1)), "takes all layers from the base"),
        (models(("math+x+y", 1)), "models.0.model: has more than one +"),
        (models(("code+math", 1)), "'code.math': is an adapter on another model than the base, 'base'"),
        (models(("math", [0.5, {"value": 1}])), "models.0.parameters.weight: is neither a value, nor a list of values"),
        (
            models(("math", 0.25), ("swahili", 0.25), parameters={"normalize": False}),
            "models: weights 0.25, 0.25, 0 for .* sum to 0.5, and normalize is false; .* list the base",
        ),
        (
            models(("math", [{"filter": "self_attn", "value": 1}, {"value": 0.5}]), ("swahili", 0.5)),
            "models norm: a filter gives .*input_layernorm.weight and .*q_norm.weight other weights",
        ),
        (
            models(("math", [{"filter": "lm_head", "value": 1}, {"value": 0.5}]), ("swahili", 0.5)),
            "stem: lm_head.weight comes from .* embeddings, final norm and head are one blend",
        ),
        (slices([source("math", 0, 8)]), "slices.0.: 'math' has no weight for"),
        (slices([source("math", 0, 4, 1)], [source("swahili", 4, 8, 1)]), "stem: lm_head.weight comes from .*swahili"),
        (slices([source("math", 0, 4, 1)]), "slices: give 4 layers, and the base has 8"),
        (slices([source("math", 3, 3, 1)]), r"slices.0.sources.0: layer_range \[3, 3\] has no layer in it"),
        (
            slices([source("math", 0, 5, 1)], [source("swahili", 3, 8, 1)]),
            "slices.1.: layers 3-7 of 'swahili' would be layers 5-9; a composition leaves layers in their place",
        ),
        (
            slices([source("math", 0, 4, 1), source("swahili", 4, 8, 1)], [source("math", 4, 8, 1)]),
            "slices.0.: layers 4-7 of 'swahili' would be layers 0-3",
        ),
        (
            slices([source("math", 0, 8, 1), source("swahili", 0, 7, 1)]),
            r"slices.0.: layer_range \[0, 7\] is not as long as the first",
        ),
        (
            {**slices([source("math", 0, 8, scale=2)]), "merge_method": "passthrough"},
            "slices.0.: scale 2.0 for .*: a composition does not scale a model",
        ),
    ],
)
def test_what_is_refused(root, imported, changes, problem):
    base = SOUP if "slices" not in changes else {}
    config = {key: value for key, value in {**base, **changes}.items() if value is not None}
    with pytest.raises(ComposeError, match=problem):
        imported(config)
    assert not (root / "family.yaml").exists()


def test_models_of_the_hub(imported, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    swap = slices([source("org/Swahili-1B@v2", 0, 2, 1)], [source("math", 2, 8, 1)], base_model="org/base")
    swap["slices"].append({"sources": [source({"model": {"path": "org/Swahili-1B", "revision": "v2"}}, 8, 9, 1)]})
    made = imported(swap)
    written = yaml.safe_load(made.path.read_text())
    assert written["base"] == {"hub": "org/base", "revision": "main"}
    assert written["experts"] == {
        "swahili-1b": {"kind": "language", "hub": "org/Swahili-1B", "revision": "v2"},
        "math": {"kind": "task", "path": "math"},
    }
    assert "the base is not on this machine: that it has 9 layers is not checked" in made.notes
    assert "from the hub, as there is no such directory: org/base, org/Swahili-1B" in made.notes
    made.path.unlink()
    with pytest.raises(FamilyError, match="filters: filters need the names of the base's tensors; download"):
        imported(models(("math", [{"filter": "mlp", "value": 1}, {"value": 2}]), base_model="org/base"))
    with pytest.raises(FamilyError, match="gradients: gradients need the base's number of layers"):
        imported(models(("math", [1, 2]), base_model="org/base"))
    with pytest.raises(FamilyError, match="slices: give 1000000000 layers, more than any model has"):
        imported(slices([source("math", 0, 10**9, 1)], base_model="org/base"))


def test_names_and_paths(root, imported, tmp_path_factory):
    tensors = make_tensors(7)
    write_checkpoint(root / "a" / "final", tensors)
    write_checkpoint(root / "b" / "final", tensors)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_checkpoint(elsewhere / "Base", tensors)
    config = models(("a/final", 1), ("b/final", 1), (str(elsewhere / "Base"), 2), ("base", 0))
    made = imported(config, file="final.yml")
    assert made.name == "merged"
    written = yaml.safe_load(made.path.read_text())
    places = {name: entry["path"] for name, entry in written["experts"].items()}
    assert places == {"final": "a/final", "b-final": "b/final", "elsewhere0-base": str(elsewhere / "Base")}
    made.path.unlink()
    made = imported(config, languages=["b-final"], tasks=["final"], base=str(elsewhere / "Base"))
    assert made.experts == {"final": "task", "b-final": "language", "family-base": "task"}
    made.path.unlink()
    with pytest.raises(ComposeError, match="--base 'a@b@c': has more than one @"):
        imported(config, base="a@b@c")
    with pytest.raises(ComposeError, match=r"there is no expert .finale. .did you mean .final."):
        imported(config, languages=["finale"])


def test_adapters_name_their_base(imported):
    config = models(("base+math", 0.5), ("base+swahili", 0.5), base_model=None)
    made = imported({key: value for key, value in config.items() if value is not None})
    written = yaml.safe_load(made.path.read_text())
    assert written["base"] == {"path": "base"} and written["experts"]["math"]["path"] == "math"
    assert made.notes[0].startswith("base+math, base+swahili: merged in the dtype of the base")


def test_yaml_is_read_as_family_yaml_is(root, imported):
    with pytest.raises(FamilyError, match="line 2: 'merge_method' is given twice"):
        imported("merge_method: linear\nmerge_method: slerp\n")
    with pytest.raises(FamilyError, match="is not a mapping with the keys name, modules"):
        imported("- linear\n")
    text = "merge_method: linear\nbase_model: base\nparameters: {normalize: no, weight: 0.5}\nmodels: [{model: math}]\n"
    assert imported(text).experts == {"math": "task"}
    with pytest.raises(ComposeError, match=r"family.yaml: exists"):
        imported(text)


def test_gemma_ties_its_head(tmp_path, monkeypatch):
    """And its base has other names in a layer than a Llama's."""
    make_family(tmp_path, "gemma2", depth=3, experts={"math": "task", "swahili": "language"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swap.yml").write_text(
        yaml.safe_dump(slices([source("swahili", 0, 1, 1)], [source("math", 1, 2, 1)], [source("swahili", 2, 3, 1)]))
    )
    (tmp_path / "family.yaml").unlink()
    made = import_mergekit(tmp_path / "swap.yml", tmp_path)
    check(tmp_path, made, lambda layer, name: [("math" if layer == 1 else "swahili", 1)])


def test_the_command(root, monkeypatch):
    monkeypatch.chdir(root)
    Path("swap.yml").write_text(yaml.safe_dump({**SWAP, "chat_template": "auto"}))
    words = ["import-mergekit", "swap.yml", "-o", "made/family.yaml", "--name", "tutor", "--task", "swahili"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "note: chat_template is not taken" in result.stderr
    assert f"wrote {root}/made/family.yaml: tutor, of swahili (task), math (task)" in result.stdout
    assert CliRunner().invoke(app, ["plan", "made/family.yaml", "tutor"]).exit_code == 0
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "exists" in result.stderr
