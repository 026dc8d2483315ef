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
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from layerloom.composer.errors import ComposeError, listed, quoted
from layerloom.composer.files import read_bytes, read_json

from .quiet import quiet_transformers
from .vocabulary import Vocabulary, ids, parse, vocabulary

JSON = "tokenizer.json"
CONFIG, ROLES, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# What a tokenizer can be read from, the best first.
KINDS = ((JSON,), ("tokenizer.model",), ("tekken.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
FILES = (*dict.fromkeys(name for kind in KINDS for name in kind), CONFIG, ROLES, ADDED)
PREFIXES = ("add_bos_token", "add_eos_token", "add_prefix_space")
LISTS = ("additional_special_tokens", "extra_special_tokens")
# Keys of tokenizer_config.json that can change ids, and those that a class needs to be made.
SETTINGS = (*PREFIXES, *LISTS, "added_tokens_decoder", "do_lower_case", "fix_mistral_regex", "split_special_tokens")
MAKING = (*SETTINGS, "tokenizer_class", "legacy", "sp_model_kwargs")
ADVICE = "give the expert the base's tokenizer files if it was trained with them; if not, it is no expert of this base"


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
            if isinstance(token, dict) and isinstance(token.get("content"), str) and str(id).isdigit():
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
        said = {key: self.config[key] for key in PREFIXES if isinstance(self.config.get(key), bool)}
        return {**found.adds, **said}

    def loaded(self) -> Vocabulary:
        """What transformers makes of copies of the files. Raises ComposeError."""
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
                reason = str(error).replace(made, str(self.path)).strip().replace("\n", " ")[:200]
                raise ComposeError(f"{self.path}: transformers cannot read its tokenizer: {reason}") from error
            return parse(self.path, content)


def _by_json(ours: _Directory, theirs: _Directory) -> list[str]:
    file = theirs.path / JSON
    if ours.signature == theirs.signature and read_bytes(ours.path / JSON) == read_bytes(file):
        return []
    try:
        first, second = ours.vocabulary(), theirs.vocabulary()
    except ComposeError as error:
        return [f"{file}: is not the base's tokenizer, and cannot be compared with it: {error}"]
    found = _differences(ours, theirs, first, second, ours.path / JSON, file)
    if not found and first.pipeline != second.pipeline:
        try:
            made = ours.loaded(), theirs.loaded()
        except ComposeError:
            made = first, second
        found = made[0].differences(made[1])
    place = file if not found or not found[0].startswith(PREFIXES) else theirs.path / CONFIG
    return [f"{place}: is not the base's tokenizer: {'; '.join(found)} ({ADVICE})"] if found else []


def _differences(
    ours: _Directory, theirs: _Directory, first: Vocabulary, second: Vocabulary, base: Path, file: Path
) -> list[str]:
    """How tokens and settings differ, in words."""
    found = _tokens(first, second)
    if not found and first.tokens != second.tokens:
        found = _all_tokens(ids(base), ids(file))
    if not found and first.ranks != second.ranks:
        found = ["its merges or scores are others, so that texts are cut into other tokens"]
    said, other = theirs.switches(second), ours.switches(first)
    if first.pipeline == second.pipeline:
        found += [f"{key} is {said[key]}, the base's is {other[key]}" for key in PREFIXES if said[key] != other[key]]
    for key in ("do_lower_case", "fix_mistral_regex", "split_special_tokens"):
        mine, base_value = theirs.settings.get(key, False), ours.settings.get(key, False)
        found += [f"{key} is {quoted(mine)}, the base's is {quoted(base_value)}"] if mine != base_value else []
    return found


def _tokens(first: Vocabulary, second: Vocabulary) -> list[str]:
    """The added tokens that are not the same, by name and id."""
    new = [name for name in second.added if name not in first.added and second.id(name) != first.id(name)]
    gone = [name for name in first.added if name not in second.added and first.id(name) != second.id(name)]
    both = [name for name in second.added if name in first.added]
    other = [name for name in both if first.added[name] != second.added[name]]
    plain = [name for name in second.added.keys() ^ first.added.keys() if name not in {*new, *gone}]
    lines = []
    if new:
        lines.append(f"has the added tokens {_shown(new, second.id)}, which the base's has not")
    if gone:
        lines.append(f"lacks the base's added tokens {_shown(gone, first.id)}")
    for name in other[:8]:
        changed = [key for key in first.added[name] if first.added[name][key] != second.added[name].get(key)]
        words = ", ".join(
            f"{key} {second.added[name].get(key)}, the base's {first.added[name][key]}" for key in changed
        )
        lines.append(f"the added token {quoted(name)} has {words}")
    if plain:
        lines.append(
            f"the tokens {_shown(sorted(plain), second.id)} are added tokens in one and plain ones in the other"
        )
    return lines


def _all_tokens(first: dict[str, int], second: dict[str, int]) -> list[str]:
    """Tokens of whole vocabularies that are not the same, by name and id."""
    new = sorted(second.keys() - first.keys(), key=second.__getitem__)
    gone = sorted(first.keys() - second.keys(), key=first.__getitem__)
    moved = [name for name in first.keys() & second.keys() if first[name] != second[name]]
    lines = []
    if new:
        lines.append(f"has the tokens {_shown(new, second.get)}, which the base's has not")
    if gone:
        lines.append(f"lacks the base's tokens {_shown(gone, first.get)}")
    if moved:
        name = min(moved, key=first.__getitem__)
        lines.append(f"{len(moved)} tokens have other ids, as {quoted(name)}: {second[name]}, the base's {first[name]}")
    return lines


def _shown(names: list[str], id: Callable[[str], int | None]) -> str:
    found = [f"{quoted(name)} ({'of no id' if id(name) is None else id(name)})" for name in names[:25]]
    return listed(found + [""] * (len(names) - len(found)))


def _by_files(ours: _Directory, theirs: _Directory, common: tuple[str, ...] | None, name: str) -> list[str]:
    """Directories of which one at least has no tokenizer.json."""
    file = theirs.path / name
    same = common is not None and all(_content(ours.path / name) == _content(theirs.path / name) for name in common)
    if same and ours.signature == theirs.signature:
        return []
    try:
        first, second = ours.loaded(), theirs.loaded()
    except ComposeError as error:
        advice = f"save both with save_pretrained of one version of transformers, so that both have a {JSON}"
        return [f"{file}: is not the base's tokenizer, and cannot be compared with it: {error}; {advice}"]
    found = _tokens(first, second) + first.differences(second)
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
