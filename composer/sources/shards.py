"""shards: which files of a directory hold a checkpoint's weights. The one rule, for all that read them."""

from collections.abc import Mapping
from pathlib import Path

from layerloom.composer.errors import ComposeError, listed, quoted
from layerloom.composer.files import read_json

from .pickled import advice, is_metas

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def shards(path: Path) -> Mapping[Path, set[str] | None]:
    """The files, each with the tensors the index wants from it, or None for all that it has.

    model.safetensors, or the shards that the index names; whatever else lies there (consolidated.safetensors,
    adapter_model.safetensors, shards of another index) is no part of it. Where there are both, the index must name
    that one file: transformers would read it, and vLLM what the index says. Raises ComposeError.
    """
    single, index = path / SINGLE, path / INDEX
    if not index.exists():
        if single.exists():
            return {single: None}
        raise ComposeError(f"{path}: has neither {SINGLE} nor {INDEX}{_instead(path)}")
    found = indexed(index)
    if single.exists() and found.keys() != {single}:
        others = listed(sorted(file.name for file in found.keys() - {single}))
        raise ComposeError(
            f"{path}: has {SINGLE} and an {INDEX} that names {others}: two copies of the weights, and libraries differ "
            "in which they read; remove the one that is not meant"
        )
    return {single: None} if single.exists() else dict(found)


def indexed(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, each with its tensors. Raises ComposeError."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ComposeError(f"{index}: has no weight_map")
    found: dict[Path, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ComposeError(f"{index}: {quoted(file)} is not the name of a file beside it")
        found.setdefault(index.parent / file, set()).add(tensor)
    return found


def _instead(path: Path) -> str:
    """What is there in place of the weights, and what to do."""
    parts = sorted(file.name for file in path.glob("model-*-of-*.safetensors"))
    if parts:
        return f"; it has {listed(parts)}, whose index is missing: fetch that too"
    own = sorted(file.name for file in path.iterdir() if is_metas(file.name))
    if own:
        return f"; it has {listed(own)}, in the names of its maker's own code: give the model in Hugging Face's format"
    return advice(path)
