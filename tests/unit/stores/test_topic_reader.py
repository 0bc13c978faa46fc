"""The reader of topics goes on with new clients after a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from aiokafka.errors import StaleMetadata

from integrity.core.batch import TopicPartition
from integrity.stores.topic import clients
from integrity.stores.topic.clients import Closer, DescribedTopic
from integrity.stores.topic.reader import Reader
from integrity.stores.topic.records import ReadRecord


class Admin:
    """A client that answers, or has lost its brokers for good."""

    def __init__(self, *, lost: bool) -> None:
        self.lost = lost
        self.closed = False

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        self.closed = True


async def take(read: list[ReadRecord]) -> None:
    return None


async def test_a_client_that_has_lost_its_brokers_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Admin] = []

    def admin(settings: Mapping[str, object]) -> Admin:
        made.append(Admin(lost=not made))
        return made[-1]

    async def describe(client: Admin, topics: Sequence[str]) -> list[DescribedTopic]:
        if client.lost:
            raise StaleMetadata("Broker id None not in current metadata")
        return [DescribedTopic(topic, (0, 1)) for topic in topics]

    monkeypatch.setattr(clients, "admin", admin)
    monkeypatch.setattr(clients, "describe", describe)
    closer = Closer()
    reader = Reader({}, take, closer)
    with pytest.raises(StaleMetadata):
        await reader.partitions(["carts"])
    assert await reader.partitions(["carts"]) == {TopicPartition("carts", 0), TopicPartition("carts", 1)}
    await closer.wait()
    assert [each.closed for each in made] == [True, False]
