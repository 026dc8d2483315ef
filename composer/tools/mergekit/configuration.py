"""configuration: what a mergekit configuration says, and what its settings are for one tensor (mergekit 0.1.5)."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from layerloom.composer.errors import ComposeError, FamilyError, quoted
from layerloom.composer.family.entries import read_yaml, wrong_keys
from layerloom.composer.strict import Strict

T = TypeVar("T")
SCALARS = (bool, int, float, str)


def _setting(value: Any) -> Any:
    conditions = value if isinstance(value, list) else [value]
    if all(isinstance(item, SCALARS) for item in conditions):
        return value
    for item in conditions:
        whole = isinstance(item, dict) and "value" in item and item.keys() <= {"value", "filter"}
        inner = item["value"] if whole else None
        scalars = all(isinstance(number, SCALARS) for number in (inner if isinstance(inner, list) else [inner]))
        if not whole or not scalars or not isinstance(item.get("filter"), str | None):
            raise ValueError("is neither a value, nor a list of values (a gradient), nor a list of {filter, value}")
    return value


Setting = Annotated[Any, AfterValidator(_setting)]
"""A value; a gradient, which is a list of values along the layers; or a list of {filter, value}."""
Parameters = dict[str, Setting] | None


def _split(mark: str, first: str, second: str) -> BeforeValidator:
    def split(value: Any) -> Any:
        if isinstance(value, dict | Strict):
            return value
        if not isinstance(value, str):
            raise ValueError(f"is no model: give a directory or org/name, not {quoted(value)}")
        parts = value.split(mark)
        if len(parts) > 2:
            raise ValueError(f"has more than one {mark}")
        return dict(zip((first, second), parts, strict=False))

    return BeforeValidator(split)


class ModelPath(Strict):
    """A directory, or a repository on the hub at a revision: "org/name@revision" in short."""

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None


Written = Annotated[ModelPath, _split("@", "path", "revision")]


class Reference(Strict):
    """A model, perhaps with a LoRA adapter merged into it: "model+adapter" in short."""

    model: Written
    lora: Written | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        parts = (self.model, self.lora) if self.lora else (self.model,)
        return "+".join(f"{part.path}@{part.revision}" if part.revision else part.path for part in parts)


Model = Annotated[Reference, _split("+", "model", "lora")]


class Source(Strict):
    """Layers `layer_range` of a model: from the first number up to, and without, the second."""

    model: Model
    layer_range: Annotated[tuple[int, int], Field(strict=False)]
    parameters: Parameters = None

    @model_validator(mode="after")
    def _forward(self) -> "Source":
        if not 0 <= self.layer_range[0] < self.layer_range[1]:
            raise ValueError(f"layer_range {list(self.layer_range)} has no layer in it")
        return self


class Slice(Strict):
    """Layers of the output, each a merge of a layer of every source."""

    sources: Annotated[list[Source], Field(min_length=1)]
    base_model: Model | None = None
    residual_weight: float | None = None
    parameters: Parameters = None

    @property
    def length(self) -> int:
        first, end = self.sources[0].layer_range
        return end - first


class Input(Strict):
    """All layers of a model."""

    model: Model
    parameters: Parameters = None


class Module(Strict):
    """What one module of a model is made of. Language models have one, called default."""

    slices: list[Slice] | None = None
    models: list[Input] | None = None
    parameters: Parameters = None

    @model_validator(mode="after")
    def _one(self) -> "Module":
        if bool(self.slices) == bool(self.models):
            raise ValueError("give either slices or models")
        return self


class Tokenizer(Strict):
    source: Model = Reference(model=ModelPath(path="union"))
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: int | None = None


class Configuration(Strict):
    """The file. `name` is mergekit-multi's."""

    name: str | None = None
    modules: dict[str, Module] | None = None
    slices: list[Slice] | None = None
    models: list[Input] | None = None
    merge_method: str
    base_model: Model | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Model | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    parameters: Parameters = None

    @property
    def parts(self) -> "list[Configuration | Module]":
        """What may have models, slices and parameters: the file itself, and its modules."""
        return [self, *(self.modules or {}).values()]

    @model_validator(mode="after")
    def _one(self) -> "Configuration":
        if sum(map(bool, (self.modules, self.slices, self.models))) != 1:
            raise ValueError("give exactly one of models, slices and modules")
        if self.tokenizer_source and self.tokenizer:
            raise ValueError("give either tokenizer_source or tokenizer")
        return self


KEYS = sorted(
    {
        key
        for model in (Configuration, Module, Slice, Source, Input, Reference, ModelPath, Tokenizer)
        for key in model.model_fields
    }
)


def read_configuration(file: Path) -> Configuration:
    """What a mergekit configuration says. Raises FamilyError with every key that is wrong, and ComposeError."""
    content = read_yaml(file, Configuration)
    try:
        return Configuration.model_validate(content)
    except ValidationError as error:
        raise FamilyError([line.replace(": : ", ": ") for line in wrong_keys(file, error, KEYS)]) from error


def resolve(
    name: str, scopes: Iterable[Parameters], tensor: str, t: float, kind: TypeAdapter[T], default: T | None = None
) -> T | None:
    """The value of a parameter for a tensor: that of the first scope which says something about it.

    `t` is the place in the slice, from 0 to 1, for gradients. Raises ComposeError when it is not of the `kind`.
    """
    for scope in scopes:
        if scope is not None and name in scope:
            try:
                value = _evaluate(scope[name], tensor, t, kind)
            except ValidationError as error:
                shown = quoted(error.errors()[0]["input"])
                raise ComposeError(f"{name}: {shown} is no {'number' if name != 'normalize' else 'boolean'}") from error
            if value is not None:
                return value
    return default


def _evaluate(setting: Any, tensor: str, t: float, kind: TypeAdapter[T]) -> T | None:
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return kind.validate_python(setting)
    if not setting:
        return None
    if isinstance(setting[0], dict):
        for condition in setting:
            wanted = condition.get("filter")
            if wanted is None or wanted == "*" or wanted in tensor:
                return _evaluate(condition["value"], tensor, t, kind)
        return None
    values = [kind.validate_python(value) for value in setting]
    place = t * (len(values) - 1)
    first = math.floor(place)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return values[first]
    share, following = place - first, min(len(values) - 1, first + 1)
    return kind.validate_python((1 - share) * numbers[first] + share * numbers[following])


def varies(setting: Any, by: str) -> bool:
    """Whether a setting depends on the tensor's name (`by` "filter") or on the layer ("gradient")."""
    conditions = setting if isinstance(setting, list) else [setting]
    if not any(isinstance(item, dict) for item in conditions):
        return by == "gradient" and isinstance(setting, list) and len(setting) > 1
    named = any(item.get("filter") not in (None, "*") for item in conditions)
    return named if by == "filter" else any(varies(item["value"], by) for item in conditions)
