"""What adapter_config.json says: which layers have factors, with what scale, and what is refused by name."""

import json
import math
import re
import time

import pytest
from lora import LORA, UP, Q, factors, noise, prefix, write
from tiny import DEPTH, HIDDEN

from layerloom.composer import Adapter, ComposeError
from layerloom.composer.sources.lora_config import read_lora_config


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter"


@pytest.fixture
def read(tmp_path):
    def read(**config):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**LORA, **config}))
        return read_lora_config(tmp_path / "adapter_config.json")

    return read


@pytest.mark.parametrize("layers, pattern", [([2, 5], None), ([2, 5], "layers"), (3, ["h", "layers"]), ([1], [])])
def test_layers_to_transform(base, path, layers, pattern):
    chosen = layers if isinstance(layers, list) else [layers]
    config = {"layers_to_transform": layers, "layers_pattern": pattern}
    adapter = Adapter(write(path, factors(chosen), **config), base)
    changed = {name for name in base.tensors if not adapter.read(name).equal(base.read(name))}
    assert changed == {f"model.layers.{layer}.{module}.weight" for layer in chosen for module in (Q, UP)}
    write(path, factors([*chosen, 6]), **config)
    with pytest.raises(ComposeError, match=r"layers\.6\..*does not name it as a target"):
        Adapter(path, base)
    write(path, factors(chosen[:-1] or [6]), **config)
    with pytest.raises(ComposeError, match=r"adapter_model.safetensors: "):
        Adapter(path, base)


EXPRESSION = r"model\.layers\.\d+\.(mlp\.up_proj|self_attn\.q_proj)"
# As Unsloth writes it.
ALTERNATIVES = (
    r"(?:.*?\blanguage\b.*?(?:attn|mlp).*?_proj)|(?:\bmodel\.layers\.\d{1,}\.(?:self_attn|mlp)\.(?:(?:[qkvo]|up)_proj))"
)


@pytest.mark.parametrize("targets", [EXPRESSION, ALTERNATIVES, "all-linear", "ALL-linear", None])
def test_targets_as_an_expression(base, path, targets):
    adapter = Adapter(write(path, factors(), target_modules=targets), base)
    changed = {name for name in base.tensors if not adapter.read(name).equal(base.read(name))}
    assert changed == {f"model.layers.{layer}.{module}.weight" for layer in range(DEPTH) for module in (Q, UP)}


def test_an_expression_has_all_it_names(base, path):
    with pytest.raises(ComposeError, match=r"layers.7.mlp.up_proj: has no factors, and .* names it as a target"):
        Adapter(write(path, factors(range(7)), target_modules=EXPRESSION), base)


@pytest.mark.parametrize(
    "config, targets, others",
    [
        ({"target_modules": ["q_proj"]}, ["q_proj", "a.q_proj", "a.b.q_proj"], ["aq_proj", "q_proj.a", "a.q_proj_b"]),
        ({"target_modules": ["b.q_proj"]}, ["b.q_proj", "a.b.q_proj"], ["q_proj", "a.q_proj", "ab.q_proj"]),
        ({"target_modules": "q_proj"}, ["q_proj"], ["a.q_proj"]),
        ({"target_modules": r".*\.q_proj"}, ["a.q_proj"], ["q_proj", "a.q_proj.b"]),
        ({"target_modules": "all-linear"}, ["a.q_proj", "a.score"], ["lm_head", "model.embed_tokens"]),
        ({"target_modules": ["q_proj"], "exclude_modules": ["b.q_proj"]}, ["a.q_proj"], ["a.b.q_proj", "b.q_proj"]),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*b.*"}, ["a.q_proj"], ["a.b.q_proj"]),
        ({"target_modules": "all-linear", "exclude_modules": ["b"]}, ["a.q_proj", "a.b.c"], ["a.b"]),
        # What is trained whole has no factors.
        ({"target_modules": ["q", "k"], "modules_to_save": ["k"]}, ["a.q"], ["a.k", "k", "k.q"]),
        # Layers count where the end of a name is given.
        ({"target_modules": ["q", "m.h.0.k"], "layers_to_transform": 1}, ["m.h.1.q", "m.h.0.k"], ["m.h.0.q", "m.q"]),
        ({"target_modules": ["q"], "layers_to_transform": []}, ["m.h.1.q", "q"], []),
        # The first number is the layer's.
        ({"target_modules": ["q"], "layers_to_transform": [1]}, ["m.h.1.e.2.q"], ["m.h.2.e.1.q"]),
        (
            {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "h"},
            ["h.1.q", "m.h.1.q"],
            ["m.e.1.q"],
        ),
        (
            {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": ["e", "[hg]"]},
            ["m.g.1.q"],
            ["m.l.1.q"],
        ),
        # PEFT puts the pattern between others as it is.
        (
            {"target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "h|g"},
            ["g.1.q"],
            ["m.h.1.q", "m.g.1.q"],
        ),
        ({"target_modules": ["q"], "layers_pattern": "h"}, ["m.h.1.q", "q"], []),
    ],
)
def test_which_modules_are_targets(read, config, targets, others):
    found = read(**config)
    assert [name for name in targets if not found.targets(name)] == []
    assert [name for name in others if found.targets(name)] == []


@pytest.mark.parametrize(
    "patterns, ranks",
    [
        ({"q_proj": 2}, {"q_proj": 2, "a.q_proj": 2, "aq_proj": 4, "q_proj.a": 4}),
        ({r"layers\.[02]\..*": 2, "q_proj": 3}, {"m.layers.0.q_proj": 2, "m.layers.1.q_proj": 3, "m.layers.2.k": 2}),
        ({"q_proj": 3, "a.q_proj": 2}, {"a.q_proj": 3}),
        ({"a.q_proj": 2, "q_proj": 3}, {"a.q_proj": 2, "b.a.q_proj": 2, "b.q_proj": 3, "ba.q_proj": 3}),
        ({".*_proj": 2, "q_proj": 3}, {"q_proj": 2}),
        ({"q_proj": 3, ".*_proj": 2}, {"q_proj": 3, "k_proj": 2}),
        ({"q|k": 2}, {"a.q": 2, "a.k": 2, "a.v": 4}),
        ({"^a.q": 2}, {"a.q": 2, "b.a.q": 4}),
        # A dot is any character, as in an expression.
        ({"a.q": 2}, {"a_q": 2, "b.a-q": 2, "a..q": 4}),
        ({}, {"q": 4}),
    ],
)
def test_a_pattern_is_the_end_of_a_name(read, patterns, ranks):
    found = read(rank_pattern=patterns, alpha_pattern={key: 10.0 * value for key, value in patterns.items()})
    for name, rank in ranks.items():
        # PEFT's rule, for all patterns at once.
        first = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)
        assert patterns.get(first, 4) == rank
        assert found.rank(name) == rank
        assert found.scale(name) == (2.0 if first is None else 10.0)


@pytest.mark.parametrize("rank, alpha, scale", [(1, 16, 16.0), (4, 0, 0.0), (16, 4, 1.0), (2, 0.5, 0.5 / math.sqrt(2))])
def test_rslora_divides_by_the_root(read, rank, alpha, scale):
    assert math.isclose(read(r=rank, lora_alpha=alpha, use_rslora=True).scale("q"), scale)
    assert read(r=rank, lora_alpha=alpha).scale("q") == alpha / rank


@pytest.mark.parametrize(
    "saved, names, others",
    [
        (["norm"], ["model.norm", "a.input_layernorm", "a.q_norm"], ["a.norm_b", "model"]),
        (["mlp"], ["a.mlp", "a.mlp.up_proj"], ["a.mlp_b.up_proj"]),
        (["1.mlp"], ["a.1.mlp.up_proj", "a.11.mlp"], ["a.2.mlp"]),
        (None, [], ["a"]),
    ],
)
def test_which_modules_are_saved(read, saved, names, others):
    found = read(modules_to_save=saved)
    assert [name for name in names if not found.saves(name)] == []
    assert [name for name in others if found.saves(name)] == []


def test_all_that_is_to_be_saved_is_there(base, path):
    norms = [name for name in base.tensors if name.endswith("norm.weight")]
    tensors = {**factors(), **{f"base_model.model.{name}": noise(*base.tensors[name].shape) for name in norms}}
    adapter = Adapter(write(path, tensors, modules_to_save=["norm"]), base)
    assert all(adapter.read(name).equal(noise(*base.tensors[name].shape).bfloat16()) for name in norms)
    del tensors[f"{prefix(3, 'input_layernorm')}.weight"]
    with pytest.raises(ComposeError, match=r"layers.3.input_layernorm: is missing, and .* has it in modules_to_save"):
        Adapter(write(path, tensors, modules_to_save=["norm"]), base)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers", "unsloth_fixed": True}},
        {"base_model_name_or_path": "unsloth/Some-Model-8B-bnb-4bit", "revision": "main", "inference_mode": False},
        {"task_type": None, "peft_version": "0.99.0.dev0@1234", "lora_dropout": 0.1, "megatron_core": "megatron.core"},
        {"merge_weights": True, "enable_lora": None, "fan_in_fan_out": True, "runtime_config": {"x": True}},
        # Of an initialization that is not asked for, or leaves the base as it is.
        {"corda_config": {"a": 1}, "loftq_config": {"b": 1}, "lora_ga_config": {"c": 1}, "qalora_group_size": 16},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        *({"init_lora_weights": kind} for kind in (True, False, None, "gaussian", "Gaussian", "orthogonal")),
        # What is not set is nothing, whatever it is.
        {"use_next_year": False, "next_config": None, "next_list": [], "next_dict": {}, "next_name": ""},
        {"rank_pattern": None, "alpha_pattern": None, "bias": None, "use_rslora": None, "use_dora": None},
    ],
)
def test_what_does_not_matter_is_passed_over(base, path, config):
    plain = Adapter(write(path, factors()), base)
    name = f"model.layers.0.{Q}.weight"
    assert Adapter(write(path, factors(), **config), base).read(name).equal(plain.read(name))


NO_SUMS = {
    "use_dora": True, "use_qalora": True, "use_bdlora": {"nblocks": 2}, "kasa_config": {"beta": 1},
    "velora_config": {"a": 1},
    "monteclora_config": {"num_samples": 8}, "megatron_config": {"a": 1}, "target_parameters": ["experts.w"],
    "enable_lora": [True, False], "layer_replication": [[0, 2], [1, 4]], "alora_invocation_tokens": [5],
    "arrow_config": {"top_k": 3}, "use_next_year": True, "next_size": 0, "next_name": "x", "next_list": [0],
}  # fmt: skip


@pytest.mark.parametrize("key", NO_SUMS)
def test_what_is_no_sum_is_refused_by_name(base, path, key):
    with pytest.raises(ComposeError) as error:
        Adapter(write(path, factors(), **{key: NO_SUMS[key]}), base)
    assert str(error.value).startswith(f"{path / 'adapter_config.json'}: {key}")
    assert str(NO_SUMS[key]) in str(error.value).replace('"', "'")


@pytest.mark.parametrize(
    "kind", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga", "mica", "new"]
)
def test_initializations_that_change_the_base(base, path, kind):
    known = kind not in ("mica", "new")
    message = f"init_lora_weights '{kind}' {'changes the base too' if known else 'is not known, and may change'}"
    with pytest.raises(ComposeError, match=f"adapter_config.json: {message}"):
        Adapter(write(path, factors(), init_lora_weights=kind), base)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type is 'None'"),
        ({"peft_type": ["LORA"]}, "peft_type is "),
        ({"r": 0}, "r: .*, not '0'"),
        ({"r": "many"}, "r: .*, not 'many'"),
        ({"r": True}, "r: .*, not 'True'"),
        ({"r": 4.0}, "r: "),
        ({"r": None}, "r: Field required"),
        ({"r": 10**9}, "r: "),
        ({"lora_alpha": math.nan}, "lora_alpha: "),
        ({"lora_alpha": 10**400}, "lora_alpha: "),
        ({"lora_alpha": "8"}, "lora_alpha: "),
        ({"use_rslora": "yes"}, "use_rslora: "),
        ({"bias": "some"}, "bias: "),
        ({"bias": "all"}, "bias 'all'"),
        ({"target_modules": 3}, "target_modules.*: "),
        ({"target_modules": {"q_proj": 1}}, "target_modules.*: "),
        ({"target_modules": ["q_proj", 3]}, "target_modules.*: "),
        ({"modules_to_save": "lm_head"}, "modules_to_save: "),
        ({"layers_to_transform": ["1"]}, "layers_to_transform.*: "),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: "),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: "),
        ({"alpha_pattern": {"q_proj": math.inf}}, "alpha_pattern.q_proj: "),
        ({"trainable_token_indices": [1.5]}, "trainable_token_indices.*: "),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices: 'embed_tokens': their rows .* are not in"),
        ({"target_modules": "("}, r"target_modules: '\(' is no regular expression: missing \)"),
        ({"target_modules": "(" * 5000 + ")" * 5000}, "target_modules: .* is no regular expression: "),
        ({"exclude_modules": "["}, "exclude_modules: .* is no regular expression"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: .* is no regular expression"),
        ({"rank_pattern": {"a)|(b": 2}}, "rank_pattern: .* is no regular expression"),
        ({"layers_to_transform": [1], "layers_pattern": "("}, "layers_pattern: .* is no regular expression"),
        ({"target_modules": "(?:q_proj){e<=2}"}, "target_modules: .* is no regular expression for names"),
        ({"target_modules": "(?:(?:a{1000}){1000}){1000}"}, "target_modules: .* repeats more than 10,000 times"),
        ({"target_modules": "q" * (1 << 17)}, "target_modules: .* has more than 65,536 characters"),
    ],
)
def test_configs_that_cannot_be_read(base, path, config, message):
    with pytest.raises(ComposeError, match=rf"adapter/adapter_config.json: {message}") as error:
        Adapter(write(path, factors(), **config), base)
    assert len(str(error.value)) < 600


EVIL = r"(?:.*?){0,99}[A-Z]"


@pytest.mark.parametrize(
    "config",
    [{"target_modules": EVIL}, {"target_modules": "all-linear", "exclude_modules": EVIL}, {"rank_pattern": {EVIL: 2}}],
)
def test_an_expression_that_would_take_for_ever(base, path, config, monkeypatch):
    monkeypatch.setattr("layerloom.composer.sources.expression.SECONDS", 0.2)
    start = time.process_time()
    with pytest.raises(ComposeError, match=r"adapter_config.json: .*takes more than .* name the modules in a list"):
        Adapter(write(path, factors(), **config), base)
    assert time.process_time() - start < 5


def test_thousands_of_keys(read):
    names = [f"model.layers.{layer}.{module}" for layer in range(1500) for module in (Q, UP)]
    ranks = {name: 1 + number for number, name in enumerate(names)}
    found = read(target_modules=names, rank_pattern=ranks, alpha_pattern=ranks, exclude_modules=["o_proj"])
    start = time.process_time()
    assert all(found.targets(name) and found.rank(name) == ranks[name] and found.scale(name) == 1 for name in names)
    # Nine million pairs, matched one by one, take half a minute.
    assert time.process_time() - start < 5


def test_rank_pattern_sets_the_factors_shape(base, path):
    tensors = {**factors(modules=(Q,), rank=2), **factors(modules=(UP,))}
    pattern = {r"layers\.\d+\.self_attn\.q_proj": 2}
    name = f"model.layers.1.{Q}.weight"
    a, b = (tensors[f"{prefix(1, Q)}.lora_{side}.weight"].double() for side in "AB")
    found = Adapter(write(path, tensors, rank_pattern=pattern), base).read(name).double()
    wanted = base.read(name).double() + 4.0 * (b @ a)
    assert found.shape == (HIDDEN, HIDDEN) and (found - wanted).abs().max() <= 2**-8 * wanted.abs().max()
    with pytest.raises(ComposeError, match=r"shape \(2, 16\), and rank 4 on this base needs \(4, 16\)"):
        Adapter(write(path, tensors), base)
