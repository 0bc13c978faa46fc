"""`events.types` and what goes with it: what the types of domain events say, and where the parts of an event are."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from integrity.core.rules import names
from integrity.core.rules.document import MappingNode, Node
from integrity.core.rules.findings import FindingCode, Located, Report, listed, nearest, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import Types
from integrity.core.rules.vocabulary import TYPE_FROM_FIELDS, TYPES_FIELDS, TYPES_REQUIRED
from integrity.core.rules.walk import Fields, Text, fields_of, list_of, mapping_of, text_of

TYPES_MAX = 100
"""How many types one list of `types` may have."""
OUTBOX_HEADER = "eventType"
"""The header that holds the type of an outbox event, if the rule does not say: the name of Debezium's own examples
(`type:header:eventType`)."""
OUTBOX_PAYLOAD = "payload"
"""The field that holds the payload where the router places other columns beside it."""
JSON_FIELD = "type"
"""The field that holds the type of a domain event in JSON, if the rule does not say."""

_EXAMPLE = "types: {deleted: [CustomerDeleted]}"


def read_types(report: Report, fields: Fields, at: MappingNode, kind: str, key: KeyDraft | None) -> Types | None:
    """What `events` says of types, for a format that takes them; None when there is nothing, or it was reported."""
    new_key = _new_key(report, fields["new_key"][1], key) if "new_key" in fields else {}
    header, field = _type_from(report, fields["type_from"][1], kind) if "type_from" in fields else _default(kind)
    payload = _name(report, "payload", fields["payload"][1]) if "payload" in fields else None
    if "types" not in fields:
        if kind in TYPES_REQUIRED:
            message = f"events of the format {kind} have no types"
            report.add(FindingCode.MISSING_FIELD, message, at, f"Write {_EXAMPLE}, for example.")
        return None
    mapping = mapping_of(report, "types", fields["types"][1], _EXAMPLE)
    if mapping is None:
        return None
    found = _named(report, fields_of(report, "types", mapping, TYPES_FIELDS))
    if found.get("key_changed") and "new_key" not in fields:
        hint = "Write new_key: {id: newId}, for example: key field -> field of the payload."
        report.add(FindingCode.MISSING_FIELD, "types has key_changed, and events has no new_key", mapping, hint)
    if new_key and "key_changed" not in found:
        message = "events has new_key, and types no key_changed"
        report.add(FindingCode.MISSING_FIELD, message, fields["new_key"][0], "Name the types that change the key.")
    if payload is None and kind == "outbox" and field is not None:
        payload = OUTBOX_PAYLOAD
    return Types(
        deleted=found.get("deleted", ()),
        key_changed=found.get("key_changed", ()),
        upserted=found.get("upserted", ()),
        header=header,
        field=field,
        payload=payload,
        new_key=MappingProxyType(dict(new_key or {})),
    )


def _named(report: Report, fields: Fields) -> dict[str, tuple[str, ...]]:
    """The lists of types; a type is in them once."""
    found: dict[str, tuple[str, ...]] = {}
    places: dict[str, Located] = {}
    for word, (_, node) in fields.items():
        types: list[str] = []
        items = list_of(report, word, node, "[CustomerDeleted]") or ()
        if len(items) > TYPES_MAX:
            report.add(FindingCode.WRONG_TYPE, f"{word} has more than {TYPES_MAX} types", node)
            items = ()
        for item in items:
            text = text_of(report, f"a type of {word}", item)
            if text is None:
                continue
            if text.value in places:
                message = f"the type {shown(text.value)} is in types twice"
                report.add(FindingCode.REPEATED, message, text, "Let it stand in one of the lists, once.")
                continue
            places[text.value] = text
            types.append(text.value)
        found[word] = tuple(types)
    return found


def _default(kind: str) -> tuple[str | None, str | None]:
    """The header or the field that holds the type where the rule does not say."""
    return {"outbox": (OUTBOX_HEADER, None), "json": (None, JSON_FIELD)}.get(kind, (None, None))


def _type_from(report: Report, node: Node, kind: str) -> tuple[str | None, str | None]:
    mapping = mapping_of(report, "type_from", node, "type_from: {header: eventType}")
    fields = {} if mapping is None else fields_of(report, "type_from", mapping, TYPE_FROM_FIELDS)
    if mapping is not None and len(fields) != 1 and len(mapping.entries) != 1:
        report.add(FindingCode.ONE_OF_FIELDS, f"type_from has one of {listed(TYPE_FROM_FIELDS)}", mapping)
    if len(fields) != 1:
        return _default(kind)
    [(word, (_, value))] = fields.items()
    name = _name(report, word, value)
    return (name, None) if word == "header" else (None, name)


def _name(report: Report, what: str, node: Node) -> str | None:
    text = text_of(report, what, node)
    return None if text is None or not _is_name(report, what, text) else text.value


def _is_name(report: Report, what: str, text: Text) -> bool:
    fault = names.key_field_fault(text.value)
    if fault is not None:
        report.add(FindingCode.BAD_NAME, f"{what} {shown(text.value)} {fault}", text)
    return fault is None


def _new_key(report: Report, node: Node, key: KeyDraft | None) -> Mapping[str, str] | None:
    mapping = mapping_of(report, "new_key", node, "new_key: {id: newId}")
    if mapping is None:
        return None
    found: dict[str, str] = {}
    for name, value in mapping.entries:
        text = text_of(report, f"{shown(name.text)} of new_key", value)
        if key is not None and name.text not in key:
            message = f"new_key names {shown(name.text)}, which key does not have"
            report.add(FindingCode.UNKNOWN_KEY_FIELD, message, name, nearest(name.text, key))
        elif text is not None and _is_name(report, "the field", text):
            found[name.text] = text.value
    return found
