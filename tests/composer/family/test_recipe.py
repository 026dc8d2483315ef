import pytest
from pydantic import TypeAdapter, ValidationError

from layerloom.composer import ComposeError
from layerloom.composer.family.plan import KINDS, describe_blend, kind_of, make_blend
from layerloom.composer.family.recipe import PRESETS, LayerSwap, Recipe, with_options

ROLES = {"task": "math", "language": "swahili"}
RECIPE = TypeAdapter(Recipe)


def shown(recipe, depth=8, roles=ROLES):
    layers, stem = RECIPE.validate_python(recipe).blends(depth, roles)
    return [layer.describe() for layer in layers], describe_blend(stem)


def test_layer_swap():
    layers, stem = shown({"bottom": 2, "top": 1, "after_bottom": 1, "before_top": 2, "weight": 0.25})
    averaged = "0.75 math + 0.25 swahili"
    assert layers == ["swahili", "swahili", averaged, "math", "math", averaged, averaged, "swahili"]
    assert stem == "swahili"


@pytest.mark.parametrize(
    "preset, depth, zones",
    [
        ("paper", 32, (5, 1, 1, 2)),
        ("unreasonable", 32, (6, 0, 0, 2)),
        ("lighton", 36, (13, 0, 0, 13)),
        ("paper", 16, (3, 1, 1, 1)),
        ("paper", 8, (1, 1, 1, 1)),
        ("unreasonable", 28, (5, 0, 0, 2)),
        ("paper", 80, (13, 3, 3, 5)),
    ],
)
def test_presets(preset, depth, zones):
    assert LayerSwap(preset=preset).zones(depth) == zones


@pytest.mark.parametrize("preset", PRESETS)
def test_scaled_presets_keep_every_zone(preset):
    for depth in range(8, 129):
        bottom, after, before, top = LayerSwap(preset=preset).zones(depth)
        assert min(bottom, top, depth - bottom - after - before - top) > 0
        assert (after > 0) == (before > 0) == (preset == "paper")


@pytest.mark.parametrize("stem, blend", [("task", "math"), ("base", "base"), ("average", "0.5 math + 0.5 swahili")])
def test_stem(stem, blend):
    assert shown({"stem": stem})[1] == blend


def test_zones_that_overlap():
    with pytest.raises(ComposeError, match=r"bottom 5 \+ after_bottom 1 \+ before_top 1 \+ top 2 = 9 layers.*has 8"):
        shown({"bottom": 5, "top": 2})


def test_soup():
    assert shown({"method": "soup"}, 2) == (["0.5 math + 0.5 swahili"] * 2, "swahili")
    recipe = {"method": "soup", "weights": {"math": 0.3, "bengali": 0.2}, "stem": "average"}
    assert shown(recipe, 2, {}) == (["0.5 base + 0.2 bengali + 0.3 math"] * 2, "0.5 base + 0.2 bengali + 0.3 math")


def test_table():
    layers = {
        "0-1": "language",
        2: {"math": 0.25, "base": 0.75},
        "3": {"attention": "task", "mlp": {"language": 0.5}, "norm": "base"},
        "4 - 7": "bengali",
    }
    expected = ["swahili"] * 2 + ["0.75 base + 0.25 math", "attention: math, mlp: 0.5 base + 0.5 swahili, norm: base"]
    assert shown({"method": "table", "layers": layers, "stem": "task"}) == ([*expected, *["bengali"] * 4], "math")


def test_table_names_every_wrong_layer():
    with pytest.raises(ComposeError) as caught:
        shown({"method": "table", "layers": {"0-4": "task", "4": "base", "6": "task", "8": "task", "x": "task"}})
    for part in (
        "layer 4 is listed in 0-4 and 4",
        "layer 5 has no source",
        "layer 7 has no source",
        "'8' is not",
        "'x' is not",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "recipe",
    [
        {"method": "swap"},
        {"method": ["soup"]},
        "paper",
        {"preset": "papr"},
        {"bottom": -1},
        {"bottom": "2"},
        {"bottom": True},
        {"bottom": 1.5},
        {"weight": 1.5},
        {"weight": float("nan")},
        {"transition": 1, "after_bottom": 1},
        {"method": "soup", "bottom": 1},
        {"method": "soup", "weights": {"task": -0.5}},
        {"method": "soup", "weights": {"task": float("inf")}},
        {"method": "table"},
        {"method": "table", "layers": {"0": {"attention": "task"}}},
        {"method": "table", "layers": {"0": {"attention": "task", "mlp": "task", "norm": "task", "x": "task"}}},
        {"method": "table", "layers": {"0": 5}},
    ],
)
def test_malformed_recipes(recipe):
    with pytest.raises(ValidationError):
        RECIPE.validate_python(recipe)


@pytest.mark.parametrize(
    "recipe, roles, message",
    [
        ({"method": "soup", "weights": {"task": 0.7, "language": 0.4}}, ROLES, "more than 1"),
        ({"method": "soup", "weights": {"task": 0.7, "base": 0.4}}, ROLES, "must sum to 1"),
        ({"method": "soup"}, {"task": "math"}, "language expert"),
        ({"method": "table", "layers": {"0-7": "task"}, "stem": "average"}, ROLES, "no meaning in a table"),
    ],
)
def test_recipes_that_do_not_fit(recipe, roles, message):
    with pytest.raises(ComposeError, match=message):
        shown(recipe, 8, roles)


def test_options_replace_what_they_name():
    own = LayerSwap(bottom=3, top=2, after_bottom=2, before_top=0, weight=0.25)
    assert with_options(own, {"bottom": "1"}, 8).zones(8) == (1, 2, 0, 2)
    assert with_options(own, {"transition": "0"}, 8).zones(8) == (3, 0, 0, 2)
    fresh = with_options(own, {"preset": "unreasonable", "top": "3"}, 8)
    assert (fresh.zones(32), fresh.weight) == ((6, 0, 0, 3), 0.25)
    soup = RECIPE.validate_python({"method": "soup"})
    assert with_options(soup, {"weight": "0.25"}, 8).weights == {"language": 0.25, "task": 0.75}
    assert with_options(soup, {"preset": "paper"}, 8).zones(8) == (1, 1, 1, 1)
    with pytest.raises(ComposeError, match="bottom: does not apply"):
        with_options(soup, {"bottom": "1"}, 8)


def test_a_name_may_write_a_table():
    own = LayerSwap(bottom=3, stem="task")
    table = with_options(own, {"layers": "xx910000"}, 8)
    # What a layer swap averages is the same blend to the last bit, and so the same page.
    averaged = [LayerSwap(bottom=0, top=0, transition=4, weight=weight).blends(8, ROLES)[0][0] for weight in (0.9, 0.1)]
    layers, stem = table.blends(8, ROLES)
    assert layers[2:4] == averaged and stem == (("math", 1.0),)
    swapped, _ = LayerSwap(bottom=2, top=0, transition=0).blends(8, ROLES)
    assert with_options(own, {"layers": "xx000000", "stem": "language"}, 8).blends(8, ROLES) == (
        swapped,
        (("swahili", 1.0),),
    )
    with pytest.raises(ComposeError, match="layers=xx0: is of 3 layers, and the model has 8"):
        with_options(own, {"layers": "xx0"}, 8)
    with pytest.raises(ComposeError, match="bottom, weight: cannot go with layers"):
        with_options(own, {"layers": "xx000000", "weight": "1", "bottom": "2"}, 8)


def test_blends_are_canonical():
    assert make_blend({"b": 0.25, "base": 0.25, "a": 0.5, "c": 0.0}) == (("a", 0.5), ("b", 0.25))
    assert make_blend({"base": 1.0}) == ()


@pytest.mark.parametrize(
    "kind, tensor",
    [
        ("attention", "model.layers.0.self_attn.qkv_proj.weight"),
        ("attention", "model.layers.0.self_attn.q_proj.bias"),
        ("attention", "transformer.h.0.attn.c_attn.weight"),
        ("mlp", "model.layers.0.mlp.gate_up_proj.weight"),
        ("mlp", "model.layers.0.mlp.experts.3.down_proj.weight"),
        ("norm", "model.layers.0.self_attn.q_norm.weight"),
        ("norm", "model.layers.0.post_attention_layernorm.weight"),
        ("norm", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("norm", "model.norm.weight"),
    ],
)
def test_kinds(kind, tensor):
    assert kind_of(tensor) == kind
    assert kind in KINDS
