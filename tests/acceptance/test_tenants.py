"""One lane over five hundred databases, of which three are away for a while."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from integrity.demo.servers import KafkaServer, PostgresServer
from integrity.errors import UnreachableError
from integrity.kafka.consumer import GroupProgress
from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from tests.acceptance.world import Process
from tests.conftest import CreateTopic

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]

TENANTS = 500
TOPICS = 20
BUSY = 10
"""Every tenth tenant has ten events in each wave; another has one, in one of the waves."""
WAVES = 4
CUSTOMERS = WAVES * BUSY
CONNECTIONS = 8
AWAY = ("t003", "t007", "t330")  # two that have an event in the last wave, and a busy one
MEMORY_MB_MAX = 250
ROOM_BYTES = 6 << 30

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
"""

TEMPLATE = f"""
    create table orders(id bigint primary key, customer_id bigint);
    create index on orders(customer_id);
    insert into orders select n, n from generate_series(1, {CUSTOMERS}) n;
    create table effects(customer_id bigint, at timestamptz default clock_timestamp());
    create function note_effect() returns trigger language plpgsql as $$ begin
        insert into effects(customer_id) values (old.customer_id); return null; end $$;
    create trigger note_effect after delete on orders for each row execute function note_effect();
"""


def tenant(number: int) -> str:
    return f"t{number:03}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresServer]:
    """A server of its own: five hundred databases are 150,000 files, which a disk takes minutes to make and remove."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES:
        monkeypatch.setattr(tempfile, "tempdir", str(memory))
    with PostgresServer(durable=False) as started:
        monkeypatch.undo()
        yield started


class Shop:
    progress: GroupProgress

    def __init__(self, server: PostgresServer, admin: asyncpg.Connection, producer: AIOKafkaProducer) -> None:
        self.server, self.admin, self.producer = server, admin, producer
        self.topics: list[str] = []
        self.owed: dict[str, set[int]] = defaultdict(set)
        """The customers that were deleted, by tenant."""
        self.connections: list[int] = []
        self._lsn = 0

    async def wave(self, number: int) -> float:
        """Ten customers of each busy tenant are deleted, and one of some others; when it began."""
        began = time.time()
        for at in [at for at in range(TENANTS) if at % BUSY == 0 or at % WAVES == number]:
            name = tenant(at)
            for key in [number * BUSY + each for each in range(1, 1 + (BUSY if at % BUSY == 0 else 1))]:
                self.owed[name].add(key)
                self._lsn += 1
                source = {"connector": "postgresql", "lsn": self._lsn}
                value = {"before": None, "after": None, "source": source, "op": "d"}
                await self.producer.send(
                    self.topics[int(name[1:]) % TOPICS],
                    json.dumps(value).encode(),
                    key=json.dumps({"id": key}).encode(),
                    headers=[("tenant", name.encode())],
                )
        await self.producer.flush()
        return began

    async def effects(self, names: Iterable[str]) -> dict[str, dict[int, list[float]]]:
        """By tenant and customer: when its orders went."""
        found: dict[str, dict[int, list[float]]] = {}
        turns = asyncio.Semaphore(4)

        async def look(name: str) -> None:
            async with turns:
                connection = await asyncpg.connect(self.server.url(name))
                rows = await connection.fetch("select customer_id, extract(epoch from at)::float8 from effects")
                await connection.close()
            of_tenant = found[name] = {}
            for key, at in rows:
                of_tenant.setdefault(key, []).append(at)

        await asyncio.gather(*(look(name) for name in names))
        return found

    async def enforced(self, process: Process) -> None:
        """Wait until the group has committed all that was produced."""
        async with asyncio.timeout(300):
            while True:
                assert process.running, process.log.read_text()[-4000:]
                with suppress(UnreachableError):  # a loaded broker
                    if await self.progress.caught_up(Deadline.after(1)):
                        return

    async def allow(self, names: tuple[str, ...], *, allowed: bool) -> None:
        for name in names:
            await self.admin.execute(f"alter database {name} allow_connections {allowed}")
            if not allowed:
                await self.admin.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name
                )

    async def watch_connections(self) -> None:
        while True:
            count = await self.admin.fetchval(
                "select count(*) from pg_stat_activity where application_name = 'integrity shop_db'"
            )
            self.connections.append(count)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def a_shop(server: PostgresServer, kafka: KafkaServer) -> AsyncIterator[Shop]:
    url = server.create_database("template_of_tenants")
    connection = await asyncpg.connect(url)
    await connection.execute(TEMPLATE)
    await connection.close()
    store = PostgresStore("shop_db", url, {}, lane="integrity.shop_db")
    await store.migrate(Deadline.after(30))
    await store.close()
    makers = [await asyncpg.connect(server.url()) for _ in range(4)]

    async def make(at: int, maker: asyncpg.Connection) -> None:
        for number in range(at, TENANTS, len(makers)):
            await maker.execute(f"create database {tenant(number)} template template_of_tenants strategy file_copy")

    await asyncio.gather(*(make(at, maker) for at, maker in enumerate(makers)))
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    try:
        yield Shop(server, makers[0], producer)
    finally:
        await producer.stop()
        for maker in makers:
            await maker.close()


async def test_three_of_five_hundred_databases_are_away_and_come_back(
    server: PostgresServer,
    kafka: KafkaServer,
    create_topic: CreateTopic,
    unique_name: Callable[[str], str],
    tmp_path: Path,
) -> None:
    """What those that are away cost the others is told by the median over tenants, wave against wave of one run. A wave
    is a burst, and where in it a tenant's turn comes is chance: the latency of one busy tenant was a quarter to nine
    tenths of its own in an earlier wave, and two thirds to four thirds where nothing differed. A tenant that others
    hold up for as long as they are away is seen all the same: its effects are looked for before they are back."""
    began = time.monotonic()
    async with a_shop(server, kafka) as shop:
        print(f"{TENANTS} databases in {time.monotonic() - began:.1f} s")
        shop.topics = [await create_topic(partitions=1) for _ in range(TOPICS)]
        name = unique_name("tenants")
        (tmp_path / "rules").mkdir()
        (tmp_path / "rules" / "customer.yaml").write_text(RULES.format(topics=", ".join(shop.topics)))
        process = Process(
            {
                "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "INTEGRITY_GROUP": name,
                "INTEGRITY_DLQ__TOPIC": f"{name}.dlq",
                "INTEGRITY_AUDIT__TOPIC": "",
                "INTEGRITY_STORES__SHOP_DB__URL": server.url("T").replace("/T", "/{tenant}"),
                "INTEGRITY_STORES__SHOP_DB__POOL_SIZE": str(CONNECTIONS),
                "INTEGRITY_STORES__SHOP_DB__TENANT_WAIT": "2s",
                "INTEGRITY_HTTP__PORT": "0",
                "INTEGRITY_LOG__FORMAT": "json",
            },
            tmp_path / "run.log",
        )
        shop.progress = GroupProgress(
            {"bootstrap_servers": kafka.bootstrap_servers}, group=f"{name}.shop_db", topics=shop.topics
        )
        watching = asyncio.create_task(shop.watch_connections())
        try:
            took: dict[bool, list[float]] = {False: [], True: []}
            for wave in range(WAVES):
                are_away = wave >= WAVES // 2
                if wave == WAVES // 2:
                    await shop.allow(AWAY, allowed=False)
                at = await shop.wave(wave)
                await shop.enforced(process)
                if wave:  # the first one waits for the group
                    told = [tenant(n) for n in range(wave, TENANTS, 2 * WAVES) if tenant(n) not in AWAY]
                    last = [max(found[wave * BUSY + 1]) for found in (await shop.effects(told)).values()]
                    took[are_away].append(statistics.median(last) - at)
            assert "the database of a tenant can't be used" in process.log.read_text()
            await shop.allow(AWAY, allowed=True)
            async with asyncio.timeout(180):
                while any(shop.owed[name] - found.keys() for name, found in (await shop.effects(AWAY)).items()):
                    assert process.running, process.log.read_text()[-4000:]
                    await asyncio.sleep(0.5)
            found = await shop.effects(map(tenant, range(TENANTS)))
            assert {name: set(of_tenant) for name, of_tenant in found.items()} == shop.owed
            assert all(len(times) == 1 for of_tenant in found.values() for times in of_tenant.values()), "once each"
            status = Path(f"/proc/{process._process.pid}/status").read_text()
        finally:
            watching.cancel()
            await shop.progress.close()
            process._process.terminate()
            code = await process.ended(60)
        alone, beside = statistics.mean(took[False]), statistics.mean(took[True])
        memory_mb = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
        print(f"median of a tenant's latency in a wave: {alone:.2f} s, {beside:.2f} s with three away")
        print(f"at most {memory_mb:.0f} MB and {max(shop.connections)} connections, {time.monotonic() - began:.0f} s")
        assert code == 0
        assert max(shop.connections) <= CONNECTIONS
        assert memory_mb < MEMORY_MB_MAX
        assert beside < 2 * alone
