"""A whole installation: a source database with its connector, dependents in three kinds of stores, processes of
`integrity run`, and beside them one PostgreSQL database in which native foreign keys hold the same rows.

Every statement on parents runs in the source and in the native database; every row of a dependent is written to its
store and to the native database. In the end both sides must hold the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from pymongo import AsyncMongoClient

from integrity.demo.servers import ConnectServer, KafkaServer
from integrity.demo.servers.connect import debezium_postgres_config

RULES = """\
version: 1
parent: customer
events:
  topic: {topic}
  format: debezium
  key: {{id: int64}}
dependents:
  - {{store: orders_db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade}}
  - store: orders_db
    table: public.invoices
    references: {{customer_id: id}}
    on_delete: {{set_default: {{customer_id: 0}}}}
  - store: orders_db
    table: public.notes
    references: {{customer_id: id}}
    on_delete: {{tombstone: {{set: {{deleted_at: $event.time, deleted_by: customer deleted}}}}}}
  - {{store: reviews_db, collection: reviews, references: {{customerId: id}}, on_delete: nullify}}
  - {{store: carts, topic: {carts}, references: {{customer_id: id}}, on_delete: cascade}}
"""

DEPENDENTS = """
    create table orders(id bigint primary key, customer_id bigint {cascade});
    create table invoices(id bigint primary key, customer_id bigint default 0 {set_default});
    create table notes(id bigint primary key, customer_id bigint, deleted_at timestamptz, deleted_by text);
    create index on orders(customer_id); create index on invoices(customer_id); create index on notes(customer_id);
"""

NATIVE = """
    create table customers(id bigint primary key, email text);
    create table reviews(id bigint primary key, customer_id bigint
        references customers on delete set null on update cascade);
    create table carts(id bigint primary key, customer_id bigint
        references customers on delete cascade on update cascade);
    -- What a tombstone does natively: the reference follows the parent until the parent is gone.
    create function note_update() returns trigger language plpgsql as $$ begin
        update notes set customer_id = new.id where customer_id = old.id and deleted_at is null; return null; end $$;
    create function note_delete() returns trigger language plpgsql as $$ begin
        update notes set deleted_at = now(), deleted_by = 'customer deleted'
        where customer_id = old.id and deleted_at is null; return null; end $$;
    create trigger note_update after update of id on customers for each row execute function note_update();
    create trigger note_delete after delete on customers for each row execute function note_delete();
"""

EFFECTS = """
    create table effects(table_name text, row_id bigint, what text, at timestamptz default clock_timestamp());
    create function count_effect() returns trigger language plpgsql as $$ begin
        insert into effects(table_name, row_id, what) values (tg_table_name, old.id, tg_op); return null; end $$;
    create trigger count_delete after delete on orders for each row execute function count_effect();
    create trigger count_mark after update of deleted_at on notes for each row
        when (old.deleted_at is distinct from new.deleted_at) execute function count_effect();
"""


class Process:
    """One `integrity run`, with its output in a file."""

    def __init__(self, environment: Mapping[str, str], log: Path, *arguments: str, module: str = "integrity") -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, "--debug", "run", *arguments],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
                cwd=log.parent,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: as the machine's power would."""
        self._process.kill()
        self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self._process.wait, 30)

    async def ended(self, timeout_s: float) -> int:
        return await asyncio.to_thread(self._process.wait, timeout_s)


@dataclass
class World:
    directory: Path
    environment: dict[str, str]
    bootstrap_servers: str
    topic: str
    carts_topic: str
    dlq: str
    source: asyncpg.Connection
    native: asyncpg.Connection
    orders: asyncpg.Connection
    mongo: AsyncMongoClient[dict[str, Any]]
    producer: AIOKafkaProducer
    processes: list[Process] = field(default_factory=list)
    _next: int = 0

    def start(self, *arguments: str) -> Process:
        """Another process of the group."""
        self._next += 1
        process = Process(self.environment, self.directory / f"run-{self._next}.log", *arguments)
        self.processes.append(process)
        return process

    async def parents(self, statement: str) -> None:
        """Run a statement on customers in the source and in the native database."""
        await self.source.execute(statement)
        await self.native.execute(statement)

    async def another(self) -> asyncpg.Connection:
        """A second connection to the database of orders."""
        return await asyncpg.connect(self.environment["INTEGRITY_STORES__ORDERS_DB__URL"])

    async def children(self, name: str, rows: Sequence[tuple[int, int]]) -> None:
        """Write dependents (id, customer id) to their store and to the native database."""
        await self.native.executemany(f"insert into {name}(id, customer_id) values ($1, $2)", rows)
        if name == "reviews":
            await self.mongo.get_default_database()["reviews"].insert_many(
                [{"_id": i, "customerId": customer} for i, customer in rows]
            )
        elif name == "carts":
            for i, customer in rows:
                value = json.dumps({"id": i, "customer_id": customer}).encode()
                await self.producer.send(self.carts_topic, value, key=b"cart-%d" % i)
            await self.producer.flush()
        else:
            await self.orders.executemany(f"insert into {name}(id, customer_id) values ($1, $2)", rows)

    async def native_rows(self) -> dict[str, dict[int, object]]:
        return {
            "orders": await _table(self.native, "orders"),
            "invoices": await _table(self.native, "invoices"),
            "notes": await _table(self.native, "notes", "customer_id, deleted_at is not null, deleted_by"),
            "reviews": await _table(self.native, "reviews"),
            "carts": await _table(self.native, "carts"),
        }

    async def our_rows(self) -> dict[str, dict[int, object]]:
        reviews = self.mongo.get_default_database()["reviews"].find({})
        return {
            "orders": await _table(self.orders, "orders"),
            "invoices": await _table(self.orders, "invoices"),
            "notes": await _table(self.orders, "notes", "customer_id, deleted_at is not null, deleted_by"),
            "reviews": {doc["_id"]: (doc["customerId"],) async for doc in reviews},
            "carts": {
                row["id"]: (row["customer_id"],)
                for row in [json.loads(value) for _, value in await self.latest(self.carts_topic) if value is not None]
            },
        }

    async def differences(self) -> list[str]:
        """One line a row that native foreign keys leave otherwise."""
        expected, found = await self.native_rows(), await self.our_rows()
        return [
            f"{name} {i}: native {expected[name].get(i)}, ours {found[name].get(i)}"
            for name in expected
            for i in sorted(expected[name].keys() | found[name].keys())
            if expected[name].get(i) != found[name].get(i)
        ]

    async def settle(self, timeout_s: float = 90) -> list[str]:
        """Wait until nothing differs; what still differs when the time is up."""
        different: list[str] = ["not compared yet"]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while different := await self.differences():
                    self.check_running()
                    await asyncio.sleep(0.3)
        return different

    def check_running(self) -> None:
        for process in self.processes:
            assert process.running, process.log.read_text()[-4000:]

    def logs(self) -> str:
        """The end of what each process wrote."""
        return "\n".join(f"--- {process.log.name}\n{process.log.read_text()[-3000:]}" for process in self.processes)

    async def latest(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """The newest value of every key of a topic, committed transactions only."""
        newest: dict[bytes | None, bytes | None] = {}
        for key, value, _ in await self.read(topic):
            newest[key] = value
        return list(newest.items())

    async def read(self, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, str]]]:
        """Every record of a topic with its headers as text."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap_servers, isolation_level="read_committed", auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            if topic not in await consumer.topics():
                return []
            admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
            await admin.start()
            found = (await admin.describe_topics([topic]))[0]["partitions"]
            await admin.close()
            partitions = [TopicPartition(topic, p["partition"]) for p in found]
            assert partitions
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            records = []
            while [p for p in partitions if await consumer.position(p) < ends[p]]:
                for found in (await consumer.getmany(timeout_ms=200)).values():
                    records += [
                        (m.key, m.value, {k: (v or b"").decode("utf-8", "replace") for k, v in m.headers})
                        for m in found
                    ]
            return records
        finally:
            await consumer.stop()


async def _table(connection: asyncpg.Connection, name: str, columns: str = "customer_id") -> dict[int, object]:
    return {row[0]: tuple(row)[1:] for row in await connection.fetch(f"select id, {columns} from {name}")}


CreateTopic = Callable[..., Awaitable[str]]


@asynccontextmanager
async def a_world(
    directory: Path,
    *,
    kafka: KafkaServer,
    connect: ConnectServer,
    create_database: Callable[[str], str],
    mongo_url: str,
    create_topic: CreateTopic,
    name: str,
    parents: int,
) -> AsyncIterator[World]:
    """Everything but the processes: databases, connector, topics, rules, seed rows for that many parents."""
    source_url, native_url, orders_url = (create_database(f"{name}_{part}") for part in ("source", "native", "orders"))
    carts = await create_topic(f"{name}.carts", partitions=3, config={"cleanup.policy": "compact"})
    topic = await create_topic(f"{name}.public.customers", partitions=3)
    (directory / "rules").mkdir()
    (directory / "rules" / "customer.yaml").write_text(RULES.format(topic=topic, carts=carts))
    environment = {
        "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "INTEGRITY_RULES": str(directory / "rules"),
        "INTEGRITY_GROUP": name,
        "INTEGRITY_STORES__ORDERS_DB__URL": orders_url,
        "INTEGRITY_STORES__REVIEWS_DB__URL": mongo_url,
        "INTEGRITY_STORES__CARTS__URL": "kafka:",
        "INTEGRITY_STORES__CARTS__SCHEMA": name,
        "INTEGRITY_DLQ__TOPIC": f"{name}.dlq",
        "INTEGRITY_AUDIT__TOPIC": f"{name}.audit",
        "INTEGRITY_HTTP__PORT": "0",
        "INTEGRITY_LOG__FORMAT": "json",
    }
    mongo: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url)
    source, native, orders = [await asyncpg.connect(url) for url in (source_url, native_url, orders_url)]
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    world = World(
        directory,
        environment,
        kafka.bootstrap_servers,
        topic,
        carts,
        f"{name}.dlq",
        source,
        native,
        orders,
        mongo,
        producer,
    )
    try:
        await source.execute("create table customers(id bigint primary key, email text)")
        await native.execute(NATIVE.split(";", 1)[0])
        await native.execute(
            DEPENDENTS.format(
                cascade="references customers on delete cascade on update cascade",
                set_default="references customers on delete set default on update cascade",
            )
        )
        await native.execute(NATIVE.split(";", 1)[1])
        await orders.execute(DEPENDENTS.format(cascade="", set_default="") + EFFECTS)
        await mongo.get_default_database()["reviews"].create_index("customerId")
        await world.parents(f"insert into customers select g, 'e' || g from generate_series(0, {parents}) g")
        await asyncio.to_thread(
            connect.create_connector,
            name,
            debezium_postgres_config(
                source_url,
                name=name,
                tables=["public.customers"],
                **{
                    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
                    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
                    "key.converter.schemas.enable": "false",
                    "value.converter.schemas.enable": "false",
                    "skipped.operations": "none",  # by default truncates
                },
            ),
        )
        for number, table in enumerate(("orders", "invoices", "notes", "reviews", "carts")):
            await world.children(
                table, [(number * 1_000_000 + p * 10 + i, p) for p in range(1, parents + 1) for i in range(2)]
            )
        await integrity(environment, directory, "migrate")
        yield world
    finally:
        for process in world.processes:
            if process.running:
                process.kill()
        await asyncio.to_thread(connect.delete_connector, name)
        await producer.stop()
        await mongo.close()
        for connection in (source, native, orders):
            await connection.close()


async def integrity(environment: Mapping[str, str], directory: Path, *arguments: str) -> str:
    """What a command prints, that ends well."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "integrity", *arguments],
        env={**os.environ, **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
