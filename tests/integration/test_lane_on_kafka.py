"""Lanes as members of a real consumer group, over the in-memory store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from integrity.core.batch import TopicPartition
from integrity.core.decode.record import Decoder, Record
from integrity.core.outcome import Outcome, Retry
from integrity.core.rules.model import RuleSet
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.patterns import with_topics
from integrity.demo.servers import KafkaServer
from integrity.errors import Reason, UnreachableError
from integrity.kafka.consumer import CONSUMER_SETTINGS, Consumer, existing_topics
from integrity.kafka.fetched import Ahead
from integrity.kafka.unpacking import UNPACKED_BYTES_MAX
from integrity.ports import Deadline
from integrity.service.lane import Lane
from integrity.service.topics import TopicWatch
from tests.conftest import CreateTopic, topic_creator
from tests.unit.service.doubles import BentStore, Letters, Watched, decode, enforcers_of, memory_store

pytestmark = pytest.mark.servers

OF_PATTERN = """\
version: 1
parent: customer
events: {{pattern: '{prefix}\\.[a-z]', format: debezium, key: {{id: int64}}}}
dependents:
  - {{store: db, table: orders, references: {{customer_id: id}}, on_delete: cascade}}
"""


class Member:
    def __init__(self, kafka: KafkaServer, topic: str, group: str, store: BentStore) -> None:
        self.watch, self.letters, self.stop = Watched(), Letters(), asyncio.Event()
        self.lane = Lane(
            store=store,  # type: ignore[arg-type]
            open_source=lambda: Consumer(
                {"bootstrap_servers": kafka.bootstrap_servers},
                group=group,
                topics=[topic],
                assignor=StickyPartitionAssignor,
            ),
            enforcers=enforcers_of(store, self.letters, self.watch),
            watch=self.watch,
            decoders={topic: ("customer", decode)},
            batch_size=50,
        )

    @property
    def rows(self) -> int:
        return sum(e.rows for e in self.watch.effects if e.outcome is Outcome.APPLIED)


async def produce(kafka: KafkaServer, topic: str, keys: range, partitions: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    for key in keys:
        await producer.send(topic, b"d%d" % (1000 + key), key=b"%d" % key, partition=key % partitions)
    await producer.flush()
    await producer.stop()


def keys_left(store: BentStore) -> set[object]:
    return {row["customer_id"] for row in store.store.targets["orders"]}


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def test_two_members_share_the_partitions_and_apply_each_event_once(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic, group = await create_topic(partitions=4), unique_name("group")
    store = BentStore(memory_store(2000))
    one, two = Member(kafka, topic, group, store), Member(kafka, topic, group, store)
    await produce(kafka, topic, range(500), 4)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(one.lane.run(one.stop))
        await until(lambda: keys_left(store) == set(range(500, 2000)))
        tasks.create_task(two.lane.run(two.stop))
        await produce(kafka, topic, range(500, 1000), 4)
        await until(lambda: keys_left(store) == set(range(1000, 2000)))
        one.stop.set()  # leaves: the other takes everything over
        await produce(kafka, topic, range(1000, 1500), 4)
        await until(lambda: keys_left(store) == set(range(1500, 2000)))
        two.stop.set()
    assert one.rows + two.rows == 1500


async def test_a_member_that_starts_again_goes_on_where_the_store_is(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic, group = await create_topic(partitions=2), unique_name("group")
    store = BentStore(memory_store(300))
    await produce(kafka, topic, range(100), 2)
    for upto in (100, 200):
        member = Member(kafka, topic, group, store)
        await member.lane.run(member.stop, to_end=True)
        assert keys_left(store) == set(range(upto, 300))
        assert member.rows == 100
        assert len({e.change for e in member.watch.effects}) > 0
        await produce(kafka, topic, range(100, 200), 2)


async def test_an_empty_topic_ends_at_once(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    member = Member(kafka, await create_topic(partitions=3), unique_name("group"), BentStore(memory_store(1)))
    await asyncio.wait_for(member.lane.run(member.stop, to_end=True), 30)


async def test_a_store_that_is_away_for_long_costs_no_membership(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic = await create_topic()
    store = BentStore(memory_store(400), lambda batch: Retry("away", unreachable=True))
    member = Member(kafka, topic, unique_name("group"), store)
    await produce(kafka, topic, range(400), 1)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.lane.run(member.stop))
        await until(lambda: member.lane.trouble == "away")
        await asyncio.sleep(12)  # longer than a session
        store.bend = lambda batch: None
        await until(lambda: keys_left(store) == set())
        member.stop.set()
    assert member.rows == 400


async def test_a_topic_that_is_given_more_partitions_is_read_on_and_stays_in_order_by_version(
    kafka: KafkaServer,
    create_topic: CreateTopic,
    unique_name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys go to other partitions then, and Kafka orders nothing between the two: the versions do."""
    monkeypatch.setitem(CONSUMER_SETTINGS, "metadata_max_age_ms", 500)  # type: ignore[arg-type]
    topic = await create_topic(partitions=1)
    store = BentStore(memory_store(4))
    member = Member(kafka, topic, unique_name("group"), store)
    await send(kafka, topic, (0, 0, b"d10"), (0, 1, b"d11"))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.lane.run(member.stop))
        await until(lambda: keys_left(store) == {2, 3})
        await grow(kafka, topic, 3)
        store.store.targets["orders"].append({"id": "again", "customer_id": 0})
        await send(kafka, topic, (1, 0, b"c20"), (1, 2, b"d21"))
        await until(lambda: keys_left(store) == {0, 3})
        await send(kafka, topic, (0, 0, b"d10"), (0, 0, b"d12"), (0, 3, b"d30"))
        await until(lambda: keys_left(store) == {0})
        member.stop.set()
    assert [e.outcome for e in member.watch.effects if e.outcome is not Outcome.APPLIED] == [Outcome.STALE] * 2


async def test_a_topic_that_is_made_while_the_lane_runs_is_read_and_one_that_is_gone_is_left(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    first, group, store = await create_topic(partitions=2), unique_name("group"), BentStore(memory_store(400))
    one, two = Member(kafka, first, group, store), Member(kafka, first, group, store)
    async with asyncio.TaskGroup() as tasks:
        for member in (one, two):
            tasks.create_task(member.lane.run(member.stop))
        await produce(kafka, first, range(100), 2)
        await until(lambda: keys_left(store) == set(range(100, 400)))
        second = await create_topic(partitions=2)
        await produce(kafka, second, range(100, 200), 2)
        for member in (one, two):
            member.lane.follow({first: ("customer", decode), second: ("customer", decode)})
        await until(lambda: keys_left(store) == set(range(200, 400)))
        for member in (one, two):
            member.lane.follow({second: ("customer", decode)})
        await produce(kafka, second, range(200, 300), 2)
        await until(lambda: keys_left(store) == set(range(300, 400)))
        await produce(kafka, first, range(300, 350), 2)
        await produce(kafka, second, range(350, 400), 2)
        await until(lambda: keys_left(store) == set(range(300, 350)))
        one.stop.set()
        two.stop.set()
    assert one.rows + two.rows == 350


async def test_a_topic_of_a_pattern_that_is_deleted_is_told_and_the_others_are_read_on(
    unique_name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    # A broker that makes topics by itself makes a deleted one anew when a consumer still asks for it.
    with KafkaServer(settings={"auto.create.topics.enable": "false"}) as kafka:
        await _delete_one_of_a_pattern(kafka, unique_name, caplog)


async def _delete_one_of_a_pattern(
    kafka: KafkaServer, unique_name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    prefix, client = unique_name("shop"), {"bootstrap_servers": kafka.bootstrap_servers}
    create_topic = topic_creator(kafka.bootstrap_servers)
    first, second = [await create_topic(f"{prefix}.{name}") for name in "ab"]
    rules = parse_rules({"customer.yaml": OF_PATTERN.format(prefix=prefix.replace(".", "\\."))})
    store = BentStore(memory_store(40))
    member = Member(kafka, first, unique_name("group"), store)

    enough, at_rest = asyncio.Event(), asyncio.Event()

    async def look() -> tuple[RuleSet, Collection[str]]:
        if enough.is_set():  # a client that is cancelled while it connects leaves its socket to the collector
            at_rest.set()
            await asyncio.Event().wait()
        names = await existing_topics(client, Deadline.after(20))
        return with_topics(rules, names), names

    def gone() -> list[str]:
        return [each.__dict__["topic"] for each in caplog.records if each.message.startswith("a topic is gone")]

    def decoders_of(found: RuleSet) -> dict[str, tuple[str, Decoder]]:
        return {topic: ("customer", decode) for topic in found.by_topic}

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(member.lane.run(member.stop))
        watch = tasks.create_task(TopicWatch(look, [(member.lane, decoders_of)], every_s=0.1).run())
        await produce(kafka, first, range(10), 1)
        await produce(kafka, second, range(10, 20), 1)
        await until(lambda: keys_left(store) == set(range(20, 40)))
        admin = AIOKafkaAdminClient(**client)
        await admin.start()
        await admin.delete_topics([first])
        await admin.close()
        await until(lambda: gone() == [first])
        await produce(kafka, second, range(20, 30), 1)
        third = await create_topic(f"{prefix}.c")
        await produce(kafka, third, range(30, 40), 1)
        await until(lambda: keys_left(store) == set())
        enough.set()
        await at_rest.wait()
        watch.cancel()
        member.stop.set()
    assert gone() == [first]


async def send(kafka: KafkaServer, topic: str, *records: tuple[int, int, bytes]) -> None:
    """Records as partition, key and value, one after the other."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    for partition, key, value in records:
        await producer.send_and_wait(topic, value, key=b"%d" % key, partition=partition)
    await producer.stop()


async def grow(kafka: KafkaServer, topic: str, partitions: int) -> None:
    """Give the topic more partitions, and wait until each has a leader."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(partitions)})
        while any(each["leader"] < 0 for each in (await admin.describe_topics([topic]))[0]["partitions"]):
            await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def test_a_broker_that_restarts_is_joined_again(unique_name: Callable[[str], str]) -> None:
    with KafkaServer() as kafka:
        topic = unique_name("topic")
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
        await producer.start()
        await producer.send_and_wait(topic, b"d1000", key=b"0", partition=0)
        await producer.stop()
        store = BentStore(memory_store(3))
        member = Member(kafka, topic, unique_name("group"), store)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(member.lane.run(member.stop))
            await until(lambda: keys_left(store) == {1, 2})
            await asyncio.to_thread(kafka.restart)
            await produce(kafka, topic, range(1, 2), 1)
            await until(lambda: keys_left(store) == {2}, 90)
            member.stop.set()


async def joined(kafka: KafkaServer, topic: str, group: str) -> Consumer:
    """A group's only member, with its partitions, which reads nothing yet."""
    consumer = Consumer(
        {"bootstrap_servers": kafka.bootstrap_servers}, group=group, topics=[topic], assignor=StickyPartitionAssignor
    )
    assigned = asyncio.Event()

    async def on_revoked(partitions: frozenset[TopicPartition]) -> None:
        return None

    async def on_assigned(partitions: frozenset[TopicPartition]) -> None:
        if partitions:
            assigned.set()

    await consumer.start(on_revoked, on_assigned)
    async with asyncio.timeout(30):
        while not assigned.is_set():
            fetch = await consumer.poll(0.1, 100, hold=())
            assert not fetch.records, "nothing is read before seek"
    return consumer


async def test_bounds_name_every_partition_and_commits_are_read_back(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic = await create_topic(partitions=2)
    await produce(kafka, topic, range(10), 2)
    consumer = await joined(kafka, topic, unique_name("group"))
    zero, one = TopicPartition(topic, 0), TopicPartition(topic, 1)
    bounds = await consumer.bounds(None, Deadline.after(10))
    assert {p: (b.committed, b.first, b.end) for p, b in bounds.items()} == {zero: (None, 0, 5), one: (None, 0, 5)}
    await consumer.seek({zero: 3, one: 5})
    read: list[Record] = []
    async with asyncio.timeout(30):
        while len(read) < 2:
            fetch = await consumer.poll(0.1, 100, hold=())
            read += [record for records in fetch.records.values() for record in records]
    assert [(record.partition, record.offset) for record in read] == [(0, 3), (0, 4)]
    assert await consumer.commit({zero: 5}, Deadline.after(10))
    assert (await consumer.bounds([zero], Deadline.after(10)))[zero].committed == 5
    await consumer.stop()


async def test_what_was_fetched_ahead_is_the_same_as_what_was_waited_for(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    """The first poll gets what aiokafka makes, later ones what is made of its bytes (`integrity.kafka.fetched`): with
    an aiokafka that has changed, the one would go on and the other would silently not be."""
    topic = await create_topic(partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await producer.start()
    three = [(b"k", b"v", [("a", b"1"), ("a", b"")]), (b"k", None, []), (None, b"", [("b", b"2")])]
    for key, value, headers in three * 2:
        await producer.send_and_wait(topic, value, key=key, headers=headers, timestamp_ms=1_795_470_743_000)
    await producer.stop()
    consumer = await joined(kafka, topic, unique_name("group"))
    only = TopicPartition(topic, 0)
    await consumer.seek({only: 0})
    read: list[Record] = []
    async with asyncio.timeout(30):
        while len(read) < 3:
            read += (await consumer.poll(0.1, 1, hold=())).records.get(only, ())
        [ahead] = consumer._consumer._fetcher._records.values()
        assert type(ahead._partition_records) is Ahead
        while len(read) < 6:
            read += (await consumer.poll(0.1, 100, hold=())).records.get(only, ())
    await consumer.stop()
    assert {type(record) for record in read} == {Record}
    assert [record._replace(offset=record.offset + 3) for record in read[:3]] == read[3:]
    assert [record.offset for record in read] == list(range(6))
    assert read[0][4:] == (b"k", b"v", (("a", b"1"), ("a", b"")))
    assert read[1][4:] == (b"k", None, ()) and read[2][4:] == (None, b"", (("b", b"2"),))


async def test_offsets_that_another_tool_has_committed_decide_nothing(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    """Some leave metadata of their own beside an offset; and one beyond the end is of a topic that is no more."""
    topic, group = await create_topic(partitions=2), unique_name("group")
    await produce(kafka, topic, range(10), 2)
    foreign = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False)
    await foreign.start()
    one, two = KafkaPartition(topic, 0), KafkaPartition(topic, 1)
    foreign.assign([one, two])
    await foreign.commit({one: (10_000, "bitset:1,0,1"), two: (0, "\x00{not: [json")})
    await foreign.stop()
    member = Member(kafka, topic, group, BentStore(memory_store(10)))
    await asyncio.wait_for(member.lane.run(member.stop, to_end=True), 60)
    assert member.rows == 10


async def test_records_of_every_codec_are_read(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic, codecs = await create_topic(), (None, "gzip", "snappy", "lz4", "zstd")
    for key, codec in enumerate(codecs):
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type=codec)
        await producer.start()
        await producer.send_and_wait(topic, b"d%d" % (10 + key), key=b"%d" % key)
        await producer.stop()
    member = Member(kafka, topic, unique_name("group"), BentStore(memory_store(6)))
    await asyncio.wait_for(member.lane.run(member.stop, to_end=True), 60)
    assert (member.rows, member.letters.published) == (len(codecs), [])


async def test_a_small_batch_that_unpacks_to_too_much_is_one_dead_letter_and_fills_no_memory(
    kafka: KafkaServer, create_topic: CreateTopic, unique_name: Callable[[str], str]
) -> None:
    topic = await create_topic()
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, compression_type="zstd", max_batch_size=UNPACKED_BYTES_MAX * 2
    )
    await producer.start()
    await producer.send_and_wait(topic, b"d10", key=b"0")
    bomb = producer.create_batch()
    for key in (1, 2):
        assert bomb.append(timestamp=None, key=b"%d" % key, value=b"d" * (UNPACKED_BYTES_MAX // 2)) is not None
    await (await producer.send_batch(bomb, topic, partition=0))
    await producer.send_and_wait(topic, b"d11", key=b"3")
    await producer.stop()
    member = Member(kafka, topic, unique_name("group"), BentStore(memory_store(5)))
    await asyncio.wait_for(member.lane.run(member.stop, to_end=True), 60)
    [letter] = member.letters.published
    assert (letter.reason, letter.record.offset, len(letter.record.value or b"") < 100) == (Reason.TOO_LARGE, 2, True)
    assert "offsets 1 to 2" in letter.message
    assert member.rows == 2


async def test_a_broker_that_is_not_there_is_said_in_a_sentence() -> None:
    with pytest.raises(UnreachableError, match="Kafka does not answer"):
        await existing_topics({"bootstrap_servers": "127.0.0.1:1"}, Deadline.after(10))
