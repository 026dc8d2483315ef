"""lora: PEFT adapters of the tiny base, written without PEFT."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import DEPTH, HIDDEN, VOCAB

Q, UP = "self_attn.q_proj", "mlp.up_proj"
SHAPES = {Q: (HIDDEN, HIDDEN), UP: (2 * HIDDEN + 1, HIDDEN)}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM"}
HEAD, EMBEDDING = "base_model.model.lm_head", "base_model.model.model.embed_tokens"


def prefix(layer: int, module: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}"


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(
    layers: Iterable[int] = range(DEPTH),
    modules: Iterable[str] = (Q, UP),
    rank: int = 4,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    made = {}
    for layer in layers:
        for module in modules:
            rows, columns = SHAPES[module]
            made[f"{prefix(layer, module)}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).to(dtype)
            made[f"{prefix(layer, module)}.lora_B.weight"] = torch.randn(rows, rank, generator=generator).to(dtype)
    return made


def both_sides(rank: int = 4) -> dict[str, torch.Tensor]:
    """The factors of embed_tokens, and of an lm_head that is changed as it is."""
    a, b = noise(rank, VOCAB, seed=1), noise(HIDDEN, rank, seed=2)
    embedding = {f"{EMBEDDING}.lora_embedding_A": a, f"{EMBEDDING}.lora_embedding_B": b}
    return {**embedding, f"{HEAD}.lora_A.weight": b.T.contiguous(), f"{HEAD}.lora_B.weight": a.T.contiguous()}


def write(path: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**LORA, **config}))
    return path
