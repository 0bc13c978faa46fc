"""The databases of tenants in MongoDB: one behind a server that is away for a while, one that is not made yet."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from pymongo import AsyncMongoClient

from integrity.demo.servers import KafkaServer, MongoServer
from integrity.ports import Deadline
from integrity.stores.mongo import MongoStore
from tests.acceptance.doors import doors, through_doors
from tests.acceptance.world import Process, integrity
from tests.conftest import CreateTopic

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]

AWAY, NOT_MADE = "12", "13"
TENANTS = ("10", "11", AWAY, NOT_MADE)
HANGS_S = 120
CUSTOMERS = range(1, 7)

RULES = """\
version: 1
parent: customer
events:
  topic: {topic}
  format: debezium
  tenant: {{header: tenant}}
  key: {{id: int64}}
dependents:
  - {{store: reviews_db, collection: reviews, references: {{customerId: id}}, on_delete: cascade}}
  - {{store: reviews_db, collection: notes, references: {{customerId: id}}, on_delete: nullify}}
"""


class Shops:
    """The databases of all tenants, looked at from outside, and the topic of their parents."""

    def __init__(self, client: AsyncMongoClient[dict[str, Any]], name: str, producer: AIOKafkaProducer) -> None:
        self._client, self._name, self._producer = client, name, producer
        self._lsn = 0

    async def make(self, tenant: str) -> None:
        """Two reviews and a note of each customer; no two tenants' documents have one `_id`."""
        database = self._client[f"{self._name}_{tenant}"]
        for collection, each in (("reviews", 2), ("notes", 1)):
            await database[collection].create_index("customerId")
            await database[collection].insert_many(
                [{"_id": f"{tenant}-{c}-{n}", "customerId": c} for c in CUSTOMERS for n in range(each)]
            )

    async def delete(self, tenants: Sequence[str], key: int, topic: str) -> None:
        """A customer of that key is deleted at each of these tenants."""
        for tenant in tenants:
            self._lsn += 1
            source = {"connector": "postgresql", "lsn": self._lsn}
            value = {"before": None, "after": None, "source": source, "op": "d"}
            await self._producer.send_and_wait(
                topic,
                json.dumps(value).encode(),
                key=json.dumps({"id": key}).encode(),
                headers=[("tenant", tenant.encode())],
            )

    async def left(self, tenant: str) -> dict[str, Counter[int | None]]:
        """By collection: how many documents refer to which customer. Every document has to be the tenant's own."""
        database = self._client[f"{self._name}_{tenant}"]
        found: dict[str, Counter[int | None]] = {}
        for collection in ("reviews", "notes"):
            documents = await database[collection].find().to_list()
            assert all(document["_id"].startswith(f"{tenant}-") for document in documents)
            found[collection] = Counter(document["customerId"] for document in documents)
        return found

    async def reached(self, process: Process, tenants: Sequence[str], gone: int) -> None:
        """Wait until of each of these tenants the customers up to `gone` are gone, and no others."""
        live = [customer for customer in CUSTOMERS if customer > gone]
        notes = Counter({**dict.fromkeys(live, 1), None: gone})
        wanted = {"reviews": Counter(dict.fromkeys(live, 2)), "notes": notes}
        async with asyncio.timeout(HANGS_S):
            while [found for tenant in tenants if (found := await self.left(tenant)) != wanted]:
                assert process.running, process.log.read_text()[-4000:]
                await asyncio.sleep(0.2)


async def test_tenants_in_mongodb_are_parked_while_theirs_is_away_and_come_back(
    mongo: MongoServer,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    unique_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    name, topic = unique_name("shops"), await create_topic(partitions=2)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "customer.yaml").write_text(RULES.format(topic=topic))
    url = mongo.url(f"{name}_T").partition("?")[0]
    environment = {
        "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INTEGRITY_GROUP": name,
        "INTEGRITY_DLQ__TOPIC": f"{name}.dlq",
        "INTEGRITY_AUDIT__TOPIC": "",
        # As a replica set it would be asked for by the names of its members.
        "INTEGRITY_STORES__REVIEWS_DB__URL": through_doors(url).replace("_T", "_{tenant}") + "?directConnection=true",
        "INTEGRITY_STORES__REVIEWS_DB__POOL_SIZE": "3",
        "INTEGRITY_STORES__REVIEWS_DB__TENANT_WAIT": "1s",
        "INTEGRITY_HTTP__PORT": "0",
        "INTEGRITY_LOG__FORMAT": "json",
        "PYTHONPATH": str(Path.cwd()),
    }
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo.url())
    async with (
        client,
        AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer,
        doors(url, TENANTS) as ways,
    ):
        shops = Shops(client, name, producer)
        for tenant in TENANTS:
            if tenant != NOT_MADE:
                await shops.make(tenant)
                store = MongoStore("reviews_db", mongo.url(f"{name}_{tenant}"), {}, lane=f"{name}.reviews_db")
                await store.migrate(Deadline.after(30))
                await store.close()
        process = Process(environment, tmp_path / "run.log", module="tests.acceptance.hasty")
        try:
            await shops.delete(TENANTS, 1, topic)
            await shops.reached(process, [t for t in TENANTS if t != NOT_MADE], 1)
            await ways[AWAY].shut()
            for key in (2, 3):
                await shops.delete(TENANTS, key, topic)
            await shops.reached(process, ["10", "11"], 3)
            parked = [f'"tenant": "{AWAY}", "reason": "store_rejected"']
            parked += [f'"tenant": "{NOT_MADE}", "reason": "schema_mismatch"']
            async with asyncio.timeout(HANGS_S):
                while not all(said in process.log.read_text() for said in parked):
                    await asyncio.sleep(0.2)
            await ways[AWAY].open()
            await shops.reached(process, [AWAY], 3)
            await shops.make(NOT_MADE)
            await integrity(environment, tmp_path, "migrate", "--tenant", NOT_MADE)
            await shops.delete(TENANTS, 4, topic)
            await shops.reached(process, TENANTS, 4)
            letters: list[dict[str, Any]] = []
            async with asyncio.timeout(HANGS_S):
                while not letters or any(letter["status"] != "resolved" for letter in letters):
                    told = await integrity(environment, tmp_path, "dlq", "list", "--all", "--json")
                    letters = json.loads(told)["letters"]
            assert {letter["parked"] for letter in letters} == {AWAY, NOT_MADE}
            for tenant in TENANTS:
                database = client[f"{name}_{tenant}"]
                fates = await database["integrity.fates"].find().to_list()
                assert sorted(effect["rows"] for fate in fates for effect in fate["effects"]) == [1] * 4 + [2] * 4
        finally:
            code = await process.stop()
            for tenant in TENANTS:
                await client.drop_database(f"{name}_{tenant}")
        assert code == 0
