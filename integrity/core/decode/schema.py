"""What the Connect schema beside a JSON value says of its fields (JsonConverter with schemas.enable=true)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from integrity.core.keys import FieldHint

Hints = Mapping[str, FieldHint]
NO_HINTS: Hints = {}
HINTS_MAX = 64
"""How many schema texts a decoder remembers: a topic's schema is the same text in every record."""
WHOLE = ""
"""In hints: the schema of a value that is a bare scalar."""
_SCALE = re.compile("-?[0-9]{1,9}")


def hints_of(schema: object) -> Hints:
    """What a Connect schema says of each field. A schema of another shape says nothing."""
    if type(schema) is not dict:
        return NO_HINTS
    if schema.get("type") != "struct":
        whole = hint_of(schema)
        return NO_HINTS if whole is None else {WHOLE: whole}
    found: dict[str, FieldHint] = {}
    fields = schema.get("fields")
    for field in fields if type(fields) is list else ():
        hint = hint_of(field)
        if hint is not None and type(field.get("field")) is str:
            found[field["field"]] = hint
    return found


def real_fields(schema: object) -> frozenset[str]:
    """The fields of a row that Debezium never makes up: they may be null and have no default. Where the source did not
    send one, it is null."""
    fields = schema.get("fields") if type(schema) is dict else None
    return frozenset(
        field["field"]
        for field in (fields if type(fields) is list else ())
        if type(field) is dict
        and type(field.get("field")) is str
        and field.get("optional") is True
        and field.get("default") is None
    )


def hint_of(schema: object) -> FieldHint | None:
    if type(schema) is not dict or type(schema.get("type")) is not str:
        return None
    name, parameters = schema.get("name"), schema.get("parameters")
    scale = parameters.get("scale") if type(parameters) is dict else None
    return FieldHint(
        schema["type"],
        name if type(name) is str else None,
        int(scale) if type(scale) is str and _SCALE.fullmatch(scale) else None,
    )
