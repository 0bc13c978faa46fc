"""50,000 deletions of parents with 10 rows each, from Kafka to commit in one process, beside what it is measured by.

    make bench
    make bench ARGS="--parents 10000 --rows 300000"

It begins with how fast records are decoded (tests/bench/decode.py), and ends with a parent with millions of rows, and
parents with four levels of rows (tests/bench/giants.py).

Each way deletes the same rows in a fresh table of the same PostgreSQL, with fsync on. Ratios are what counts. The
process's memory is its peak resident size. CPU is told per event and part: on a machine that others use too it says
more than the rate. Ends with 1 when a ratio, a rate of decoding or the memory misses what is
promised.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from integrity.cli.base import run_async
from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record
from integrity.core.outcome import Applied
from integrity.core.rules.parse import parse_rules
from integrity.demo.servers import KafkaServer, PostgresServer
from integrity.demo.servers.process import Server
from integrity.ports import Deadline
from integrity.service.collector import WAITING_MAX
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import store_rules
from tests.bench.decode import report as report_decoding
from tests.bench.scan import ROWS_A_SECOND_MIN, scan
from tests.bench.spent import Spent

ROWS_EACH = 10
PARTITIONS = 4
BATCH = 2000
NAIVE_PARENTS = 3000
MEMORY_MB_MAX = 150
SHARE_MIN = 0.40
NAIVE_TIMES_MIN = 10.0

RULES = """\
version: 1
parent: customer
events: {{topic: {topic}, format: debezium, key: {{id: int64}}}}
dependents:
  - {{store: orders_db, table: public.orders, references: {{customer_id: id}}, on_delete: cascade}}
"""


def value_of(key: int, payload: str) -> bytes:
    """A deletion as Debezium's PostgreSQL connector writes it without schemas (see tests/golden/events/pg_env)."""
    before = {"id": key, "tenant": None, "email": None, "name": None, "status": None, "note": payload}
    return json.dumps(
        {
            "before": before,
            "after": None,
            "source": {
                "version": "3.7.0.Final",
                "connector": "postgresql",
                "name": "bench",
                "ts_ms": 1795470742997,
                "snapshot": "false",
                "db": "src",
                "sequence": f'["{key + 1000}","{key + 1000}"]',
                "ts_us": 1795470742997488,
                "ts_ns": 1795470742997488000,
                "schema": "public",
                "table": "customers",
                "txId": 841,
                "lsn": key + 1000,
                "xmin": None,
                "origin": None,
                "origin_lsn": None,
            },
            "transaction": None,
            "op": "d",
            "ts_ms": 1795470743000,
            "ts_us": 1795470743000861,
            "ts_ns": 1795470743000861789,
        },
        separators=(",", ":"),
    ).encode()


async def fill(url: str, parents: int) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("drop table if exists orders; drop schema if exists integrity cascade")
    await connection.execute(
        "create table orders(id bigint generated always as identity primary key, customer_id bigint, note text)"
    )
    await connection.execute(
        "insert into orders(customer_id, note) select p, 'n' "
        f"from generate_series(1, {parents}) p, generate_series(1, {ROWS_EACH})"
    )
    await connection.execute("create index on orders(customer_id)")
    await connection.execute("vacuum analyze orders")
    await connection.execute("checkpoint")
    await connection.close()


async def left(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("select count(*) from orders"))
    finally:
        await connection.close()


async def produce(bootstrap: str, topic: str, keys: Sequence[int], payload: str, *, tombstones: bool = True) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_batch_size=131072, linger_ms=5)
    await producer.start()
    for key in keys:
        name = b'{"id":%d}' % key
        await producer.send(topic, value_of(key, payload), key=name)
        if tombstones:
            await producer.send(topic, None, key=name)
    await producer.flush()
    await producer.stop()


async def from_memory(url: str, parents: int) -> tuple[float, float]:
    """Parents a second of the same batches without Kafka: through the store, and of its statements alone, recorded
    with their arguments and sent again."""
    rules = parse_rules({"customer.yaml": RULES.format(topic="memory")})
    decode = decoder_for(rules.parents[0])
    changes: list[ParentChange] = []
    for offset, key in enumerate(range(1, parents + 1)):
        change = decode(Record("memory", 0, offset, 1795470743000, b'{"id":%d}' % key, value_of(key, ""), ()))
        assert isinstance(change, ParentChange)
        changes.append(change)
    calls: list[Call] = []
    with recording(calls):
        through_store = await _through_store(url, changes)
    await fill(url, parents)
    store = PostgresStore("orders_db", url, store_rules(rules, "orders_db"), lane="memory")
    await store.migrate(Deadline.after(30))
    async with store._sessions.connection(Deadline.after(600)) as connection:
        began = time.perf_counter()
        for method, arguments, options in calls:
            await getattr(connection, method)(*arguments, **options)
        took = time.perf_counter() - began
    await store.close()
    assert await left(url) == 0
    return through_store, parents / took


async def _through_store(url: str, changes: Sequence[ParentChange]) -> float:
    await fill(url, len(changes))
    rules = parse_rules({"customer.yaml": RULES.format(topic="memory")})
    store = PostgresStore("orders_db", url, store_rules(rules, "orders_db"), lane="memory")
    await store.migrate(Deadline.after(30))
    assert not [f for f in await store.check(Deadline.after(30)) if f.severity == "error"]
    _recorded.clear()
    began = time.perf_counter()
    for start in range(0, len(changes), BATCH):
        part = tuple(changes[start : start + BATCH])
        span = Span(start, start + len(part))
        batch = Batch(part, {TopicPartition("memory", 0): span}, int(time.time() * 1000), "0" * 32)
        result = await store.apply(batch, Deadline.after(30))
        assert isinstance(result, Applied), result
    took = time.perf_counter() - began
    await store.close()
    assert await left(url) == 0
    return len(changes) / took


Call = tuple[str, tuple[object, ...], dict[str, object]]
_recorded: list[Call] = []


@contextmanager
def recording(calls: list[Call]) -> Iterator[None]:
    """Note every statement that any connection sends between `_recorded.clear()` and its close, with its arguments."""
    names = ("execute", "fetch", "fetchrow", "fetchval", "copy_records_to_table")
    real = {name: getattr(asyncpg.Connection, name) for name in names}

    def noting(name: str) -> Callable[..., Awaitable[object]]:
        async def call(self: asyncpg.Connection, query: str, *arguments: object, **options: object) -> object:
            _recorded.append((name, (query, *arguments), options))
            return await real[name](self, query, *arguments, **options)

        return call

    for name in names:
        setattr(asyncpg.Connection, name, noting(name))
    try:
        yield
    finally:
        for name, method in real.items():
            setattr(asyncpg.Connection, name, method)
        calls += [call for call in _recorded if "count(*) from orders" not in call[1][0]]


async def one_by_one(
    url: str, bootstrap: str, topic: str, parents: int, servers: Mapping[str, Server]
) -> tuple[float, str]:
    """What a hand-written consumer does: it reads what an event says, and deletes in a transaction of its own; how far
    it has come it commits to Kafka after each poll. The first of the parents; parents a second, and CPU."""
    count = min(NAIVE_PARENTS, parents)
    await fill(url, parents)
    await produce(bootstrap, topic, range(1, count + 1), "")
    connection = await asyncpg.connect(url)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=topic, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    done = 0
    began = 0.0
    spent, process_s = Spent(**servers), time.process_time()
    while done < count:
        for messages in (await consumer.getmany(timeout_ms=500, max_records=500)).values():
            began = began or time.perf_counter()
            for message in messages:
                if message.value is not None and json.loads(message.value)["op"] == "d":
                    key = json.loads(message.key)["id"]
                    await connection.execute("delete from orders where customer_id = $1", key)
                    done += 1
        if done:
            await consumer.commit()
    took = time.perf_counter() - began
    cpu = spent.each(count, time.process_time() - process_s)
    await consumer.stop()
    await connection.close()
    assert await left(url) == (parents - count) * ROWS_EACH
    return count / took, cpu


def whole_process(url: str, bootstrap: str, topic: str, directory: Path, *, audit: bool) -> dict[str, float]:
    """The real service in a process of its own, to the end of the topic: seconds from the first record read to the
    last commit, and its peak memory."""
    rules = directory / topic
    rules.mkdir()
    (rules / "customer.yaml").write_text(RULES.format(topic=topic))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("INTEGRITY_", "OTEL_"))}
    environment |= {
        "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
        "INTEGRITY_RULES": str(rules),
        "INTEGRITY_GROUP": topic,
        "INTEGRITY_STORES__ORDERS_DB__URL": url,
        "INTEGRITY_AUDIT__TOPIC": f"{topic}.audit" if audit else "",
        "INTEGRITY_HTTP__PORT": "0",
        "INTEGRITY_LOG__LEVEL": "WARNING",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.process"], env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    print(done.stderr, end="", file=sys.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


async def main(parents: int, scan_rows: int) -> int:
    with tempfile.TemporaryDirectory() as temporary, KafkaServer() as kafka, PostgresServer(durable=True) as postgres:
        directory = Path(temporary)
        url = postgres.create_database("bench")
        bootstrap = kafka.bootstrap_servers
        servers: Mapping[str, Server] = {"PostgreSQL": postgres, "Kafka": kafka}
        # All ways find warm servers: a broker that has just started compiles its code while it serves.
        few = min(parents, 4 * BATCH)
        await from_memory(url, few)
        await produce(bootstrap, "warm", range(1, few + 1), "")
        await fill(url, few)
        await asyncio.to_thread(whole_process, url, bootstrap, "warm", directory, audit=True)
        naive, cpu = await one_by_one(url, bootstrap, "naive-0", parents, servers)
        print(f"one event, one transaction       {naive:>10,.0f} parents/s   {cpu}")
        store, memory = await from_memory(url, parents)
        print(f"the same SQL from memory         {memory:>10,.0f} parents/s   through the store {store:,.0f}")
        rates: list[float] = []
        peaks: list[float] = []
        for number, audit in enumerate((True, True, False)):
            topic = f"bench-{number}"
            await produce(bootstrap, topic, range(1, parents + 1), "")
            await fill(url, parents)
            spent = Spent(**servers)
            figures = await asyncio.to_thread(whole_process, url, bootstrap, topic, directory, audit=audit)
            cpu = spent.each(parents, figures["cpu_seconds"])
            assert await left(url) == 0
            rate = parents / figures["seconds"]
            rates.append(rate)
            peaks.append(figures["peak_mb"])
            what = "Kafka to commit" + ("" if audit else ", audit off")
            print(f"{what:<32} {rate:>10,.0f} parents/s   {cpu}   peak {figures['peak_mb']:.0f} MB")
        store, again = await from_memory(url, parents)
        print(f"the same SQL from memory         {again:>10,.0f} parents/s   through the store {store:,.0f}")
        naive_again, cpu = await one_by_one(url, bootstrap, "naive-1", parents, servers)
        print(f"one event, one transaction       {naive_again:>10,.0f} parents/s   {cpu}")
        big = "x" * 50_000
        await produce(bootstrap, "backlog", range(1, 8_001), big, tombstones=False)
        await fill(url, 8_000)
        figures = await asyncio.to_thread(whole_process, url, bootstrap, "backlog", directory, audit=True)
        peaks.append(figures["peak_mb"])
        rate = 8_000 / figures["seconds"]
        print(f"a backlog of 8,000 x 50 kB       {rate:>10,.0f} parents/s   peak {figures['peak_mb']:.0f} MB")
        scanned = await scan(url, bootstrap, scan_rows)
        print(f"scan of {scan_rows:>10,} rows         {scanned.text}")
    share = sum(rates[:2]) / (memory + again)
    times = sum(rates[:2]) / (naive + naive_again)
    print(f"\nKafka to commit is {share:.0%} of the same SQL batches from memory (at least {SHARE_MIN:.0%}),")
    print(f"{times:.1f} x one event, one transaction (at least {NAIVE_TIMES_MIN:.0f} x);")
    print(f"peak memory {max(peaks):.0f} MB (below {MEMORY_MB_MAX} MB);")
    print(f"a scan {scanned.rows_a_second:,.0f} rows/s in {scanned.peak_mb:.0f} MB")
    print(f"(at least {ROWS_A_SECOND_MIN:,} rows/s in {MEMORY_MB_MAX} MB)")
    if not scanned.is_as_promised:
        return 1
    return 0 if share >= SHARE_MIN and times >= NAIVE_TIMES_MIN and max(peaks) < MEMORY_MB_MAX else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", type=int, default=50_000)
    parser.add_argument("--scan-rows", type=int, default=2_000_000)
    parser.add_argument("--rows", type=int, default=3_000_000, help="rows of the one parent with many")
    arguments = parser.parse_args()
    gc.freeze()
    gc.set_threshold(WAITING_MAX, 10, 10)  # as the service does
    is_fast = report_decoding()
    print(flush=True)
    missed = run_async(main(arguments.parents, arguments.scan_rows)) or not is_fast
    print(flush=True)
    sizes = ("--rows", str(arguments.rows), "--parents", str(arguments.parents))
    giants = subprocess.run([sys.executable, "-m", "tests.bench.giants", *sizes], check=False)
    sys.exit(missed or giants.returncode)
