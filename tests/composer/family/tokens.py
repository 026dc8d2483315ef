"""tokens: tokenizers of two directories, compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from layerloom.composer.family.tokenizers import tokenizer_problems

LLAMA = {"model_type": "llama"}
TEXTS = ["baka diso 5, heri!", " baka  BAKA", "مرحبا 3", "x<eos> y <new>z", "é é ﬁ", "\tfoo\n\nbar", "bakadisobaka" * 4]


def found(base: Path, expert: Path) -> list[str]:
    problems = tokenizer_problems(base, expert, LLAMA)
    assert all("\n" not in line and len(line) < 2500 for line in problems)
    return problems


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def ids(directory: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer.encode(text) for text in TEXTS]


def strings(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]


def reverse(content: dict[str, Any]) -> None:
    turned = dict(reversed(content.items()))
    turned["model"]["vocab"] = dict(reversed(turned["model"]["vocab"].items()))
    content.clear()
    content |= turned


def old(content: dict[str, Any]) -> None:
    """As tokenizers before 0.14 wrote it: without the options that came later."""
    for key in ("byte_fallback", "ignore_merges", "type"):
        content["model"].pop(key)
    content["pre_tokenizer"].pop("use_regex")


def unversioned(content: dict[str, Any]) -> None:
    content.pop("version")


def limits(content: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=16)
    content |= json.loads(tokenizer.to_str())


def offsets(content: dict[str, Any]) -> None:
    step = {"type": "ByteLevel", "trim_offsets": False, "add_prefix_space": True, "use_regex": True}
    inner = content["pre_tokenizer"] | {"trim_offsets": False}
    content["post_processor"], content["pre_tokenizer"] = step, {"type": "Sequence", "pretokenizers": [inner]}
    content["normalizer"] = {"type": "Sequence", "normalizers": []}


def template(content: dict[str, Any]) -> None:
    made = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", 1)])
    content["post_processor"] = json.loads(made.__getstate__())


def token(name: str = "<new>", id: int = 512, **flags: Any) -> Callable[[dict[str, Any]], None]:
    def add(content: dict[str, Any]) -> None:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"].append({"id": id, "content": name} | plain | flags)

    return add


def part(name: str, **keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, (content[name] or {}) | keys)


def swap(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["b"], vocab["d"] = vocab["d"], vocab["b"]
