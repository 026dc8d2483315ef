"""configs: whether two config.json mean one forward pass.

Both are read by the config class that transformers has for their `model_type` (never by code that comes with a
checkpoint), which fills in its defaults and knows the older names, and then every key that the class declares is
compared: shapes, activations, norms, RoPE (`rope_theta`, `rope_scaling`, `rope_parameters` in whichever spelling),
the window of each layer, soft caps, tied embeddings. Not compared are

- what says nothing about the numbers: SKIPPED and SKIPPED_NAMES in `spelling` (versions, dtypes, bos, eos and pad,
  dropout, labels, …);
- `max_position_embeddings`, unless the RoPE is computed from it;
- vision_config and the like, as what is outside the language model is the base's in every composition;
- keys that the class does not declare, as nothing reads them, but for those of ALSO_READ.

Where transformers does not know the `model_type` there are no defaults, and all keys but the skipped are compared as
they are written. A model with a `text_config` and one without are compared by what makes the text.
"""

import ctypes
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerloom.composer.errors import LONGEST_QUOTE, MOST_LISTED, ComposeError, quoted
from layerloom.composer.sources.layout import PARTS, TEXT

from .quiet import quiet_transformers, said
from .spelling import ALSO_READ, Values, canonical, relevant

TIED = "tie_word_embeddings"
OTHER_PARTS = set(PARTS) - set(TEXT)
COUNTS = re.compile(r"layer|depth|blocks|num_")
MOST_COUNTED = 1 << 20


def config_problems(base: Path, ours: Mapping[str, Any], expert: Path, theirs: Mapping[str, Any]) -> list[str]:
    """Every way in which the model of one config.json computes otherwise than the base's, one line each.

    `base` and `expert` are the files, `ours` and `theirs` what they hold. Nothing is imported where they differ in
    skipped keys alone.
    """
    try:
        types = _type(ours, theirs), _type(theirs, ours)
        kept = relevant(ours), relevant(theirs)
        if kept[0] == kept[1] and types[0] == types[1] and _classes(ours) == _classes(theirs):
            return []
        for file, config in zip((base, expert), kept, strict=True):
            _check_counts(file, config)
        with quiet_transformers() as transformers:
            first, unread = _meaning(transformers, base, kept[0], types[0])
            second, reason = _meaning(transformers, expert, kept[1], types[1])
            known = _known_classes({first.model_type, second.model_type, *types})
    except RecursionError:
        return [f"{expert}: is nested too deeply to be compared with the base's"]
    except ComposeError as error:
        return [str(error)]
    if reason is not None and unread is None:
        mine, other = canonical(kept[0]), canonical(kept[1])
        stated = [key for key in sorted(mine.keys() & other.keys()) if not _equal(mine[key], other[key])]
        words = [f"{key} is {_shown(other[key])}, the base's is {_shown(mine[key])}" for key in stated[:8]]
        advice = "correct the file, or save the expert again with this version"
        return ["; ".join([reason, *words, advice])]
    if unread is not None:
        first, second = (_written(config, kind) for config, kind in zip(kept, types, strict=True))
    mixed = (first.text is None) != (second.text is None)
    # One whole in two versions, of which one has no part that is about text.
    same_whole = mixed and first.model_type == second.model_type
    if mixed:
        first, second = first.text or first, second.text or second
    if not same_whole and first.model_type != second.model_type and None not in (first.model_type, second.model_type):
        given = f"model_type is {_shown(second.model_type)}, the base's is {_shown(first.model_type)}"
        return [f"{expert}: {given}: the expert is no fine-tune of this base; give one of the same model_type"]
    lines: list[str] = []
    own, common = _classes(theirs), _classes(ours)
    if not mixed and own and common and own != common and not own <= known:
        lines.append(
            f"architectures is {_shown(theirs['architectures'])}, the base's is {_shown(ours['architectures'])}"
        )
    written = [_text(config) if mixed else config for config in (ours, theirs)]
    differing = _differing(first.values, second.values, *written)
    # Towers and the like are the base's in any case.
    differing = [key for key in differing if key.partition(".")[0] not in OTHER_PARTS]
    if mixed and None in (first.values.get(TIED), second.values.get(TIED)):
        differing = [key for key in differing if key != TIED]
    lines += _lines(differing, first.values, second.values, *written)
    if len(lines) > MOST_LISTED:
        lines = [*lines[:MOST_LISTED], f"{len(lines) - MOST_LISTED} more keys are not the base's"]
    if lines and unread is not None:
        lines.append(f"compared as written: {unread}")
    advice = "all layers run with the base's config; correct this file if the expert was trained with that"
    return [f"{expert}: {line} ({advice})" for line in lines]


@dataclass(frozen=True)
class _Meaning:
    """`values` has every key that matters, defaults filled in, by dotted name. `text` is the part that makes text."""

    model_type: str | None
    values: Values
    text: "_Meaning | None" = None


def _meaning(transformers: Any, file: Path, config: Values, model_type: str | None) -> tuple[_Meaning, str | None]:
    """What transformers reads, or what is written where it does not know the type or, for the reason given, cannot."""
    mapping = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in mapping:
        return _written(config, model_type), None
    try:
        # The class keeps what it is given; and infinities are written as objects.
        copied = json.loads(json.dumps(config), object_hook=_number)
        parsed = mapping[model_type].from_dict(copied)
        known_type = type(parsed).model_type or model_type
        values, text = _flat(transformers, parsed), getattr(parsed, "text_config", None)
        if not isinstance(text, transformers.PreTrainedConfig):
            return _Meaning(known_type, values), None
        part = _flat(transformers, text)
    # A config class may raise anything over values that it was not made for.
    except Exception as error:
        name = f"transformers {transformers.__version__}"
        found = f"{file}: {name} cannot read it as a config of {quoted(model_type)}: {said(error, 300)}"
        return _written(config, model_type), found
    if TIED in values:
        values.pop(f"text_config.{TIED}", None)
        # The defaults of both are often wrong, and the tensors tell whether there is a head.
        part[TIED] = _text(config).get(TIED, config.get(TIED))
    return _Meaning(known_type, values, _Meaning(text.model_type, part)), None


def _number(value: Values) -> Any:
    """{"__float__": "Infinity"}, as transformers writes it, is a number."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _written(config: Values, model_type: str | None) -> _Meaning:
    """A config as it is written, but for the spelling of RoPE and windows."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return _Meaning(model_type, canonical(config))
    part, kind = canonical(text), _type(text, {})
    rest = canonical({key: value for key, value in config.items() if key != "text_config"})
    return _Meaning(model_type, {**rest, **_named("text_config", part)}, _Meaning(kind, part))


def _flat(transformers: Any, parsed: Any) -> Values:
    """The declared keys of a config object and of those in it, by dotted name."""
    values, written = parsed.to_dict(), vars(parsed)
    try:
        declared = type(parsed)().to_dict().keys()
    except Exception:  # Some composite classes cannot be made of nothing.
        declared = values.keys()
    nested = {key for key, value in written.items() if isinstance(value, transformers.PreTrainedConfig)}
    read = {key: value for key, value in values.items() if key not in nested and (key in declared or key in ALSO_READ)}
    flat = canonical(relevant(read))
    for key in sorted(nested):
        flat |= _named(key, {"model_type": written[key].model_type, **_flat(transformers, written[key])})
    return flat


def _named(prefix: str, values: Values) -> Values:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _differing(first: Values, second: Values, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys that are not the base's."""
    keys = [key for key in first.keys() | second.keys() if not _equal(first.get(key), second.get(key))]
    keys.sort(key=lambda key: (not key.endswith(("rope_theta", "rope_type")), key))
    if any(key.endswith("num_hidden_layers") for key in keys):
        keys = [key for key in keys if not key.endswith("layer_types")]
    # What the class computes of other keys says no more than those.
    return [key for key in keys if any(_states(config, key) for config in (ours, theirs))] or keys


def _lines(
    keys: list[str], first: Values, second: Values, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[str]:
    """One line for each key; one for all keys of a RoPE."""
    lines: list[str] = []
    ropes: list[str] = []
    for key in keys:
        mine, other = _given(second, key, theirs), _given(first, key, ours)
        line = f"{key} is {mine}, the base's is {other}"
        (ropes if "rope" in key else lines).append(line)
    return lines + (["; ".join(ropes)] if ropes else [])


def _given(values: Values, key: str, config: Mapping[str, Any]) -> str:
    if key not in values:
        return "not set"
    return _shown(values[key]) + ("" if _states(config, key) else " (by default)")


def _states(config: Mapping[str, Any], key: str) -> bool:
    """Whether a key is written in the config that its dotted name leads to, in whichever spelling."""
    *path, last = key.split(".")
    places = [config]
    for step in path:
        places = [place[step] for place in places if isinstance(place.get(step), dict)] or places
    if "rope" in key:
        places += [rope for name in ("rope_scaling", "rope_parameters") if isinstance(rope := config.get(name), dict)]
    names = ("rope_type", "type") if last == "rope_type" else (last,)
    return any(place.get(name) is not None for place in places for name in names)


def _equal(first: Any, second: Any) -> bool:
    """Equal numbers are those that are one in fp32, in which all of them are used."""
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, int | float) and isinstance(second, int | float) and float in (type(first), type(second)):
        try:
            return ctypes.c_float(first).value == ctypes.c_float(second).value
        except OverflowError:
            return first == second
    return bool(first == second)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return quoted(value)
    shown = str(value)
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}…"


def _type(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """A config without a model_type is taken for one of the other's."""
    found = config.get("model_type") or other.get("model_type")
    return found if found is None else str(found)


def _classes(config: Mapping[str, Any]) -> set[str]:
    """`architectures`, without the prefix that FSDP puts before a class's name."""
    names = config.get("architectures")
    return {str(name).removeprefix("FSDP") for name in names} if isinstance(names, list) else set()


def _known_classes(model_types: set[str | None]) -> set[str]:
    """The classes that transformers has for these types: bodies and heads of one model; tensors tell them apart."""
    from transformers.models.auto import modeling_auto

    known: set[str] = set()
    for name, mapping in vars(modeling_auto).items():
        if name.endswith("MAPPING_NAMES"):
            for model_type in model_types:
                found = mapping.get(model_type, ())
                known |= {found} if isinstance(found, str) else set(found)
    return known


def _check_counts(file: Path, config: Values) -> None:
    """A config class makes lists as long as these numbers say."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(file, value)
        elif isinstance(value, int) and value > MOST_COUNTED and COUNTS.search(key):
            raise ComposeError(f"{file}: {quoted(key)} is {_shown(value)}; more than {MOST_COUNTED:,} cannot be right")
