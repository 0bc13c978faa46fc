"""Compacted topics in the contract suite: a row is a record, keyed by its id, over two partitions."""

from __future__ import annotations

import json
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from integrity.core.batch import TopicPartition
from integrity.core.decode.json import parse
from integrity.core.decode.record import Limits
from integrity.core.keys import Key, KeySpec, canonical, gate, key_hash
from integrity.core.ledger import Head
from integrity.core.rules.model import TargetKind
from integrity.demo.servers import KafkaServer
from integrity.ports import Deadline, Scannable, Store
from integrity.stores.memory import Row
from integrity.stores.topic import TopicStore, records
from integrity.stores.topic.scan import TopicScanner
from integrity.stores.topic.store import ROWS_MAX
from tests.contract.harness import Feature, Rules, retarget, targets_of, whole
from tests.integration.topic_shop import read_all

FEATURES = frozenset({Feature.NAMED})
PARTITIONS = 2
LANE = "integrity.store"
SOURCE = TopicPartition("shop.public.customers", 0)


class TopicHarness:
    """A topic a target, all of one prefix that no other test has."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        kafka: KafkaServer = request.getfixturevalue("kafka")
        self._client = {"bootstrap_servers": kafka.bootstrap_servers}
        self._prefix = f"t{uuid.uuid4().hex[:10]}"
        self._columns: Mapping[str, Mapping[str, Any]] = {}
        self._rows_max = ROWS_MAX
        self._rules: Rules = {}
        self._stores: list[TopicStore] = []
        self._scanners: list[TopicScanner] = []

    async def open(self, rules: Rules, rows: Mapping[str, Sequence[Row]], *, rows_max: int | None = None) -> Store:
        self._rows_max = rows_max or ROWS_MAX
        self._columns = targets_of(rules)
        self._rules = {
            entity: tuple(
                replace(
                    each,
                    dependent=replace(
                        each.dependent,
                        target=replace(each.dependent.target, name=self.topic(each.dependent.target.name)),
                    ),
                )
                for each in of_entity
            )
            for entity, of_entity in retarget(rules, TargetKind.TOPIC).items()
        }
        await self._create([self.topic(name) for name in self._columns])
        for name in self._columns:
            await self.write(name, *rows.get(name, ()))
        return await self.another()

    def scanner(self) -> Scannable:
        lane = f"{self._prefix}.{LANE}"
        scanner = TopicScanner("store", self._client, self._rules, lane=lane, schema=self._prefix)
        self._scanners.append(scanner)
        return scanner

    async def write(self, target: str, *rows: Row) -> None:
        producer = AIOKafkaProducer(**self._client, acks="all")
        await producer.start()
        try:
            for row in rows:
                value = whole(row, self._columns[target])
                await producer.send(
                    self.topic(target), _encoded(value), str(value["id"]).encode(), partition=hash_of(value["id"])
                )
        finally:
            await producer.stop()

    async def another(self) -> Store:
        store = TopicStore(
            "store",
            self._client,
            self._rules,
            lane=f"{self._prefix}.{LANE}",
            schema=self._prefix,
            rows_max=self._rows_max,
        )
        self._stores.append(store)
        await store.migrate(Deadline.after(20))
        findings = await store.check(Deadline.after(20))
        assert not [finding for finding in findings if finding.severity == "error"], findings
        await store.progress([SOURCE], Deadline.after(20))
        return store

    async def rows(self, target: str) -> list[Row]:
        values = await read_compacted(self._client, self.topic(target))
        columns = self._columns[target]
        found: list[Row] = []
        for value in values.values():
            document = parse(value, Limits())
            assert isinstance(document, dict)
            assert document.keys() == columns.keys(), "a rewritten value has the fields it had"
            found.append(
                {
                    name: None if document[name] is None else gate(kind, document[name], None)
                    for name, kind in columns.items()
                }
            )
        return sorted(found, key=lambda row: str(row["id"]).zfill(20))

    async def head(self, entity: str, key: Key) -> Head | None:
        digest = key_hash(entity, key)
        ledger = await self._ledger()
        if records.head_key(digest) not in ledger:
            return None
        head = records.decode_head(ledger[records.head_key(digest)])
        spec: KeySpec = self._rules[entity][0].spec
        fates = [
            records.decode_fate(value).fate(spec)
            for name, value in ledger.items()
            if name.startswith(b"fate|" + digest.hex().encode())
        ]
        return Head(head.seen, tuple(sorted(fates, key=lambda fate: fate.version)), head.last)

    async def arrivals(self) -> int:
        return sum(name.startswith(b"arrival|") for name in await self._ledger())

    async def exceptions(self, entity: str, key: Key) -> set[str]:
        found = [json.loads(value) for name, value in (await self._ledger()).items() if name.startswith(b"exception|")]
        return {each["dependent"] for each in found if (each["entity"], each["key"]) == (entity, canonical(key))}

    async def close(self) -> None:
        for opened in (*self._stores, *self._scanners):
            await opened.close()

    def topic(self, target: str) -> str:
        return f"{self._prefix}.{target}"

    async def _ledger(self) -> dict[bytes, bytes]:
        found = await read_compacted(self._client, f"{self._prefix}.ledger.store")
        return {name: value for (_, name), value in found.items()}

    async def _create(self, topics: Sequence[str]) -> None:
        admin = AIOKafkaAdminClient(**self._client)
        await admin.start()
        try:
            answer = await admin.create_topics(
                [NewTopic(topic, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}) for topic in topics]
            )
            assert not any(error[1] for error in answer.topic_errors), answer.topic_errors
        finally:
            await admin.close()


def hash_of(row_id: object) -> int:
    """The partition of a row, chosen by its owner in a way of its own."""
    assert isinstance(row_id, int)
    return row_id % PARTITIONS


async def read_compacted(client: Mapping[str, Any], topic: str) -> dict[tuple[int, bytes], bytes]:
    """What compaction leaves of a topic, as a committed reader sees it: (partition, key) -> value."""
    found: dict[tuple[int, bytes], bytes] = {}
    for record in await read_all(client, topic):
        found.pop((record.partition, record.key), None)
        if record.value is not None:
            found[record.partition, record.key] = record.value
    return found


def _encoded(row: Row) -> bytes:
    return b"{" + b",".join(_json(name) + b":" + _json(value) for name, value in row.items()) + b"}"


def _json(value: object) -> bytes:
    match value:
        case Decimal():
            return format(value, "f").encode()
        case bytes():
            return msgspec.json.encode(b64encode(value).decode())
        case UUID():
            return msgspec.json.encode(str(value))
        case datetime():
            return msgspec.json.encode(value.isoformat())
        case date():
            return msgspec.json.encode(value.isoformat())
        case _:
            return msgspec.json.encode(value)


HARNESS = TopicHarness
