"""Avro through a real schema registry, a real broker and a real lane; the store is the in-memory model."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from integrity.cli import main
from integrity.core.decode import decoder_for
from integrity.core.decode.avro import SchemaFault
from integrity.core.keys import KeyType
from integrity.demo.servers import KafkaServer, PostgresServer
from integrity.demo.servers.postgres import query
from integrity.demo.servers.process import environment, free_port
from integrity.errors import Reason, UnreachableError
from integrity.kafka.consumer import Consumer
from integrity.registry.cache import SchemaCache, made_of
from integrity.registry.client import FoundSchema, RegistryClient
from integrity.service.lane import Lane
from tests.conftest import CreateTopic
from tests.golden.records import rule
from tests.registry_server import RegistryServer
from tests.unit.core.test_decode_protobuf import message
from tests.unit.core.test_decode_wire import KEY, VALUE, envelope, prefixed
from tests.unit.service.doubles import BentStore, Letters, Watched, enforcers_of, memory_store
from tests.wire import written

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server


class Door:
    """A port that leads to the registry while it is open."""

    def __init__(self, registry: RegistryServer) -> None:
        self._target = int(registry.url.split(":")[2].split("/")[0])
        self._server: asyncio.Server | None = None
        self._led: set[asyncio.Task[None]] = set()
        self.port = free_port()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._lead, "127.0.0.1", self.port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._led)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._led.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()
            with suppress(OSError):
                await target.wait_closed()

        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


async def produce(
    kafka: KafkaServer, topic: str, records: Sequence[tuple[bytes, bytes | None]], codec: str | None = None
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type=codec)
    await producer.start()
    for key, value in records:
        await producer.send(topic, value, key=key, partition=0)
    await producer.flush()
    await producer.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_the_client_reads_what_a_real_registry_has(
    registry: RegistryServer, unique_name: Callable[[str], str]
) -> None:
    money, order = unique_name("money"), unique_name("order")
    record: dict[str, Any] = {"type": "record", "name": "Money", "namespace": "shop",
                              "fields": [{"name": "cents", "type": "long"}]}  # fmt: skip
    registry.register(money, record)
    using = {"type": "record", "name": "Order", "fields": [{"name": "total", "type": "shop.Money"}]}
    id_ = registry.register(order, using, references=[{"name": "shop.Money", "subject": money, "version": 1}])
    of_json = registry.register(
        unique_name("json"), {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}, "JSON"
    )
    amount = 'syntax = "proto3"; message Amount { int64 cents = 1; }'
    registry.register(f"{money}-proto", amount, "PROTOBUF")
    line = 'syntax = "proto3"; import "shop/amount.proto"; message Line { Amount total = 1; }'
    of_protobuf = registry.register(
        f"{order}-proto", line, "PROTOBUF", [{"name": "shop/amount.proto", "subject": f"{money}-proto", "version": 1}]
    )
    client = RegistryClient(registry.url)
    try:
        await client.check()
        found = await client.schema(id_)
        assert found.kind == "AVRO" and json.loads(found.text) == using
        assert [json.loads(text) for text in found.references] == [record]
        assert (await client.schema(of_json)).kind == "JSON"
        found = await client.schema(of_protobuf)
        assert found == FoundSchema("PROTOBUF", line, (amount,), {"shop/amount.proto": amount})
        assert b'"total":null' in made_of(found).json(b"\0", 0)
        with pytest.raises(SchemaFault, match="does not know"):
            await client.schema(999_999)
    finally:
        await client.close()
    nowhere = RegistryClient(registry.url.replace("/apis/", "/nowhere/"))
    try:
        with pytest.raises(UnreachableError):
            await nowhere.schema(id_)
    finally:
        await nowhere.close()


async def test_a_lane_waits_for_a_registry_that_is_down_and_goes_on_when_it_is_back(
    registry: RegistryServer, kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    """Each codec of Kafka is among the records, and one record whose schema nobody knows."""
    topic = await create_topic()
    of_key, of_value = (registry.register(f"{topic}-{part}", each) for part, each in (("key", KEY), ("value", VALUE)))
    door = Door(registry)
    client = RegistryClient(registry.url.replace(registry.url.split("/")[2], f"127.0.0.1:{door.port}"))
    cache = SchemaCache(client)
    store, watch, letters, stop = BentStore(memory_store(10)), Watched(), Letters(), asyncio.Event()
    decode = decoder_for(rule(id=KeyType.INT64), schemas=cache.schemas)
    lane = Lane(
        store=store,  # type: ignore[arg-type]
        open_source=lambda: Consumer(
            {"bootstrap_servers": kafka.bootstrap_servers},
            group=unique_name("group"),
            topics=[topic],
            assignor=StickyPartitionAssignor,
        ),
        enforcers=enforcers_of(store, letters, watch),
        watch=watch,
        decoders={topic: ("customer", decode)},
        batch_size=50,
        schemas=cache,
    )

    def event(key: int, value_id: int = of_value) -> tuple[bytes, bytes]:
        return prefixed(of_key, written(KEY, {"id": key})), prefixed(value_id, envelope(lsn=key + 1))

    for key, codec in enumerate((None, "gzip", "snappy", "lz4", "zstd")):
        await produce(kafka, topic, [event(key)], codec)
    await produce(kafka, topic, [event(7, 999_999), (event(7)[0], None), event(8)])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lane.run(stop))
        await until(lambda: "schema registry does not answer" in lane.trouble)
        assert not store.calls
        await door.open()
        await until(lambda: {row["customer_id"] for row in store.store.targets["orders"]} == {5, 6, 7, 9})
        await until(lambda: lane.trouble == "")
        stop.set()
    [letter] = letters.published
    assert letter.reason is Reason.SCHEMA_REGISTRY_PAYLOAD and "999999" in letter.message
    assert (letter.record.key, letter.record.value) == event(7, 999_999), "its bytes are untouched"
    assert watch.registry[0] is False and watch.registry[-1] is True
    await client.close()
    await door.close()


EVENTS = """
syntax = "proto3";
package shop;
message Key { int64 id = 1; }
message Envelope { Row before = 1; Row after = 2; Source source = 3; string op = 4; }
message Row { int64 id = 1; optional string name = 2; }
message Source { string connector = 1; optional int64 lsn = 2; }
"""
RULE = """\
version: 1
parent: customer
events: {{topic: {topic}, format: debezium, key: {{id: int64}}}}
dependents:
  - {{store: shop_db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade}}
"""


async def test_run_and_doctor_use_the_registry_of_the_settings(
    registry: RegistryServer,
    kafka: KafkaServer,
    postgres: PostgresServer,
    pg_database: str,
    create_topic: CreateTopic,
    tmp_path: Path,
) -> None:
    """One deletion is in Avro, and one in Protobuf."""
    topic = await create_topic()
    ids = [registry.register(f"{topic}-{part}", each) for part, each in (("key", KEY), ("value", VALUE))]
    in_protobuf = registry.register(f"{topic}-protobuf", EVENTS, "PROTOBUF")
    made = message(EVENTS, "shop.Envelope", op="d")
    made.source.connector, made.source.lsn = "postgresql", 8
    deletions = [
        (prefixed(ids[0], written(KEY, {"id": 5})), prefixed(ids[1], envelope())),
        (
            prefixed(in_protobuf, b"\0" + message(EVENTS, "shop.Key", id=7).SerializeToString()),
            prefixed(in_protobuf, b"\2\2" + made.SerializeToString()),
        ),
    ]
    await produce(kafka, topic, deletions)
    query(pg_database, "create table orders (id int primary key, customer_id bigint); create index on orders "
          "(customer_id); insert into orders values (1, 5), (2, 6), (3, 7)", {})  # fmt: skip
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "customer.yaml").write_text(RULE.format(topic=topic))
    variables = {
        "INTEGRITY_RULES": str(rules),
        "INTEGRITY_GROUP": topic,
        "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INTEGRITY_STORES__SHOP_DB__URL": pg_database,
        "INTEGRITY_HTTP__PORT": "0",
        "INTEGRITY_DLQ__TOPIC": f"{topic}.dlq",
        "INTEGRITY_AUDIT__TOPIC": "",
    }

    async def integrity(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "integrity", *arguments],
            env=environment(**variables, INTEGRITY_SCHEMA_REGISTRY__URL=url),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    ran = await integrity("run", "--migrate", "--exit-at-end", url=registry.url)
    assert ran.returncode == 0, ran.stderr
    assert query(pg_database, "select id from orders", {}).strip() == "2"
    told = await integrity("doctor", "--json", url=registry.url)
    document = json.loads(told.stdout)
    codes = [finding["code"] for finding in document["findings"]]
    assert "undecodable_events" not in codes and "schema registry" not in told.stdout, told.stdout
    told = await integrity("doctor", "--json", url=f"http://127.0.0.1:{free_port()}")
    assert "schema registry" in told.stdout, told.stdout


async def test_init_looks_through_the_wire_format(
    registry: RegistryServer,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic, of_longs = await create_topic(), await create_topic()
    ids = [registry.register(f"{topic}-{part}", each) for part, each in (("key", KEY), ("value", VALUE))]
    await produce(kafka, topic, [(prefixed(ids[0], written(KEY, {"id": 5})), prefixed(ids[1], envelope()))])
    # A long that begins as an id does, which the registry knows.
    await produce(kafka, of_longs, [((ids[0] << 24).to_bytes(8, "big"), prefixed(ids[1], envelope()))])
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("INTEGRITY_SCHEMA_REGISTRY__URL", registry.url)
    for name, key_format in ((topic, None), (of_longs, "long")):
        assert await asyncio.to_thread(main, ["init", "--from-topic", name, "--json"]) == 0
        events = json.loads(capsys.readouterr().out)["events"]
        assert (events["format"], events["key"], events.get("key_format")) == ("debezium", {"id": "int64"}, key_format)
    monkeypatch.delenv("INTEGRITY_SCHEMA_REGISTRY__URL")
    assert await asyncio.to_thread(main, ["init", "--from-topic", topic]) == 1
    assert "INTEGRITY_SCHEMA_REGISTRY__URL" in capsys.readouterr().out
