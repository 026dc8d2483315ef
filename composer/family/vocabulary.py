"""vocabulary: what a tokenizer.json says, without the ways of saying it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layerloom.composer.errors import ComposeError
from layerloom.composer.files import naming, read_bytes

from .quiet import said

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
TEXT = 1 << 31
"""The id of the text where only what is put around it is looked at."""
MOST_KEPT = 16
_KEPT: dict[bytes, "Vocabulary"] = {}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer. `tokens` and `ranks` are digests of {token: id} and of merges or scores, as those are large.

    `added` has id and flags of every added token; `pipeline` the options of the model, normalizer, pre-tokenizer,
    decoder, and what the post-processor puts around one text and around two. `adds` says whether the pipeline begins a
    text with bos, ends it with eos or puts a space before it.
    """

    tokens: bytes
    ranks: bytes
    added: Mapping[str, Mapping[str, Any]]
    pipeline: Mapping[str, Any]
    adds: Mapping[str, bool]

    def with_added(self, more: Mapping[str, Mapping[str, Any]]) -> "Vocabulary":
        """With tokens added by other files, whose flags count where a token is in both."""
        added = dict(self.added)
        for token, given in more.items():
            flags = {key: given.get(key, default) for key, default in FLAGS.items()}
            known = added.get(token)
            added[token] = {"id": known["id"] if known else given["id"], **flags}
        return replace(self, added=added)

    def differences(self, other: "Vocabulary") -> list[str]:
        """How the other one's vocabulary and pipeline differ from this one's, in words."""
        words = []
        if self.tokens != other.tokens:
            words.append("its vocabulary is another")
        if self.ranks != other.ranks:
            words.append("its merges or scores are others, so that texts are cut into other tokens")
        for key in sorted(self.pipeline.keys() | other.pipeline.keys()):
            mine, theirs = self.pipeline.get(key), other.pipeline.get(key)
            if mine != theirs:
                words.append(f"its {key} is {_short(theirs)}, the base's is {_short(mine)}")
        return words


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 120 else f"{shown[:120]}…"


def vocabulary(file: Path) -> Vocabulary:
    """What a tokenizer.json says; files of the same bytes are read once. Raises ComposeError with the file's name."""
    content = read_bytes(file)
    digest = hashlib.sha256(content).digest()
    found = _KEPT.get(digest)
    if found is None:
        found = parse(file, content)
        while len(_KEPT) >= MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)), None)
        _KEPT[digest] = found
    return found


def ids(file: Path, content: str | bytes | None = None) -> dict[str, int]:
    """The id of every token in a tokenizer.json, added ones included; `content` stands for what the file holds."""
    return _tokens(_load(file, read_bytes(file) if content is None else content))


def parse(file: Path, content: str | bytes) -> Vocabulary:
    """The same of a tokenizer.json's content; `file` is for messages."""
    data = _load(file, content)
    model = data["model"]
    try:
        tokens = _tokens(data)
        added = {
            token["content"]: {"id": tokens[token["content"]]} | {key: token.get(key, FLAGS[key]) for key in FLAGS}
            for token in data.get("added_tokens") or []
        }
        ranks: list[Any] = [
            merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or []
        ]
        if isinstance(model["vocab"], list):
            ranks = [score for _, score in model["vocab"]]
        listed = sorted(tokens.items(), key=lambda item: item[1])
        pipeline, adds = _pipeline(data)
    # The library's errors are plain Exceptions; a file may also have anything in place of what is expected.
    except Exception as error:
        raise ComposeError(f"{file}: cannot be read as a tokenizer: {said(error, 200)}") from error
    return Vocabulary(_digest(listed), _digest(ranks), added, pipeline, adds)


def _load(file: Path, content: str | bytes) -> dict[str, Any]:
    with naming(file):
        data = json.loads(content)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ComposeError(f"{file}: cannot be read as a tokenizer: has no model")
    if not isinstance(data["model"].get("vocab"), dict | list):
        raise ComposeError(f"{file}: cannot be read as a tokenizer: its model has no vocab")
    return data


def _tokens(data: Mapping[str, Any]) -> dict[str, int]:
    vocab = data["model"]["vocab"]
    tokens = {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    for token in data.get("added_tokens") or []:
        tokens.setdefault(token["content"], token["id"])
    return tokens


def _digest(items: list[Any]) -> bytes:
    return hashlib.sha256(json.dumps(items).encode()).digest()


def _pipeline(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bool]]:
    """Everything but tokens and merges, as the library writes it; it reads the older spellings."""
    from tokenizers import Tokenizer, models

    model = dict(data["model"])
    unk_id = model.get("unk_id")
    if "merges" in model:
        model.setdefault("type", "BPE")
        model["merges"] = []
    if isinstance(model["vocab"], list):
        model["unk_id"] = None
    model["vocab"] = type(model["vocab"])()
    small = {**data, "model": model, "added_tokens": [], "truncation": None, "padding": None}
    read = Tokenizer.from_str(json.dumps(small))
    written = json.loads(read.to_str())
    options = {key: value for key, value in written["model"].items() if key not in ("vocab", "merges")}
    if "unk_id" in options:
        options["unk_id"] = unk_id
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if key in options and options["type"] == "BPE":
            options[key] = options[key] or None
    probe = Tokenizer(models.WordLevel({"x": TEXT}, unk_token="x"))
    if read.post_processor is not None:
        probe.post_processor = read.post_processor
    one, two = probe.encode("x").ids, probe.encode("x", "x").ids
    steps = {key: _steps(written[key]) for key in ("normalizer", "pre_tokenizer", "decoder")}
    steps["decoder"] = [{"type": "ByteLevel"} if step["type"] == "ByteLevel" else step for step in steps["decoder"]]
    around = ["text" if id == TEXT else id for id in one]
    pair = ["text" if id == TEXT else id for id in two]
    pipeline = {f"model's {key}": value for key, value in options.items()} | steps
    pipeline |= {"template": around, "template of pairs": pair}
    adds = {
        "add_bos_token": one[0] != TEXT,
        "add_eos_token": one[-1] != TEXT,
        "add_prefix_space": any(_prepends(step) for step in steps["normalizer"] + steps["pre_tokenizer"]),
    }
    return pipeline, adds


def _steps(part: Any) -> list[dict[str, Any]]:
    """A part of the pipeline as a flat list of steps, without what changes offsets alone."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = next(value for value in part.values() if isinstance(value, list))
        return [step for item in inner for step in _steps(item)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _prepends(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme") != "never")
    return step["type"] == "Prepend" or bool(step.get("add_prefix_space", False))
