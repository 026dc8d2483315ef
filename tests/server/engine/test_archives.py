"""Lossy archives and LoRA adapters answer as the merge of their decoded weights does under stock vLLM."""

import json
from itertools import combinations

import pytest
import torch
import yaml
from engines import answers, distance, prompts, run, sampling
from pico import make_family
from safetensors.torch import save_file

from layerloom.composer import Family, extract, merge
from layerloom.composer.sources.codecs import Int4, Int8, Lowrank, Sign

CODECS = {"int8": Int8(), "int4": Int4(), "sign": Sign(), "lowrank": Lowrank(rank=8)}


pytestmark = pytest.mark.usefixtures("engine_environment")


def write_adapter(path, base, rank=4):
    """A PEFT LoRA adapter of q_proj, o_proj and down_proj of every layer."""
    path.mkdir()
    generator = torch.Generator().manual_seed(3)
    factors = {}
    for name, info in base.tensors.items():
        if name.endswith(("q_proj.weight", "o_proj.weight", "down_proj.weight")):
            rows, columns = info.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"] = 0.2 * torch.randn(rank, columns, generator=generator)
            factors[f"{stem}.lora_B.weight"] = 0.2 * torch.randn(rows, rank, generator=generator)
    save_file(factors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "down_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))


def test_tokens_of_the_merged_decoded_weights(tmp_path):
    """One family that mixes a checkpoint, four lossy archives and an adapter, in one batch."""
    path = make_family(tmp_path)
    base, math = tmp_path / "base", tmp_path / "math"
    experts = {"swahili": {"kind": "language", "path": "swahili"}, "lora": {"kind": "task", "path": "lora"}}
    write_adapter(tmp_path / "lora", Family.load(path).base)
    for name, codec in CODECS.items():
        extract(base, math, tmp_path / f"{name}.safetensors", codec)
        experts[name] = {"kind": "task", "path": f"{name}.safetensors"}
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(yaml.safe_dump({"base": "base", "experts": experts}))
    family = Family.load(mixed)
    tasks = [*CODECS, "lora"]

    expected = {}
    for task in tasks:
        merged = merge(family, f"{task}+swahili", tmp_path / "merged" / task)
        (outputs,) = run(merged, (None, prompts()[:4], sampling()))
        expected[task] = answers(outputs)
    between = [distance(expected[task], expected[other]) for task, other in combinations(tasks, 2)]
    assert min(between) > 0.1, "or the test shows nothing"
    jobs = [(task, i) for i in range(4) for task in tasks]
    names, batch = [f"{task}+swahili" for task, _ in jobs], [prompts()[i] for _, i in jobs]
    (outputs,) = run(mixed, (names, batch, sampling()))
    # On some CPUs a product of other rows is rounded otherwise, in stock vLLM too.
    assert distance(answers(outputs), [expected[task][i] for task, i in jobs]) < 0.05
