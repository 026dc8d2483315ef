"""tokenizers: whether two directories hold one tokenizer: the same ids for a text, and the same text for ids.

A composition is served with the base's tokenizer, so an expert's must be the same; one without tokenizer files uses
the base's. Where both have a tokenizer.json, it decides: vocabulary, merges (as pairs or strings), model options,
normalizer, pre-tokenizer, decoder, what the post-processor adds, and the added tokens with their flags, to which
tokenizer_config.json, special_tokens_map.json and added_tokens.json may add. Truncation, padding, order of keys and
offsets are passed over, and so is which token is bos, eos or pad. Where pipelines differ, the classes of transformers
have the last word: some of them make their own, whatever the file says. Other files are compared by what they list,
and then through the same classes, never through code that comes with a checkpoint.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layerloom.composer.errors import MOST_LISTED, ComposeError, listed, quoted
from layerloom.composer.files import read_bytes, read_json

from .quiet import quiet_transformers, said
from .vocabulary import FLAGS, Vocabulary, ids, parse, vocabulary

JSON = "tokenizer.json"
CONFIG, ROLES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# What a tokenizer can be read from, the best first.
MODEL = ("tokenizer.model",)
KINDS = ((JSON,), MODEL, ("tekken.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
NUMBER = re.compile("[0-9]{1,9}")
NONE = 8
"""A class that does not read the files makes a tokenizer of a few special tokens."""
FILES = (*dict.fromkeys(name for kind in KINDS for name in kind), CONFIG, ROLES, ADDED)
PREFIXES = ("add_bos_token", "add_eos_token", "add_prefix_space")
LISTS = ("additional_special_tokens", "extra_special_tokens")
# Keys of tokenizer_config.json that can change ids, and those that a class needs to be made.
SETTINGS = (*PREFIXES, *LISTS, "added_tokens_decoder", "do_lower_case", "fix_mistral_regex", "split_special_tokens")
MAKING = (*SETTINGS, "tokenizer_class", "legacy", "sp_model_kwargs")
ADVICE = (
    "compositions use the base's: give the expert the base's tokenizer files, or train it with them if it needs others"
)


def tokenizer_problems(base: Path, expert: Path, config: Mapping[str, Any]) -> list[str]:
    """Why the tokenizer in one directory is not the base's, in at most one line; empty when it is or there is none.

    `config` is the base's config.json. What a file says is kept by digest, so that the base's is read once.
    """
    kinds = [[kind for kind in KINDS if all((path / name).exists() for name in kind)] for path in (base, expert)]
    if not kinds[0] or not kinds[1]:
        return []
    try:
        ours, theirs = _Directory(base, config), _Directory(expert, config)
        common = next((kind for kind in kinds[0] if kind in kinds[1]), None)
        if common == KINDS[0]:
            return _by_json(ours, theirs)
        return _by_files(ours, theirs, common, (kinds[1][0] if common is None else common)[0])
    except ComposeError as error:
        return [str(error)]


class _Directory:
    """The tokenizer files of one directory; all are small but for the vocabulary."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.model = {key: config[key] for key in ("model_type", "transformers_version") if key in config}
        self.config = read_json(path / CONFIG) if (path / CONFIG).exists() else {}
        # The newer added_tokens_decoder stands for both of these.
        older = "added_tokens_decoder" not in self.config
        roles = read_json(path / ROLES) if older and (path / ROLES).exists() else {}
        listed_tokens = read_json(path / ADDED) if older and (path / ADDED).exists() else {}
        self.settings = {key: self.config[key] for key in SETTINGS if self.config.get(key) is not None}
        self.named = _named(roles) | _named(self.config)
        self.listed = {token: id for token, id in listed_tokens.items() if isinstance(id, int)}

    @property
    def signature(self) -> tuple[Any, ...]:
        """What else than the vocabulary could change ids."""
        return self.settings, self.named, self.listed

    def vocabulary(self) -> Vocabulary:
        """tokenizer.json and what the files beside it add to it."""
        found = vocabulary(self.path / JSON)
        decoder = self.settings.get("added_tokens_decoder", {})
        if not isinstance(decoder, dict):
            raise ComposeError(f"{self.path / CONFIG}: added_tokens_decoder is no object")
        more: dict[str, Any] = {}
        for id, token in decoder.items():
            if isinstance(token, dict) and isinstance(token.get("content"), str) and NUMBER.fullmatch(id):
                more[token["content"]] = {"normalized": not token.get("special", False), **token, "id": int(id)}
        unknown = {*self.listed, *self.named} - found.added.keys() - more.keys()
        known = ids(self.path / JSON) if unknown else {}
        for token in sorted(unknown):
            special = token in self.named
            id = known.get(token, self.listed.get(token))
            more[token] = {"id": id, "special": special, "normalized": not special}
        return found.with_added(more)

    def switches(self, found: Vocabulary) -> dict[str, bool]:
        """Whether bos, eos and a space are added to a text: as tokenizer_config.json says, or else the pipeline."""
        return {**found.adds, **{key: self.config[key] for key in PREFIXES if isinstance(self.config.get(key), bool)}}

    def loaded(self) -> tuple[Vocabulary, dict[str, int]]:
        """What transformers makes of copies of the files, and all its ids. Raises ComposeError."""
        with tempfile.TemporaryDirectory(prefix="layerloom-") as made:
            for name in FILES:
                if name != CONFIG and (self.path / name).exists():
                    (Path(made) / name).write_bytes(read_bytes(self.path / name))
            roles = {key: value for key, value in self.config.items() if key.endswith("_token")}
            kept = roles | {key: self.config[key] for key in MAKING if key in self.config}
            (Path(made) / CONFIG).write_text(json.dumps(kept))
            (Path(made) / "config.json").write_text(json.dumps(self.model))
            try:
                with quiet_transformers() as transformers:
                    tokenizer = transformers.AutoTokenizer.from_pretrained(
                        made, local_files_only=True, trust_remote_code=False
                    )
                content = tokenizer.backend_tokenizer.to_str()
            # Anything: OSError, pyo3's Exception, AttributeError of a tokenizer that is all Python.
            except Exception as error:
                reason = said(error, 200).replace(made, str(self.path))
                raise ComposeError(f"{self.path}: transformers cannot read its tokenizer: {reason}") from error
            found = ids(self.path, content)
            if len(found) <= NONE:
                raise ComposeError(f"{self.path}: transformers finds no tokens in its tokenizer")
            return parse(self.path, content), found


def _by_json(ours: _Directory, theirs: _Directory) -> list[str]:
    file = theirs.path / JSON
    if ours.signature == theirs.signature and read_bytes(ours.path / JSON) == read_bytes(file):
        return []
    try:
        first, second = ours.vocabulary(), theirs.vocabulary()
    except ComposeError as error:
        return [f"{file}: is not the base's tokenizer, and cannot be compared with it: {error}"]
    tokens = []
    if first.tokens != second.tokens or first.added != second.added:
        tokens = _tokens(first, second, ids(ours.path / JSON), ids(file))
    found = tokens or first.differences(second)
    # Where no class is named, the files are all there is.
    named = all("tokenizer_class" in side.config for side in (ours, theirs))
    if found and named and _one_is_made(ours, theirs, first, second, whole=not tokens):
        found = []
    if found:
        return [f"{file}: is not the base's tokenizer: {'; '.join(found)} ({ADVICE})"]
    found = _settings(ours, theirs, first, second)
    return [f"{theirs.path / CONFIG}: is not the base's tokenizer: {'; '.join(found)} ({ADVICE})"] if found else []


def _one_is_made(ours: _Directory, theirs: _Directory, first: Vocabulary, second: Vocabulary, whole: bool) -> bool:
    """Whether the expert's is what a class of transformers makes of the base's, as a trainer would have saved it.

    Some classes make a pipeline of their own, or add a token. Where only pipelines differ (`whole`), they may also make
    one of both, or the base's of the expert's.
    """
    try:
        mine = ours.loaded()[0]
        if mine.added == second.added and not mine.differences(second):
            return True
        other = theirs.loaded()[0] if whole else None
    except ComposeError:
        return False
    return other is not None and not (mine.differences(other) and first.differences(other))


def _settings(ours: _Directory, theirs: _Directory, first: Vocabulary, second: Vocabulary) -> list[str]:
    """What tokenizer_config.json says otherwise than the base's of one pipeline."""
    mine, other = theirs.switches(second), ours.switches(first)
    if first.pipeline != second.pipeline:
        mine = other = {}
    found = [f"{key} is {mine[key]}, the base's is {other[key]}" for key in mine if mine[key] != other[key]]
    for key in ("do_lower_case", "fix_mistral_regex", "split_special_tokens"):
        value, wanted = theirs.settings.get(key, False), ours.settings.get(key, False)
        found += [f"{key} is {quoted(value)}, the base's is {quoted(wanted)}"] if value != wanted else []
    return found


def _tokens(first: Vocabulary, second: Vocabulary, ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """The tokens that are not the same, by name and id, of two vocabularies and all ids in their files."""
    mine: dict[str, int | None] = {name: token["id"] for name, token in first.added.items()} | ours
    other: dict[str, int | None] = {name: token["id"] for name, token in second.added.items()} | theirs
    new, gone = (sorted(one.keys() - two.keys()) for one, two in ((other, mine), (mine, other)))
    moved = sorted(name for name in mine.keys() & other.keys() if mine[name] != other[name])
    lines = []
    if new:
        lines.append(f"has the tokens {_shown(new, other)}, which the base's has not")
    if gone:
        lines.append(f"lacks the base's tokens {_shown(gone, mine)}")
    if moved:
        lines.append(f"gives other ids to {_shown(moved, other)}; the base's to the first is {mine[moved[0]]}")
    special, plain = second.added.keys() - first.added.keys(), first.added.keys() - second.added.keys()
    if special := special & mine.keys():
        lines.append(f"has as added tokens {_shown(sorted(special), other)}, which the base's has as plain ones")
    if plain := plain & other.keys():
        lines.append(f"has as plain tokens {_shown(sorted(plain), other)}, which the base's has as added ones")
    for name in sorted(first.added.keys() & second.added.keys()):
        flags = [key for key in FLAGS if first.added[name][key] != second.added[name][key]]
        if flags:
            words = (f"{key} is {second.added[name][key]}, the base's is {first.added[name][key]}" for key in flags)
            lines.append(f"of the added token {quoted(name)} {', '.join(words)}")
    return lines if len(lines) <= 8 else [*lines[:8], f"and {len(lines) - 8} tokens more"]


def _shown(names: list[str], ids: Mapping[str, int | None]) -> str:
    """Names and ids, at most 24 of them."""
    found = [f"{quoted(name)} ({'of no id' if ids[name] is None else ids[name]})" for name in names[:MOST_LISTED]]
    return listed(found + [""] * (len(names) - len(found)))


def _by_files(ours: _Directory, theirs: _Directory, common: tuple[str, ...] | None, name: str) -> list[str]:
    """Directories of which one at least has no tokenizer.json."""
    file = theirs.path / name
    if common is not None:
        pairs = [(_content(ours.path / part), _content(theirs.path / part)) for part in common]
        same = all(mine == other for mine, other in pairs)
        if same and ours.signature == theirs.signature:
            return []
        if not same and common != MODEL:
            return [f"{file}: is not the base's tokenizer: {' and '.join(common)} list other tokens ({ADVICE})"]
    try:
        (first, mine), (second, other) = ours.loaded(), theirs.loaded()
    except ComposeError as error:
        advice = f"save both with save_pretrained of one version of transformers, so that both have a {JSON}"
        return [f"{file}: is not the base's tokenizer, and cannot be compared with it: {error}; {advice}"]
    found = _tokens(first, second, mine, other) or first.differences(second)
    return [f"{file}: is not the base's tokenizer: {'; '.join(found)} ({ADVICE})"] if found else []


def _content(file: Path) -> Any:
    """What a file lists: JSON without its spelling, lines without comments and blanks, or bytes."""
    if file.suffix == ".json":
        return read_json(file)
    content = read_bytes(file)
    if file.suffix == ".txt":
        lines = content.decode(errors="surrogateescape").splitlines()
        return [
            line for line in lines if line.strip() and not (file.name == "merges.txt" and line.startswith("#version"))
        ]
    return hashlib.sha256(content).digest()


def _named(config: Mapping[str, Any]) -> set[str]:
    """The tokens that a config names: roles (`*_token`) and lists of special tokens."""
    values = [value for key, value in config.items() if key.endswith("_token")]
    for key in LISTS:
        more = config.get(key) or []
        values += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    names = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {name for name in names if isinstance(name, str)}
