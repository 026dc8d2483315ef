import pytest
import torch
from lora import EMBEDDING, HEAD, SHAPES, UP, Q, factors, noise, prefix, write
from safetensors.torch import load_file
from tiny import HIDDEN, VOCAB

from layerloom.composer import Adapter, ComposeError, Family, extract, merge, open_source, verify


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
        (
            {f"{prefix(0, Q)}.lora_magnitude_vector": torch.zeros(HIDDEN)},
            "is of no kind that can be read: it is DoRA's",
        ),
        ({f"{prefix(0, Q)}.lora_A.default.weight": torch.zeros(4, HIDDEN)}, r"name in it \('lora_A.default.weight'\)"),
        ({f"{prefix(0, Q)}.lora_B.bias": torch.zeros(HIDDEN)}, "to add it to; PEFT cannot merge it either"),
        ({f"{prefix(0, Q)}.weight": torch.zeros(HIDDEN, HIDDEN)}, "there are factors too"),
        ({f"{prefix(0, Q)}.base_layer.weight": torch.zeros(HIDDEN, 4)}, "the adapter of another model"),
        (
            {f"{prefix(0, 'input_layernorm')}.base_layer.weight": torch.zeros(HIDDEN)},
            "beneath factors, and there are no",
        ),
        ({f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.zeros(1, HIDDEN)}, "does not say of which tokens"),
        (
            {f"{HEAD}.weight": noise(VOCAB, HIDDEN), f"{HEAD}.modules_to_save.default.weight": noise(VOCAB, HIDDEN)},
            "of one",
        ),
        (
            {f"{EMBEDDING}.lora_A.weight": torch.zeros(4, HIDDEN), f"{EMBEDDING}.lora_B.weight": torch.zeros(VOCAB, 4)},
            "does not name it as a target",
        ),
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


def test_layers_stay_factors_where_they_are_two_and_nothing_else(base, path):
    tensors = factors([0, 1, 2])
    tensors[f"{prefix(1, Q)}.base_layer.weight"] = noise(HIDDEN, HIDDEN)
    tensors[f"{prefix(3, UP)}.weight"] = noise(*SHAPES[UP])
    tensors[f"{prefix(2, 'input_layernorm')}.weight"] = noise(HIDDEN)
    tensors |= {f"{EMBEDDING}.lora_embedding_A": noise(8, VOCAB), f"{EMBEDDING}.lora_embedding_B": noise(HIDDEN, 8)}
    config = {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "layers_to_transform": [0, 1, 2]}
    config |= {"rank_pattern": {"embed_tokens": 8}, "target_modules": r".*layers\.[012]\..*(q|up)_proj|.*embed_tokens"}
    adapter = Adapter(write(path, tensors, **config), base)
    codecs = [adapter.packing(adapter.layer(index)) for index in range(base.depth)]
    # The embedding's rank is of no layer's, and a vector that is stored whole is read.
    assert [codec and codec.rank for codec in codecs] == [4, None, 4, None, 4, 4, 4, 4]
    assert adapter.packing(adapter.stem) is None
    name = f"model.layers.0.{Q}.weight"
    parts = adapter.packed(name, codecs[0])
    assert torch.equal(parts["lora_A"], tensors[f"{prefix(0, Q)}.lora_A.weight"].bfloat16())
    assert torch.equal(parts["lora_B"], (2.0 * tensors[f"{prefix(0, Q)}.lora_B.weight"]).bfloat16())
    parts = adapter.packed(f"model.layers.4.{UP}.weight", codecs[0])
    assert (parts["lora_A"].shape, parts["lora_B"].shape) == ((0, HIDDEN), (SHAPES[UP][0], 0))


def test_an_adapter_of_no_layer_leaves_none_packed(base, path):
    tensors = {f"{HEAD}.lora_A.weight": noise(4, HIDDEN), f"{HEAD}.lora_B.weight": noise(VOCAB, 4)}
    adapter = Adapter(write(path, tensors, target_modules=["lm_head"]), base)
    assert adapter.packing(adapter.layer(0)) is None
    wanted = base.read("lm_head.weight").double() + 2.0 * (noise(VOCAB, 4).double() @ noise(4, HIDDEN).double())
    assert torch.allclose(adapter.read("lm_head.weight").double(), wanted, rtol=2**-8, atol=1e-6)


def test_a_sum_that_is_not_finite_is_refused(base, path):
    adapter = Adapter(write(path, factors(), lora_alpha=1e40), base)
    with pytest.raises(
        ComposeError, match=rf"model.layers.0.{Q}.weight: its sum with the base: has numbers that are not"
    ):
        adapter.read(f"model.layers.0.{Q}.weight")
    with pytest.raises(ComposeError, match="has numbers that are not finite"):
        adapter.packed(f"model.layers.0.{Q}.weight", adapter.packing(adapter.layer(0)))


def test_an_adapter_in_a_folder(base, tmp_path):
    home = tmp_path / "saved"
    write(home / "mine", factors())
    (home / "logs").mkdir()
    found = open_source(home, base)
    assert isinstance(found, Adapter) and found.path == home / "mine"
    write(home / "other", factors())
    with pytest.raises(ComposeError, match="saved: has 2 adapters, in mine, other; give the path of one"):
        open_source(home, base)
    write(home, factors())
    assert open_source(home, base).path == home


def test_a_pickle_is_not_read(base, path):
    (write(path, factors()) / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(ComposeError, match=rf"adapter_model.bin: is a pickle.*with: layerloom convert {path}"):
        Adapter(path, base)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_weights_without_a_config(base, path, name):
    (write(path, factors()) / "adapter_config.json").unlink()
    (path / "adapter_model.safetensors").rename(path / name)
    with pytest.raises(ComposeError, match=r"adapter: has an adapter's weights and no adapter_config.json"):
        open_source(path, base)
