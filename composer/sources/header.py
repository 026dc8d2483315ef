"""header: what a safetensors file says of its tensors, checked by the rules of the safetensors library.

The library itself checks a file only through a memory map, which ends the process when the file is cut short meanwhile.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from layerloom.composer.errors import quoted

LONGEST = 100_000_000
"""Bytes; safetensors' own limit."""

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
BITS = {word: dtype.itemsize * 8 for word, dtype in TYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

Size = Annotated[int, Field(ge=0, lt=1 << 63, strict=True)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: its bytes in the file are those from `start` to `end`. `dtype` is safetensors' word, as in "BF16"."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Said(BaseModel):
    """What the header has under a tensor's name; the offsets count from the header's end."""

    model_config = ConfigDict(extra="ignore")

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


METADATA = TypeAdapter(dict[str, str] | None)
ENTRIES = TypeAdapter(dict[str, Said])


def parse(header: bytes, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """(metadata, tensors) of a file of `size` bytes, from its first 8 bytes and as many more as they say.

    Raises ValueError when the tensors do not fill the file, one after the other.
    """
    length = int.from_bytes(header[:8], "little")
    if size < 8:
        raise ValueError(f"has {size} bytes, too few for a safetensors file")
    if length > min(LONGEST, size - 8):
        raise ValueError(f"is cut short, or no safetensors file: its header is to be {length:,} of {size:,} bytes")
    content = from_json(header[8:])
    if not isinstance(content, dict):
        raise ValueError("is no safetensors file: its header is not a JSON object")
    try:
        metadata = METADATA.validate_python(content.pop("__metadata__", None)) or {}
        said = ENTRIES.validate_python(content)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"header: {quoted('.'.join(map(str, detail['loc'])))}: {detail['msg']}") from error
    tensors: dict[str, Entry] = {}
    end = len(header)
    for name, found in sorted(said.items(), key=lambda item: item[1].data_offsets):
        if found.dtype not in BITS:
            raise ValueError(f"header: {quoted(name)}: there is no dtype {quoted(found.dtype)}")
        if math.prod(max(1, length) for length in found.shape) >= 1 << 63:
            raise ValueError(f"header: {quoted(name)}: no tensor has the shape {quoted(found.shape)}")
        start, end = end, len(header) + found.data_offsets[1]
        bits = math.prod(found.shape) * BITS[found.dtype]
        if len(header) + found.data_offsets[0] != start or bits != (end - start) * 8:
            place = f"from byte {found.data_offsets[0]} to {found.data_offsets[1]}, after {start - len(header)}"
            raise ValueError(f"header: {quoted(name)}: {found.dtype} {quoted(found.shape)} does not lie {place}")
        tensors[name] = Entry(found.dtype, found.shape, start, end)
    if end != size:
        raise ValueError(
            f"has {size:,} bytes, and its tensors end at byte {end:,}: it is cut short, or has been added to"
        )
    return metadata, tensors
