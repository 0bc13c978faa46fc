"""The oracle's world: a database with native foreign keys; the parents' topics; and sides: each a set of stores without
foreign keys, with processes of `integrity run` that enforce the topics on them. All sides see the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from pymongo import AsyncMongoClient, DeleteOne, ReplaceOne

from tests.oracle.dependents import (
    LEVELS,
    PARENTS,
    STORES,
    TARGETS,
    Row,
    Store,
    Target,
    comparable,
    document,
    native_database,
    native_query,
    native_records,
    native_tables,
    our_tables,
    path,
    row_of,
    rules,
)
from tests.oracle.events import Record
from tests.oracle.history import Write

CARD_PARTITIONS: Final = 3
CAUGHT_UP_TIMEOUT_S: Final = 300
PROCESSES: Final = ((200, 1), (1_000, 2))
"""Batch size and pool size of each process of a side: small batches and large ones, alone and side by side."""

Rows = dict[Target, dict[int, Row]]
CreateTopic = Callable[..., Awaitable[str]]


class Stuck(Exception):
    """The processes have ended, or do not get on."""


@dataclass(eq=False)
class Side:
    """Stores without foreign keys, and the processes that enforce. `without`: what is taken away from them."""

    name: str
    stores: Sequence[Store]
    without: str | None
    directory: Path
    environment: dict[str, str]
    main: asyncpg.Connection
    docs: AsyncMongoClient[dict[str, Any]]
    producer: AIOKafkaProducer
    cards: AIOKafkaConsumer
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _latest: dict[Target, dict[int, Row]] = field(default_factory=dict)

    @property
    def targets(self) -> list[Target]:
        return [target for target in TARGETS if target.store in self.stores]

    def topic(self, target: Target) -> str:
        return f"{self.name}.{target.name}"

    def start(self, batch_size: int, pool_size: int) -> None:
        sizes = {f"INTEGRITY_STORES__{store.upper()}__BATCH_SIZE": str(batch_size) for store in self.stores}
        sizes |= {f"INTEGRITY_STORES__{store.upper()}__POOL_SIZE": str(pool_size) for store in self.stores}
        more = {"ORACLE_WITHOUT": self.without} if self.without else {}
        with (self.directory / f"run-{len(self.processes)}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.oracle.process" if self.without else "integrity", "run", "--migrate"],
                    env={**os.environ, **self.environment, **sizes, **more, "PYTHONPATH": str(Path.cwd())},
                    stdout=log,
                    stderr=log,
                    cwd=self.directory,
                )
            )

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.directory.glob("run-*.log")))

    async def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            if code := await asyncio.to_thread(process.wait, 30):
                raise Stuck(f"{self.name}: a process ended with {code}.\n{self.logs()}")

    # --- children's writes and reads ------------------------------------------------------------------------------

    async def write(self, writes: Mapping[Target, Sequence[Write]]) -> None:
        for target in self.targets:
            if mine := writes.get(target):
                await {"main": self._write_table, "docs": self._write_collection, "cards": self._write_topic}[
                    target.store
                ](target, mine)
        await self.producer.flush()

    async def _write_table(self, target: Target, writes: Sequence[Write]) -> None:
        await self.main.copy_records_to_table(
            target.name,
            records=[(w.id, *w.row) for w in writes if w.new and w.row],
            columns=["id", *target.columns],
        )
        sets = ", ".join(f"{column} = ${number}" for number, column in enumerate(target.columns, 2))
        changed = [(w.id, *w.row) for w in writes if not w.new and w.row]
        await self.main.executemany(f"update {target.name} set {sets} where id = $1", changed)
        deleted = [w.id for w in writes if w.row is None]
        await self.main.execute(f"delete from {target.name} where id = any($1)", deleted)

    async def _write_collection(self, target: Target, writes: Sequence[Write]) -> None:
        await self.docs.get_default_database()[target.name].bulk_write(
            [
                DeleteOne({"_id": w.id})
                if w.row is None
                else ReplaceOne({"_id": w.id}, document(target, w.row), upsert=True)
                for w in writes
            ]
        )

    async def _write_topic(self, target: Target, writes: Sequence[Write]) -> None:
        for w in writes:
            value = None if w.row is None else json.dumps({"id": w.id, **document(target, w.row)}).encode()
            await self.producer.send(self.topic(target), value, key=b"%d" % w.id)

    async def rows(self, ids: range) -> Rows:
        """Every row of every dependent with those ids."""
        await self._read_cards()
        found: Rows = {}
        for target in self.targets:
            if target.store == "main":
                query = f"select id, {', '.join(target.columns)} from {target.name} where id >= $1 and id < $2"
                rows = await self.main.fetch(query, ids.start, ids.stop)
                found[target] = {row[0]: comparable(row[1:]) for row in rows}
            elif target.store == "docs":
                cursor = self.docs.get_default_database()[target.name].find(
                    {"_id": {"$gte": ids.start, "$lt": ids.stop}}
                )
                found[target] = {found["_id"]: row_of(target, found) async for found in cursor}
            else:
                latest = self._latest.get(target, {})
                found[target] = {id_: row for id_, row in latest.items() if id_ in ids}
        return found

    async def _read_cards(self) -> None:
        targets = {self.topic(target): target for target in self.targets if target.store == "cards"}
        partitions = [TopicPartition(topic, number) for topic in targets for number in range(CARD_PARTITIONS)]
        if not partitions:
            return
        ends = await self.cards.end_offsets(partitions)
        while any([await self.cards.position(p) < ends[p] for p in partitions]):
            for partition, records in (await self.cards.getmany(timeout_ms=100)).items():
                target = targets[partition.topic]
                latest = self._latest.setdefault(target, {})
                for record in records:
                    if record.value is None:
                        latest.pop(int(record.key), None)
                    else:
                        latest[int(record.key)] = row_of(target, json.loads(record.value))


@dataclass
class World:
    name: str
    bootstrap_servers: str
    native: asyncpg.Connection
    producer: AIOKafkaProducer
    admin: AIOKafkaAdminClient
    sides: list[Side]

    def topic(self, entity: str) -> str:
        return f"{self.name}.public.{entity}s"

    async def write(self, writes: Iterable[Write]) -> None:
        """Carry out children's writes on the native side and on all others."""
        by_target: dict[Target, list[Write]] = {}
        for write in writes:
            by_target.setdefault(write.target, []).append(write)
        # From the top of the graph down.
        for target in filter(by_target.__contains__, TARGETS):
            await self._write_native(target, by_target[target])
        await asyncio.gather(*(side.write(by_target) for side in self.sides))

    async def _write_native(self, target: Target, writes: Sequence[Write]) -> None:
        """A changed row is a new one here: it may have to go to the other table of a rule with `where`."""
        records: dict[str, list[tuple[Any, ...]]] = {table: [] for table in native_tables(target)}
        for table in records:
            await self.native.execute(f"delete from {table} where id = any($1)", [w.id for w in writes if not w.new])
        for write in writes:
            for table, record in () if write.row is None else native_records(target, write.id, write.row):
                records[table].append(record)
        for table, mine in records.items():
            await self.native.copy_records_to_table(table, records=mine)

    async def native_rows(self, ids: range) -> Rows:
        found: Rows = {}
        for target in TARGETS:
            rows = await self.native.fetch(native_query(target), ids.start, ids.stop)
            found[target] = {row[0]: comparable(row[1:]) for row in rows}
        return found

    async def publish(self, records: Iterable[tuple[str, Record]]) -> None:
        """Publish (entity, record) in that order, and wait until every side has enforced them all."""
        sent = []
        for entity, record in records:
            partition, key, value, headers, _ = record
            sent.append(
                await self.producer.send(self.topic(entity), value, key=key, partition=partition, headers=headers)
            )
        await self.producer.flush()
        ends: dict[TopicPartition, int] = {}
        for future in sent:
            at = future.result()
            ends[at.topic_partition] = max(ends.get(at.topic_partition, 0), at.offset + 1)
        await self._caught_up(ends)

    async def _caught_up(self, ends: Mapping[TopicPartition, int]) -> None:
        """Every group has committed these offsets: an offset is committed when its effects are durable."""
        groups = {f"{side.name}.{store}": side for side in self.sides for store in side.stores}
        try:
            async with asyncio.timeout(CAUGHT_UP_TIMEOUT_S):
                while groups:
                    for group, side in list(groups.items()):
                        try:
                            committed = await self.admin.list_consumer_group_offsets(group, partitions=list(ends))
                        except GroupCoordinatorNotAvailableError:  # until the broker has made its topic of offsets
                            committed = {}
                        if all(p in committed and committed[p].offset >= end for p, end in ends.items()):
                            del groups[group]
                        elif any(process.poll() is not None for process in side.processes):
                            raise Stuck(f"{side.name}: a process has ended.\n{side.logs()}")
                    await asyncio.sleep(0.2)
        except TimeoutError:
            logs = "\n".join(side.logs() for side in set(groups.values()))
            raise Stuck(f"Not caught up after {CAUGHT_UP_TIMEOUT_S} s: {', '.join(groups)}.\n{logs}") from None

    async def dead_letters(self) -> int:
        """How many records the dead-letter topics hold."""
        topics = [f"{side.name}.dlq" for side in self.sides]
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap_servers)
        await consumer.start()
        try:
            there = [topic for topic in topics if topic in await consumer.topics()]
            partitions = [TopicPartition(t, p) for t in there for p in consumer.partitions_for_topic(t) or ()]
            return sum((await consumer.end_offsets(partitions)).values()) if partitions else 0
        finally:
            await consumer.stop()


@asynccontextmanager
async def a_world(
    directory: Path,
    *,
    bootstrap_servers: str,
    create_database: Callable[[str], str],
    mongo_url: Callable[[str], str],
    create_topic: CreateTopic,
    name: str,
    without: Sequence[str | None] = (None,),
    stores: Sequence[Store] = STORES,
) -> AsyncIterator[World]:
    """A world with one side for each entry of `without`, its processes started."""
    async with AsyncExitStack() as stack:

        async def connection(url: str) -> asyncpg.Connection:
            found = await asyncpg.connect(url)
            stack.push_async_callback(found.close)
            return found

        native = await connection(create_database(f"{name}_native"))
        await native.execute(native_database())
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5, max_batch_size=131_072)
        await stack.enter_async_context(producer)
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        stack.push_async_callback(admin.close)
        world = World(name, bootstrap_servers, native, producer, admin, [])
        for parent in PARENTS:
            await create_topic(world.topic(parent.entity), partitions=parent.partitions)
        for number, fault in enumerate(without):
            side = f"{name}_{number}"
            database = create_database(side)
            main = await connection(database)
            await main.execute(our_tables())
            place = directory / side
            await asyncio.to_thread(_write_rules, place / "rules", world, side, stores)
            docs: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(mongo_url(side), tz_aware=True)
            stack.push_async_callback(docs.close)
            cards = AIOKafkaConsumer(
                bootstrap_servers=bootstrap_servers, isolation_level="read_committed", auto_offset_reset="earliest"
            )
            await stack.enter_async_context(cards)
            urls: dict[Store, str] = {"main": database, "docs": mongo_url(side), "cards": "kafka:"}
            environment = _environment(side, place, bootstrap_servers, {store: urls[store] for store in stores})
            made = Side(side, stores, fault, place, environment, main, docs, producer, cards)
            world.sides.append(made)
            await _prepare(made, create_topic)
            for sizes in PROCESSES if fault is None else PROCESSES[:1]:
                made.start(*sizes)
            stack.callback(_kill, made)
        yield world


def _kill(side: Side) -> None:
    for process in side.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _write_rules(directory: Path, world: World, prefix: str, stores: Sequence[Store]) -> None:
    directory.mkdir(parents=True)
    for parent in (*PARENTS, *LEVELS):
        text = rules(parent, stores, world.topic(parent.entity) if parent in PARENTS else None, prefix)
        (directory / f"{parent.entity}.yaml").write_text(text)


async def _prepare(side: Side, create_topic: CreateTopic) -> None:
    """Topics and indexes for its dependents."""
    partitions = []
    for target in side.targets:
        if target.store == "cards":
            topic = await create_topic(
                side.topic(target), partitions=CARD_PARTITIONS, config={"cleanup.policy": "compact"}
            )
            partitions += [TopicPartition(topic, number) for number in range(CARD_PARTITIONS)]
        elif target.store == "docs":
            columns = [(path(target, column), 1) for column in target.references[0].columns]
            await side.docs.get_default_database()[target.name].create_index(columns)
    side.cards.assign(partitions)


def _environment(name: str, place: Path, bootstrap_servers: str, urls: Mapping[Store, str]) -> dict[str, str]:
    return {
        "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "INTEGRITY_RULES": str(place / "rules"),
        "INTEGRITY_GROUP": name,
        **{f"INTEGRITY_STORES__{store.upper()}__URL": url for store, url in urls.items()},
        **({"INTEGRITY_STORES__CARDS__SCHEMA": name} if "cards" in urls else {}),
        "INTEGRITY_DLQ__TOPIC": f"{name}.dlq",
        "INTEGRITY_AUDIT__TOPIC": "",
        "INTEGRITY_HTTP__PORT": "0",
        "INTEGRITY_LOG__FORMAT": "json",
    }
