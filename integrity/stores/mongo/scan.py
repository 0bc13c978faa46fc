"""References looked through as a whole: grouped and sorted by the server, on disk where they are many.

MongoDB sorts the values of a field by their type first. So the keys of one type lie together, ascending, and what is of
another type is passed over and counted: it refers to nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from pymongo import AsyncMongoClient, ReadPreference
from pymongo.read_concern import ReadConcern

from integrity.core.keys import Key, Scalar
from integrity.core.scan import Known, Page, Referenced, known_of
from integrity.errors import LedgerError
from integrity.ports import Deadline
from integrity.stores.mongo import setup
from integrity.stores.mongo.effects import holding
from integrity.stores.mongo.ledger import LEDGER_ID, Document, Ledger, UnreadableLedger, hashes_of
from integrity.stores.mongo.query import EXACT, Filter, within_reach
from integrity.stores.mongo.store import SELECT_MS, database_of, hosts_of
from integrity.stores.mongo.values import CODECS, Unholdable, own_part, to_bson
from integrity.stores.rule import StoreRule

PAGE_KEYS: Final = 5_000
_LIVE_S: Final = 86_400
"""The driver's last resort for a call; each one has a deadline."""


class MongoScanner:
    """See `Scannable`. `timeout_s` bounds a question; a stream is bounded by its deadline alone."""

    def __init__(
        self, name: str, url: str, rules: Mapping[str, Sequence[StoreRule]], *, schema: str, timeout_s: float
    ) -> None:
        self.name = name
        self._rules = {rule.id: rule for of_entity in rules.values() for rule in of_entity}
        self._specs = {entity: of_entity[0].spec for entity, of_entity in rules.items()}
        self._url = url
        self._schema = schema
        self._timeout_s = timeout_s
        self._database_name = database_of(name, url)
        self._at = f"MongoDB at {hosts_of(url)} (store {name})"
        self._client: AsyncMongoClient[Document] | None = None

    async def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        rule = self._rules[dependent]
        kinds = rule.spec.types
        names = _names(rule)
        collection = self._ledger().database[rule.dependent.target.name]
        with setup.reach(self._at, deadline.remaining_s()):
            order = dict.fromkeys([f"_id.{name}" for name in names] or ["_id"], 1)
            stages = [*_chosen(rule), _grouped(rule), {"$sort": order}]
            cursor = await collection.aggregate(stages, collation=EXACT, allowDiskUse=True, batchSize=PAGE_KEYS)
        try:
            while True:
                with setup.reach(self._at, deadline.remaining_s()):
                    documents = await cursor.to_list(PAGE_KEYS)
                if not documents:
                    return
                found: list[Referenced] = []
                mistyped = 0
                for document in documents:
                    held, rows = document["_id"], document["rows"]
                    parts = [held[name] for name in names] or [held]
                    key = [own_part(kind, part) for kind, part in zip(kinds, parts, strict=True)]
                    if None in key:
                        mistyped += rows
                    else:
                        found.append(Referenced(tuple(part for part in key if part is not None), rows))
                yield Page(found, mistyped)
        finally:
            with setup.reach(self._at, self._timeout_s):
                await cursor.close()

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        rule = self._rules[dependent]
        # Whether a row is too young for an event is no matter of whether it has a parent.
        rule = replace(rule, dependent=replace(rule.dependent, as_of=None))
        kinds, names = rule.spec.types, _names(rule)
        collection = self._ledger().database[rule.dependent.target.name]
        wanted = [key for key in keys if _is_holdable(rule, key)]
        rows: dict[Key, int] = {}
        with setup.reach(self._at, min(self._timeout_s, deadline.remaining_s())):
            for filter_ in holding(rule, wanted):
                stages: list[Document] = [{"$match": filter_}]
                if rule.dependent.array:
                    stages += _unwound(rule)
                async for document in await collection.aggregate([*stages, _grouped(rule)], collation=EXACT):
                    held = document["_id"]
                    parts = [held[name] for name in names] or [held]
                    key = tuple(own_part(kind, part) for kind, part in zip(kinds, parts, strict=True))
                    rows[key] = rows.get(key, 0) + document["rows"]  # type: ignore[index, arg-type]
        return [rows.get(key, 0) for key in keys]

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        ledger, hashes = self._ledger(), hashes_of(entity, keys)
        with setup.reach(self._at, min(self._timeout_s, deadline.remaining_s())):
            if await ledger.collection("meta").find_one({"_id": LEDGER_ID}) is None:
                raise LedgerError(f"There is no ledger {ledger.name_of('*')}.", hint="Run `integrity migrate`.")
            try:
                heads = await ledger.heads({of: key for key, of in hashes.items()}, self._specs[entity], None)
            except UnreadableLedger as exc:
                raise LedgerError("The ledger holds keys of another type than the rule gives now.") from exc
        return [known_of(heads.get(key)) for key in keys]

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _ledger(self) -> Ledger:
        if self._client is None:
            self._client = AsyncMongoClient(
                self._url,
                appname="integrity scan",
                serverSelectionTimeoutMS=SELECT_MS,
                connectTimeoutMS=SELECT_MS,
                socketTimeoutMS=_LIVE_S * 1000,
            )
        database = self._client.get_database(
            self._database_name, CODECS, ReadPreference.PRIMARY, read_concern=ReadConcern("majority")
        )
        return Ledger(database, self._schema, "")


def _chosen(rule: StoreRule) -> list[Document]:
    """The documents in reach that refer to something; of lists, each element alone.

    An array on the way to a reference makes an array of what is grouped, which is no key: it need not be asked for, so
    that an index on the reference is all that is read.
    """
    dependent = replace(rule.dependent, as_of=None)
    if dependent.array:
        return [{"$match": {"$and": within_reach(dependent)}}, *_unwound(rule)]
    held: list[Filter] = [{column: {"$ne": None}} for column in dependent.columns]
    return [{"$match": {"$and": [*held, *within_reach(replace(dependent, references={}))]}}]


def _unwound(rule: StoreRule) -> list[Document]:
    [column] = rule.dependent.columns
    return [
        {"$unwind": f"${column}"},
        {"$match": {"$and": [{column: {"$ne": None}}, {column: {"$not": {"$type": "array"}}}]}},
    ]


def _grouped(rule: StoreRule) -> dict[str, Any]:
    columns = rule.dependent.columns
    parts = {name: f"${column}" for name, column in zip(_names(rule), columns, strict=False)}
    return {"$group": {"_id": parts or f"${columns[0]}", "rows": {"$sum": 1}}}


def _names(rule: StoreRule) -> list[str]:
    """What the parts of a composite reference are grouped by; a single one is grouped as it is, which is faster."""
    columns = rule.dependent.columns
    return [f"p{n}" for n in range(len(columns))] if len(columns) > 1 else []


def _is_holdable(rule: StoreRule, key: Sequence[Scalar]) -> bool:
    try:
        for kind, part in zip(rule.spec.types, key, strict=True):
            to_bson(kind, part)
    except Unholdable:
        return False
    return True
