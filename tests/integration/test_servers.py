"""The launchers keep their promise: a started server works, a stopped one leaves nothing, none outlives its starter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from integrity.demo.servers import (
    ConnectServer,
    KafkaServer,
    MongoServer,
    PostgresServer,
    Server,
    ServerUnavailable,
    debezium_postgres_config,
    jars,
)
from integrity.demo.servers import process as process_module
from tests.conftest import CreateTopic

pytestmark = pytest.mark.servers

MAKERS: list[Callable[[], Server]] = [KafkaServer, PostgresServer, MongoServer]


async def produce(bootstrap_servers: str, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def consume(bootstrap_servers: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A zombie does no harm: it waits for whoever adopted it.
    return state != "Z"


def wait_until_gone(pids: list[int], timeout_s: float = 10) -> None:
    give_up_at = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < give_up_at, f"still alive: {[pid for pid in pids if is_alive(pid)]}"
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # a server's workers come and go
    return [pid, *(found for child in children for found in descendants(child))]


async def test_record_sent_to_kafka_comes_back(kafka: KafkaServer, create_topic: CreateTopic) -> None:
    topic = await create_topic(partitions=3, config={"cleanup.policy": "delete"})
    await produce(kafka.bootstrap_servers, topic, b"hello")
    assert await consume(kafka.bootstrap_servers, topic, 1) == [b"hello"]


async def test_postgres_database_answers_and_decodes_logically(pg_database: str) -> None:
    connection = await asyncpg.connect(pg_database)
    try:
        assert await connection.fetchval("select 6 * 7") == 42
        assert await connection.fetchval("show wal_level") == "logical"
    finally:
        await connection.close()


async def test_mongo_commits_a_transaction(mongo_database: str) -> None:
    async with AsyncMongoClient(mongo_database) as client:
        collection = client.get_default_database()["orders"]
        async with client.start_session() as session, await session.start_transaction():
            await collection.insert_one({"_id": 1}, session=session)
            await collection.insert_one({"_id": 2}, session=session)
        assert await collection.count_documents({}) == 2


async def test_mongo_fails_a_command_when_a_test_asks(mongo_database: str) -> None:
    failure = {"failCommands": ["insert"], "errorCode": 2, "appName": "doomed"}
    async with AsyncMongoClient(mongo_database, appname="doomed") as client:
        await client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": failure})
        collection = client.get_default_database()["orders"]
        with pytest.raises(OperationFailure, match="failCommand"):
            await collection.insert_one({"_id": 1})
        await collection.insert_one({"_id": 1})


async def test_row_inserted_in_postgres_arrives_in_kafka(
    kafka: KafkaServer, connect: ConnectServer, pg_database: str, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("shop")
    connection = await asyncpg.connect(pg_database)
    try:
        await connection.execute("create table customers (id int primary key, name text)")
        config = debezium_postgres_config(pg_database, name=name, tables=["public.customers"])
        await asyncio.to_thread(connect.create_connector, name, config)
        await connection.execute("insert into customers values (1, 'Ada')")
        (value,) = await consume(kafka.bootstrap_servers, f"{name}.public.customers", 1)
        assert json.loads(value)["after"] == {"id": 1, "name": "Ada"}
    finally:
        await connection.close()
        await asyncio.to_thread(connect.delete_connector, name)


def test_connector_that_cannot_connect_is_told(connect: ConnectServer, unique_name: Callable[[str], str]) -> None:
    config = debezium_postgres_config("postgresql://nobody@127.0.0.1:1/x", name=unique_name("bad"), tables=["public.t"])
    with pytest.raises(ServerUnavailable, match=r"Connection to 127\.0\.0\.1:1 refused"):
        connect.create_connector(config["topic.prefix"], config)


@pytest.mark.parametrize("make", MAKERS)
def test_stopped_server_leaves_no_process_and_no_file(make: Callable[[], Server]) -> None:
    server = make().start()
    pids, directory = descendants(server.pid), server.directory
    assert directory.exists()
    server.stop()
    wait_until_gone(pids)
    assert not directory.exists()
    server.stop()


@pytest.mark.parametrize("make", MAKERS)
def test_server_dies_with_a_starter_that_is_killed(make: Callable[[], Server]) -> None:
    """The demo may be killed; a server left behind would hold its port and memory until the machine restarts."""
    program = f"""
        import time
        from integrity.demo.servers import {make.__name__}
        server = {make.__name__}().start()
        print(server.pid, server.directory, flush=True)
        time.sleep(600)
    """
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    with starter.stdout:
        pid, directory = starter.stdout.readline().split()
        pids = descendants(int(pid))
        starter.send_signal(signal.SIGKILL)
        starter.wait()
    wait_until_gone(pids)
    subprocess.run(["rm", "-rf", directory], check=True)


@pytest.mark.timeout(180)
async def test_killed_kafka_keeps_acknowledged_records_over_a_restart(unique_name: Callable[[str], str]) -> None:
    topic = unique_name("topic")
    server = await asyncio.to_thread(KafkaServer(heap_mb=128).start)
    try:
        await produce(server.bootstrap_servers, topic, b"kept")
        before = server.bootstrap_servers
        server.kill()
        await asyncio.to_thread(server.restart)
        assert server.bootstrap_servers == before
        assert await consume(server.bootstrap_servers, topic, 1) == [b"kept"]
    finally:
        await asyncio.to_thread(server.stop)


async def test_killed_postgres_keeps_committed_rows_over_a_restart() -> None:
    with PostgresServer() as server:
        connection = await asyncpg.connect(server.url())
        await connection.execute("create table kept as select 1 as id")
        server.kill()
        connection.terminate()
        server.restart()
        connection = await asyncpg.connect(server.url())
        assert await connection.fetchval("select count(*) from kept") == 1
        await connection.close()


def test_taken_port_is_changed_for_a_free_one(monkeypatch: pytest.MonkeyPatch, postgres: PostgresServer) -> None:
    """Between the choice of a port and the bind, another process may take it."""
    taken = int(postgres.url().rpartition(":")[2].partition("/")[0])
    ports = iter([taken, process_module.free_port()])
    monkeypatch.setattr("integrity.demo.servers.postgres.free_port", lambda: next(ports))
    with PostgresServer(durable=False) as server:
        assert str(taken) not in server.url()


def test_server_that_ends_at_once_shows_its_log() -> None:
    with pytest.raises(ServerUnavailable, match=r"(?s)PostgreSQL did not start.*unrecognized configuration parameter"):
        PostgresServer(settings={"no_such_setting": "1"}).start()


def test_failed_start_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(os.listdir("/tmp"))
    with pytest.raises(ServerUnavailable):
        PostgresServer(settings={"no_such_setting": "1"}).start()
    left = [*os.listdir(tmp_path), *(name for name in set(os.listdir("/tmp")) - before if "integrity-postgres" in name)]
    assert left == []


def test_interrupted_download_is_done_again_and_a_complete_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    downloads: list[str] = []

    def maven(*arguments: str, what: str) -> None:
        downloads.append(what)
        target = Path(next(part for part in arguments if part.startswith("-DoutputDirectory=")).partition("=")[2])
        (target / "half.jar").touch()
        if len(downloads) == 1:
            raise KeyboardInterrupt
        (target / "whole.jar").touch()

    monkeypatch.setattr(jars, "_maven", maven)
    wanted = jars.JarSet("program-1", (jars.Artifact("group:program:1"),))
    with pytest.raises(KeyboardInterrupt):
        wanted.resolve()
    assert not wanted.is_complete
    wanted.resolve()
    wanted.resolve()
    assert wanted.is_complete
    assert len(downloads) == 2
    assert {path.name for path in wanted.directory.glob("*.jar")} == {"half.jar", "whole.jar"}


def test_plugin_with_another_checksum_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def maven(*arguments: str, what: str) -> None:
        target = Path(arguments[-1].partition("=")[2])
        (target / "plugin.tar.gz").write_bytes(b"something else")

    monkeypatch.setattr(jars, "_maven", maven)
    with pytest.raises(ServerUnavailable, match="checksum differs"):
        jars.resolve_plugin(jars.Artifact("group:plugin:1", sha256="0" * 64))
    assert not list(tmp_path.rglob("plugin.tar.gz"))


def test_missing_maven_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(jars, "java", lambda: "java")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not KafkaServer.available()
    with pytest.raises(ServerUnavailable, match="Maven is missing: install it"):
        KafkaServer().start()
