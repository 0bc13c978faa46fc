"""The JSON Schema (draft-07) of a rule file, as this version takes it: what editors read.

It sees the shape of one file. What it cannot see (a reference that names every key field, names unique over all files)
only `integrity validate` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from integrity.core.condition import EXPRESSION_CHARACTERS_MAX
from integrity.core.rules import names
from integrity.core.rules.copies import COLUMNS_MAX
from integrity.core.rules.model import DEFAULT_PREFIX, EventValue, KeyFrom, Match, PairBy, Tombstones, Truncates
from integrity.core.rules.patterns import PATTERN_CHARACTERS_MAX
from integrity.core.rules.types import TYPES_MAX
from integrity.core.rules.vocabulary import (
    ACTIONS,
    COPY_ACTIONS,
    COPY_FIELDS,
    DEPENDENT_FIELDS,
    EPOCH_MAX,
    EVENTS_FIELDS,
    FORMATS,
    KEY_FORMATS,
    KEY_FROM,
    KEY_TYPES,
    LATE_CHILDREN_FIELDS,
    NULLIFY_FIELDS,
    ON_DELETE,
    ON_UPDATE,
    PARENT_FIELDS,
    SOURCE_FIELDS,
    TENANT_FIELDS,
    TOMBSTONE_FIELDS,
    TYPE_FROM_FIELDS,
    TYPES_FIELDS,
    VERSION,
)

Schema = dict[str, object]

_NAME = {"type": "string", "minLength": 1}
_LITERAL = {"type": ["string", "number", "boolean", "null"]}
_TOPIC = {"type": "string", "pattern": names.TOPIC_PATTERN, "maxLength": names.TOPIC_CHARACTERS_MAX}
_STORE: Schema = {"type": "string", "pattern": names.STORE_PATTERN, "maxLength": names.NAME_CHARACTERS_MAX}
_TABLE: Schema = {"type": "string", "pattern": '^[^".;]+(\\.[^".;]+)?$'}
_COLLECTION: Schema = {"type": "string", "pattern": r"^(?!system\.)[^$]+$"}
_DURATION: Schema = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)$"}
_BARE_MAPPING = {"type": "object", "maxProperties": 0}


def rules_schema() -> Schema:
    """The schema, as a JSON value."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Rule file of integrity",
        "description": "One parent entity, where its change events come from, and the dependents that follow it.",
        **_object(
            PARENT_FIELDS,
            {
                "version": {"type": "integer", "const": VERSION},
                "parent": {
                    "type": "string",
                    "pattern": names.ENTITY_PATTERN,
                    "maxLength": names.NAME_CHARACTERS_MAX,
                },
                "events": _events(),
                "dependents": {"type": "array", "minItems": 1, "items": _dependent()},
                "copies": {"type": "array", "minItems": 1, "items": _copy()},
                "late_children": {"minProperties": 1, **_object(LATE_CHILDREN_FIELDS, {"sweeps": _sweeps()})},
            },
            required=("version", "parent"),
        ),
        "anyOf": [{"required": ["dependents"]}, {"required": ["copies"]}],
        "dependencies": {"copies": ["events"]},
    }


def _sweeps() -> Schema:
    return {
        "type": "array",
        "maxItems": names.SWEEPS_MAX,
        "uniqueItems": True,
        "items": _DURATION,
        "default": ["1m", "10m", "1h"],
    }


def _object(
    descriptions: Mapping[str, str], properties: Mapping[str, Schema], required: Collection[str] = ()
) -> Schema:
    assert list(descriptions) == list(properties), "the schema and the vocabulary name the same fields"
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {name: {"description": descriptions[name], **body} for name, body in properties.items()},
    }


def _words(meanings: Mapping[str, str]) -> Schema:
    return {"oneOf": [{"const": str(word), "description": meaning} for word, meaning in meanings.items()]}


def _events() -> Schema:
    schema = _object(
        EVENTS_FIELDS,
        {
            "topic": _TOPIC,
            "topics": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _TOPIC},
            "pattern": {"type": "string", "minLength": 1, "maxLength": PATTERN_CHARACTERS_MAX, "format": "regex"},
            "format": _words(FORMATS),
            "key": _key(),
            "tombstones": {"enum": [str(word) for word in Tombstones], "default": Tombstones.DELETE.value},
            "truncate": {"enum": [str(word) for word in Truncates], "default": Truncates.IGNORE.value},
            "deleted_when": {"type": "string", "minLength": 1, "maxLength": EXPRESSION_CHARACTERS_MAX},
            "epoch": {"type": "integer", "minimum": 0, "maximum": EPOCH_MAX, "default": 0},
            "source": _source(),
            "types": {"minProperties": 1, **_object(TYPES_FIELDS, dict.fromkeys(TYPES_FIELDS, _type_names()))},
            "type_from": {
                "minProperties": 1,
                "maxProperties": 1,
                **_object(TYPE_FROM_FIELDS, dict.fromkeys(TYPE_FROM_FIELDS, _NAME)),
            },
            "payload": _NAME,
            "new_key": {"type": "object", "minProperties": 1, "additionalProperties": _NAME},
            "key_from": _words(KEY_FROM) | {"default": KeyFrom.RECORD.value},
            "key_format": _words(KEY_FORMATS) | {"default": "json"},
            "tenant": {
                "minProperties": 1,
                "maxProperties": 1,
                **_object(TENANT_FIELDS, dict.fromkeys(TENANT_FIELDS, _NAME)),
            },
            "version": _NAME,
            "pair_by": {"enum": [str(word) for word in PairBy]},
            "prefix": _NAME | {"maxLength": names.PREFIX_CHARACTERS_MAX, "default": DEFAULT_PREFIX},
        },
        required=("format", "key"),
    )
    return schema | {"oneOf": [{"required": [name]} for name in ("topic", "topics", "pattern")]}


def _type_names() -> Schema:
    return {"type": "array", "minItems": 1, "maxItems": TYPES_MAX, "uniqueItems": True, "items": _NAME}


def _source() -> Schema:
    schema = _object(SOURCE_FIELDS, {"store": _STORE, "table": _TABLE, "collection": _COLLECTION}, required=("store",))
    return schema | {"oneOf": [{"required": ["table"]}, {"required": ["collection"]}]}


def _key() -> Schema:
    return {
        "type": "object",
        "minProperties": 1,
        "maxProperties": names.KEY_FIELDS_MAX,
        "additionalProperties": _words(KEY_TYPES),
    }


def _place() -> dict[str, Schema]:
    """What a dependent is called, and where it is."""
    return {
        "name": {"type": "string", "pattern": names.DEPENDENT_PATTERN, "maxLength": names.TOPIC_CHARACTERS_MAX},
        "store": _STORE,
        "table": _TABLE,
        "collection": _COLLECTION,
        "topic": _TOPIC,
    }


def _copy() -> Schema:
    schema = _object(
        COPY_FIELDS,
        {
            **_place(),
            "columns": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": COLUMNS_MAX,
                "additionalProperties": _NAME,
            },
            "on_delete": _actions(COPY_ACTIONS, COPY_ACTIONS) | {"default": "delete"},
        },
        required=("store", "columns"),
    )
    return schema | _by_kind()


def _dependent() -> Schema:
    schema = _object(
        DEPENDENT_FIELDS,
        {
            **_place(),
            "references": {"type": "object", "minProperties": 1, "additionalProperties": _NAME},
            "array": {"type": "boolean", "default": False},
            "match": {"enum": [str(word) for word in Match], "default": Match.SIMPLE.value},
            "where": {"type": "object", "minProperties": 1, "additionalProperties": _condition()},
            "as_of": _NAME,
            "on_delete": _actions(ON_DELETE),
            "on_update": _actions(ON_UPDATE) | {"default": "cascade"},
            "max_rows": {"type": "integer", "minimum": 1},
            "undo": _DURATION,
            "entity": {"type": "string", "pattern": names.ENTITY_PATTERN, "maxLength": names.NAME_CHARACTERS_MAX},
            "key": _key(),
        },
        required=("store", "references", "on_delete"),
    )
    return schema | _by_kind() | {"dependencies": {"array": ["collection"], "entity": ["key"], "key": ["entity"]}}


def _by_kind() -> Schema:
    """One target, and the form of `tombstone` that it takes."""
    empty = _tombstone_of({"maxProperties": 0})
    filled = _tombstone_of({"minProperties": 1})
    bare = {"required": ["on_delete"], "properties": {"on_delete": {"const": "tombstone"}}}
    return {
        "oneOf": [{"required": [kind]} for kind in ("table", "collection", "topic")],
        "if": {"required": ["topic"]},
        "then": {"not": filled},
        "else": {"not": {"anyOf": [bare, empty]}},
    }


def _tombstone_of(body: Schema) -> Schema:
    action = {"type": "object", "required": ["tombstone"], "properties": {"tombstone": {"type": "object", **body}}}
    return {"required": ["on_delete"], "properties": {"on_delete": action}}


def _condition() -> Schema:
    texts = {"type": "array", "minItems": 1, "uniqueItems": True}
    return {
        "anyOf": [
            _LITERAL,
            *({**texts, "items": {"type": kind}} for kind in ("string", "number", "boolean")),
        ]
    }


def _actions(choices: Collection[str], meanings: Mapping[str, str] = ACTIONS) -> Schema:
    bodies: Mapping[str, Schema] = {
        "cascade": {**_BARE_MAPPING},
        "nullify": _object(
            NULLIFY_FIELDS, {"columns": {"type": "array", "minItems": 1, "uniqueItems": True, "items": _NAME}}
        ),
        "set_default": {"type": "object", "minProperties": 1, "additionalProperties": _LITERAL},
        "tombstone": _object(TOMBSTONE_FIELDS, {"set": _set()}),
        "restrict": {**_BARE_MAPPING},
        "ignore": {**_BARE_MAPPING},
        "delete": {**_BARE_MAPPING},
    }
    return {
        "anyOf": [
            *({"const": name, "description": meanings[name]} for name in choices if name != "set_default"),
            *(_object({name: meanings[name]}, {name: bodies[name]}, required=(name,)) for name in choices),
        ]
    }


def _set() -> Schema:
    value: Schema = {
        "anyOf": [
            {"enum": [str(word) for word in EventValue], "description": "A value of the event, or the current time."},
            {"not": {"type": "string", "pattern": r"^\$(event|now)([.]|$)"}, **_LITERAL},
        ]
    }
    return {"type": "object", "minProperties": 1, "additionalProperties": value}
