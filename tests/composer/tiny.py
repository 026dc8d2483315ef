"""tiny: the smallest families composer can be tried on, written without transformers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from layerloom.composer import Family, FamilyError

DEPTH, HIDDEN, VOCAB = 8, 16, 32
EXPERTS: dict[str, dict[str, Any]] = {
    "math": {"kind": "task", "path": "math"},
    "code": {"kind": "task", "path": "code"},
    "swahili": {"kind": "language", "code": "sw", "aliases": ["kiswahili"], "path": "swahili"},
    "bengali": {"kind": "language", "code": "bn", "path": "bengali"},
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": DEPTH,
    "hidden_size": HIDDEN,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
TOKENIZER = {"model": {"type": "WordLevel", "vocab": {"<unk>": 0, "habari": 1}, "unk_token": "<unk>"}}


def make_tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(DEPTH):
        shapes |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{layer}.self_attn.q_norm.weight": (4,),
            f"model.layers.{layer}.mlp.up_proj.weight": (2 * HIDDEN + 1, HIDDEN),
            f"model.layers.{layer}.input_layernorm.weight": (HIDDEN,),
        }
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any] = CONFIG) -> None:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))


def write_family(root: Path, dtype: torch.dtype = torch.bfloat16, **entries: Any) -> Path:
    for seed, name in enumerate(["base", *EXPERTS]):
        write_checkpoint(root / name, make_tensors(seed, dtype))
    (root / "base" / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    path = root / "family.yaml"
    path.write_text(yaml.safe_dump({"base": "base", "experts": EXPERTS, **entries}, sort_keys=False))
    return path


def problems(path: Path) -> list[str]:
    """What a family that cannot be loaded is refused for."""
    with pytest.raises(FamilyError) as caught:
        Family.load(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def flip(file: Path) -> None:
    """One bit, with the size and the time that it had."""
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    with file.open("r+b") as raw:
        raw.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
