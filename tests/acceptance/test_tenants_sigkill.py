"""Two processes over the databases of twenty tenants, killed at random moments, while two databases are away."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from integrity.core.change import Op
from integrity.demo.servers import KafkaServer, PostgresServer
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from tests.acceptance.doors import Door, doors, through_doors
from tests.acceptance.world import Process, integrity
from tests.conftest import CreateTopic
from tests.oracle.dependents import CUSTOMER
from tests.oracle.events import Record, Writer
from tests.property.histories import AT_MS, Command, Create, Delete, Move, Source, Statement, random_commands

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]

TENANTS = [str(number) for number in range(10, 30)]
AWAY = TENANTS[3], TENANTS[12]
PARTITIONS = 3
KEYS = 16
"""Keys of each tenant that are used from the beginning; some are taken into use on the way."""
KEYS_MAX = 10_000
KILLS = 4
SETTLES_S = 120
"""Only against hanging."""

RULES = """\
version: 1
parent: customer
events:
  topics: [{topics}]
  format: debezium
  tenant: {{header: tenant}}
  key: {{id: int64}}
dependents:
  - {{store: shop_db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade}}
  - {{store: shop_db, table: public.reviews, references: {{customer_id: id}}, on_delete: nullify}}
"""
TABLES = """
    create table orders(id bigint primary key, customer_id bigint);
    create table reviews(id bigint primary key, customer_id bigint);
    create index on orders(customer_id); create index on reviews(customer_id);
"""
NATIVE = """
    create table customers(tenant text, id bigint, primary key (tenant, id));
    create table orders(tenant text, id bigint, customer_id bigint, foreign key (tenant, customer_id)
        references customers on delete cascade on update cascade);
    create table reviews(tenant text, id bigint, customer_id bigint, foreign key (tenant, customer_id)
        references customers on delete set null (customer_id) on update cascade);
    create index on orders(tenant, customer_id); create index on reviews(tenant, customer_id);
"""
HAPPENED = """
    select coalesce(event, last) from integrity.keys where fate is not null
    union all select event from integrity.fates
"""
"""The events of all deletions and key changes that a ledger knows."""

Rows = dict[str, dict[int, int | None]]


class Act(NamedTuple):
    """`children` are rows (table, id, customer id) of parents that are new."""

    statements: list[Statement]
    children: list[tuple[str, int, int]]
    records: list[Record]


class Tenant:
    """The parents of one tenant, and what their connector writes. Other tenants have parents of the same keys."""

    def __init__(self, name: str, topic: str, seed: int) -> None:
        self.name, self.topic = name, topic
        self._rng = random.Random(f"{seed}/{name}")
        self._keys = list(range(KEYS))
        self._rows = iter(range(int(name) * 1_000_000, (int(name) + 1) * 1_000_000))
        self._source = Source(self._keys, {k for k in self._keys if self._rng.random() < 0.7}, self._partition_of)
        self._writer = Writer(CUSTOMER, [(key,) for key in range(KEYS_MAX)], schemas=False)
        self._told = Counter[int]()
        self.parents = sorted(self._source.alive)
        """Those that are there before."""

    def children(self, keys: Iterable[int]) -> list[tuple[str, int, int]]:
        """Rows for parents of these keys, with ids that no other row of any tenant has."""
        return [(table, next(self._rows), key) for key in keys for table in ("orders", "orders", "reviews")]

    def act(self) -> Act:
        """What happens next."""
        rng, source, fresh = self._rng, self._source, len(self._keys)
        done = len(source.statements)
        for command in self._commands(fresh):
            source.do(command)
        records = []
        for partition, events in source.partitions.items():
            for event in events[self._told[partition] :]:
                records += self._writer.records(event, partition, AT_MS + event.at, rng)
            self._told[partition] = len(events)
        statements = source.statements[done:]
        # No event of its key can be on its way: what refers to it is safe.
        is_new = any(each.op is Op.ALIVE and each.key == fresh for each in statements)
        return Act(statements, self.children([fresh] if is_new else []), records)

    def _commands(self, fresh: int) -> Iterator[Command]:
        """`fresh` is a key that nobody has used."""
        rng, alive = self._rng, self._source.alive
        self._keys.append(fresh)
        if rng.random() < 0.3:
            yield Create(fresh)
        elif self.name not in AWAY:
            self._keys.pop()
            yield from random_commands(
                rng, alive, self._keys, rng.randint(1, 4), partition_count=PARTITIONS, again=True
            )
        # What is parked comes back by itself unless its key was in use again: there no key is used twice.
        elif alive:
            key, tombstone = rng.choice(sorted(alive)), rng.random() < 0.9
            yield Move(key, fresh, tombstone) if rng.random() < 0.5 else Delete(key, tombstone)

    @staticmethod
    def _partition_of(key: int) -> int:
        return key % PARTITIONS


@dataclass
class Town:
    """All tenants: their databases, and beside them the one with native foreign keys."""

    directory: Path
    environment: Mapping[str, str]
    native: asyncpg.Connection
    ours: Mapping[str, asyncpg.Connection]
    producer: AIOKafkaProducer
    tenants: Sequence[Tenant]
    doors: Mapping[str, Door]
    whose: dict[str, str] = field(default_factory=dict)
    """Event -> its tenant."""
    processes: list[Process] = field(default_factory=list)
    _next: int = 0

    def start(self) -> Process:
        self._next += 1
        log = self.directory / f"run-{self._next}.log"
        process = Process(self.environment, log, module="tests.acceptance.hasty")
        self.processes.append(process)
        return process

    async def act(self, tenant: Tenant) -> None:
        statements, children, records = tenant.act()
        for statement in statements:
            await self.native.execute(sql_of(tenant.name, statement))
        await self.write(tenant.name, children)
        for partition, key, value, headers, _ in records:
            headers = [*headers, ("tenant", tenant.name.encode())]
            sent = await self.producer.send_and_wait(tenant.topic, value, key=key, partition=partition, headers=headers)
            self.whose[f"{sent.topic}/{sent.partition}/{sent.offset}"] = tenant.name

    async def write(self, tenant: str, children: Iterable[tuple[str, int, int]]) -> None:
        """Write children in the database of their tenant and in the native one."""
        for table, *row in children:
            await self.native.execute(f"insert into {table} values ($1, $2, $3)", tenant, *row)
            await self.ours[tenant].execute(f"insert into {table} values ($1, $2)", *row)

    async def assigned(self) -> None:
        """Wait until every process has been given partitions, or none since there were not enough."""
        async with asyncio.timeout(120):
            while any("partitions were assigned" not in process.log.read_text() for process in self.processes):
                self.check_running()
                await asyncio.sleep(0.1)

    async def differences(self) -> list[str]:
        """One line a row that native foreign keys leave otherwise, or that is in the database of another tenant."""
        found = []
        for tenant, connection in self.ours.items():
            for table in ("orders", "reviews"):
                ours = dict(await connection.fetch(f"select id, customer_id from {table}"))
                native = dict(await self.native.fetch(f"select id, customer_id from {table} where tenant = $1", tenant))
                found += [
                    f"{table} {id_} of tenant {tenant}: native {native.get(id_, 'gone')}, ours {ours.get(id_, 'gone')}"
                    for id_ in sorted(native.keys() | ours.keys())
                    if native.get(id_, "gone") != ours.get(id_, "gone")
                ]
        return found

    async def letters(self) -> list[dict[str, Any]]:
        """Every dead letter there was."""
        told = await integrity(self.environment, self.directory, "dlq", "list", "--all", "--max", "100000", "--json")
        return json.loads(told)["letters"]

    async def audited(self) -> list[dict[str, Any]]:
        """All that the audit tells."""
        topic = self.environment["INTEGRITY_AUDIT__TOPIC"]
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=self.environment["INTEGRITY_KAFKA__BOOTSTRAP_SERVERS"],
            auto_offset_reset="earliest",
        )
        found = []
        async with consumer:
            ends = await consumer.end_offsets(consumer.assignment())
            while any([await consumer.position(at) < end for at, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += [json.loads(record.value) for record in records]
        return found

    async def parked(self, tenant: str) -> None:
        """Wait until something is parked for a tenant."""
        async with asyncio.timeout(SETTLES_S):
            while all(letter["parked"] != tenant for letter in await self.letters()):
                self.check_running()

    async def settled(self) -> list[str]:
        """Wait until nothing differs; what still does when it takes too long."""
        different = ["not compared yet"]
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLES_S):
                while different := await self.differences():
                    self.check_running()
                    await asyncio.sleep(0.3)
        return different

    async def answered(self) -> list[dict[str, Any]]:
        """Wait until every dead letter has come back; all of them when it takes too long."""
        letters: list[dict[str, Any]] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLES_S):
                while any(letter["status"] != "resolved" for letter in letters) or not letters:
                    self.check_running()
                    letters = await self.letters()
        return letters

    def check_running(self) -> None:
        for process in self.processes:
            assert process.running, process.log.read_text()[-4000:]

    def logs(self) -> str:
        return "\n".join(f"--- {process.log.name}\n{process.log.read_text()[-4000:]}" for process in self.processes)


def sql_of(tenant: str, statement: Statement) -> str:
    of = f"where tenant = '{tenant}' and id = {statement.key}"
    match statement.op:
        case Op.DELETED:
            return f"delete from customers {of}"
        case Op.MOVED:
            return f"update customers set id = {statement.to} {of}"
        case _:
            return f"insert into customers values ('{tenant}', {statement.key})"


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
async def town(
    seed: int,
    postgres: PostgresServer,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    unique_name: Callable[[str], str],
    tmp_path: Path,
) -> AsyncIterator[Town]:
    name = unique_name("town")
    topics = [await create_topic(partitions=PARTITIONS) for _ in range(2)]
    tenants = [Tenant(tenant, topics[at % 2], seed) for at, tenant in enumerate(TENANTS)]
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "customer.yaml").write_text(RULES.format(topics=", ".join(topics)))
    template = postgres.create_database(name)
    async with AsyncExitStack() as stack:

        async def connected(url: str) -> asyncpg.Connection:
            connection = await asyncpg.connect(url)
            stack.push_async_callback(connection.close)
            return connection

        store = PostgresStore("shop_db", template, {}, lane=f"{name}.shop_db")
        await store.migrate(Deadline.after(30))
        await store.close()
        maker = await asyncpg.connect(template)
        await maker.execute(TABLES)
        await maker.close()
        server = await connected(postgres.url())
        native = await connected(postgres.create_database(f"{name}_native"))
        await native.execute(NATIVE)
        ours: dict[str, asyncpg.Connection] = {}
        for tenant in tenants:
            await server.execute(f"create database {name}_{tenant.name} template {name} strategy file_copy")
            ours[tenant.name] = await connected(postgres.url(f"{name}_{tenant.name}"))
            parents = [(tenant.name, key) for key in tenant.parents]
            await native.copy_records_to_table("customers", records=parents)
        producer = await stack.enter_async_context(AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers))
        environment = {
            "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "INTEGRITY_GROUP": name,
            "INTEGRITY_DLQ__TOPIC": f"{name}.dlq",
            "INTEGRITY_AUDIT__TOPIC": f"{name}.audit",
            "INTEGRITY_STORES__SHOP_DB__URL": through_doors(postgres.url(f"{name}_T")).replace("_T", "_{tenant}"),
            "INTEGRITY_STORES__SHOP_DB__TENANT_WAIT": "2s",
            "INTEGRITY_HTTP__PORT": "0",
            "INTEGRITY_LOG__FORMAT": "json",
            "PYTHONPATH": str(Path.cwd()),
        }
        ways = await stack.enter_async_context(doors(postgres.url(), TENANTS))
        town = Town(tmp_path, environment, native, ours, producer, tenants, ways)
        for tenant in tenants:
            await town.write(tenant.name, tenant.children(tenant.parents))
        try:
            yield town
        finally:
            for process in town.processes:
                if process.running:
                    process.kill()


async def test_sigkills_and_absent_databases_leave_what_native_foreign_keys_leave(town: Town, seed: int) -> None:
    rng, stop = random.Random(seed), asyncio.Event()

    async def traffic() -> None:
        while not stop.is_set():
            await town.act(rng.choice(town.tenants))
            await asyncio.sleep(rng.random() * 0.04)

    town.start()
    town.start()
    driving = asyncio.create_task(traffic())
    killer = random.Random(seed + 1)
    try:
        for kill in range(KILLS):
            await town.assigned()
            if kill < len(AWAY):
                await town.doors[AWAY[kill]].shut()
            if kill == KILLS - 2:
                await town.parked(AWAY[0])
                await town.doors[AWAY[0]].open()
            await asyncio.sleep(killer.random() * 3)
            for process in killer.sample(town.processes, killer.choice((1, 1, 2))):
                town.processes.remove(process)
                process.kill()
                town.start()
            town.check_running()
            assert not driving.done(), driving
        await town.parked(AWAY[1])
        await town.doors[AWAY[1]].open()
    finally:
        stop.set()
    await driving
    different = await town.settled()
    assert different == [], f"seed {seed}\n{town.logs()}"
    letters = await town.answered()
    assert Counter(letter["status"] for letter in letters) == {"resolved": len(letters)}, f"seed {seed}"
    assert {letter["parked"] for letter in letters} == set(AWAY), f"seed {seed}"
    assert [await process.stop() for process in town.processes] == [0, 0]
    assert await town.differences() == [], f"seed {seed}"
    for tenant, connection in town.ours.items():
        found = [event for (event,) in await connection.fetch(HAPPENED)]
        assert {town.whose[event] for event in found} == {tenant}, f"seed {seed}: events of another tenant"
        assert len(set(found)) == len(found), f"seed {seed}: an event that happened twice"
    applied = Counter((told["id"], told["dependent"]) for told in await town.audited() if told["outcome"] == "applied")
    assert applied and max(applied.values()) == 1, f"seed {seed}: {applied.most_common(3)}"
