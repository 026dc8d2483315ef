"""convert: a checkpoint or adapter whose weights are pickled, written as safetensors."""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from layerloom.composer.errors import ComposeError, listed, quoted
from layerloom.composer.files import read_json
from layerloom.composer.sources import lora_keys, shards
from layerloom.composer.sources.pickled import ADAPTER, INDEX, SHARD, SINGLE, is_metas, read_pickled

from .merge import MAX_SHARD_BYTES
from .sidecars import copy_sidecars


@dataclass(frozen=True)
class Converted:
    """A directory that was written. `notes` says what of the old files is not in it."""

    path: Path
    notes: tuple[str, ...]


def convert(directory: Path, out: Path | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> Converted:
    """Writes a directory's pickled weights as safetensors, with its config, tokenizer and the like beside them.

    The weights are pytorch_model.bin, its shards, or adapter_model.bin; `out` is by default beside the directory, with
    "-safetensors" after its name. No code of a pickle is run. A file is in memory at a time, or less where it can be
    mapped. The directory appears when it is complete. Raises ComposeError, also when `out` is not empty.
    """
    directory = Path(directory).expanduser().absolute()
    out = directory.with_name(f"{directory.name}-safetensors") if out is None else Path(out).expanduser().absolute()
    files, name = pickles(directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ComposeError(f"{out}: exists and is not an empty directory: name another, or empty it")
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    notes: list[str] = []
    try:
        partial.mkdir(parents=True)
        copy_sidecars(directory, partial)
        tied = name == shards.SINGLE and ties_embeddings(directory)
        # An adapter is one file, whatever its size.
        most = max_shard_bytes if name == shards.SINGLE else 1 << 62
        parts = [part for file, wanted in files.items() for part in _write(file, wanted, tied, most, partial, notes)]
        _finish(partial, name, parts)
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise ComposeError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Converted(out, tuple(notes))


def pickles(directory: Path) -> tuple[Mapping[Path, set[str] | None], str]:
    """The files, each with the tensors wanted from it or None for all, and the new one's name. Raises ComposeError."""
    if not directory.is_dir():
        raise ComposeError(f"{directory}: no such directory")
    names = {file.name for file in directory.iterdir()}
    for target in (shards.SINGLE, shards.INDEX, lora_keys.WEIGHTS):
        if target in names:
            raise ComposeError(f"{directory}: has {target}, which is safetensors already")
    if SINGLE in names:
        return {directory / SINGLE: None}, shards.SINGLE
    if INDEX in names:
        return dict(sorted(shards.indexed(directory / INDEX).items())), shards.SINGLE
    if ADAPTER in names:
        return {directory / ADAPTER: None}, lora_keys.WEIGHTS
    found = sorted(name for name in names if SHARD.fullmatch(name))
    if found:
        count = int(found[0][-9:-4])
        if [name[14:19] for name in found] != [f"{number:05d}" for number in range(1, count + 1)]:
            raise ComposeError(f"{directory}: has {len(found)} of {count} shards ({listed(found)})")
        return {directory / name: None for name in found}, shards.SINGLE
    metas = sorted(filter(is_metas, names))
    if metas:
        raise ComposeError(
            f"{directory}: {listed(metas)}: Meta's own format has other names for the tensors; give the model in "
            "Hugging Face's format"
        )
    others = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    hint = f" (there is {listed(others)}: rename what is meant)" if others else ""
    raise ComposeError(f"{directory}: has none of {SINGLE}, {INDEX} and {ADAPTER}{hint}")


def ties_embeddings(directory: Path) -> bool:
    """Whether lm_head is embed_tokens by config.json; Gemma's leave the key out, and it is true there."""
    config = read_json(directory / "config.json") if (directory / "config.json").exists() else {}
    return bool(config.get("tie_word_embeddings", str(config.get("model_type", "")).startswith("gemma")))


def distinct(state: Mapping[str, torch.Tensor], tied: bool) -> dict[str, torch.Tensor]:
    """The tensors, contiguous and none in the memory of another.

    Of a tied model's head and embeddings the embeddings stay, as in what transformers saves; what else shares memory is
    copied.
    """
    seen: dict[object, str] = {}
    kept: dict[str, torch.Tensor] = {}
    # lm_head comes last, so that what it shares has been seen.
    for name in sorted(state, key=lambda name: (name.endswith("lm_head.weight"), name)):
        tensor = state[name]
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tied and name.endswith("lm_head.weight") and place in seen:
            continue
        shared = place[0] in seen and tensor.numel() > 0
        seen[place] = seen[place[0]] = name
        kept[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
    return {name: kept[name] for name in state if name in kept}


def _write(
    file: Path, wanted: set[str] | None, tied: bool, most: int, directory: Path, notes: list[str]
) -> Iterator[tuple[Path, dict[str, int]]]:
    """Writes the tensors of a pickle, and yields each new file with the bytes of its tensors."""
    state, note = read_pickled(file)
    if note:
        notes.append(note)
    if wanted is not None:
        if not wanted <= state.keys():
            raise ComposeError(f"{file}: lacks {quoted(min(wanted - state.keys()))}, which {INDEX} says it has")
        state = {name: tensor for name, tensor in state.items() if name in wanted}
    state = distinct(state, tied)
    plan = split_torch_state_dict_into_shards(state, max_shard_size=most)
    for names in plan.filename_to_tensors.values():
        written = directory / f"{secrets.token_hex(8)}.safetensors"
        save_file({name: state[name] for name in names}, written, {"format": "pt"})
        # safetensors makes a file that only its owner can read.
        written.chmod(file.stat().st_mode & 0o777)
        yield written, {name: state[name].nbytes for name in names}


def _finish(directory: Path, name: str, parts: list[tuple[Path, dict[str, int]]]) -> None:
    """Gives the files their names, and writes the index if there are several."""
    if len(parts) == 1:
        parts[0][0].rename(directory / name)
        return
    weight_map: dict[str, str] = {}
    for number, (file, sizes) in enumerate(parts, 1):
        renamed = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        file.rename(directory / renamed)
        weight_map |= dict.fromkeys(sizes, renamed)
    total = sum(size for _, sizes in parts for size in sizes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / shards.INDEX).write_text(json.dumps(index, indent=2) + "\n")
