"""materials: what systems that are compared need on disk: a family, merged checkpoints, archives, LoRA adapters."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import yaml

from layerloom.composer import Family, merge
from layerloom.composer.sources.codecs import CODECS
from layerloom.composer.tools.extract import extract

from .adapters import Extraction
from .families import Model, Noise, save, twin, write_around, write_yaml
from .synthetic import BASE_STD

TASK = "math"
MOVED = 0.05
"""What an expert changes of each weight, next to the weight."""
STDS = {"norm": 0.1, "embed_tokens": 0.5, "lm_head": 0.1}
"""Where it is not 0.02: else answers were loops of a few tokens, hardly likelier than others."""


@dataclass
class Made:
    """A file or folder, and the seconds that making it took."""

    path: Path
    seconds: float


@dataclass
class Materials:
    """`languages` of a family at `path`, whose first `distinct` have files of their own; the others are the same files
    under other names, which no server can know."""

    root: Path
    path: Path
    languages: Sequence[str]
    distinct: int
    ranks: Sequence[int]
    _made: dict[str, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.family = Family.load(self.path, warn=False)
        self._extraction = Extraction(self.family, self.ranks)

    @property
    def base(self) -> Path:
        return self.family.base.path

    def name(self, language: int) -> str:
        return f"{TASK}+{self.languages[language]}"

    def original(self, language: int) -> str:
        """The name of the composition that has the same weights, and files of its own."""
        return self.name(language % self.distinct)

    def merged(self, language: int) -> Made:
        name = self.original(language)
        if name not in self._made:
            began = time.perf_counter()
            path = merge(self.family, name, self.root / "merged" / name)
            self._made[name] = Made(path, time.perf_counter() - began)
        return self._made[name]

    def adapter(self, language: int, rank: int) -> Made:
        """The seconds are of extracting all ranks at once, by a process that has decomposed nothing before."""
        name = self.original(language)
        if f"{name} {rank}" not in self._made:
            paths = {each: self.root / f"lora-{each}" / name for each in self.ranks}
            began = time.perf_counter()
            self._extraction.write(name, paths)
            seconds = time.perf_counter() - began
            self._made |= {f"{name} {each}": Made(path, seconds) for each, path in paths.items()}
        return self._made[f"{name} {rank}"]

    def archives(self, codec: str, languages: int) -> Made:
        """A family of archives; the seconds are of extracting one language."""
        place = self.root / codec
        if codec in self._made:
            return self._made[codec]
        place.mkdir()
        content = yaml.safe_load(self.path.read_text())
        content["base"] = str(self.base)
        wanted = [TASK, *self.languages[:languages]]
        entries = {name: content["experts"][name] for name in wanted}
        seconds = 0.0
        for number, name in enumerate(wanted):
            out = place / f"{name}.safetensors"
            if number <= self.distinct:
                checkpoint = self._checkpoint(name)
                began = time.perf_counter()
                extract(self.base, checkpoint, out, CODECS[codec]())
                seconds = time.perf_counter() - began
            else:
                os.link(place / f"{wanted[1 + (number - 1) % self.distinct]}.safetensors", out)
            entries[name]["path"] = out.name
        content["experts"] = entries
        content.pop("compositions", None)
        (place / "family.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return self._made.setdefault(codec, Made(place / "family.yaml", seconds))

    def _checkpoint(self, expert: str) -> Path:
        path = self.family.checkpoint(expert).path
        return path if path.is_dir() else merge(self.family, expert, self.root / "whole" / expert)

    def expert_bytes(self, experts: Iterable[str]) -> int:
        return sum(size_of(self.family.checkpoint(expert).path) for expert in experts)


@cache
def size_of(path: Path) -> int:
    """Bytes of the weights in a file or in a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


def write_family(root: Path, model: Model, languages: Sequence[str], distinct: int) -> Path:
    """A family of random numbers: and experts that move each weight by a twentieth."""
    files = [[part] for part in range(model.depth + 1)]
    experts = TASK, *languages[:distinct]
    noise = Noise()
    for name in ("base", *experts):
        write_around(root / name, model, files)
    for number, shapes in enumerate(model.parts):
        base = {name: moved(noise, torch.zeros(shape, dtype=torch.bfloat16), name) for name, shape in shapes.items()}
        save(base, root / "base", number, len(files))
        for expert in experts:
            other = {name: moved(noise, tensor, name, MOVED) for name, tensor in base.items()}
            save(other, root / expert, number, len(files))
    for number in range(distinct, len(languages)):
        twin(root / languages[number % distinct], root / languages[number])
    kinds = {TASK: "task", **dict.fromkeys(languages, "language")}
    return write_yaml(root / "family.yaml", model, {name: (kind, name) for name, kind in kinds.items()})


def moved(noise: Noise, tensor: torch.Tensor, name: str, share: float = 1.0) -> torch.Tensor:
    """Noise of the size that such a weight has (or of that share of it), added to the tensor."""
    (std,) = {std for part, std in STDS.items() if part in name} or {BASE_STD}
    return noise.tensor(tensor.shape, std * share, tensor + 1 if "norm" in name and share == 1 else tensor)
