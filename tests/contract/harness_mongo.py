"""MongoDB in the contract suite: one database a test, on the shared replica set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from integrity.core.change import Version
from integrity.core.keys import Key, KeyType, key_hash, parse_canonical
from integrity.core.ledger import Fate, Head, LastRecord
from integrity.core.rules.model import TargetKind
from integrity.ports import Deadline, Scannable, Store
from integrity.stores.memory import Row
from integrity.stores.mongo import MongoStore
from integrity.stores.mongo.scan import MongoScanner
from integrity.stores.mongo.store import ROWS_MAX
from integrity.stores.mongo.values import CODECS, from_bson, to_bson
from tests.contract.harness import Feature, Rules, retarget, targets_of, whole

FEATURES = frozenset({Feature.OUTBOX, Feature.MARKS, Feature.ARRAYS, Feature.SHARED})


class MongoHarness:
    """The rows are documents; `id` is a field of theirs beside `_id`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._url: str = request.getfixturevalue("mongo_database")
        self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(self._url)
        self._database = self._client.get_default_database(codec_options=CODECS)
        self._ledger = {
            name: self._database[f"integrity.{name}"] for name in ("keys", "fates", "arrivals", "exceptions")
        }
        self._stores: list[MongoStore] = []
        self._scanners: list[MongoScanner] = []
        self._rows_max = ROWS_MAX
        self._rules: Rules = {}
        self._columns: dict[str, dict[str, KeyType]] = {}

    async def open(self, rules: Rules, rows: Mapping[str, Sequence[Row]], *, rows_max: int | None = None) -> Store:
        self._rows_max = rows_max or ROWS_MAX
        self._rules = retarget(rules, TargetKind.COLLECTION)
        self._columns = targets_of(rules)
        for name in self._columns:
            collection = await self._database.create_collection(name)
            for rule in (rule for of_entity in self._rules.values() for rule in of_entity):
                if rule.dependent.target.name == name:
                    await collection.create_index([(column, 1) for column in rule.dependent.columns])
            await self.write(name, *rows.get(name, ()))
        store = await self._open()
        await store.migrate(Deadline.after(10))
        assert list(await store.check(Deadline.after(10))) == []
        return store

    async def another(self) -> Store:
        return await self._open()

    def scanner(self) -> Scannable:
        scanner = MongoScanner("store", self._url, self._rules, schema="integrity", timeout_s=30)
        self._scanners.append(scanner)
        return scanner

    async def write(self, target: str, *rows: Row) -> None:
        columns = self._columns[target]
        if documents := [_document(whole(row, columns), columns) for row in rows]:
            await self._database[target].insert_many(documents)

    async def rows(self, target: str) -> list[Row]:
        columns = self._columns[target]
        cursor = self._database[target].find({}, {"_id": 0}).sort("id", 1)
        return [
            {column: _each(partial(from_bson, kind), document[column]) for column, kind in columns.items()}
            async for document in cursor
        ]

    async def head(self, entity: str, key: Key) -> Head | None:
        of = key_hash(entity, key)
        document = await self._ledger["keys"].find_one({"_id": of})
        if document is None:
            return None
        spec = self._rules[entity][0].spec
        fates = [
            Fate(
                Version(fate["version"][0], tuple(fate["version"][1:])),
                None if fate["to"] is None else parse_canonical(fate["to"], spec),
                fate["event"],
                fate["occurred_ms"],
            )
            async for fate in self._ledger["fates"].find({"key_hash": of})
        ]
        seen, last = document["seen"], document["last"]
        return Head(
            None if seen is None else Version(seen[0], tuple(seen[1:])),
            tuple(sorted(fates)),
            None if last is None else LastRecord(last["topic"], last["partition"], last["offset"], last["alive"]),
        )

    async def arrivals(self) -> int:
        return await self._ledger["arrivals"].count_documents({})

    async def exceptions(self, entity: str, key: Key) -> set[str]:
        found = self._ledger["exceptions"].find({"key_hash": key_hash(entity, key), "entity": entity})
        return {document["dependent"] async for document in found}

    async def close(self) -> None:
        for opened in (*self._stores, *self._scanners):
            await opened.close()
        await self._client.close()

    async def _open(self) -> MongoStore:
        store = MongoStore("store", self._url, self._rules, lane="integrity.store", rows_max=self._rows_max)
        self._stores.append(store)
        return store


def _document(row: Row, columns: Mapping[str, KeyType]) -> dict[str, object]:
    return {column: _each(partial(to_bson, kind), row[column]) for column, kind in columns.items()}


def _each(convert: Callable[[Any], object], value: object) -> object:
    if isinstance(value, list):
        return [_each(convert, element) for element in value]
    return None if value is None else convert(value)


HARNESS = MongoHarness
