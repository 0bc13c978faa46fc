"""A parent with millions of rows, and parents with four levels of rows, beside what PostgreSQL does by itself.

    python -m tests.bench.giants --rows 300000 --parents 5000

Part of `make bench`. Native is one DELETE statement of the same rows, and ON DELETE CASCADE from one statement; the
tables are filled anew each time, with fsync on, and both ways take turns. Ends with 1 when a ratio or the memory misses
what is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import asyncpg

from integrity.cli.base import run_async
from integrity.core.batch import Batch, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Version
from integrity.core.outcome import Applied, Retry, Unfinished
from integrity.core.rules.parse import parse_rules
from integrity.demo.servers import PostgresServer
from integrity.ports import Deadline
from integrity.service.collector import WAITING_MAX
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import store_rules
from tests.bench.spent import Spent

ROUNDS = 2
BATCH = 2000
SESSIONS = 2
"""As many as a lane has (POOL_SIZE)."""
GIANT_SHARE_MIN = 0.6
LEVELS_SHARE_MIN = 0.5
GROWTH_MB_MAX = 50
LEVELS = ("orders", "items", "parcels", "scans")
"""Each depends on the one before it, the first on the parents; two rows of each to a row above."""

GIANT_RULES = {
    "customer.yaml": """\
version: 1
parent: customer
events: {topic: customers, format: debezium, key: {id: int64}}
dependents:
  - {store: shop, table: public.orders, references: {customer_id: id}, on_delete: cascade}
"""
}


def level_rules() -> dict[str, str]:
    parents = ("customer", *(name[:-1] for name in LEVELS))
    found: dict[str, str] = {}
    for above, name in zip(parents, LEVELS, strict=False):
        events = "events: {topic: customers, format: debezium, key: {id: int64}}\n" if above == "customer" else ""
        own = "" if name == LEVELS[-1] else f", entity: {name[:-1]}, key: {{id: int64}}"
        found[f"{above}.yaml"] = (
            f"version: 1\nparent: {above}\n{events}dependents:\n"
            f"  - {{store: shop, table: public.{name}, references: {{{above}_id: id}}, on_delete: cascade{own}}}\n"
        )
    return found


async def fill_giant(connection: asyncpg.Connection, rows: int) -> None:
    """One row of ten is somebody else's."""
    await connection.execute("drop table if exists orders; drop schema if exists integrity cascade")
    await connection.execute(
        "create table orders(id bigint generated always as identity primary key, customer_id bigint, note text)"
    )
    await connection.execute(
        "insert into orders(customer_id, note) select case when n % 10 = 0 then n else 1 end, 'n'"
        f" from generate_series(1, {rows * 10 // 9}) n"
    )
    await connection.execute("create index on orders(customer_id)")
    await _settle(connection, ["orders"])


async def fill_levels(connection: asyncpg.Connection, parents: int, *, native: bool) -> None:
    names = ("customers", *LEVELS)
    await connection.execute(f"drop table if exists {', '.join(names)} cascade")
    await connection.execute("drop schema if exists integrity cascade")
    await connection.execute("create table customers(id bigint primary key)")
    await connection.execute(f"insert into customers select generate_series(1, {parents})")
    count = parents
    for above, name in zip(names, LEVELS, strict=False):
        column = f"{above[:-1]}_id"
        await connection.execute(f"create table {name}(id bigint primary key, {column} bigint, note text)")
        await connection.execute(
            f"insert into {name} select n, (n + 1) / 2, 'n' from generate_series(1, {2 * count}) n"
        )
        count *= 2
        await connection.execute(f"create index on {name}({column})")
        if native:
            await connection.execute(
                f"alter table {name} add foreign key ({column}) references {above} on delete cascade"
            )
    await _settle(connection, names)


async def _settle(connection: asyncpg.Connection, names: Sequence[str]) -> None:
    for name in names:
        await connection.execute(f"vacuum analyze {name}")
    await connection.execute("checkpoint")


def deletion(key: int, offset: int, partition: int = 0) -> ParentChange:
    origin = Origin("customers", partition, offset, 1_795_470_743_000)
    return ParentChange("customer", Op.DELETED, (key,), None, Version(0, (1000 + offset,)), origin, 1_795_470_743_000)


def batch_of(changes: Sequence[ParentChange]) -> Batch:
    span = Span(changes[0].origin.offset, changes[-1].origin.offset + 1)
    partition = TopicPartition("customers", changes[0].origin.partition)
    return Batch(tuple(changes), {partition: span}, int(time.time() * 1000), "0" * 32)


async def open_store(url: str, files: Mapping[str, str]) -> PostgresStore:
    store = PostgresStore("shop", url, store_rules(parse_rules(dict(files)), "shop"), lane="bench")
    await store.migrate(Deadline.after(30))
    assert not [f for f in await store.check(Deadline.after(30)) if f.severity == "error"]
    return store


class Measured:
    """Seconds by the clock, and of the processors: this process and the server, in one piece or in several."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.clock_s = self.cpu_s = 0.0

    @contextmanager
    def more(self) -> Iterator[None]:
        spent, process_s, began = Spent(PostgreSQL=self._server), time.process_time(), time.perf_counter()
        yield
        self.clock_s += time.perf_counter() - began
        self.cpu_s += time.process_time() - process_s + spent.seconds()

    def told(self, count: int, what: str) -> str:
        """Rate and processor time of so many."""
        return f"{count / self.clock_s:>10,.0f} {what}s/s   CPU {self.cpu_s / count * 1e6:.1f} µs a {what}"

    def share(self, ours: Measured) -> str:
        """How much of this rate another way has."""
        return f"{self.clock_s / ours.clock_s:.2f} x ({self.cpu_s / ours.cpu_s:.2f} x by processor time)"


async def giant_in_parts(url: str, rows: int, measured: Measured) -> tuple[int, float]:
    """The number of parts, and how long the longest of them took."""
    store = await open_store(url, GIANT_RULES)
    batch = batch_of([deletion(1, 0)])
    parts, longest_s = 0, 0.0
    with measured.more():
        while True:
            at = time.perf_counter()
            result = await store.apply(batch, Deadline.after(60))
            longest_s = max(longest_s, time.perf_counter() - at)
            parts += 1
            if isinstance(result, Applied):
                break
            assert isinstance(result, Unfinished), result
    assert [effect.rows for effect in result.effects] == [rows]
    await store.close()
    return parts, longest_s


async def levels_in_batches(url: str, parents: int, measured: Measured) -> None:
    """Each partition by itself, side by side, as the sessions of a lane do it."""
    store = await open_store(url, level_rules())
    partitions = [
        [deletion(key, offset, partition) for offset, key in enumerate(range(1 + partition, parents + 1, SESSIONS))]
        for partition in range(SESSIONS)
    ]

    async def session(changes: Sequence[ParentChange]) -> None:
        for start in range(0, len(changes), BATCH):
            result = await store.apply(batch_of(changes[start : start + BATCH]), Deadline.after(60))
            while isinstance(result, Retry):
                result = await store.apply(batch_of(changes[start : start + BATCH]), Deadline.after(60))
            assert isinstance(result, Applied), result

    with measured.more():
        await asyncio.gather(*(session(changes) for changes in partitions))
    await store.close()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main(rows: int, parents: int) -> int:
    with PostgresServer(durable=True) as postgres:
        url = postgres.create_database("giants")
        connection = await asyncpg.connect(url)
        await fill_giant(connection, 10_000)
        some = await connection.fetchval("select count(*) from orders where customer_id = 1")
        await giant_in_parts(url, some, Measured(postgres))
        before_mb = peak_mb()
        native, ours = Measured(postgres), Measured(postgres)
        for _ in range(ROUNDS):
            await fill_giant(connection, rows)
            rows = await connection.fetchval("select count(*) from orders where customer_id = 1")
            with native.more():
                await connection.execute("delete from orders where customer_id = 1")
            await fill_giant(connection, rows)
            parts, longest_s = await giant_in_parts(url, rows, ours)
            print(f"a parent with {rows:,} rows: {parts} parts, the longest {longest_s:.2f} s")
        growth_mb = peak_mb() - before_mb
        giant_share, giant = native.clock_s / ours.clock_s, native.share(ours)
        print(f"one DELETE statement             {native.told(ROUNDS * rows, 'row')}")
        print(f"in parts                         {ours.told(ROUNDS * rows, 'row')}   memory grew {growth_mb:.0f} MB")
        native, ours = Measured(postgres), Measured(postgres)
        for _ in range(ROUNDS):
            await fill_levels(connection, parents, native=True)
            with native.more():
                await connection.execute("delete from customers")
            await fill_levels(connection, parents, native=False)
            await levels_in_batches(url, parents, ours)
            left = await connection.fetchval(f"select count(*) from {LEVELS[-1]}")
            assert left == 0, left
        await connection.close()
    levels_share = native.clock_s / ours.clock_s
    print(f"ON DELETE CASCADE, four levels   {native.told(ROUNDS * parents, 'parent')}")
    print(f"four levels in batches of {BATCH:,}  {ours.told(ROUNDS * parents, 'parent')}")
    print(f"\nin parts is {giant} one DELETE statement (at least {GIANT_SHARE_MIN}),")
    print(f"memory grew {growth_mb:.0f} MB (below {GROWTH_MB_MAX} MB);")
    print(f"four levels are {native.share(ours)} ON DELETE CASCADE (at least {LEVELS_SHARE_MIN})")
    met = giant_share >= GIANT_SHARE_MIN and growth_mb < GROWTH_MB_MAX and levels_share >= LEVELS_SHARE_MIN
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3_000_000, help="rows of the one parent")
    parser.add_argument("--parents", type=int, default=50_000, help="parents with four levels")
    arguments = parser.parse_args()
    gc.freeze()
    gc.set_threshold(WAITING_MAX, 10, 10)  # as the service does
    sys.exit(run_async(main(arguments.rows, arguments.parents)))
