"""Captures tests/golden/wire: what Debezium sends through the registry's own converters, and the same as JSON.

    python -m tests.golden.capture_wire

Each connector reads the same tables of one database; the schemas stand beside the records, as the registry serves them.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from integrity.core.decode.wire import SchemaRef, located
from integrity.demo.servers import ConnectServer, KafkaServer, PostgresServer, debezium_postgres_config
from integrity.demo.servers.jars import Artifact, JarSet
from integrity.demo.servers.postgres import query
from integrity.registry.client import RegistryClient
from tests.registry_server import RegistryServer

TARGET = Path(__file__).parent / "wire"
CONVERTERS = JarSet(
    "apicurio-converters-2.6.13.Final", (Artifact("io.apicurio:apicurio-registry-utils-converter:2.6.13.Final"),)
)
TABLES = ("customers", "composite", "numkeys", "uuids", "times")
SETUP = """
create table customers(id bigint primary key, email text, name text not null default 'nobody', amount numeric(12,2),
  free numeric, at timestamptz, day date, flag bool, raw bytea, tags text[], note jsonb);
create table composite(tenant int, code text, email text, primary key (tenant, code));
create table numkeys(id numeric(20,2) primary key, email text);
create table uuids(id uuid primary key, email text);
create table times(id timestamptz primary key, email text);
insert into customers values (1, 'one@x.test', 'One', 12.50, 0.001, '2026-01-02 03:04:05.678901+00', '2026-01-02', true,
  '\\x00ff10', '{a,b}', '{"a": [1, null]}');
"""
STATEMENTS = (
    "insert into customers (id, email) values (2, null), (9007199254740993, 'big@x.test')",
    "insert into composite values (1, 'A', 'a@x.test'), (-2147483648, 'ünï-日本-😀', 'b@x.test')",
    "insert into numkeys values (1.00, 'a'), (123456789012345678.90, 'b'), (-0.01, 'c')",
    "insert into uuids values ('6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001', 'u')",
    "insert into times values ('2026-01-02 03:04:05.678901+00', 't'), ('1969-12-31 23:59:59.999999+00', 'u')",
    "update customers set name = 'Eins' where id = 1",
    "update customers set id = 20 where id = 2",
    "update composite set code = 'B' where code = 'A'",
    "update numkeys set id = 2.50 where id = 1",
    "delete from customers where id in (1, 9007199254740993)",
    "delete from composite",
    "delete from numkeys",
    "delete from uuids",
    "delete from times",
    "truncate customers",
    "insert into customers (id, email) values (1, 'again@x.test')",
)
_PACKAGE = "io.apicurio.registry.utils.converter"


class ConvertingConnect(ConnectServer):
    """Kafka Connect with the registry's converters."""

    def _provide(self) -> None:
        super()._provide()
        CONVERTERS.resolve()

    def _configuration(self, plugins: Path) -> dict[str, str]:
        (plugins / "converters").symlink_to(CONVERTERS.directory, target_is_directory=True)
        # The converters have no manifest by which they would be found.
        return super()._configuration(plugins) | {"plugin.discovery": "hybrid_warn"}


def through(converter: str, registry: RegistryServer) -> dict[str, str]:
    """What a connector needs for a converter of Apicurio that writes as Confluent's do."""
    options = {
        "": f"{_PACKAGE}.{converter}",
        ".apicurio.registry.url": registry.native_url,
        ".apicurio.registry.auto-register": "true",
        ".apicurio.registry.find-latest": "true",
        ".apicurio.registry.as-confluent": "true",
        ".apicurio.registry.use-id": "contentId",
        ".apicurio.registry.headers.enabled": "false",
    }
    return {f"{part}.converter{name}": value for part in ("key", "value") for name, value in options.items()}


AS_JSON = {
    f"{part}.converter{name}": value
    for part in ("key", "value")
    for name, value in (("", "org.apache.kafka.connect.json.JsonConverter"), (".schemas.enable", "true"))
}
FLAT = {
    "transforms": "flat",
    "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.flat.delete.tombstone.handling.mode": "rewrite",
    "transforms.flat.add.fields": "op,lsn,source.ts_ms",
}
BOTH = {
    "skipped.operations": "none",
    "schema.name.adjustment.mode": "avro",
    "field.name.adjustment.mode": "avro",
}


async def records_of(kafka: KafkaServer, topics: list[str]) -> list[dict[str, Any]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    found: list[dict[str, Any]] = []
    try:
        for topic in topics:
            at = TopicPartition(topic, 0)
            consumer.assign([at])
            [end] = (await consumer.end_offsets([at])).values()
            while await consumer.position(at) < end:
                for each in (await consumer.getmany(at, timeout_ms=1000)).get(at, ()):
                    found.append(
                        {
                            "topic": topic,
                            "partition": 0,
                            "offset": each.offset,
                            "timestamp_ms": each.timestamp,
                            "key_b64": _text(each.key),
                            "value_b64": _text(each.value),
                            "headers": [[name, _text(value)] for name, value in each.headers],
                            "note": "",
                        }
                    )
    finally:
        await consumer.stop()
    return found


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else b64encode(raw).decode()


async def schemas_of(registry: RegistryServer, records: list[dict[str, Any]]) -> dict[str, Any]:
    parts = [b64decode(each[part]) for each in records for part in ("key_b64", "value_b64") if each[part] is not None]
    refs: set[SchemaRef] = {at[0] for part in parts if (at := located(part, None)) is not None}
    client = RegistryClient(registry.url)
    try:
        return {str(ref): (await client.schema(ref))._asdict() for ref in sorted(refs, key=str)}
    finally:
        await client.close()


def settled(kafka: KafkaServer, topics: list[str]) -> list[dict[str, Any]]:
    """The records of these topics, once no more of them come."""
    found: list[dict[str, Any]] = []
    while True:
        before, found = found, asyncio.run(records_of(kafka, topics))
        if found and len(found) == len(before):
            return found
        time.sleep(3)


def main() -> None:
    with (
        KafkaServer() as kafka,
        PostgresServer() as postgres,
        RegistryServer() as registry,
        ConvertingConnect(kafka.bootstrap_servers) as connect,
    ):
        url = postgres.create_database("shop")
        query(url, SETUP, {})
        avro = through("AvroConverter", registry)
        kinds = {"avro": avro, "json": AS_JSON, "avro_flat": avro | FLAT, "json_flat": AS_JSON | FLAT}
        tables = [f"public.{table}" for table in TABLES]
        for name, more in kinds.items():
            connect.create_connector(name, debezium_postgres_config(url, name=name, tables=tables, **BOTH, **more))
            settled(kafka, [f"{name}.public.customers"])  # its snapshot
        for statement in STATEMENTS:
            query(url, statement, {})
        TARGET.mkdir(exist_ok=True)
        for name in kinds:
            found = settled(kafka, [f"{name}.{table}" for table in tables])
            lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in found]
            (TARGET / f"{name}.jsonl").write_text("".join(lines))
            if schemas := asyncio.run(schemas_of(registry, found)):
                (TARGET / f"{name}.schemas.json").write_text(json.dumps(schemas, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
