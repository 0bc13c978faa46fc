"""JSON Schema: what it says of the fields of a value, as the Connect schema that would stand beside it.

Connect's JsonSchemaConverter writes the name of a logical type as `title`, and its own types and parameters as
`connect.*`. The value is not held against the schema: who wrote it has done that.
"""

from __future__ import annotations

from collections.abc import Mapping

_TYPES: Mapping[str, str] = {
    "integer": "int64",
    "number": "double",
    "string": "string",
    "boolean": "boolean",
    "array": "array",
    "object": "struct",
}
_CONNECT_TYPES: Mapping[str, str] = {"float32": "float", "float64": "double"}
"""Where Connect's name of a type is another than the one in its JSON form."""
_STRUCTS_MAX = 3
_HOPS_MAX = 16


def connect_schema(schema: Mapping[str, object]) -> dict[str, object] | None:
    """What Connect's JsonConverter would write beside a value of this schema, as far as anybody reads it; None where
    the schema does not say what the value is."""
    return _described(schema, schema, _STRUCTS_MAX)


def _described(schema: object, root: Mapping[str, object], structs: int) -> dict[str, object] | None:
    found = _resolved(schema, root)
    if found is None:
        return None
    branches = found.get("oneOf", found.get("anyOf"))
    if type(branches) is list:
        others = [branch for branch in branches if type(branch) is not dict or branch.get("type") != "null"]
        if len(others) != 1:
            return {"type": "struct", "optional": True}
        inner = _described(others[0], root, structs)
        return None if inner is None else {**inner, "optional": True}
    kind = found.get("type")
    if type(kind) is list:  # ["string", "null"]
        kinds = [each for each in kind if each != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    own = found.get("connect.type")
    if type(own) is str:
        known: str | None = _CONNECT_TYPES.get(own, own)
    elif found.get("contentEncoding") == "base64":
        known = "bytes"
    else:
        known = _TYPES.get(kind) if type(kind) is str else None
    if known is None:
        return None
    made: dict[str, object] = {"type": known, "optional": False}
    title, parameters = found.get("title"), found.get("connect.parameters")
    if type(title) is str:
        made["name"] = title
    scale = parameters.get("scale") if type(parameters) is dict else None
    if type(scale) is str:
        made["parameters"] = {"scale": scale}
    fields = found.get("properties")
    if known == "struct" and type(fields) is dict and structs:
        made["fields"] = [
            {**of_field, "field": name}
            for name, each in fields.items()
            if (of_field := _described(each, root, structs - 1)) is not None
        ]
    return made


def _resolved(schema: object, root: Mapping[str, object]) -> Mapping[str, object] | None:
    """A schema, or what it refers to inside the document; None for anything else."""
    for _ in range(_HOPS_MAX):
        if type(schema) is not dict:
            return None
        reference = schema.get("$ref")
        if type(reference) is not str:
            return schema
        if not reference.startswith("#"):
            return None
        target: object = root
        for part in reference[1:].split("/")[1:]:
            target = target.get(part.replace("~1", "/").replace("~0", "~")) if type(target) is dict else None
        schema = target
    return None
