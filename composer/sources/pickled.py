"""pickled: weights in PyTorch's own files, which are pickles: what to say of them, and how they are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layerloom.composer.errors import ComposeError, listed, quoted
from layerloom.composer.files import naming, open_file

from .header import TYPES

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
SHARD = re.compile(r"pytorch_model-(\d{5})-of-(\d{5})\.bin")
ADAPTER = "adapter_model.bin"


def advice(path: Path) -> str:
    """What an error says after "has no safetensors" where a directory has pickled weights; else nothing."""
    names = sorted(file.name for file in path.iterdir())
    found = [name for name in names if name in (SINGLE, INDEX, ADAPTER) or SHARD.fullmatch(name)]
    if not found:
        return ""
    return f"; it has {listed(found)}, which is pickled: `layerloom convert {path}` writes it as safetensors"


def is_metas(name: str) -> bool:
    return re.fullmatch(r"consolidated(\.\d+)?\.(pth|safetensors)", name) is not None


def read_pickled(file: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """The tensors of a state dict, mapped where the file allows it, and what was passed over to find them.

    Nothing in the file is run. A state dict may lie in another dict, if it is the only one there. Raises ComposeError.
    """
    content = _load(file)
    if not isinstance(content, Mapping):
        raise ComposeError(f"{file}: holds a {type(content).__name__}, not a state dict ({{name: tensor}})")
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return _checked(file, content), None
    inner = [key for key, value in content.items() if _is_state(value)]
    if len(inner) != 1:
        keys = listed([quoted(key) for key in content])
        why = f"{listed([quoted(key) for key in inner])} are all state dicts" if inner else f"no state dict in {keys}"
        raise ComposeError(f"{file}: {why if content else 'is empty'}; save the one that is meant alone")
    others = [quoted(key) for key in content if key != inner[0]]
    left_out = f", without {listed(others)}" if others else ""
    return _checked(file, content[inner[0]]), f"{file}: took {quoted(inner[0])}{left_out}"


def _load(file: Path) -> Any:
    with naming(file), open_file(file):
        pass
    try:
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Broken files raise nearly anything.
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            reason = f"its pickle calls {needed[1]}, which could run any code: save the tensors alone (state_dict())"
        else:
            reason = f"cannot be read as a PyTorch file: {str(error).strip().partition(chr(10))[0][:200]}"
        raise ComposeError(f"{file}: {reason}") from error


def _is_state(value: Any) -> bool:
    tensors = isinstance(value, Mapping) and all(isinstance(part, torch.Tensor) for part in value.values())
    return tensors and len(value) > 0


def _checked(file: Path, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    problems = []
    for name, value in state.items():
        if not isinstance(name, str):
            problems.append(f"{quoted(name)} is no name")
        elif not isinstance(value, torch.Tensor):
            problems.append(f"{quoted(name)} is a {type(value).__name__}, not a tensor")
        elif value.layout != torch.strided or value.is_quantized or value.is_meta or value.dtype not in TYPES.values():
            kind = "meta" if value.is_meta else f"{value.layout}, {value.dtype}".replace("torch.", "")
            problems.append(f"{quoted(name)} is a tensor ({kind}) that safetensors does not have")
    if problems:
        raise ComposeError(f"{file}: {'; '.join(problems[:3])}{f' and {len(problems) - 3} more' * (len(problems) > 3)}")
    return {name: tensor.detach() for name, tensor in state.items()}
