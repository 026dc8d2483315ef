"""How one tensor of an expert is stored as its difference from the base's."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from .auto import smallest
from .codec import DTYPES, Codec, Parts, change, error, norms, same
from .exact import Exact
from .frames import Frames
from .integer import Int4, Int8
from .lowrank import Lowrank
from .sign import Sign

KINDS: tuple[type[Codec], ...] = (Exact, Int8, Int4, Sign, Lowrank)
CODECS: dict[str, type[Codec]] = {kind.model_fields["codec"].default: kind for kind in KINDS}


def kind_of(codec: Any) -> str | None:
    """Of what an archive says. `exact` is two: only the first has `ends`."""
    said = codec if isinstance(codec, dict) else vars(codec) if isinstance(codec, Codec) else {}
    name = said.get("codec")
    return "frames" if name == "exact" and "ends" in said else name if isinstance(name, str) else None


AnyCodec = Annotated[
    Annotated[Exact, Tag("exact")]
    | Annotated[Frames, Tag("frames")]
    | Annotated[Int8, Tag("int8")]
    | Annotated[Int4, Tag("int4")]
    | Annotated[Sign, Tag("sign")]
    | Annotated[Lowrank, Tag("lowrank")],
    Discriminator(kind_of),
]

__all__ = [
    "CODECS",
    "DTYPES",
    "AnyCodec",
    "Codec",
    "Exact",
    "Frames",
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
