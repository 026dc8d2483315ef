"""strict: pydantic models of what people and files write, which take nothing that they do not know."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
