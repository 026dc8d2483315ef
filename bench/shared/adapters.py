"""adapters: a composition as a LoRA adapter in PEFT's format, from the singular vectors of what it changes in the base.

What is extracted are the matrices of the layers, the embeddings and the head. Norms are no matrices: an adapter leaves
the base's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from layerloom.composer import Family
from layerloom.composer.tools.merge import blend_for, tensor

Factors = tuple[torch.Tensor, torch.Tensor]
"""lora_A [r, K] and lora_B [N, r] of a matrix [N, K]."""


class Extraction:
    """Adapters of several ranks from one decomposition; layers that compositions have in common are decomposed once."""

    def __init__(self, family: Family, ranks: Sequence[int]) -> None:
        self.family = family
        self.ranks = ranks
        self._kept: dict[tuple[object, str], Factors] = {}

    def write(self, name: str, directories: Mapping[int, Path]) -> None:
        """Writes the adapter of each rank of a composition to the directory of that rank."""
        plan, base = self.family.plan(name), self.family.base
        found = {rank: {} for rank in directories}  # type: dict[int, dict[str, torch.Tensor]]
        for key, info in base.tensors.items():
            blend = blend_for(self.family, plan, key)
            if len(info.shape) != 2 or not blend:
                continue
            if (blend, key) not in self._kept:
                delta = tensor(self.family, plan, key).float() - base.read(key).float()
                self._kept[blend, key] = leading(delta, max(self.ranks))
            a, b = self._kept[blend, key]
            for rank, tensors in found.items():
                tensors |= named(key.removesuffix(".weight"), a[:rank], b[:, :rank])
        for rank, directory in directories.items():
            write(directory, rank, found[rank], str(base.path))


def leading(delta: torch.Tensor, rank: int) -> Factors:
    """bf16 factors of the closest matrix of that rank in least squares; their first r are those of rank r.

    By the eigenvectors of ΔΔᵀ (or ΔᵀΔ, whichever is smaller), which takes a quarter of a singular value decomposition.
    """
    tall = delta.shape[0] > delta.shape[1]
    square = delta.T @ delta if tall else delta @ delta.T
    vectors = torch.linalg.eigh(square)[1].flip(1)[:, :rank]
    a, b = (vectors.T, delta @ vectors) if tall else (vectors.T @ delta, vectors)
    return a.bfloat16(), b.bfloat16()


def named(module: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    """With PEFT's names; of an embedding the factors are those of its transpose."""
    if module.endswith("embed_tokens"):
        factors = {"lora_embedding_A": b.T, "lora_embedding_B": a.T}
    else:
        factors = {"lora_A.weight": a, "lora_B.weight": b}
    return {f"base_model.model.{module}.{factor}": value.contiguous() for factor, value in factors.items()}


def write(directory: Path, rank: int, tensors: Mapping[str, torch.Tensor], base: str) -> None:
    directory.mkdir(parents=True)
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "bias": "none"}
    config |= {"r": rank, "lora_alpha": rank, "target_modules": modules}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors), directory / "adapter_model.safetensors", {"format": "pt"})
