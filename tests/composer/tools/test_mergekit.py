"""mergekit's configurations as families. What mergekit 0.1.5 would write is written down here in plain torch."""

from functools import reduce
from operator import add

import pytest
import yaml
from mergekits import LINEAR, SWAP, check, models, slices, source
from tiny import DEPTH

from layerloom.composer import Family, FamilyError, kind_of


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
