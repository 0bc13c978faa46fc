"""What the ledger tells of a key, and what an event would do to the documents: read only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId, json_util

from integrity.core.history import (
    ROWS_COUNTED_MAX,
    SAMPLE_ROWS_MAX,
    CameFrom,
    Enforced,
    Impact,
    KeyHistory,
    LeftOut,
    Question,
    Repair,
)
from integrity.core.keys import Key, KeySpec, canonical, key_hash
from integrity.core.outcome import Outcome
from integrity.core.undo import Undone
from integrity.errors import LedgerError
from integrity.stores.mongo.ledger import LEDGER_ID, Document, Ledger, UnreadableLedger, fate_of, last_of, version_of
from integrity.stores.mongo.query import EXACT, Filter, path_reader, referencing, within_reach
from integrity.stores.mongo.values import Unholdable, from_bson, own_part, to_bson
from integrity.stores.rule import StoreRule

_READABLE: Final = json_util.JSONOptions(json_mode=json_util.JSONMode.RELAXED)


async def history(ledger: Ledger, spec: KeySpec, entity: str, key: Key) -> KeyHistory | None:
    """Everything that the ledger knows of a key."""
    of = key_hash(entity, key)
    head = await ledger.collection("keys").find_one({"_id": of})
    if head is None:
        if await ledger.collection("meta").find_one({"_id": LEDGER_ID}) is None:
            raise LedgerError(f"There is no ledger {ledger.name_of('*')}.", hint="Run `integrity migrate`.")
        return None
    fates = ledger.collection("fates")
    try:
        enforced = [_enforced(spec, document) async for document in fates.find({"key_hash": of})]
    except UnreadableLedger as exc:
        raise LedgerError("The ledger holds keys of another type than the rule gives now.") from exc
    came_from = [
        CameFrom(each["key"], _known(each["version"]), each["event"], _ms(each["enforced_at"]))
        async for each in fates.find({"to": canonical(key), "entity": entity})
    ]
    left_out = [
        LeftOut(
            each["dependent"],
            each["event"],
            version_of(each["version"]),
            each["reason"],
            each["_id"],
            _ms(each["at"]),
        )
        async for each in ledger.collection("exceptions").find({"key_hash": of, "entity": entity})
    ]
    repairs = [
        Repair(each["dependent"], each["action"], int(each["rows"]), each["event"], _ms(each["at"]))
        async for each in ledger.collection("repairs").find({"key_hash": of, "entity": entity})
    ]
    undone = [
        Undone(each["dependent"], each["event"], each["rows"], each["at_ms"], each["actor"], each["note"])
        async for each in ledger.collection("undone").find({"key_hash": of})
    ]
    return KeyHistory(
        version_of(head["seen"]),
        last_of(head["last"]),
        tuple(sorted(enforced, key=lambda each: each.fate.version)),
        tuple(sorted(came_from, key=lambda each: each.version)),
        tuple(sorted(left_out, key=lambda each: (each.at_ms, each.dependent))),
        tuple(sorted(repairs, key=lambda each: (each.at_ms, each.dependent))),
        tuple(sorted(undone, key=lambda each: (each.at_ms, each.dependent))),
    )


async def impact(ledger: Ledger, rule: StoreRule, question: Question) -> Impact:
    """What the events of these keys would do to the documents of one dependent."""
    action = rule.policy.on_delete_action if question.deleted else rule.policy.on_update_action
    dependent, kinds = rule.dependent, rule.spec.types
    places: dict[Key, int] = {}
    parts: dict[Key, list[object]] = {}
    for place, key in enumerate(question.keys):
        try:
            parts[key] = [to_bson(kind, part) for kind, part in zip(kinds, key, strict=True)]
            places[key] = place
        except Unholdable:
            continue
    counts = [0] * len(question.keys)
    if not parts:
        return Impact(rule.id, action, tuple(counts))
    collection = ledger.database[dependent.target.name]
    chosen: Filter = {"$and": [referencing(dependent.columns, parts), *within_reach(dependent)]}
    async for group in await collection.aggregate(_counting(rule, chosen, parts), collation=EXACT):
        counts[places[tuple(map(from_bson, kinds, group["_id"]))]] = group["rows"]
    own: list[tuple[int, Key]] = []
    if rule.id in question.follow and dependent.key is not None:
        of_row = [(kind, path_reader(path)) for path, kind in dependent.key.fields]
        of_parent = [path_reader(path) for path in dependent.columns]
        names = dict.fromkeys([*dependent.columns, *dependent.key.names], 1)
        async for document in collection.find(chosen, names, limit=question.own_max, collation=EXACT):
            parent = tuple(from_bson(kind, read(document)) for kind, read in zip(kinds, of_parent, strict=True))
            row_key = [own_part(kind, read(document)) for kind, read in of_row]
            if None not in row_key:
                own.append((places[parent], tuple(row_key)))  # type: ignore[arg-type]
    sample: list[Mapping[str, object]] = []
    if question.sample:
        found = collection.find(chosen, {"_id": 1}, limit=SAMPLE_ROWS_MAX, collation=EXACT)
        sample = [{"_id": _shown(document["_id"])} async for document in found]
    return Impact(rule.id, action, tuple(counts), tuple(sample), sum(counts) >= ROWS_COUNTED_MAX, tuple(own))


async def clock_ms(ledger: Ledger) -> int:
    """What the server's clock says."""
    now: datetime = (await ledger.database.client.admin.command("hello"))["localTime"]
    return _ms(now if now.tzinfo is not None else now.replace(tzinfo=UTC))


def _counting(rule: StoreRule, chosen: Filter, parts: Mapping[Key, Sequence[object]]) -> list[Mapping[str, Any]]:
    """The references to each key; of a list each element is one."""
    columns = rule.dependent.columns
    elements: list[Mapping[str, Any]] = []
    if rule.dependent.array:
        [column] = columns
        wanted = [part for [part] in parts.values()]
        # A list in the list is no key, though it may hold one.
        elements = [
            {"$unwind": f"${column}"},
            {"$match": {column: {"$in": wanted, "$not": {"$type": "array"}}}},
        ]
    return [
        {"$match": chosen},
        {"$limit": ROWS_COUNTED_MAX},
        *elements,
        {"$group": {"_id": [f"${column}" for column in columns], "rows": {"$sum": 1}}},
    ]


def _shown(id_: object) -> object:
    """An `_id` as a JSON value: whole numbers and texts as they are, else as text."""
    match id_:
        case bool() | int() | str():
            return id_
        case ObjectId():
            return str(id_)
        case _:
            return json_util.dumps(id_, json_options=_READABLE)


def _enforced(spec: KeySpec, document: Document) -> Enforced:
    done: list[Mapping[str, Any]] = document["effects"]
    return Enforced(
        fate_of(document, spec),
        {
            each["dependent"]: (each["action"], int(each["rows"]))
            for each in done
            if each["outcome"] in (Outcome.APPLIED.value, Outcome.RESTRICTED.value)
        },
        _ms(document["enforced_at"]),
        document["trace_id"],
    )


def _known(array: list[int | str]) -> Any:
    version = version_of(array)
    assert version is not None, "a fate has a version"
    return version


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
