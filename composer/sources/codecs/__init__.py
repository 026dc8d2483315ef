"""How one tensor of an expert is stored as its difference from the base's."""

from typing import Annotated, get_args

from pydantic import Field

from .auto import smallest
from .codec import DTYPES, Codec, Parts, change, error, norms, same
from .exact import Exact
from .integer import Int4, Int8
from .lowrank import Lowrank
from .sign import Sign

AnyCodec = Annotated[Exact | Int8 | Int4 | Sign | Lowrank, Field(discriminator="codec")]
CODECS: dict[str, type[Codec]] = {kind.model_fields["codec"].default: kind for kind in get_args(get_args(AnyCodec)[0])}

__all__ = [
    "CODECS",
    "DTYPES",
    "AnyCodec",
    "Codec",
    "Exact",
    "Int4",
    "Int8",
    "Lowrank",
    "Parts",
    "Sign",
    "change",
    "error",
    "norms",
    "same",
    "smallest",
]
