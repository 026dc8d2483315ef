"""What an imported configuration of mergekit is told of, what is refused, and where its models are."""

from pathlib import Path

import pytest
import yaml
from mergekits import SWAP, check, models, slices, source
from pico import make_family
from tiny import make_tensors, write_checkpoint
from typer.testing import CliRunner

from layerloom.composer import ComposeError, FamilyError, import_mergekit
from layerloom.server.commands.app import app


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
