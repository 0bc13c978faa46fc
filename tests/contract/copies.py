"""Copies in the contract suite: one seam for every store, which holds the copy `customer_copy` of customers."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import asyncpg
import pytest
from pymongo import AsyncMongoClient

from integrity.core.change import Cell, Row
from integrity.core.keys import KeySpec
from integrity.core.rules.model import (
    Cascade,
    Copy,
    Dependent,
    Ignore,
    Parent,
    Place,
    Target,
    TargetKind,
    Tombstone,
    Tombstones,
)
from integrity.core.rules.model import Events as Source
from integrity.ports import Deadline, Store
from integrity.stores.memory_copy import MemoryCopy
from integrity.stores.mongo import MongoCopy
from integrity.stores.mongo.values import CODECS
from integrity.stores.postgres import PostgresCopy
from integrity.stores.rule import CopyRule, copy_rule
from integrity.stores.topic import TopicCopy
from tests.contract.harness_topic import read_compacted
from tests.contract.world import ENTITY, MARK, SINGLE, TOPIC

COLUMNS = {"name": "name", "email": "mail"}
"""What is copied beside the key; `mail` is called otherwise in the copy."""


def copy_of(kind: TargetKind, target: str, *, marks: bool = False, spec: KeySpec = SINGLE) -> CopyRule:
    on_delete: Cascade | Tombstone = Cascade()
    if marks:
        on_delete = Tombstone({}) if kind is TargetKind.TOPIC else MARK
    rows = Dependent(
        id=f"{ENTITY}.customer_copy",
        name="customer_copy",
        store="store",
        target=Target(kind, target),
        references={name: name for name in spec.names},
        on_delete=on_delete,
        on_update=Ignore(),
        where={},
        place=Place("test.yaml", 1, 1),
    )
    copy = Copy(rows, {**{name: name for name in spec.names}, **COLUMNS})
    source = Source((TOPIC,), "debezium", spec, Tombstones.DELETE)
    return copy_rule(Parent(ENTITY, source, (), Place("test.yaml", 1, 1), copies=(copy,)), copy)


def row(name: object, mail: object = None) -> Row:
    """A row as decoding gives it; Ellipsis is a value that the source did not send."""
    return {field: None if value is ... else Cell(value) for field, value in {"name": name, "mail": mail}.items()}


class CopyHarness(Protocol):
    """A store of one copy, and a look at its rows from outside."""

    marks: bool

    async def open(self, *, marks: bool = False) -> Store: ...

    async def another(self) -> Store: ...

    async def rows(self) -> dict[object, tuple[object, ...]]:
        """Key -> name and email, and where rows are marked, whether it is."""
        ...


class _Memory:
    marks = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._store: MemoryCopy | None = None

    async def open(self, *, marks: bool = False) -> Store:
        self._store = MemoryCopy("store", copy_of(TargetKind.TABLE, "customer_copy", marks=marks))
        return self._store

    async def another(self) -> Store:
        assert self._store is not None
        return self._store

    async def rows(self) -> dict[object, tuple[object, ...]]:
        assert self._store is not None
        return {key[0]: _seen(row) for key, row in self._store.rows.items()}

    async def close(self) -> None:
        return None


class _Postgres:
    marks = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._url: str = request.getfixturevalue("pg_database")
        self._stores: list[PostgresCopy] = []
        self._marks = False

    async def open(self, *, marks: bool = False) -> Store:
        self._marks = marks
        connection = await asyncpg.connect(self._url)
        await connection.execute(
            "create table customer_copy (id bigint primary key, name text not null, email text"
            f"{', deleted_at timestamptz, deleted_by text' if marks else ''})"
        )
        await connection.close()
        return await _ready(await self.another())

    async def another(self) -> Store:
        rule = copy_of(TargetKind.TABLE, "customer_copy", marks=self._marks)
        store = PostgresCopy("store", self._url, rule, lane="integrity.store.copy@1", lock_timeout_s=2)
        self._stores.append(store)
        return store

    async def rows(self) -> dict[object, tuple[object, ...]]:
        connection = await asyncpg.connect(self._url)
        found = await connection.fetch("select * from customer_copy")
        await connection.close()
        return {row["id"]: _seen(dict(row)) for row in found}

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class _Mongo:
    marks = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._url: str = request.getfixturevalue("mongo_database")
        self._stores: list[MongoCopy] = []
        self._marks = False

    async def open(self, *, marks: bool = False) -> Store:
        self._marks = marks
        async with AsyncMongoClient[dict[str, Any]](self._url) as client:
            collection = client.get_default_database()["customer_copy"]
            await collection.create_index("id", unique=True)
        return await _ready(await self.another())

    async def another(self) -> Store:
        rule = copy_of(TargetKind.COLLECTION, "customer_copy", marks=self._marks)
        store = MongoCopy("store", self._url, rule, lane="integrity.store.copy@1")
        self._stores.append(store)
        return store

    async def rows(self) -> dict[object, tuple[object, ...]]:
        async with AsyncMongoClient[dict[str, Any]](self._url) as client:
            database = client.get_default_database(codec_options=CODECS)
            return {each["id"]: _seen(each) async for each in database["customer_copy"].find()}

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class _Topic:
    marks = False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._client = {"bootstrap_servers": request.getfixturevalue("kafka").bootstrap_servers}
        self._create = request.getfixturevalue("create_topic")
        self._prefix = f"t{uuid.uuid4().hex[:10]}"
        self._stores: list[TopicCopy] = []
        self._tombstone = False

    async def open(self, *, marks: bool = False) -> Store:
        self._tombstone = marks
        await self._create(f"{self._prefix}.copy", partitions=2, config={"cleanup.policy": "compact"})
        return await _ready(await self.another())

    async def another(self) -> Store:
        rule = copy_of(TargetKind.TOPIC, f"{self._prefix}.copy", marks=self._tombstone)
        lane = f"{self._prefix}.store.copy"
        store = TopicCopy("store", self._client, rule, group=lane, lane=f"{lane}@1", schema=self._prefix)
        self._stores.append(store)
        return store

    async def rows(self) -> dict[object, tuple[object, ...]]:
        found = await read_compacted(self._client, f"{self._prefix}.copy")
        rows: dict[object, tuple[object, ...]] = {}
        for (_, key), value in found.items():
            row = json.loads(value)
            assert json.loads(key) == {"id": row["id"]}
            assert row["id"] not in rows, "a key has one partition"
            rows[row["id"]] = _seen(row)
        return rows

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


def _seen(row: Mapping[str, object]) -> tuple[object, ...]:
    marked = (row["deleted_at"] is not None,) if "deleted_at" in row else ()
    return row["name"], row["email"], *marked


async def _ready(store: Store) -> Store:
    await store.migrate(Deadline.after(30))
    findings = await store.check(Deadline.after(30))
    assert not [finding for finding in findings if finding.severity == "error"], findings
    return store


HARNESSES: Mapping[str, Callable[[pytest.FixtureRequest], Any]] = {
    "memory": _Memory,
    "postgres": _Postgres,
    "mongo": _Mongo,
    "topic": _Topic,
}


def params(names: Sequence[str] = tuple(HARNESSES)) -> list[Any]:
    return [pytest.param(name, marks=[] if name == "memory" else [pytest.mark.servers]) for name in names]


@asynccontextmanager
async def opened(request: pytest.FixtureRequest, name: str) -> AsyncIterator[Any]:
    made = HARNESSES[name](request)
    try:
        yield made
    finally:
        await made.close()
