"""What a live collection has to be like for its rule: what is found here is told before the first batch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from bson import Binary, Decimal128
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure

from integrity.core.fold import Follow, Mark, Replace, Step
from integrity.core.keys import KeyType
from integrity.core.rules.model import Tombstone
from integrity.errors import Finding
from integrity.stores.mongo.ledger import Document, Ledger
from integrity.stores.mongo.values import element_key
from integrity.stores.mongo.verdict import UNAUTHORIZED
from integrity.stores.rule import StoreRule

_SAMPLE_DOCUMENTS: Final = 100
_SAMPLE_ELEMENTS: Final = 100
_LIST, _IN_LIST, _SINGLE = "a list", "a list of documents", "a single value"
_LEGACY = "a UUID of the legacy form"
_MEND: Final = "Is the type of events.key right, and the field?"
_MENDS: Final[Mapping[str, str]] = {
    _LIST: "If it is a list of keys, write array: true.",
    _IN_LIST: "Refer by a field that is not in a list of documents.",
    _SINGLE: "If the field holds one key, write no array.",
    _LEGACY: "Its bytes may be in one of three orders: write such UUIDs anew, as binary subtype 4.",
}


async def check(ledger: Ledger, rule: StoreRule, info: Mapping[str, object] | None, *, sharded: bool) -> list[Finding]:
    """Everything in a rule's collection that does not fit it; `info` is the collection's entry in the catalogue, None
    when there is none, `sharded` whether the server is the router of a sharded cluster."""
    return [
        *_immutable(rule),
        *await _target(ledger, rule, info),
        *await _shard_key(ledger, rule, sharded=sharded),
    ]


def _immutable(rule: StoreRule) -> list[Finding]:
    """An `_id` never changes: what would write it can't be enforced."""
    dependent = rule.dependent
    if not any(column.split(".")[0] == "_id" for column in dependent.columns):
        return []
    findings: list[Finding] = []
    policy = rule.policy
    for what, step, action in (
        ("on_delete", policy.on_delete, policy.on_delete_action),
        ("on_update", policy.on_update, policy.on_update_action),
    ):
        if isinstance(step, Follow | Replace):
            text = f"{what}: {action} would change the _id of {dependent.target.name}, which MongoDB does not allow."
            findings.append(_at(rule, "immutable_reference", text, f"Write {what}: ignore, or refer by another field."))
    return findings


async def _target(ledger: Ledger, rule: StoreRule, info: Mapping[str, object] | None) -> list[Finding]:
    dependent = rule.dependent
    name = dependent.target.name
    command = f"db.getCollection({json.dumps(name)}).createIndex({json.dumps(dict.fromkeys(dependent.columns, 1))})"
    if info is None:
        text = f"The collection {name} does not exist yet."
        return [
            _at(rule, "collection_missing", text, f"Is the name right? Create it with its index: {command}", "warning")
        ]
    options = info.get("options")
    kind = info.get("type")
    if kind != "collection" or (isinstance(options, Mapping) and options.get("capped")):
        text = (
            f"{name} is {'a capped collection' if kind == 'collection' else f'a {kind}'}: no transaction can write it."
        )
        return [_at(rule, "not_a_collection", text, "Name the collection that holds the documents.")]
    findings = _null_refused(rule, options) + await _sampled(ledger.database[name], rule)
    if not await _is_indexed(ledger.database[name], rule):
        columns = ", ".join(dependent.columns)
        text = f"{name} has no index on {columns}: every deletion would read the whole collection."
        findings.append(_at(rule, "index_missing", text, f"Create it: {command}"))
    return findings


def _null_refused(rule: StoreRule, options: object) -> list[Finding]:
    """A validator whose JSON schema takes no null where an action writes one. What else a validator asks of a document
    is only known when it refuses one: a dead letter."""
    if rule.dependent.array:
        return []
    validator = options.get("validator") if isinstance(options, Mapping) else None
    schema = validator.get("$jsonSchema") if isinstance(validator, Mapping) else None
    if schema is None or (isinstance(options, Mapping) and options.get("validationAction") == "warn"):
        return []
    findings: list[Finding] = []
    for what, step in (("on_delete", rule.policy.on_delete), ("on_update", rule.policy.on_update)):
        for column in _written(rule, step, null_only=True):
            if not _takes_null(schema, column.split(".")):
                text = f"{what} writes null to {column}: the validator of {rule.dependent.target.name} takes none."
                hint = f'Allow "null" for {column} in the validator, or choose another action.'
                findings.append(_at(rule, "field_not_null", text, hint))
    return findings


def _takes_null(schema: object, path: Sequence[str]) -> bool:
    for name in path:
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        schema = properties.get(name) if isinstance(properties, Mapping) else None
    if not isinstance(schema, Mapping):
        return True
    for field in ("bsonType", "type"):
        kinds = schema.get(field, "null")
        if "null" not in ([kinds] if isinstance(kinds, str) else kinds):
            return False
    return None in schema.get("enum", [None])


def _written(rule: StoreRule, step: Step, *, null_only: bool = False) -> list[str]:
    """The fields that a step writes; those to which it writes null, if only these are asked for."""
    columns = rule.dependent.columns
    match step:
        case Replace():
            return [columns[position] for position, value in step.parts if value is None or not null_only]
        case Follow():
            return [] if null_only else list(columns)
        case Mark():
            action = rule.dependent.on_delete
            assert isinstance(action, Tombstone)
            return [field for field, value in action.set.items() if value is None or not null_only]
        case _:
            return []


async def _shard_key(ledger: Ledger, rule: StoreRule, *, sharded: bool) -> list[Finding]:
    """What an action writes must not be part of a shard key: MongoDB changes that in single documents only."""
    name = rule.dependent.target.name
    try:
        config = ledger.database.client["config"]["collections"]
        info = await config.find_one({"_id": f"{ledger.database.name}.{name}"})
    except OperationFailure as exc:
        if exc.code != UNAUTHORIZED:
            raise
        if not sharded:
            return []
        text = f"The shard key of {name} cannot be read: an action that would change it ends in dead letters."
        hint = "Grant find on config.collections, or see that no action writes a part of the shard key."
        return [_at(rule, "shard_key_unknown", text, hint, "warning")]
    # Old servers keep what was dropped.
    key = list(info["key"]) if info and not info.get("dropped") else []
    findings: list[Finding] = []
    policy = rule.policy
    for what, step, action in (
        ("on_delete", policy.on_delete, policy.on_delete_action),
        ("on_update", policy.on_update, policy.on_update_action),
    ):
        fields = [field for field in _written(rule, step) if any(_overlap(field, part) for part in key)]
        if fields:
            text = f"{what}: {action} would change {', '.join(fields)}, a part of the shard key of {name}."
            hint = f"Write {what}: ignore, or shard {name} by other fields."
            findings.append(_at(rule, "shard_key_reference", text, hint))
    return findings


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


async def _sampled(collection: AsyncCollection[Document], rule: StoreRule) -> list[Finding]:
    """Whether documents hold values in the reference that no key of its type equals: they are left alone."""
    dependent = rule.dependent
    wanted: object = {"$slice": _SAMPLE_ELEMENTS} if dependent.array else 1
    fields = dict.fromkeys(dependent.columns, wanted)
    odds: dict[str, Counter[str]] = {column: Counter() for column in dependent.columns}
    looked_at = 0
    # One at a time: what stands there instead of a key may be large.
    async for document in collection.find({}, {"_id": 1} | fields if dependent.array else fields).limit(
        _SAMPLE_DOCUMENTS
    ):
        looked_at += 1
        for column, kind in zip(dependent.columns, rule.spec.types, strict=True):
            if (what := _odd(document, column, kind, array=dependent.array)) is not None:
                odds[column][what] += 1
    findings: list[Finding] = []
    for (column, odd), kind in zip(odds.items(), rule.spec.types, strict=True):
        if odd:
            [(most, _)] = odd.most_common(1)
            text = (
                f"Of the first {looked_at} documents of {collection.name}, {odd.total()} hold in {column} what no "
                f"{kind} key equals: {', '.join(odd)}. They are left alone."
            )
            findings.append(_at(rule, "reference_types", text, _MENDS.get(most, _MEND), "warning"))
    return findings


def _odd(document: Mapping[str, object], column: str, kind: KeyType, *, array: bool) -> str | None:
    """What a document holds in place of a key, in words; None for a key, null or nothing."""
    value: object = document
    for name in column.split("."):
        if isinstance(value, list):
            return _IN_LIST
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None:
        return None
    if not array:
        return None if element_key(kind, value) is not None else _described(value)
    if not isinstance(value, list):
        return _SINGLE
    return next((_described(element) for element in value if element_key(kind, element) is None), None)


def _described(value: object) -> str:
    match value:
        case list():
            return _LIST
        case Mapping():
            return "a document"
        case Binary(subtype=3):
            return _LEGACY
        case str():
            return "text"
        case bool():
            return "a truth value"
        case int() | float() | Decimal128():
            return "a number"
        case bytes():
            return "bytes"
        case None:
            return "null"
        case _:
            return f"a value of type {type(value).__name__}"


async def _is_indexed(collection: AsyncCollection[Document], rule: StoreRule) -> bool:
    """Does an index begin with the whole reference, in any order, conditions of `where` aside? A partial or hidden
    one does not serve every look-up, nor one of another collation those of texts, nor one of places or words any."""
    columns = set(rule.dependent.columns)
    # `where` may compare texts.
    texts = {*(columns if KeyType.STRING in rule.spec.types else ()), *rule.dependent.where}
    async for index in await collection.list_indexes():
        if index.get("partialFilterExpression") or index.get("hidden"):
            continue
        if index.get("collation") and texts & index["key"].keys():
            continue
        if any(isinstance(how, str) and how != "hashed" for how in index["key"].values()):
            continue
        fields = [field for field in index["key"] if field in columns or field not in rule.dependent.where]
        if set(fields[: len(columns)]) == columns:
            return True
    return False


def _at(rule: StoreRule, code: str, message: str, hint: str, severity: str = "error") -> Finding:
    place = rule.dependent.place
    return Finding(code, f"{rule.id}: {message}", hint, place.file, place.line, place.column, severity)
