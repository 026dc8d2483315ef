"""schema: family.yaml as a JSON schema (draft 7), for editors and for the reference in docs/.

    python -m layerloom.composer.family.schema [FILE]

writes it, or prints it. An editor takes it from the first line of a family.yaml:

    # yaml-language-server: $schema=family.schema.json

It says what `read_entries` says, and how names and layers are written. It does not know which experts there are.
"""

import ast
import inspect
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from .entries import MODELS, Entries, Location
from .names import RESERVED, WORD
from .recipe import LAYERS

FILE = Path(__file__).with_name("family.schema.json")
"""What `schema` gives, as it is committed and installed."""

FILED: tuple[type[BaseModel], ...] = (*MODELS, Location)
"""What a family.yaml is made of."""

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NOTHING: Schema = {"type": "null"}
NAME: Schema = {"pattern": f"^{WORD.pattern}$", "not": {"enum": list(RESERVED)}}
SHARER: Schema = {**NAME, "not": {"enum": [word for word in RESERVED if word not in ("task", "language", "base")]}}
ONE_PLACE = [
    {"required": ["path"], "properties": {"path": TEXT, "hub": NOTHING, "revision": NOTHING}},
    {"required": ["hub", "revision"], "properties": {"path": NOTHING, "hub": TEXT, "revision": TEXT}},
]


def schema() -> Schema:
    """The schema of family.yaml, with what each key means."""
    made = Entries.model_json_schema()
    models: dict[str, Schema] = {**made["$defs"], Entries.__name__: made}
    for model in FILED:
        _describe(models[model.__name__], model)
    for each in _every(made):
        if isinstance(each.get("additionalProperties"), dict) and "number" in each["additionalProperties"].values():
            each["propertyNames"] = SHARER
    for named in ("Location", "ExpertEntry"):
        models[named]["oneOf"] = ONE_PLACE
    filled = ("task", "language", "recipe")
    models["CompositionEntry"]["anyOf"] = [{"required": [key], "properties": {key: {"not": NOTHING}}} for key in filled]
    apart = {key: NOTHING for key in ("after_bottom", "before_top")}
    models["LayerSwap"]["anyOf"] = [{"properties": {"transition": NOTHING}}, {"properties": apart}]
    models["Table"]["properties"]["layers"]["propertyNames"] = {"pattern": f"^{LAYERS.pattern}$"}
    expert = models["ExpertEntry"]["properties"]
    expert["code"]["anyOf"][0] |= NAME
    expert["aliases"]["items"] |= NAME
    keys = made["properties"]
    for key in ("experts", "compositions"):
        keys[key]["propertyNames"] = NAME
    for key in ("base", "fallback"):
        keys[key]["anyOf"] = [TEXT, {"$ref": keys[key].pop("$ref")}]
    return {"$schema": "http://json-schema.org/draft-07/schema#", **made, "title": "A layerloom family"}


def written() -> str:
    """The schema as a file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _describe(of: Schema, model: type[BaseModel]) -> None:
    said = described(model)
    for key, its in of["properties"].items():
        its.pop("title", None)
        if key in said:
            its["description"] = said[key]


def described(model: type[BaseModel]) -> dict[str, str]:
    """What the model and those it comes from say of each key, in the string below it."""
    said: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each.__module__.startswith("layerloom."):
            body = ast.parse(inspect.getsource(each)).body[0].body  # type: ignore[attr-defined]
            for field, below in pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                    said[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return said


def _every(part: Any) -> list[Schema]:
    """All mappings within a schema, itself too."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [*([part] if isinstance(part, dict) else []), *(found for each in inner for found in _every(each))]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(written())
    else:
        print(written(), end="")
