"""What the MongoDB tests share: a database with a ledger, stores over it, and faults that the server makes."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from pymongo import AsyncMongoClient

from integrity.core.batch import Batch
from integrity.core.outcome import Applied, ApplyResult, Retry
from integrity.ports import Deadline
from integrity.stores.mongo import MongoStore
from integrity.stores.mongo.values import CODECS
from integrity.stores.rule import StoreRule
from tests.contract.world import rules_of

Document = dict[str, Any]

UNREACHABLE = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""pymongo leaves a socket to the collector when it is closed while it connects; for tests that end `collected`."""


@contextmanager
def collected() -> Iterator[None]:
    """Let the collector close, before the test ends, what the driver left open."""
    try:
        yield
    finally:
        gc.collect()


class Shop:
    """One database. `db` looks at it from outside, with a client of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: AsyncMongoClient[Document] = AsyncMongoClient(url)
        self.db = self.client.get_default_database(codec_options=CODECS)
        self._stores: list[MongoStore] = []

    def store(self, *rules: StoreRule, **options: Any) -> MongoStore:
        """A store that is not opened yet."""
        store = MongoStore("shop", self.url, rules_of(*rules), lane="integrity.shop", **options)
        self._stores.append(store)
        return store

    async def open(self, *rules: StoreRule, documents: Mapping[str, Sequence[Document]] | None = None) -> MongoStore:
        """A store over indexed collections with these documents, migrated and checked without a fault."""
        for each in rules:
            name = each.dependent.target.name
            if not any(column.startswith("_id") for column in each.dependent.columns):
                await self.db[name].create_index([(column, 1) for column in each.dependent.columns])
            if (documents or {}).get(name):
                await self.db[name].insert_many(list((documents or {})[name]))
        store = self.store(*rules)
        await store.migrate(Deadline.after(10))
        # Documents that hold something else than keys are warned of; many of these tests have them.
        assert {finding.code for finding in await store.check(Deadline.after(10))} <= {"reference_types"}
        return store

    async def ids(self, collection: str = "orders") -> list[Any]:
        """The `_id` of every document, in order."""
        return [document["_id"] async for document in self.db[collection].find().sort("_id", 1)]

    async def all(self, collection: str = "orders") -> dict[Any, Document]:
        """Every document, without its `_id`, by its `_id`."""
        return {document.pop("_id"): document async for document in self.db[collection].find()}

    async def count(self, ledger: str) -> int:
        return await self.db[f"integrity.{ledger}"].count_documents({})

    @asynccontextmanager
    async def failing(self, commands: Sequence[str], mode: object, **how: object) -> AsyncIterator[None]:
        """The server fails these commands of the stores (not of this client) while inside."""
        data = {"failCommands": list(commands), "appName": "integrity", **how}
        await self.client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
        try:
            yield
        finally:
            await self.client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        await self.client.close()


async def apply(store: MongoStore, batch: Batch) -> ApplyResult:
    return await store.apply(batch, Deadline.after(20))


async def apply_until_applied(
    store: MongoStore, batch: Batch, *, tries_max: int = 200, pause_s: float = 0.0
) -> tuple[Applied, int]:
    """As the lane does, with other pauses: the result, and how many tries it took."""
    for tries in range(1, tries_max + 1):
        match await apply(store, batch):
            case Applied() as applied:
                return applied, tries
            case Retry():
                await asyncio.sleep(pause_s)
            case other:
                raise AssertionError(other)
    raise AssertionError(f"not applied in {tries_max} tries")
