"""`integrity scan` as a process, over a dependent table and its parents' table in one PostgreSQL.

    .venv/bin/python -m tests.bench.scan --rows 10000000

A tenth as many parents as rows, and an orphaned key in each ten thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import asyncpg

from integrity.cli.base import run_async
from integrity.demo.servers import KafkaServer, PostgresServer

ROWS_EACH = 10
ORPHANED_EACH = 10_000
ROWS_A_SECOND_MIN = 300_000
MEMORY_MB_MAX = 150

RULES = """\
version: 1
parent: customer
events:
  topic: bench-scan
  format: debezium
  key: {id: int64}
  source: {store: orders_db, table: public.customers}
dependents:
  - {store: orders_db, table: public.orders, references: {customer_id: id}, on_delete: cascade}
"""


class Scanned(NamedTuple):
    rows_a_second: float
    peak_mb: float
    cpu_s: float
    """Of the process, its start included."""

    @property
    def is_as_promised(self) -> bool:
        return self.rows_a_second >= ROWS_A_SECOND_MIN and self.peak_mb < MEMORY_MB_MAX

    @property
    def text(self) -> str:
        return f"{self.rows_a_second:>10,.0f} rows/s   CPU process {self.cpu_s:.1f} s   peak {self.peak_mb:.0f} MB"


async def scan(url: str, bootstrap: str, rows: int) -> Scanned:
    """As the scan itself tells it: from its first question to its last answer. The peak is that of the process."""
    parents = rows // ROWS_EACH
    connection = await asyncpg.connect(url)
    await connection.execute("drop table if exists orders, customers; drop schema if exists integrity cascade")
    await connection.execute("create table customers(id bigint primary key, name text)")
    await connection.execute(
        "create table orders(id bigint generated always as identity primary key, customer_id bigint, note text)"
    )
    # In the order in which customers order, which is none.
    await connection.execute(
        "insert into orders(customer_id, note)"
        " select 1 + (n * 7919) % $1::int8, 'n' from generate_series(1, $2::int8) n",
        parents,
        rows,
    )
    await connection.execute(
        "insert into customers select n, 'n' from generate_series(1, $1::int8) n where n % $2::int8 <> 0",
        parents,
        ORPHANED_EACH,
    )
    await connection.execute("create index on orders(customer_id)")
    await connection.execute("vacuum analyze orders, customers")
    await connection.close()
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "customer.yaml").write_text(RULES)
        environment = {n: value for n, value in os.environ.items() if not n.startswith(("INTEGRITY_", "OTEL_"))}
        environment |= {
            "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "INTEGRITY_RULES": directory,
            "INTEGRITY_STORES__ORDERS_DB__URL": url,
        }

        def run(*arguments: str) -> tuple[bytes, float, float]:
            process = subprocess.Popen(
                [sys.executable, "-m", "integrity", *arguments], env=environment, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            out = process.stdout.read()
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0  # it was waited for here
            return out, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime

        await asyncio.to_thread(run, "migrate")
        out, peak_mb, cpu_s = await asyncio.to_thread(run, "scan", "--grace", "0s", "--json")
    [found] = json.loads(out)["scans"]
    assert found["rows"] == rows
    assert found["orphans"]["keys"] == parents // ORPHANED_EACH
    return Scanned(rows / found["took_s"], peak_mb, cpu_s)


async def main(rows: int) -> int:
    with KafkaServer() as kafka, PostgresServer(durable=True) as postgres:
        scanned = await scan(postgres.create_database("bench"), kafka.bootstrap_servers, rows)
    print(f"scan of {rows:,} rows   {scanned.text}")
    print(f"(at least {ROWS_A_SECOND_MIN:,} rows/s, below {MEMORY_MB_MAX} MB, at 10,000,000 rows)")
    return 0 if scanned.is_as_promised else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    sys.exit(run_async(main(parser.parse_args().rows)))
