"""A whole installation for a test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from integrity.demo.servers import ConnectServer, KafkaServer, MongoServer, PostgresServer
from tests.acceptance.world import World, a_world
from tests.conftest import CreateTopic

OpenWorld = Callable[[int], AbstractAsyncContextManager[World]]
"""Opens a world with that many parents."""


@pytest.fixture
def open_world(
    tmp_path: Path,
    kafka: KafkaServer,
    connect: ConnectServer,
    postgres: PostgresServer,
    mongo: MongoServer,
    create_topic: CreateTopic,
    unique_name: Callable[[str], str],
) -> OpenWorld:
    def open_with(parents: int) -> AbstractAsyncContextManager[World]:
        name = unique_name("shop")
        return a_world(
            tmp_path,
            kafka=kafka,
            connect=connect,
            create_database=postgres.create_database,
            mongo_url=mongo.url(name),
            create_topic=create_topic,
            name=name,
            parents=parents,
        )

    return open_with
