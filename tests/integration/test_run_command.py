"""`integrity run` and `integrity migrate` as processes, where something that they need is not there or not fit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integrity.demo.servers import KafkaServer
from tests.conftest import CreateTopic
from tests.integration.pg_shop import run as run_sql

PASSWORD = "hunter2-3c9f"
STOP_S = 25.0
"""From SIGTERM to the end of the process, also while something is waited for that does not answer (contract 4)."""

RULES = """\
version: 1
parent: customer
events:
  topic: {topic}
  format: debezium
  key: {{id: int64}}
dependents:
  - store: orders_db
    {target}
    references: {{customer_id: id}}
    on_delete: cascade
"""
TABLE = "table: public.orders"
ORDERS = "create table orders(id bigint primary key, customer_id bigint)"


class Installation:
    """A rule file and settings, in a directory of their own."""

    def __init__(self, directory: Path, bootstrap_servers: str, topic: str) -> None:
        self.directory, self.topic = directory, topic
        self.environment = {
            "INTEGRITY_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
            "INTEGRITY_GROUP": f"group-{topic}",
            "INTEGRITY_DLQ__TOPIC": f"{topic}.dlq",
            "INTEGRITY_AUDIT__TOPIC": f"{topic}.audit",
            "INTEGRITY_STORES__ORDERS_DB__TIMEOUT": "3s",
            "INTEGRITY_HTTP__PORT": "0",
            "INTEGRITY_LOG__FORMAT": "json",
        }
        self.processes: list[Process] = []

    def store(self, url: str, target: str = TABLE) -> None:
        self.environment["INTEGRITY_STORES__ORDERS_DB__URL"] = url
        rules = self.directory / "rules"
        rules.mkdir(exist_ok=True)
        (rules / "customer.yaml").write_text(RULES.format(topic=self.topic, target=target))

    def start(self, *arguments: str) -> Process:
        process = Process(self, *arguments)
        self.processes.append(process)
        return process


class Process:
    """One process; `text` is all that it has written so far."""

    def __init__(self, installation: Installation, *arguments: str) -> None:
        self._log = installation.directory / f"{len(installation.processes)}.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "integrity", *arguments],
                env={**os.environ, **installation.environment},
                cwd=installation.directory,
                stdout=output,
                stderr=output,
            )

    @property
    def text(self) -> str:
        return self._log.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log, without one that is still being written."""
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith("\n")]

    def said(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"] == message]

    async def until_said(self, message: str, times: int = 1) -> dict[str, Any]:
        async with asyncio.timeout(40):
            while len(self.said(message)) < times:
                assert self._process.poll() is None, self.text
                await asyncio.sleep(0.02)
        return self.said(message)[0]

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def ended(self) -> int:
        return await asyncio.to_thread(self._process.wait, 40)

    async def stopped(self) -> int:
        """SIGTERM; the exit code, which must come in time."""
        assert self.running, self.text
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code = await self.ended()
        assert time.monotonic() - began < STOP_S, self.text
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        if self.running:
            self._process.kill()
            self._process.wait()


@pytest.fixture
async def installation(tmp_path: Path, kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Installation]:
    """One whose Kafka is there, with the topic of its rule."""
    made = Installation(tmp_path, kafka.bootstrap_servers, await create_topic())
    yield made
    for process in made.processes:
        process.kill()
    assert not [process.text for process in made.processes if PASSWORD in process.text]


class Port:
    """A port of this machine on which nothing answers, until `listen`. Then connections are made and never served."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def listen(self) -> None:
        self._socket.listen()
        self._socket.setblocking(False)

    async def connected(self) -> None:
        """Returns once somebody has connected."""
        accepting = asyncio.get_running_loop().sock_accept(self._socket)
        self._connection, _ = await asyncio.wait_for(accepting, 40)

    def close(self) -> None:
        self._socket.close()
        if self._connection is not None:
            self._connection.close()


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


DEAD: dict[str, tuple[str, str]] = {
    "postgresql": (f"postgresql://shop:{PASSWORD}@{{address}}/shop", TABLE),
    "mongodb": (f"mongodb://shop:{PASSWORD}@{{address}}/shop", "collection: orders"),
}


# --- what does not answer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DEAD)
async def test_dead_store_is_one_sentence_and_is_tried_again_until_the_stop(
    installation: Installation, port: Port, kind: str
) -> None:
    url, target = DEAD[kind]
    installation.store(url.format(address=port.address), target)
    process = installation.start("run")
    told = await process.until_said("a store does not answer; its lane waits for it, the others run")
    assert (told["level"], told["store"]) == ("WARNING", "orders_db")
    assert port.address in told["error"]
    assert len(told["error"]) < 200
    at = (await process.until_said("enforcing"))["http"]
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://{at}/readyz")
        assert (answer.status_code, list(answer.json()["lanes"])) == (503, ["orders_db"])
        assert PASSWORD not in answer.text
    port.listen()
    await port.connected()
    assert await process.stopped() == 0
    assert len([line for line in process.lines if line["level"] in ("WARNING", "ERROR")]) == 1
    assert process.lines[-1]["message"] == "stopped"


@pytest.mark.parametrize("kind", DEAD)
async def test_stop_ends_the_wait_for_a_store_that_hangs_at_the_start(
    installation: Installation, port: Port, kind: str
) -> None:
    url, target = DEAD[kind]
    installation.store(url.format(address=port.address), target)
    port.listen()
    process = installation.start("run")
    await port.connected()
    assert await process.stopped() == 0
    assert [line["message"] for line in process.lines] == [
        "stopping: the open batch is finished or rolled back",
        "stopped",
    ]


async def test_dead_kafka_is_one_sentence_and_is_tried_again_until_the_stop(
    installation: Installation, port: Port, pg_database: str
) -> None:
    await run_sql(pg_database, ORDERS, "create index on orders(customer_id)")
    installation.store(pg_database)
    assert await installation.start("migrate").ended() == 0
    installation.environment["INTEGRITY_KAFKA__BOOTSTRAP_SERVERS"] = port.address
    process = installation.start("run")
    told = await process.until_said("Kafka can't be reached")
    assert (told["level"], told["store"]) == ("WARNING", "orders_db")
    assert told["error"].startswith("Kafka does not answer")
    await process.until_said("Kafka can't be reached", times=3)
    assert await process.stopped() == 0
    assert len(process.lines) < 20


async def test_stop_ends_the_wait_for_a_kafka_that_hangs_at_the_start(
    installation: Installation, port: Port, pg_database: str
) -> None:
    installation.store(pg_database)
    installation.environment["INTEGRITY_KAFKA__BOOTSTRAP_SERVERS"] = port.address
    port.listen()
    process = installation.start("run")
    await port.connected()
    assert await process.stopped() == 0
    assert not process.said("enforcing")


@pytest.mark.parametrize("kind", DEAD)
async def test_migrate_ends_with_one_sentence_when_the_server_is_dead(
    installation: Installation, port: Port, kind: str
) -> None:
    url, target = DEAD[kind]
    installation.store(url.format(address=port.address), target)
    process = installation.start("migrate")
    assert await process.ended() == 3
    (line,) = process.text.splitlines()
    assert port.address in line


# --- what is not fit -------------------------------------------------------------------------------------------


async def test_missing_ledger_ends_the_start_and_names_the_command(
    installation: Installation, pg_database: str
) -> None:
    await run_sql(pg_database, ORDERS, "create index on orders(customer_id)")
    installation.store(pg_database)
    process = installation.start("run")
    assert await process.ended() == 2
    (line,) = process.text.splitlines()
    assert "ledger" in line
    assert "integrity migrate" in line


async def test_missing_source_topic_ends_the_start_at_its_place(
    installation: Installation, topic_name: str, pg_database: str
) -> None:
    installation.topic = topic_name
    installation.store(pg_database)
    process = installation.start("run")
    assert await process.ended() == 2
    assert process.text.startswith(f"rules/customer.yaml:1:1: topic '{topic_name}' does not exist [missing_topic]\n")
    assert process.text.endswith("1 fault to mend. Nothing has started.\n")


async def test_missing_index_ends_the_start_with_the_statement_that_makes_it(
    installation: Installation, pg_database: str
) -> None:
    await run_sql(pg_database, ORDERS)
    installation.store(pg_database)
    assert await installation.start("migrate").ended() == 0
    process = installation.start("run")
    assert await process.ended() == 2
    assert process.text.startswith("rules/customer.yaml:8:5: ")
    (statement,) = [line.strip() for line in process.text.splitlines() if "CREATE INDEX" in line]
    await run_sql(pg_database, statement)
    mended = installation.start("run", "--exit-at-end")
    assert await mended.ended() == 0, mended.text
    assert mended.said("enforcing")
