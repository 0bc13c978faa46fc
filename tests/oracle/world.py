"""The oracle's world: a database with native foreign keys; the parents' topics; and sides: each a set of stores without
foreign keys, with processes of `integrity run` that enforce the topics on them. All sides see the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from pymongo import AsyncMongoClient, DeleteOne, ReplaceOne

from integrity.core.keys import canonical
from integrity.core.rules.graph import derived_topic
from integrity.kafka.derived import PARTITIONS as DERIVED_PARTITIONS
from tests.oracle.dependents import (
    EVENTS_BETWEEN,
    LEVELS,
    PARENTS,
    STORES,
    TARGETS,
    Parent,
    Row,
    Store,
    Target,
    comparable,
    copy_table,
    dependent_name,
    document,
    key_names,
    native_columns,
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

CARD_PARTITIONS: Final = 2
CAUGHT_UP_TIMEOUT_S: Final = 600
SMALL: Final = ((200, 1), (1_000, 2))
LARGE: Final = ((500, 1), (1_000, 1))
"""Batch size and pool size of each process of a side."""
HOPS: Final = 4
"""How often what follows in one store is told to another, at most."""
AGAIN_MAX: Final = 20
"""So many of the last derived events of a partition are published again at times."""

Rows = dict[Target, dict[int, Row]]
Connection = asyncpg.pool.PoolConnectionProxy
Restricted = dict[tuple[str, bytes, int], Any]
"""(dependent, hash of the key, time of the event in milliseconds) -> rows that referred to the key."""


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
    main: asyncpg.Pool
    docs: AsyncMongoClient[dict[str, Any]]
    producer: AIOKafkaProducer
    cards: AIOKafkaConsumer
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _latest: dict[Target, dict[int, Row]] = field(default_factory=dict)
    _restricted: Restricted = field(default_factory=dict)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def targets(self) -> list[Target]:
        """Those in its stores whose parents are there too."""
        missing = {parent for parent in LEVELS if parent.store not in self.stores}
        return [target for target in TARGETS if target.store in self.stores and target.parents.isdisjoint(missing)]

    @property
    def told(self) -> dict[str, frozenset[Store]]:
        """Its topics of derived events, and the stores that read them."""
        return {
            derived_topic(parent.name(self.name)): told
            for parent, stores in EVENTS_BETWEEN.items()
            if parent.store in self.stores and (told := stores & set(self.stores))
        }

    @property
    def dependents(self) -> set[str]:
        """The ids of its dependents of parents with events."""
        return {
            f"{each.parent.entity}.{dependent_name(target, number)}"
            for target in self.targets
            for number, each in enumerate(target.references)
        }

    def topic(self, target: Target) -> str:
        return f"{self.name}.{target.name}"

    @property
    def cards_topics(self) -> list[str]:
        return [self.topic(target) for target in self.targets if target.store == "cards"]

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
        async with self.main.acquire() as main:
            await main.copy_records_to_table(
                target.name,
                records=[(w.id, *w.row) for w in writes if w.new and w.row],
                columns=["id", *target.columns],
            )
            sets = ", ".join(f"{column} = ${number}" for number, column in enumerate(target.columns, 2))
            changed = [(w.id, *w.row) for w in writes if not w.new and w.row]
            await main.executemany(f"update {target.name} set {sets} where id = $1", changed)
            deleted = [w.id for w in writes if w.row is None]
            await main.execute(f"delete from {target.name} where id = any($1)", deleted)

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
                    {"_id": {"$gte": ids.start, "$lt": ids.stop}}, batch_size=10_000
                )
                found[target] = {found["_id"]: row_of(target, found) async for found in cursor}
            else:
                latest = self._latest.get(target, {})
                found[target] = {id_: row for id_, row in latest.items() if id_ in ids}
        return found

    @property
    def copied(self) -> Sequence[Parent]:
        """The parents that it has copies of."""
        return PARENTS if self.without is None and "main" in self.stores else ()

    async def copy(self, parent: Parent) -> dict[tuple[Any, ...], str]:
        """The rows of a copy, by their keys: what else they hold."""
        rows = await self.main.fetch(f"select {parent.fields}, email from {copy_table(parent)}")
        return {tuple(row)[:-1]: row["email"] for row in rows}

    async def restricted(self, keys: Collection[bytes]) -> Restricted:
        """What the ledgers have of events on those keys (by hash) that were restricted: how many rows referred."""
        found = {at: rows for at, rows in self._restricted.items() if at[1] in keys}
        query = """
            select each.key, key_hash, occurred_ms, (each.value ->> 1)::int
            from (select key_hash, occurred_ms, rows from integrity.keys where key_hash = any($1)
                  union all select key_hash, occurred_ms, rows from integrity.fates where key_hash = any($1)) fates,
                json_each(rows) each
            where each.value ->> 0 = 'restrict' and each.value ->> 1 <> '0'
        """
        found |= {tuple(row[:3]): row[3] for row in await self.main.fetch(query, list(keys))}
        if "docs" in self.stores:
            fates = self.docs.get_default_database()["integrity.fates"]
            cursor = fates.find({"key_hash": {"$in": list(keys)}, "effects.outcome": "restricted"})
            async for fate in cursor:
                for effect in fate["effects"]:
                    if effect["outcome"] == "restricted":
                        at = (effect["dependent"], bytes(fate["key_hash"]), fate["occurred_ms"])
                        found[at] = effect["rows"]
        return found

    async def forget(self, ids: range) -> None:
        """Nobody asks for those rows any more."""
        async with self._reading:
            for target, latest in self._latest.items():
                self._latest[target] = {id_: row for id_, row in latest.items() if id_ not in ids}

    @property
    def ledger(self) -> TopicPartition:
        return TopicPartition(f"{self.name}.ledger.cards", 0)

    async def _read_cards(self) -> None:
        targets = {self.topic(target): target for target in self.targets if target.store == "cards"}
        partitions = [TopicPartition(topic, number) for topic in targets for number in range(CARD_PARTITIONS)]
        if not partitions:
            return
        async with self._reading:
            partitions.append(self.ledger)
            # Between the looks it fetches nothing.
            self.cards.resume(*partitions)
            ends = await self.cards.end_offsets(partitions)
            while any([await self.cards.position(p) < ends[p] for p in partitions]):
                for partition, records in (await self.cards.getmany(timeout_ms=100)).items():
                    if partition == self.ledger:
                        self._read_ledger(records)
                        continue
                    target = targets[partition.topic]
                    latest = self._latest.setdefault(target, {})
                    for record in records:
                        if record.value is None:
                            latest.pop(int(record.key), None)
                        else:
                            latest[int(record.key)] = row_of(target, json.loads(record.value))
            self.cards.pause(*partitions)

    def _read_ledger(self, records: Iterable[ConsumerRecord]) -> None:
        for record in records:
            if record.key.startswith(b"fate|") and b'"restrict"' in (record.value or b""):
                fate = json.loads(record.value)
                key = bytes.fromhex(record.key.split(b"|")[1].decode())
                for dependent, (action, rows) in fate["rows"].items():
                    if action == "restrict" and rows:
                        self._restricted[dependent, key, fate["occurred_ms"]] = rows

    # --- what one store tells another -----------------------------------------------------------------------------

    async def drained(self) -> None:
        """What waits in the outboxes now is published."""
        if any(parent.store == "main" for parent, stores in EVENTS_BETWEEN.items() if stores & set(self.stores)):
            rows = await self.main.fetch("select id from integrity.outbox")
            ids = [row[0] for row in rows]
            while ids and await self.main.fetchval(
                "select exists(select from integrity.outbox where id = any($1))", ids
            ):
                await asyncio.sleep(0.05)
        if "docs" in self.stores:
            outbox = self.docs.get_default_database()["integrity.outbox"]
            waiting = [each["_id"] async for each in outbox.find({}, {"_id": 1})]
            while waiting and await outbox.find_one({"_id": {"$in": waiting}}, {"_id": 1}) is not None:
                await asyncio.sleep(0.05)


@dataclass
class World:
    name: str
    bootstrap_servers: str
    native: asyncpg.Pool
    producer: AIOKafkaProducer
    reader: AIOKafkaConsumer
    admin: AIOKafkaAdminClient
    sides: list[Side]
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def topic(self, entity: str) -> str:
        return f"{self.name}.public.{entity}s"

    @property
    def told(self) -> list[TopicPartition]:
        """The partitions of all derived events."""
        return [
            TopicPartition(topic, number)
            for side in self.sides
            for topic in side.told
            for number in range(DERIVED_PARTITIONS)
        ]

    async def begin(self, parents: Mapping[Parent, Sequence[tuple[Any, ...]]]) -> None:
        """Write the parents that are there before."""
        async with self.native.acquire() as native:
            for parent, rows in parents.items():
                await native.copy_records_to_table(parent.table, records=rows)

    async def forget(self, ids: range) -> None:
        """Nobody asks for those rows any more."""
        for side in self.sides:
            await side.forget(ids)

    async def write(self, writes: Iterable[Write]) -> None:
        """Carry out children's writes on the native side and on all others."""
        by_target: dict[Target, list[Write]] = {}
        for write in writes:
            by_target.setdefault(write.target, []).append(write)
        async with self.native.acquire() as native:
            # From the top of the graph down.
            for target in filter(by_target.__contains__, TARGETS):
                await self._write_native(native, target, by_target[target])
        await asyncio.gather(*(side.write(by_target) for side in self.sides))

    async def _write_native(self, native: Connection, target: Target, writes: Sequence[Write]) -> None:
        """A changed row is a new one here, unless others depend on it: it may have to go to the other table of a rule
        with `where`."""
        if target.rows is not None:
            sets = ", ".join(f"{column} = ${number}" for number, column in enumerate(target.columns, 2))
            changed = [(w.id, *w.row) for w in writes if not w.new and w.row]
            await native.executemany(f"update {target.name} set {sets} where id = $1", changed)
            writes = [w for w in writes if w.new]
        records: dict[str, list[tuple[Any, ...]]] = {table: [] for table in native_tables(target)}
        gone = [w.id for w in writes if not w.new]
        for table in records if gone else ():
            await native.execute(f"delete from {table} where id = any($1)", gone)
        for write in writes:
            for table, record in () if write.row is None else native_records(target, write.id, write.row):
                records[table].append(record)
        for table, mine in records.items():
            if mine:
                await native.copy_records_to_table(table, records=mine, columns=native_columns(target, table))

    async def execute(self, sql: str) -> None:
        """Run statements on parents, each in its own transaction as they say."""
        async with self.native.acquire() as native:
            await native.execute(sql)

    async def native_parents(self, parent: Parent) -> set[tuple[Any, ...]]:
        """The keys of the parents that are there."""
        return {tuple(row) for row in await self.native.fetch(f"select {parent.fields} from {parent.table}")}

    async def native_rows(self, ids: range) -> Rows:
        found: Rows = {}
        for target in TARGETS:
            rows = await self.native.fetch(native_query(target), ids.start, ids.stop)
            found[target] = {row[0]: comparable(row[1:]) for row in rows}
        return found

    async def native_restricted(self, keys: Mapping[tuple[str, str], bytes]) -> Restricted:
        """What a restriction would have refused: rows that referred to the key, of these those that were at it when
        the round began. `keys` are entity and key in JSON, and the hash."""
        query = "select dependent, key::text, at, there, held from restricted where key = any($1::jsonb[])"
        rows = await self.native.fetch(query, list({text for _, text in keys}))
        return {
            (dependent, keys[dependent.partition(".")[0], canonical(tuple(json.loads(text)))], at): (there, held)
            for dependent, text, at, there, held in rows
        }

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
        wanted: dict[tuple[Side, str], Mapping[TopicPartition, int]] = {
            (side, store): ends for side in self.sides for store in side.stores
        }
        for side in self.sides:
            for parent in side.copied:
                mine = {at: end for at, end in ends.items() if at.topic == self.topic(parent.entity)}
                wanted[side, f"main.{parent.entity}.{copy_table(parent)}"] = mine
        await self._caught_up(wanted)

    async def settle(self, rng: random.Random) -> None:
        """Wait until what one store tells another is enforced there, and what follows of that. At times what was told
        last is told again."""
        partitions = self.told
        if not partitions:
            return
        if rng.random() < 0.7:
            await self._tell_again(partitions, rng)
        for _ in range(HOPS):
            for side in self.sides:
                await side.drained()
            ends = await self.reader.end_offsets(partitions)
            wanted: dict[tuple[Side, str], dict[TopicPartition, int]] = {}
            for side in self.sides:
                for topic, stores in side.told.items():
                    for store in stores:
                        mine = {p: end for p, end in ends.items() if p.topic == topic and end}
                        wanted.setdefault((side, store), {}).update(mine)
            await self._caught_up(wanted)

    async def _tell_again(self, partitions: Sequence[TopicPartition], rng: random.Random) -> None:
        """Publish the last records of each partition again, as a process does that died before it could note that they
        are out."""
        async with self._reading:
            for at, end in (await self.reader.end_offsets(partitions)).items():
                start = max(0, end - rng.randint(0, AGAIN_MAX))
                self.reader.seek(at, start)
                self.reader.resume(at)
                again: deque[ConsumerRecord] = deque()
                while await self.reader.position(at) < end:
                    again += (await self.reader.getmany(at, timeout_ms=100)).get(at, ())
                self.reader.pause(at)
                for record in again:
                    await self.producer.send(
                        at.topic, record.value, key=record.key, partition=at.partition, headers=record.headers
                    )
        await self.producer.flush()

    async def _caught_up(self, wanted: Mapping[tuple[Side, str], Mapping[TopicPartition, int]]) -> None:
        """Every group has committed its offsets: an offset is committed when its effects are durable."""
        groups = {(side, f"{side.name}.{store}"): list(ends.items()) for (side, store), ends in wanted.items() if ends}
        try:
            async with asyncio.timeout(CAUGHT_UP_TIMEOUT_S):
                while groups:
                    for (side, group), ends in list(groups.items()):
                        try:
                            committed = await self.admin.list_consumer_group_offsets(
                                group, partitions=[p for p, _ in ends]
                            )
                        except GroupCoordinatorNotAvailableError:  # until the broker has made its topic of offsets
                            committed = {}
                        if all(p in committed and committed[p].offset >= end for p, end in ends):
                            del groups[side, group]
                        elif any(process.poll() is not None for process in side.processes):
                            raise Stuck(f"{side.name}: a process has ended.\n{side.logs()}")
                    await asyncio.sleep(0.3)
        except TimeoutError:
            logs = "\n".join(side.logs() for side in {side for side, _ in groups})
            names = ", ".join(group for _, group in groups)
            raise Stuck(f"Not caught up after {CAUGHT_UP_TIMEOUT_S} s: {names}.\n{logs}") from None

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
    name: str,
    without: Mapping[str | None, Sequence[Store]] = MappingProxyType({None: STORES}),
    processes: Sequence[tuple[int, int]] = SMALL,
) -> AsyncIterator[World]:
    """A world with one side for each entry of `without`, its processes started: what is taken away from them, and the
    stores that they have."""
    async with AsyncExitStack() as stack:

        async def pool(url: str) -> asyncpg.Pool:
            return await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=8))

        async def consumer() -> AIOKafkaConsumer:
            return await stack.enter_async_context(
                AIOKafkaConsumer(
                    bootstrap_servers=bootstrap_servers, isolation_level="read_committed", auto_offset_reset="earliest"
                )
            )

        native = await pool(create_database(f"{name}_native"))
        await native.execute(native_database())
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5, max_batch_size=131_072)
        await stack.enter_async_context(producer)
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        stack.push_async_callback(admin.close)
        world = World(name, bootstrap_servers, native, producer, await consumer(), admin, [])
        for number, (fault, stores) in enumerate(without.items()):
            side = f"{name}_{number}"
            database = create_database(side)
            urls: dict[Store, str] = {"main": database, "docs": mongo_url(side), "cards": "kafka:"}
            docs: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(urls["docs"], tz_aware=True)
            stack.push_async_callback(docs.close)
            place = directory / side
            environment = _environment(side, place, bootstrap_servers, {store: urls[store] for store in stores})
            made = Side(side, stores, fault, place, environment, await pool(database), docs, producer, await consumer())
            world.sides.append(made)
            await asyncio.to_thread(_write_rules, world, made)
        await _create_topics(world)
        world.reader.assign(world.told)
        world.reader.pause(*world.told)
        for made in world.sides:
            await _prepare(made)
            for sizes in processes if made.without is None else processes[:1]:
                made.start(*sizes)
            stack.callback(_kill, made)
        yield world


def _kill(side: Side) -> None:
    for process in side.processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _write_rules(world: World, side: Side) -> None:
    directory = side.directory / "rules"
    directory.mkdir(parents=True)
    for parent in (*PARENTS, *LEVELS):
        topic = world.topic(parent.entity) if parent in PARENTS else None
        text = rules(parent, side.stores, topic, side.name, copies=parent in side.copied)
        if text is not None:
            (directory / f"{parent.entity}.yaml").write_text(text)


async def _create_topics(world: World) -> None:
    wanted = [NewTopic(world.topic(parent.entity), parent.partitions, 1) for parent in PARENTS]
    compacted = {"cleanup.policy": "compact"}
    for side in world.sides:
        wanted += [NewTopic(topic, DERIVED_PARTITIONS, 1) for topic in side.told]
        wanted += [NewTopic(topic, CARD_PARTITIONS, 1, topic_configs=compacted) for topic in side.cards_topics]
        if side.cards_topics:
            wanted.append(NewTopic(side.ledger.topic, 1, 1, topic_configs=compacted))
    answer = await world.admin.create_topics(wanted)
    # The client raises nothing for a topic that the broker refused.
    assert not any(error[1] for error in answer.topic_errors), answer.topic_errors
    async with asyncio.timeout(30):
        for topic in wanted:
            while not await _has_leaders(world.admin, topic):
                await asyncio.sleep(0.05)


async def _has_leaders(admin: AIOKafkaAdminClient, topic: NewTopic) -> bool:
    found = (await admin.describe_topics([topic.name]))[0]["partitions"]
    return len(found) == topic.num_partitions and all(partition["leader"] >= 0 for partition in found)


async def _prepare(side: Side) -> None:
    """Its tables and indexes, and what is read of its topics."""
    if "main" in side.stores:
        await side.main.execute(our_tables())
    for target in side.targets:
        if target.store == "docs":
            collection = side.docs.get_default_database()[target.name]
            for each in target.references:
                await collection.create_index([(path(target, column), 1) for column in each.columns])
            if target.rows is not None:
                await collection.create_index([(name, 1) for name in key_names(target.rows)])
    partitions = [TopicPartition(topic, number) for topic in side.cards_topics for number in range(CARD_PARTITIONS)]
    side.cards.assign([*partitions, side.ledger] if partitions else [])
    side.cards.pause(*side.cards.assignment())


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
