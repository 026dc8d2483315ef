"""manifest: what an archive says about itself, in the metadata of its safetensors file. The format is in ARCHIVE.md."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from layerloom.composer.errors import ComposeError, quoted
from layerloom.composer.strict import Strict

from .codecs import AnyCodec, Exact, Frames

VERSIONS = (1, 2)
METADATA = "layerloom"
"""The key of `__metadata__` that makes a safetensors file an archive."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$", max_length=512)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Ratio = Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None
"""None where the tensors have values that are not finite."""
Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class Base(Strict):
    """The base an archive was taken from. `digest` is stream.Digest's; `name` is for people."""

    name: str
    digest: Hex
    depth: Annotated[int, Field(ge=1, le=1024)]


class Stored(Strict):
    """A tensor that is not the base's. `change` is ‖E - B‖ / ‖B‖, `error` is ‖Ê - E‖ / ‖E - B‖."""

    codec: AnyCodec
    dtype: Literal["BF16", "F16", "F32"]
    shape: Annotated[tuple[Size, ...], Field(max_length=8)]
    change: Ratio
    error: Ratio


class Manifest(Strict):
    """All about an archive. Tensors that are not listed are the base's."""

    version: Literal[1, 2]
    tool: str
    expert: str
    base: Base
    tensors: dict[Name, Stored]

    @model_validator(mode="after")
    def _of_its_version(self) -> "Manifest":
        for name, stored in self.tensors.items():
            exact = isinstance(stored.codec, Exact | Frames)
            if exact and stored.codec.version != self.version:
                raise ValueError(f"{name}: {stored.codec.codec} of version {stored.codec.version}")
        return self


class _Version(BaseModel):
    version: int


def read_manifest(text: str) -> Manifest:
    """Checked in full. Raises ComposeError with the first thing that is wrong."""
    try:
        version = _Version.model_validate_json(text).version
        if version not in VERSIONS:
            raise ComposeError(f"is of format version {quoted(version)[1:-1]}, and this layerloom reads 1 and 2")
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        keys = [str(key) for key in detail["loc"]]
        where = ".".join(quoted(key) if len(key) > 80 or not key.isprintable() else key for key in keys)
        if "[key]" in keys:
            where = f"{quoted(keys[1])} is no name of a tensor"
        reason = detail["msg"]
        if len(reason) > 200 or not reason.isprintable():
            reason = quoted(reason)
        raise ComposeError(f"metadata: {where}: {reason}") from error
