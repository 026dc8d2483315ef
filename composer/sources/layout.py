"""layout: which tensors of a checkpoint are its language model's, and what they are called in every spelling of it.

A language model may be part of a larger one, beside a vision tower and a projector. Versions of transformers have
saved the same model as language_model.model.layers.0…, model.language_model.layers.0… and model.layers.0…, which is
also how a fine-tune of the language model alone is saved.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from layerloom.composer.errors import quoted

LAYER = re.compile(r"((?:^|.*?\.)layers\.)(\d+)\.")
TABLE = re.compile(r"((?:^|.*?\.))(?:embed_tokens|tok_embeddings)\.")
HEAD = re.compile(r"(.*\.)?lm_head\.[^.]+")
WRAPPERS = re.compile(r"^(?:(?:model|language_model)\.)+")
# transformers has put these around CLIP's and SigLIP's towers in some versions, and not in others.
TOWERS = re.compile(r"(?<=\.)vision_model\.")

TEXT = ("text_config", "llm_config")
PARTS = (*TEXT, "vision_config", "audio_config")


class Layout:
    """Where a model has its language model: what it calls its tensors, decoder layers and stem.

    `nested` says that the model has other parts, which are neither; without them all that is outside the layers is the
    stem. Of several stacks of layers, or one that may be another part's, the language model's is the one that has a
    table of tokens beside it. Raises ValueError when there is none, or more than one.
    """

    def __init__(self, names: Iterable[str], nested: bool = False) -> None:
        names = list(names)
        stacks = sorted({match.group(1).removesuffix("layers.") for match in map(LAYER.match, names) if match})
        tables = {match.group(1) for match in map(TABLE.match, names) if match}
        found = [stack for stack in stacks if stack in tables] if nested or len(stacks) > 1 else stacks
        if stacks and len(found) != 1:
            shown = ", ".join(f"{stack}layers" for stack in stacks[:8])
            raise ValueError(f"has layers in {quoted(shown)}; not one stack of them is beside an embed_tokens")
        self.prefix = found[0] if found else ""
        self.nested = nested
        # Only a part that holds a stack of its own is told from the language model when it is within its prefix.
        others = {stack for stack in stacks if stack != self.prefix and stack.startswith(self.prefix)}
        self._others = tuple(f"{self.prefix}{stack[len(self.prefix) :].partition('.')[0]}." for stack in others)

    def layer_of(self, name: str) -> int | None:
        """The index of the decoder layer a tensor is in, None for one outside the layers."""
        match = LAYER.match(name)
        return int(match.group(2)) if match and match.group(1) == f"{self.prefix}layers." else None

    def is_outside(self, name: str) -> bool:
        """Whether a tensor is of another part than the language model: of a vision tower, a projector."""
        if not self.nested or self._is_head(name):
            return False
        return not name.startswith(self.prefix) or name.startswith(self._others)

    def common(self, name: str) -> str:
        """The name without what versions and classes put before it: layers.0.mlp.up_proj.weight, lm_head.weight."""
        return TOWERS.sub("", WRAPPERS.sub("", name.removeprefix(self.prefix)))

    def within(self, name: str) -> str:
        """The name within its layer, mlp.up_proj.weight; the name as it is outside the layers."""
        match = LAYER.match(name)
        return name if self.layer_of(name) is None or match is None else name[match.end() :]

    def _is_head(self, name: str) -> bool:
        match = HEAD.fullmatch(name)
        return match is not None and self.prefix.startswith(match.group(1) or "")


def is_nested(config: Mapping[str, Any]) -> bool:
    """Whether a model's config says that its language model is one of several parts."""
    return any(isinstance(config.get(key), dict) for key in PARTS)


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the language model: the part that is about it, with the whole's where that says nothing.

    Other parts are left out; `architectures` is the whole's.
    """
    whole = {key: value for key, value in config.items() if key not in PARTS}
    text: Mapping[str, Any] = next((config[key] for key in TEXT if isinstance(config.get(key), dict)), {})
    return {**whole, **{key: value for key, value in text.items() if key != "architectures"}}
