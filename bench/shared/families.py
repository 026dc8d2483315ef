"""families: families of any size, with random numbers in them, written quickly and with little memory.

Each number of the base is drawn with a standard deviation of 0.02, and an expert's is moved from it by one with 1e-4,
in bf16. Drawing 10^9 numbers would take minutes: tensors are put together from windows of 16 million, each at another
place and with another sign.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from pico import make_tokenizer  # noqa: E402

from shared.synthetic import BASE_STD, DELTA_STD  # noqa: E402

DRAWN, WINDOW = 1 << 24, 1 << 22
INDEX = "model.safetensors.index.json"

QWEN_1_5B = {
    "num_hidden_layers": 28,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Qwen2.5-1.5B's shapes; heads of 128, biases on q, k and v, 3.1 GB in bf16."""


@dataclass(frozen=True)
class Model:
    """What a model is made of, and the recipe of a pair: the paper's, scaled to its depth."""

    config: PretrainedConfig

    @classmethod
    def of(cls, model_type: str, **settings: Any) -> "Model":
        return cls(AutoConfig.for_model(model_type, torch_dtype="bfloat16", **settings))

    @property
    def depth(self) -> int:
        return int(self.config.num_hidden_layers)

    @cached_property
    def parts(self) -> list[dict[str, torch.Size]]:
        """The tensors of each layer, then those of the stem; of tied ones the embedding."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        parts: list[dict[str, torch.Size]] = [{} for _ in range(self.depth + 1)]
        for name, parameter in model.named_parameters():
            layer = name.removeprefix("model.layers.").partition(".")[0]
            parts[int(layer) if layer.isdigit() else self.depth][name] = parameter.shape
        return parts

    @property
    def zones(self) -> dict[str, int]:
        """The recipe's bottom, top and transition."""
        bottom, top = (max(1, (2 * published * self.depth + 32) // 64) for published in (5, 2))
        return {"bottom": bottom, "top": top, "transition": 1}

    @property
    def own(self) -> list[int]:
        """The parts that are a pair's own: the language's layers, those averaged, and the stem."""
        bottom, top, transition = self.zones.values()
        return [*range(bottom + transition), *range(self.depth - top - transition, self.depth), self.depth]

    def bytes(self, parts: Sequence[int] | None = None) -> int:
        """Of these parts, each number once; of all without them."""
        chosen = self.parts if parts is None else [self.parts[part] for part in parts]
        return 2 * sum(shape.numel() for part in chosen for shape in part.values())


class Noise:
    """Numbers as good as drawn from N(0, 1)."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = torch.randn(DRAWN, generator=self._generator)

    def tensor(self, shape: torch.Size, std: float, on: torch.Tensor | None = None) -> torch.Tensor:
        """bf16: noise of that standard deviation, added to `on` where that is given."""
        out = torch.empty(shape, dtype=torch.bfloat16)
        flat, under = out.view(-1), None if on is None else on.view(-1)
        for start in range(0, flat.numel(), WINDOW):
            end = min(flat.numel(), start + WINDOW)
            place, sign = torch.randint(0, DRAWN - WINDOW, (2,), generator=self._generator).tolist()
            moved = self._drawn[place : place + end - start] * (std if sign % 2 else -std)
            flat[start:end] = moved if under is None else moved.add_(under[start:end])
        return out


def write_family(
    root: Path,
    model: Model,
    experts: Mapping[str, str],
    files: Sequence[Sequence[int]] | None = None,
    only: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Writes root/base, a checkpoint for each expert, and root/family.yaml, whose path is returned.

    `experts` maps names to kinds. `files` says which parts lie in one file; without it each has one of its own, and no
    more than two models' are in memory. `only` names the files (by number) in which an expert differs from the base;
    the others are the base's, under a second name.
    """
    files = files or [[part] for part in range(model.depth + 1)]
    noise = Noise()
    for name in ("base", *experts):
        write_around(root / name, model, files)
    for number, parts in enumerate(files):
        shapes = {name: shape for part in parts for name, shape in model.parts[part].items()}
        base = {name: noise.tensor(shape, BASE_STD) for name, shape in shapes.items()}
        save(base, root / "base", number, len(files))
        for expert in experts:
            if only is not None and number not in only.get(expert, range(len(files))):
                os.link(root / "base" / file_name(number, len(files)), root / expert / file_name(number, len(files)))
                continue
            moved = {name: noise.tensor(tensor.shape, DELTA_STD, tensor) for name, tensor in base.items()}
            save(moved, root / expert, number, len(files))
    return write_yaml(root / "family.yaml", model, {name: (kind, name) for name, kind in experts.items()})


def write_around(path: Path, model: Model, files: Sequence[Sequence[int]]) -> None:
    """Everything of a checkpoint but the weights."""
    path.mkdir(parents=True)
    model.config.architectures = [{"qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}[model.config.model_type]]
    model.config.save_pretrained(path)
    make_tokenizer(min(512, model.config.vocab_size)).save_pretrained(path)
    weight_map = {
        name: file_name(i, len(files)) for i, parts in enumerate(files) for p in parts for name in model.parts[p]
    }
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": model.bytes()}, "weight_map": weight_map}))


def write_yaml(path: Path, model: Model, experts: Mapping[str, tuple[str, str]]) -> Path:
    """A family.yaml beside root/base; `experts` maps names to kind and path."""
    entries = {name: {"kind": kind, "path": where} for name, (kind, where) in experts.items()}
    content = {"base": "base", "experts": entries, "recipe": model.zones}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def twin(expert: Path, path: Path) -> None:
    """The same checkpoint again, in files of other names that take no room on the disk."""
    path.mkdir()
    index = json.loads((expert / INDEX).read_text())
    for file in expert.iterdir():
        if file.name != INDEX:
            os.link(file, path / (f"{path.name}-{file.name}" if file.suffix == ".safetensors" else file.name))
    index["weight_map"] = {name: f"{path.name}-{file}" for name, file in index["weight_map"].items()}
    (path / INDEX).write_text(json.dumps(index))


def save(tensors: dict[str, torch.Tensor], path: Path, number: int, count: int) -> None:
    save_file(tensors, path / file_name(number, count), {"format": "pt"})


def file_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"
