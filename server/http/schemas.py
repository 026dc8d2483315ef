"""schemas: what operators ask for and are told, as OpenAPI shows it."""

from typing import Any

from pydantic import BaseModel, Field


class Load(BaseModel):
    """A composition to be assembled. A path says nothing that its name does not: where it is given it is that name."""

    lora_name: str = Field(max_length=4096)
    lora_path: str | None = Field(None, max_length=4096)


class Unload(BaseModel):
    """A composition to be let go of."""

    lora_name: str = Field(max_length=4096)
    lora_int_id: int | None = None


class Adapter(BaseModel):
    """The same as SageMaker says it."""

    name: str = Field(max_length=4096)
    src: str | None = Field(None, max_length=4096)


class Composition(BaseModel):
    """A composition in memory. Bytes are of all workers together."""

    name: str
    digest: str = Field(description="sha256 of its recipe and its experts' revisions: what weights it has")
    resident: bool
    bytes: int = Field(description="of the pages that are not the base's")
    shared_bytes: int = Field(description="of those of them that others use, too")
    pinned: bool = Field(description="never let go of")
    in_flight: int = Field(description="requests of this server process")
    last_used: float | None = Field(description="seconds since 1970")


class Compositions(BaseModel):
    object: str = "list"
    data: list[Composition]


class Layer(BaseModel):
    """A decoder layer, or the stem: its blend of experts, for people, and their weights by kind of module."""

    layer: int | str
    blend: str
    weights: dict[str, dict[str, float]]


class Detail(Composition):
    recipe: dict[str, Any]
    layers: list[Layer]


class BankBytes(BaseModel):
    base: int
    layers: int
    stems: int
    deltas: int = Field(description="of layers that stay packed")


class BankReport(BaseModel):
    """The memory of compositions: bytes of all workers together; and what each has done since the start."""

    budget: int = Field(description="bytes that compositions may take")
    free: int
    fragmentation: float = Field(description="the share of what is free that is not in one piece")
    bytes: BankBytes
    pages: int
    compositions: int
    making: int = Field(description="compositions that are being made")
    hits: int = Field(description="times that one was asked for and there")
    assemblies: int
    assembly_seconds: float
    assembly_bytes: int
    longest_assembly: float = Field(description="seconds")
    longest_stall: float = Field(description="seconds that one has kept the engine from computing")
    evictions: int
    reloads: int = Field(description="times that the family was replaced")
    family: str = Field(description="digest of the family: what names mean")


class Reload(BaseModel):
    family: str = Field(description="digest of the family that is served now")
    changed: bool
    compositions: int
