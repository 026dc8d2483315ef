import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIG, DEPTH, HIDDEN, VOCAB, make_tensors, write_checkpoint

from layerloom.composer import Adapter, Checkpoint, ComposeError, Family, extract, merge, open_source, verify

Q, UP = "self_attn.q_proj", "mlp.up_proj"
SHAPES = {Q: (HIDDEN, HIDDEN), UP: (2 * HIDDEN + 1, HIDDEN)}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}


def prefix(layer, module):
    return f"base_model.model.model.layers.{layer}.{module}"


def factors(layers=range(DEPTH), modules=(Q, UP), rank=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    made = {}
    for layer in layers:
        for module in modules:
            rows, columns = SHAPES[module]
            made[f"{prefix(layer, module)}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).to(dtype)
            made[f"{prefix(layer, module)}.lora_B.weight"] = torch.randn(rows, rank, generator=generator).to(dtype)
    return made


def write(path, tensors, **config):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**LORA, **config}))
    return path


@pytest.fixture
def base(pristine):
    return Checkpoint(pristine / "base")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter"


def merged(base, tensors, name, scale):
    stem = "base_model.model." + name.removesuffix(".weight")
    delta = scale * (tensors[f"{stem}.lora_B.weight"].double() @ tensors[f"{stem}.lora_A.weight"].double())
    return base.read(name).double() + delta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config, scale",
    [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 2}, 0.5), ({"alpha_pattern": {"q_proj": 4}}, {Q: 1.0})],
)
def test_it_is_the_base_plus_the_product(base, path, config, scale, dtype):
    tensors = factors(dtype=dtype)
    adapter = open_source(write(path, tensors, **config), base)
    assert isinstance(adapter, Adapter)
    assert (adapter.depth, adapter.stem, adapter.config) == (base.depth, base.stem, base.config)
    for name, info in base.tensors.items():
        read = adapter.read(name)
        assert (read.dtype, tuple(read.shape)) == (torch.bfloat16, info.shape)
        module = next((module for module in SHAPES if f".{module}." in name), None)
        if module is None:
            assert torch.equal(read, base.read(name))
        else:
            wanted = merged(base, tensors, name, scale.get(module, 2.0) if isinstance(scale, dict) else scale)
            assert torch.allclose(read.double(), wanted, rtol=2**-8, atol=1e-6), name
            assert adapter.tensors[name].file == path / "adapter_model.safetensors"


def test_rank_pattern(base, path):
    tensors = {**factors(modules=(Q,), rank=2), **factors(modules=(UP,))}
    adapter = Adapter(write(path, tensors, rank_pattern={r"layers\.\d+\.self_attn\.q_proj": 2}), base)
    name = f"model.layers.1.{Q}.weight"
    assert torch.allclose(adapter.read(name).double(), merged(base, tensors, name, 4.0), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("layers, pattern", [([2, 5], None), ([2, 5], "layers"), (3, ["h", "layers"])])
def test_layers_to_transform(base, path, layers, pattern):
    chosen = layers if isinstance(layers, list) else [layers]
    config = {"layers_to_transform": layers, "layers_pattern": pattern}
    adapter = Adapter(write(path, factors(chosen), **config), base)
    changed = {name for name in base.tensors if not torch.equal(adapter.read(name), base.read(name))}
    assert changed == {f"model.layers.{layer}.{module}.weight" for layer in chosen for module in SHAPES}
    write(path, factors([*chosen, 6]), **config)
    with pytest.raises(ComposeError, match=r"layers\.6\..*does not name it as a target"):
        Adapter(path, base)
    write(path, factors(chosen[:-1] or [6]), **config)
    with pytest.raises(ComposeError, match=r"adapter_model.safetensors: "):
        Adapter(path, base)


@pytest.mark.parametrize("targets", [r"model\.layers\.\d+\.(mlp\.up_proj|self_attn\.q_proj)", "all-linear"])
def test_targets_as_an_expression(base, path, targets):
    assert Adapter(write(path, factors(), target_modules=targets), base).read(f"model.layers.0.{Q}.weight") is not None


def test_modules_to_save_and_embeddings(base, path):
    head = torch.randn(VOCAB, HIDDEN)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, VOCAB, generator=generator), torch.randn(HIDDEN, 4, generator=generator)
    tensors = {
        **factors(),
        "base_model.model.lm_head.weight": head,
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
    }
    config = {"modules_to_save": ["lm_head"], "target_modules": ["q_proj", "up_proj", "embed_tokens"]}
    adapter = Adapter(write(path, tensors, **config), base)
    assert torch.equal(adapter.read("lm_head.weight"), head.bfloat16())
    wanted = base.read("model.embed_tokens.weight").double() + 2.0 * (b.double() @ a.double()).T
    assert torch.allclose(adapter.read("model.embed_tokens.weight").double(), wanted, rtol=2**-8, atol=1e-6)
    del tensors["base_model.model.lm_head.weight"]
    with pytest.raises(ComposeError, match=r"lm_head: is missing, and adapter_config.json has it in modules_to_save"):
        Adapter(write(path, tensors, **config), base)


def test_a_tied_head_cannot_be_replaced(path, root):
    untied = make_tensors(0)
    del untied["lm_head.weight"]
    write_checkpoint(root / "tied", untied, {**CONFIG, "tie_word_embeddings": True})
    tensors = {**factors(), "base_model.model.lm_head.weight": torch.zeros(VOCAB, HIDDEN)}
    with pytest.raises(ComposeError, match="it ties its embeddings"):
        Adapter(write(path, tensors, modules_to_save=["lm_head"]), Checkpoint(root / "tied"))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"use_dora": True}, "use_dora: DoRA rescales"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type is 'None'"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base too"),
        ({"bias": "all"}, "bias 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not read"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not read"),
        ({"r": 0}, "r: "),
        ({"r": "many"}, "r: "),
        ({"lora_alpha": math.nan}, "lora_alpha: "),
        ({"target_modules": "("}, "is no regular expression"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
    ],
)
def test_configs_that_cannot_be_read(base, path, config, message):
    with pytest.raises(ComposeError, match=rf"adapter/adapter_config.json: .*{message}"):
        Adapter(write(path, factors(), **config), base)


KEY = f"{prefix(0, Q)}.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        ({KEY: torch.zeros(4, HIDDEN + 1)}, r"shape \(4, 17\), and rank 4 on this base needs \(4, 16\)"),
        ({KEY: torch.zeros(3, HIDDEN)}, r"shape \(3, 16\), and rank 4"),
        ({KEY: torch.zeros(4, HIDDEN, dtype=torch.int8)}, "dtype I8 is none of"),
        ({KEY: None}, "has no partner"),
        ({KEY: None, KEY.replace("_A", "_B"): None}, "has no factors"),
        ({f"{prefix(9, Q)}.lora_A.weight": torch.zeros(4, HIDDEN)}, "has no 'model.layers.9"),
        ({f"{prefix(0, 'self_attn.q_norm')}.lora_A.weight": torch.zeros(4, 4)}, "has no partner"),
        ({f"{prefix(0, Q)}.lora_magnitude_vector": torch.zeros(HIDDEN)}, "is of no kind that can be read"),
        ({"transformer.h.0.weight": torch.zeros(2)}, "does not start with base_model.model."),
        ({"base_model.model.lm_head.weight": torch.zeros(4, 4)}, "the adapter of another model"),
        ({"base_model.model.../../x.weight": torch.zeros(4)}, "has no '../../x.weight'"),
    ],
)
def test_weights_that_do_not_fit(base, path, change, message):
    tensors = {name: tensor for name, tensor in {**factors(), **change}.items() if tensor is not None}
    with pytest.raises(ComposeError, match=rf"adapter_model.safetensors: .*{message}"):
        Adapter(write(path, tensors), base)


def test_weights_that_are_not_finite_or_not_there(base, path):
    write(path, {**factors(), KEY: torch.full((4, HIDDEN), torch.nan)})
    with pytest.raises(ComposeError, match=rf"adapter_model.safetensors: {KEY}: has numbers that are not finite"):
        Adapter(path, base).read(f"model.layers.0.{Q}.weight")
    (path / "adapter_model.safetensors").write_bytes(b"1234")
    with pytest.raises(ComposeError, match=r"adapter_model.safetensors: "):
        Adapter(path, base)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ComposeError, match=r"adapter_model.safetensors: No such file"):
        Adapter(path, base)


def test_the_revision_is_of_file_and_config(base, path):
    before = Adapter(write(path, factors()), base).revision
    assert Adapter(path, base).revision == before
    (path / "adapter_config.json").write_text(json.dumps({**LORA, "lora_alpha": 9}))
    assert Adapter(path, base).revision != before


def test_three_kinds_in_one_composition(root, base):
    write(root / "lora", factors())
    extract(root / "base", root / "swahili", root / "swahili.safetensors")
    (root / "family.yaml").write_text(
        "{base: base, experts: {math: {kind: task, path: lora}, code: {kind: task, path: code},"
        " swahili: {kind: language, path: swahili.safetensors}},"
        " compositions: {all: {task: math, language: swahili, recipe:"
        " {method: soup, weights: {math: 0.25, code: 0.25, swahili: 0.5}}}}}"
    )
    family = Family.load(root)
    out = merge(family, "all", root / "out")
    assert verify(family, "all", out) == []
    # The adapter alone, written out, is a checkpoint that composes to the same numbers.
    merge(family, "math", root / "flat")
    (root / "family.yaml").write_text((root / "family.yaml").read_text().replace("path: lora", "path: flat"))
    assert verify(Family.load(root), "all", out) == []
    assert not torch.equal(
        load_file(root / "flat" / "model.safetensors")[f"model.layers.0.{Q}.weight"],
        base.read(f"model.layers.0.{Q}.weight"),
    )
