"""Dead letters on a real broker: bytes, headers, limits, refusals."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from integrity.core.decode.record import Record
from integrity.demo.servers import KafkaServer
from integrity.errors import PublishError, Reason, RecordRefusedError, UnreachableError
from integrity.kafka.dead_letters import DeadLetter, DeadLetters, Stage
from integrity.kafka.headers import last_text
from integrity.kafka.producer import OutgoingRecord, Producer, WantedTopic, ensure_topics
from integrity.ports import Deadline
from tests.conftest import CreateTopic

HANGS_S = 30.0
"""Only against hanging: how long a thing takes is no matter of these tests."""
pytestmark = pytest.mark.servers

FAILED_AT_MS = 1_772_366_400_123
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def record(offset: int = 41, **changes: Any) -> Record:
    base = Record(
        topic="shop.public.customers",
        partition=3,
        offset=offset,
        timestamp_ms=1_600_000_000_000,
        key=b'{"id":"\xff5"}',
        value=b'{"op": "d",',
        headers=[("trace", b"\x00\xfe"), ("trace", None), ("integrity.reason", b"of a former life")],
    )
    return base._replace(**changes)


def letter(of: Record, **changes: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "record": of,
        "reason": Reason.BAD_JSON,
        "message": "the value ends in the middle",
        "entity": "customer",
        "dependent": "customer.orders",
        "store": "orders_db",
        "attempts": 2,
        "stage": Stage.VALUE,
        "rules": "abcdef012345",
        "failed_at_ms": FAILED_AT_MS,
    }
    return DeadLetter(**(values | changes))


async def read_all(kafka: KafkaServer, topic: str) -> list[Any]:
    """Everything in a topic, in the order of partition and offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [
            TopicPartition(topic, p)
            for p in sorted(consumer.partitions_for_topic(topic) or await _known(consumer, topic))
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        found: list[Any] = []
        async with asyncio.timeout(20):
            while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        return sorted(found, key=lambda each: (each.partition, each.offset))
    finally:
        await consumer.stop()


async def _known(consumer: AIOKafkaConsumer, topic: str) -> set[int]:
    consumer.subscribe([topic])
    async with asyncio.timeout(10):
        while not consumer.partitions_for_topic(topic):
            await consumer.getmany(timeout_ms=50)
    consumer.unsubscribe()
    return set(consumer.partitions_for_topic(topic))


@pytest.fixture
async def dead_letters(kafka: KafkaServer, topic_name: str) -> Any:
    opened = DeadLetters({"bootstrap_servers": kafka.bootstrap_servers}, topic=topic_name, group="integrity")
    yield opened
    await opened.close(Deadline.after(5))


async def test_a_dead_letter_keeps_its_bytes_and_has_every_header_of_the_contract(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    sent = letter(record(), traceparent=TRACEPARENT)
    await dead_letters.publish([sent], Deadline.after(15))
    (read,) = await read_all(kafka, topic_name)
    assert (read.key, read.value, read.timestamp) == (sent.record.key, sent.record.value, sent.record.timestamp_ms)
    assert list(read.headers[:2]) == [("trace", b"\x00\xfe"), ("trace", None)]
    assert {name: value.decode() for name, value in read.headers[2:]} == {
        "integrity.id": sent.id,
        "integrity.reason": "bad_json",
        "integrity.message": "the value ends in the middle",
        "integrity.entity": "customer",
        "integrity.dependent": "customer.orders",
        "integrity.store": "orders_db",
        "integrity.topic": "shop.public.customers",
        "integrity.partition": "3",
        "integrity.offset": "41",
        "integrity.attempts": "2",
        "integrity.retries": "0",
        "integrity.failed_at": "2026-03-01T12:00:00.123Z",
        "integrity.rules": "abcdef012345",
        "traceparent": TRACEPARENT,
        "__connect.errors.topic": "shop.public.customers",
        "__connect.errors.partition": "3",
        "__connect.errors.offset": "41",
        "__connect.errors.stage": "VALUE_CONVERTER",
        "__connect.errors.exception.class.name": "integrity.bad_json",
        "__connect.errors.exception.message": "the value ends in the middle",
        "__connect.errors.connector.name": "integrity.orders_db",
    }


async def test_each_dead_letter_is_open_in_the_compacted_status_topic(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    sent = letter(record())
    await dead_letters.publish([sent], Deadline.after(15))
    (status,) = await read_all(kafka, f"{topic_name}.status")
    assert status.key == sent.id.encode()
    assert json.loads(status.value) == {
        "status": "open",
        "at": "2026-03-01T12:00:00.123Z",
        "reason": "bad_json",
        "dependent": "customer.orders",
        "store": "orders_db",
    }
    facts = await ensure_topics(
        {"bootstrap_servers": kafka.bootstrap_servers},
        [WantedTopic(topic_name, 1), WantedTopic(f"{topic_name}.status", 1)],
        Deadline.after(10),
    )
    assert (facts[topic_name].compacted, facts[f"{topic_name}.status"].compacted) == (False, True)


@pytest.mark.parametrize(
    "of",
    [
        record(key=None, value=None, headers=[]),
        record(key=None),
        record(value=None),
        record(key=b"", value=b""),
        record(timestamp_ms=-1),
        record(timestamp_ms=0),
        record(timestamp_ms=4_000_000_000_000),
    ],
    ids=["nothing", "no key", "no value", "empty", "no time stamp", "time stamp 0", "time stamp far ahead"],
)
async def test_any_record_can_be_a_dead_letter(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str, of: Record
) -> None:
    await dead_letters.publish([letter(of)], Deadline.after(15))
    (read,) = await read_all(kafka, topic_name)
    assert (read.key, read.value, read.timestamp) == (of.key, of.value, of.timestamp_ms)


async def test_many_dead_letters_are_all_there_with_their_own_ids(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    letters = [letter(record(offset, value=os.urandom(600))) for offset in range(2000)]
    await dead_letters.publish(letters, Deadline.after(20))
    read = await read_all(kafka, topic_name)
    assert {last_text(each.headers, "integrity.id"): each.value for each in read} == {
        each.id: each.record.value for each in letters
    }
    assert len(read) == len(letters)


async def test_the_same_letter_published_again_has_the_same_id(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    for attempts in (1, 2):
        await dead_letters.publish([letter(record(), attempts=attempts)], Deadline.after(15))
    read = await read_all(kafka, topic_name)
    assert [last_text(each.headers, "integrity.id") for each in read] == [letter(record()).id] * 2


async def test_a_record_above_the_limit_goes_as_an_envelope_and_its_neighbours_as_they_came(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    large = os.urandom(1_048_400)
    letters = [letter(record(1)), letter(record(2, value=large)), letter(record(3))]
    await dead_letters.publish(letters, Deadline.after(30))
    read = {last_text(each.headers, "integrity.offset"): each for each in await read_all(kafka, topic_name)}
    assert read["1"].value == read["3"].value == record().value
    envelope = read["2"]
    assert last_text(envelope.headers, "integrity.truncated") == "true"
    assert last_text(envelope.headers, "integrity.id") == letters[1].id
    assert envelope.key == record().key
    assert json.loads(envelope.value) == {
        "truncated": True,
        "id": letters[1].id,
        "reason": "bad_json",
        "topic": "shop.public.customers",
        "partition": 3,
        "offset": 2,
        "timestamp_ms": 1_600_000_000_000,
        "key": {
            "bytes": 11,
            "sha256": hashlib.sha256(record().key or b"").hexdigest(),
            "head": base64.b64encode(record().key or b"").decode(),
        },
        "value": {
            "bytes": len(large),
            "sha256": hashlib.sha256(large).hexdigest(),
            "head": base64.b64encode(large[:4096]).decode(),
        },
        "headers": {"count": 3, "bytes": 5 + 2 + 5 + 16 + 16},
    }


async def test_a_large_record_that_the_broker_takes_compressed_stays_whole(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    large = b'{"field": "value"}' * 200_000
    await dead_letters.publish([letter(record(value=large))], Deadline.after(30))
    (read,) = await read_all(kafka, topic_name)
    assert read.value == large


async def test_headers_alone_can_make_a_record_too_large(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    headers = [(f"h{number}", os.urandom(1000)) for number in range(1200)]
    await dead_letters.publish([letter(record(headers=headers))], Deadline.after(30))
    (read,) = await read_all(kafka, topic_name)
    assert json.loads(read.value)["headers"]["count"] == 1200
    assert not [name for name, _ in read.headers if name.startswith("h")]


async def test_a_refused_record_breaks_neither_its_neighbours_nor_what_comes_later(
    kafka: KafkaServer, create_topic: CreateTopic, topic_name: str
) -> None:
    """Kafka 4 refuses a time stamp more than an hour ahead, and a refusal breaks an idempotent producer for ever."""
    await create_topic(topic_name)
    dead_letters = DeadLetters({"bootstrap_servers": kafka.bootstrap_servers}, topic=topic_name, group="integrity")
    ahead = 4_000_000_000_000
    try:
        await dead_letters.publish(
            [letter(record(1)), letter(record(2, timestamp_ms=ahead)), letter(record(3))], Deadline.after(20)
        )
        await dead_letters.publish([letter(record(4))], Deadline.after(20))
    finally:
        await dead_letters.close(Deadline.after(5))
    read = {last_text(each.headers, "integrity.offset"): each for each in await read_all(kafka, topic_name)}
    assert set(read) == {"1", "2", "3", "4"}
    assert {each.value for each in read.values()} == {record().value}
    assert read["2"].timestamp == FAILED_AT_MS
    assert last_text(read["2"].headers, "integrity.timestamp") == str(ahead)


async def test_a_producer_works_on_after_the_broker_refused_a_record(
    kafka: KafkaServer, create_topic: CreateTopic
) -> None:
    topic = await create_topic(config={"cleanup.policy": "compact"})
    producer = Producer({"bootstrap_servers": kafka.bootstrap_servers}, client_id="test")
    try:
        await producer.send_all([OutgoingRecord(topic, b"a", b"1")], Deadline.after(10))
        with pytest.raises(RecordRefusedError):
            await producer.send_all([OutgoingRecord(topic, None, b"a compacted topic needs a key")], Deadline.after(10))
        await producer.send_all([OutgoingRecord(topic, b"b", b"2")], Deadline.after(10))
    finally:
        await producer.close(Deadline.after(5))
    assert [each.value for each in await read_all(kafka, topic)] == [b"1", b"2"]


async def test_a_compacted_topic_is_refused_for_dead_letters(kafka: KafkaServer, create_topic: CreateTopic) -> None:
    topic = await create_topic(config={"cleanup.policy": "compact"})
    dead_letters = DeadLetters({"bootstrap_servers": kafka.bootstrap_servers}, topic=topic, group="integrity")
    with pytest.raises(PublishError, match=r"is compacted.*cleanup\.policy to delete"):
        await dead_letters.prepare(Deadline.after(10))
    await dead_letters.close(Deadline.after(1))


async def test_a_topic_that_cannot_be_created_says_how_to_create_it(kafka: KafkaServer) -> None:
    with pytest.raises(PublishError, match=r"cannot create it.*kafka-topics\.sh --create --topic no/name"):
        await ensure_topics(
            {"bootstrap_servers": kafka.bootstrap_servers}, [WantedTopic("no/name", 1)], Deadline.after(10)
        )


async def test_a_setting_that_the_broker_does_not_know_is_left_out(kafka: KafkaServer, topic_name: str) -> None:
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    wanted = WantedTopic(topic_name, 2, {"cleanup.policy": "compact"}, {"of.a.later.version": "1"})
    facts = await ensure_topics(client, [wanted], Deadline.after(10))
    assert (facts[topic_name].partitions, facts[topic_name].compacted) == (2, True)


async def test_facts_are_those_of_the_topic(kafka: KafkaServer, create_topic: CreateTopic) -> None:
    topic = await create_topic(partitions=4, config={"max.message.bytes": "70000", "cleanup.policy": "compact,delete"})
    facts = await ensure_topics(
        {"bootstrap_servers": kafka.bootstrap_servers}, [WantedTopic(topic, 1)], Deadline.after(10)
    )
    assert (facts[topic].partitions, facts[topic].message_bytes_max, facts[topic].compacted) == (4, 70000, True)


async def test_a_topic_with_a_small_limit_takes_many_dead_letters(
    kafka: KafkaServer, create_topic: CreateTopic, topic_name: str
) -> None:
    """A batch counts as one message for the limit: it must stay below it too."""
    await create_topic(topic_name, config={"max.message.bytes": "60000"})
    dead_letters = DeadLetters({"bootstrap_servers": kafka.bootstrap_servers}, topic=topic_name, group="integrity")
    letters = [letter(record(offset, value=os.urandom(2000))) for offset in range(200)]
    try:
        await dead_letters.publish(letters, Deadline.after(20))
    finally:
        await dead_letters.close(Deadline.after(5))
    read = await read_all(kafka, topic_name)
    assert sorted(each.value for each in read) == sorted(each.record.value or b"" for each in letters)


async def test_the_limit_that_shrank_while_running_is_noticed(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    await dead_letters.publish([letter(record(1))], Deadline.after(15))
    await _set_limit(kafka, topic_name, 60_000)
    await dead_letters.publish([letter(record(2, value=os.urandom(100_000))), letter(record(3))], Deadline.after(30))
    read = {last_text(each.headers, "integrity.offset"): each for each in await read_all(kafka, topic_name)}
    assert last_text(read["2"].headers, "integrity.truncated") == "true"
    assert read["3"].value == record().value


async def _set_limit(kafka: KafkaServer, topic: str, limit: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(limit)})
        await admin.alter_configs([resource])
        async with asyncio.timeout(10):
            while True:
                answer = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
                if {entry[0]: entry[1] for entry in answer[0].resources[0][4]}["max.message.bytes"] == str(limit):
                    return
                await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def test_an_unreachable_broker_is_told_within_the_deadline(unused_port: int) -> None:
    dead_letters = DeadLetters({"bootstrap_servers": f"127.0.0.1:{unused_port}"}, topic="integrity.dlq", group="g")
    with pytest.raises(UnreachableError):
        async with asyncio.timeout(HANGS_S):
            await dead_letters.publish([letter(record())], Deadline.after(3))
    await dead_letters.close(Deadline.after(1))


async def test_a_frozen_broker_is_told_within_the_deadline_and_publishing_goes_on_after_it(topic_name: str) -> None:
    kafka = KafkaServer()
    await asyncio.to_thread(kafka.start)
    try:
        dead_letters = DeadLetters({"bootstrap_servers": kafka.bootstrap_servers}, topic=topic_name, group="integrity")
        await dead_letters.publish([letter(record(1))], Deadline.after(15))
        kafka.suspend()
        for _ in range(2):
            with pytest.raises(UnreachableError):
                async with asyncio.timeout(HANGS_S):
                    await dead_letters.publish([letter(record(2))], Deadline.after(1.5))
        kafka.resume()
        async with asyncio.timeout(40):
            while True:
                try:
                    await dead_letters.publish([letter(record(2))], Deadline.after(15))
                    break
                except UnreachableError:
                    await asyncio.sleep(0.5)
        await dead_letters.close(Deadline.after(15))
        read = await read_all(kafka, topic_name)
        assert {last_text(each.headers, "integrity.offset") for each in read} == {"1", "2"}
    finally:
        await asyncio.to_thread(kafka.stop)


async def test_a_cancelled_publish_leaves_a_producer_that_works(
    kafka: KafkaServer, dead_letters: DeadLetters, topic_name: str
) -> None:
    await dead_letters.prepare(Deadline.after(10))
    for turns in range(30):
        task = asyncio.create_task(dead_letters.publish([letter(record(turns))], Deadline.after(10)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    await dead_letters.publish([letter(record(1000))], Deadline.after(20))
    read = await read_all(kafka, topic_name)
    assert "1000" in {last_text(each.headers, "integrity.offset") for each in read}


@pytest.fixture
def unused_port() -> int:
    from integrity.demo.servers.process import free_port

    return free_port()
