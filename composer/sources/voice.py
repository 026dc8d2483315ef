"""voice: how a model speaks: what ends its answers, how it samples unless told otherwise, and its chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.files import naming, read_bytes, read_json

GENERATION = "generation_config.json"
TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
TOKENIZER = "tokenizer_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

MOST = 1 << 24
"""Bytes of the largest template that is read."""

Id = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]


class Generation(BaseModel):
    """What is checked of a generation config; all else is passed on as it is."""

    model_config = ConfigDict(extra="allow")

    eos_token_id: Id | list[Id] | None = None
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None


class Named(BaseModel):
    """A template of several, as tokenizer_config.json lists them."""

    name: str
    template: str


TEMPLATES_SAID = TypeAdapter(str | list[Named] | dict[str, str] | None)


@dataclass(frozen=True)
class Voice:
    """A model's own, or None for what its files do not say.

    `generation` is generation_config.json, or where there is none what config.json says of eos and the like. `tokens`
    are special tokens by their role, {"eos_token": "<|im_end|>"}. `templates` are Jinja sources by name; "default" is
    the one that is meant when none is named, "tool_use" when a request has tools.
    """

    generation: Mapping[str, Any] | None = None
    tokens: Mapping[str, str] | None = None
    templates: Mapping[str, str] | None = None

    def over(self, base: "Voice") -> "Voice":
        """This one, and the base's where it says nothing."""
        return Voice(
            base.generation if self.generation is None else self.generation,
            {**(base.tokens or {}), **(self.tokens or {})} or None,
            self.templates or base.templates,
        )

    def template(self, tools: bool) -> str | None:
        """The chat template for a request with or without tools."""
        templates = self.templates or {}
        return templates.get("tool_use" if tools else "default", templates.get("default"))


def read_voice(path: Path) -> Voice:
    """The voice of a checkpoint's or an adapter's directory. Raises ComposeError with the file that is wrong."""
    config, generation, tokenizer = (_json(path / name) for name in ("config.json", GENERATION, TOKENIZER))
    if generation is None and config is not None:
        nested = config.get("text_config")
        said = {**(nested if isinstance(nested, dict) else {}), **config}
        generation = {key: said[key] for key in IDS if said.get(key) is not None} or None
    voice = Voice(generation, _tokens(tokenizer or {}), _templates(path, tokenizer or {}))
    return checked(voice, path / (GENERATION if (path / GENERATION).exists() else "config.json"))


def checked(voice: Voice, file: Path) -> Voice:
    """The voice; raises ComposeError, naming `file`, when vLLM could not take what it says of generation."""
    try:
        Generation.model_validate(voice.generation or {})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise ComposeError(f"{file}: {detail['loc'][0]}: {detail['msg']}, not {quoted(detail['input'])}") from error
    return voice


def _json(file: Path) -> dict[str, Any] | None:
    return read_json(file) if file.exists() else None


def _text(file: Path) -> str:
    with naming(file):
        return read_bytes(file, MOST).decode("utf-8")


def _tokens(tokenizer: Mapping[str, Any]) -> dict[str, str] | None:
    said = {role: tokenizer.get(role) for role in TOKENS}
    contents = {role: token.get("content") if isinstance(token, dict) else token for role, token in said.items()}
    return {role: token for role, token in contents.items() if isinstance(token, str)} or None


def _templates(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, str] | None:
    """From files of their own or, as older versions of transformers wrote them, from tokenizer_config.json."""
    folder = path / TEMPLATES
    found = {file.stem: _text(file) for file in sorted(folder.glob("*.jinja"))} if folder.is_dir() else {}
    if (path / TEMPLATE).exists():
        return {"default": _text(path / TEMPLATE), **found}
    try:
        said = TEMPLATES_SAID.validate_python(tokenizer.get("chat_template"))
    except ValidationError as error:
        raise ComposeError(f"{path / TOKENIZER}: chat_template is neither a template nor a list of them") from error
    if isinstance(said, str):
        said = {"default": said}
    elif isinstance(said, list):
        said = {each.name: each.template for each in said}
    return {**(said or {}), **found} or None


def difference(voice: Voice, base: Voice) -> Voice:
    """What a voice has that is not the base's."""
    changes = {
        field: getattr(voice, field)
        for field in ("generation", "tokens", "templates")
        if getattr(voice, field) != getattr(base, field)
    }
    return replace(Voice(), **changes)
