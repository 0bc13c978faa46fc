"""What every test may use: real servers, started when a test first asks and stopped at the end; names nobody else has.

A server that cannot run here fails its tests with the sentence that says what to install: nothing is skipped.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol

import pytest

from integrity.demo.servers import ConnectServer, KafkaServer, MongoServer, PostgresServer


class CreateTopic(Protocol):
    """Creates a topic, waits until every partition has a leader, and returns its name."""

    def __call__(
        self, name: str | None = None, *, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> Awaitable[str]: ...


@pytest.fixture(autouse=True)
def scrubbed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in list(os.environ):
        if name.startswith(("INTEGRITY_", "OTEL_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    with KafkaServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def mongo() -> Iterator[MongoServer]:
    with MongoServer(test_commands=True) as server:
        yield server


@pytest.fixture(scope="session")
def connect(kafka: KafkaServer) -> Iterator[ConnectServer]:
    with ConnectServer(kafka.bootstrap_servers) as server:
        yield server


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Make a name from a word; fit for a topic, a group, a database, a slot."""

    def make(word: str = "test") -> str:
        return f"{word}_{uuid.uuid4().hex[:12]}"

    return make


@pytest.fixture
def topic_name(unique_name: Callable[[str], str]) -> str:
    """The name of a topic that does not exist."""
    return unique_name("topic")


@pytest.fixture
def pg_database(postgres: PostgresServer, unique_name: Callable[[str], str]) -> Iterator[str]:
    """The address of an empty PostgreSQL database, dropped after the test."""
    name = unique_name("db")
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture
def mongo_database(mongo: MongoServer, unique_name: Callable[[str], str]) -> Iterator[str]:
    """The address of an empty MongoDB database, dropped after the test."""
    from pymongo import MongoClient

    url = mongo.url(unique_name("db"))
    yield url
    with MongoClient(url) as client:
        client.drop_database(client.get_default_database().name)


@pytest.fixture
def create_topic(kafka: KafkaServer) -> CreateTopic:
    """Create a topic on the shared broker."""
    return topic_creator(kafka.bootstrap_servers)


def topic_creator(bootstrap_servers: str) -> CreateTopic:
    """What creates topics on a broker."""

    async def create(name: str | None = None, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        topic = name or f"topic_{uuid.uuid4().hex[:12]}"
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        await admin.start()
        try:
            answer = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=dict(config or {}))])
            # The client raises nothing for a topic that the broker refused.
            assert not any(error[1] for error in answer.topic_errors), answer.topic_errors
            async with asyncio.timeout(10):
                while not _all_have_leaders(await admin.describe_topics([topic]), partitions):
                    await asyncio.sleep(0.02)
        finally:
            await admin.close()
        return topic

    return create


def _all_have_leaders(described: list[dict], partitions: int) -> bool:
    found = described[0]["partitions"]
    return len(found) == partitions and all(partition["leader"] >= 0 for partition in found)
