"""What the topic store writes, on a real broker: which bytes, to which partition, and what it leaves alone."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Applied, Broken, Outcome, Rejected, Retry
from integrity.core.rules.model import Cascade, Nullify, Tombstone
from integrity.demo.servers import KafkaServer
from integrity.errors import LedgerError, Reason, UnreachableError
from integrity.ports import Deadline
from integrity.stores.topic import TopicStore
from integrity.stores.topic.records import MARK
from tests.conftest import CreateTopic
from tests.contract.world import Events, apply
from tests.integration.topic_shop import COMPACTED, PLACE, SOURCE, Shop, shop, topic_rule

pytestmark = pytest.mark.servers

ODD_KEYS = [
    b"",
    b'{"id": 1,  "x":\t2}',
    b'{"x":2,"id":1}',
    (5).to_bytes(8, "big"),
    b"\0\0\0\0\7\xff\xfe",
    "ключ".encode(),
    b'"1"',
]


@pytest_asyncio.fixture
async def carts(kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Shop]:
    async with shop({"bootstrap_servers": kafka.bootstrap_servers}, create_topic) as made:
        yield made


@pytest.mark.parametrize("action", [Cascade(), Tombstone({})])
async def test_null_record_has_the_childs_own_key_bytes_and_partition(carts: Shop, action: Cascade | Tombstone) -> None:
    for number, key in enumerate(ODD_KEYS):
        await carts.put(key, b'{"customer_id": 7}', partition=number % 2)
    await carts.put(ODD_KEYS[0], b'{"customer_id": 8}', partition=1)
    store = await carts.store(topic_rule(carts.topic, action))
    events = Events()
    events.deleted((7,), at=10)
    (effect,) = await apply(store, events.batch())
    assert (effect.outcome, effect.rows) == (Outcome.APPLIED, len(ODD_KEYS))
    nulls = [(record.partition, record.key) for record in await carts.records() if record.value is None]
    assert sorted(nulls) == sorted((number % 2, key) for number, key in enumerate(ODD_KEYS))
    assert await carts.rows() == {(1, ODD_KEYS[0]): b'{"customer_id": 8}'}


async def test_rewrite_keeps_the_owners_bytes_and_headers(carts: Shop) -> None:
    text = b'{ "n":123456789012345678901234567890,"p": 1.50, "customer_id" : 7 ,"e":1e5,"u":"\\u00e9\xc3\xa9"}'
    await carts.put(b"k", text, 1, [("__TypeId__", b"Cart"), ("trace", b"\xff")])
    store = await carts.store(topic_rule(carts.topic, Nullify(("customer_id",))))
    events = Events()
    events.moved((7,), (1 << 60,), at=10)
    await apply(store, events.batch())
    events.deleted((1 << 60,), at=20)
    await apply(store, events.batch())
    first, moved, nulled = await carts.records()
    assert (moved.key, moved.partition) == (nulled.key, nulled.partition) == (b"k", 1)
    assert first.value == text
    assert moved.value == text.replace(b": 7 ", b": 1152921504606846976 ")
    assert nulled.value == text.replace(b": 7 ", b": null ")
    for record in (moved, nulled):
        assert [header for header in record.headers if header[0] != MARK] == [
            ("__TypeId__", b"Cart"),
            ("trace", b"\xff"),
        ]
        assert len(record.headers) == 3


async def test_values_that_are_no_rows_are_left_alone_counted_and_told(
    carts: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [b"nonsense", b"", b"[7]", b'{"customer_id":"7"}', b'{"customer_id":7,"customer_id":7}', b'{"id":7}', b"\0\1"]
    for number, value in enumerate(odd):
        await carts.put(b"odd%d" % number, value)
    await carts.put(b"child", b'{"customer_id":7}')
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = Events()
    events.deleted((7,), at=10)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1
    assert store.skipped == len(odd)
    assert [(record.records, record.store) for record in caplog.records if record.action == "skip"] == [  # type: ignore[attr-defined]
        (len(odd), "shop")
    ]
    assert sorted((await carts.rows()).values()) == sorted(odd)


ENVELOPE = b'{"before":null,"after":{"customer_id":7},"source":{"lsn":5},"op":"c","ts_ms":1}'


async def test_envelope_of_a_deleted_parent_is_followed_by_a_null_record(carts: Shop) -> None:
    schema = b'{"type":"struct","fields":[],"optional":false}'
    gone = ENVELOPE.replace(b'"before":null,"after"', b'"after":null,"before"').replace(b'"c"', b'"d"')
    await carts.put(b"plain", ENVELOPE)
    await carts.put(b"wrapped", b'{"schema":%s,"payload":%s}' % (schema, ENVELOPE), 1)
    await carts.put(b"other", ENVELOPE.replace(b"7", b"8"))
    await carts.put(b"gone", gone)
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = Events()
    events.deleted((7,), at=10)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 2
    assert sorted(await carts.rows()) == [(0, b"gone"), (0, b"other")]
    assert store.skipped == 0


async def test_envelope_is_never_rewritten(carts: Shop) -> None:
    """It would be a change at a place of the source's log where none was: readers that compare places drop it."""
    await carts.put(b"k", ENVELOPE)
    store = await carts.store(topic_rule(carts.topic, Nullify(("customer_id",))))
    for event in ("deleted", "moved"):
        events = Events()
        events.deleted((7,), at=10) if event == "deleted" else events.moved((7,), (8,), at=10)
        result = await store.apply(events.batch(), Deadline.after(30))
        assert isinstance(result, Rejected), event
        assert (result.dependent, result.reason) == ("customer.carts", Reason.VALUE_REJECTED)
        assert "envelope" in result.message
    assert await carts.rows() == {(0, b"k"): ENVELOPE}


async def test_two_references_of_one_record_are_both_kept(carts: Shop) -> None:
    rules = [
        topic_rule(carts.topic, Nullify((column,)), name=column, columns=(column,)) for column in ("buyer", "payer")
    ]
    for key, value in {
        b"both": b'{"buyer":7,"payer":7}',
        b"crossed": b'{"buyer":7,"payer":8}',
        b"none": b'{"buyer":9,"payer":null}',
    }.items():
        await carts.put(key, value)
    store = await carts.store(*rules)
    events = Events()
    events.deleted((7,), at=10)
    events.moved((8,), (5,), at=11)
    effects = await apply(store, events.batch())
    assert [(e.dependent, e.change, e.rows) for e in effects] == [
        ("customer.buyer", 0, 2), ("customer.buyer", 1, 0), ("customer.payer", 0, 1), ("customer.payer", 1, 1),
    ]  # fmt: skip
    assert await carts.rows() == {
        (0, b"both"): b'{"buyer":null,"payer":null}',
        (0, b"crossed"): b'{"buyer":null,"payer":5}',
        (0, b"none"): b'{"buyer":9,"payer":null}',
    }
    assert store.repairs == 0
    async with store._lock:
        await store._look()
    assert store.repairs == 0, "two records of ours in a row hide nothing of the owner"


async def test_child_written_before_the_deletion_is_always_seen(carts: Shop) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = Events()
    for number in range(20):
        await carts.put(b"k%d" % number, b'{"customer_id":%d}' % number, number % 2)
        events.deleted((number,), at=number + 1)
        (effect,) = await apply(store, events.batch())
        assert effect.rows == 1, number


async def test_partition_added_while_running_is_read(carts: Shop) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    admin = AIOKafkaAdminClient(**carts.client)
    await admin.start()
    await admin.create_partitions({carts.topic: NewPartitions(total_count=3)})
    await admin.close()
    async with asyncio.timeout(20):
        while len(await carts.owner.partitions_for(carts.topic)) < 3:
            await carts.owner.client.force_metadata_update()
    await carts.put(b"k", b'{"customer_id":7}', 2)
    events = Events()
    events.deleted((7,), at=10)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1
    assert await carts.rows() == {}


async def test_open_transaction_of_an_owner_is_waited_for(carts: Shop) -> None:
    """A child that is committed after the look would be missed otherwise, though written before the deletion."""
    store = await carts.store(topic_rule(carts.topic, Cascade()), timeout_s=2)
    other = AIOKafkaProducer(**carts.client, acks="all", transactional_id=f"{carts.topic}.owner")
    await other.start()
    await other.begin_transaction()
    await other.send_and_wait(carts.topic, b'{"customer_id":7}', b"k", 0)
    events = Events()
    events.deleted((7,), at=10)
    batch = events.batch()
    result = await store.apply(batch, Deadline.after(30))
    assert isinstance(result, Retry)
    assert not result.unreachable
    assert carts.topic in result.message
    await other.commit_transaction()
    await other.stop()
    (effect,) = await apply(store, batch)
    assert effect.rows == 1


async def test_record_that_its_topic_refuses_is_rejected_alone(kafka: KafkaServer, create_topic: CreateTopic) -> None:
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    text = KeySpec((("id", KeyType.STRING),))
    long = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=3000))  # too random to compress
    async with shop(client, create_topic, config=COMPACTED | {"max.message.bytes": "2000"}) as made:
        await made.put(b"k", b'{"customer_id":"a"}')
        await made.put(b"l", b'{"customer_id":"b"}')
        store = await made.store(topic_rule(made.topic, Cascade(), spec=text))
        assert not [finding for finding in await store.check(Deadline.after(20)) if finding.severity == "error"]
        events = Events()
        events.moved(("a",), (long,), at=10)
        result = await store.apply(events.batch(), Deadline.after(30))
        assert isinstance(result, Rejected), result
        assert (result.dependent, result.reason) == ("customer.carts", Reason.VALUE_REJECTED)
        events = Events()
        events.deleted(("b",), at=11)
        (effect,) = await apply(store, events.batch())
        assert effect.rows == 1
        assert await made.rows() == {(0, b"k"): b'{"customer_id":"a"}'}


async def test_reference_that_cannot_be_written_is_rejected(carts: Shop) -> None:
    """A number of 17 digits could not be told from a rounded double when the child is read again."""
    number = KeySpec((("id", KeyType.NUMERIC),))
    await carts.put(b"k", b'{"customer_id":1.5}')
    store = await carts.store(topic_rule(carts.topic, Cascade(), spec=number))
    events = Events()
    events.moved((Decimal("1.5"),), (Decimal("1.2345678901234567"),), at=10)
    result = await store.apply(events.batch(), Deadline.after(30))
    assert isinstance(result, Rejected), result
    assert (result.dependent, result.reason) == ("customer.carts", Reason.VALUE_REJECTED)
    assert len(await carts.records()) == 1


async def test_check_names_every_fault_of_the_topics(kafka: KafkaServer, create_topic: CreateTopic) -> None:
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    plain = await create_topic(config={"delete.retention.ms": "1000"})
    rules = [topic_rule(plain, Cascade(), name="one"), topic_rule(f"{plain}.not_there", Cascade(), name="two")]
    store = TopicStore("shop", client, {"customer": rules}, lane=plain, schema=plain)
    try:
        findings = await store.check(Deadline.after(20))
        assert [(f.code, f.severity, f.line) for f in findings] == [
            ("topic_not_compacted", "error", PLACE.line),
            ("delete_retention_short", "warning", PLACE.line),
            ("topic_missing", "error", PLACE.line),
            ("ledger_missing", "error", 0),
        ]
        assert f"{plain}.not_there" in findings[2].message
        assert "cleanup.policy=compact" in findings[0].hint
        await store.migrate(Deadline.after(20))
        await store.migrate(Deadline.after(20))
        assert [f.code for f in await store.check(Deadline.after(20))][3:] == []
        assert f"--topic {plain}.ledger.shop" in store.ddl()
        assert "cleanup.policy=compact" in store.ddl()
    finally:
        await store.close()


async def test_missing_ledger_is_named(carts: Shop) -> None:
    store = TopicStore("shop", carts.client, {"customer": [topic_rule(carts.topic, Cascade())]}, lane="l", schema="no")
    try:
        with pytest.raises(LedgerError, match=r"no\.ledger\.shop"):
            await store.progress(SOURCE, Deadline.after(20))
        events = Events()
        events.deleted((7,), at=10)
        result = await store.apply(events.batch(), Deadline.after(20))
        assert isinstance(result, Broken)
        assert result.dependent is None
        assert "ledger_missing" in [f.code for f in await store.check(Deadline.after(20))], "nothing has created it"
    finally:
        await store.close()


async def test_server_that_does_not_answer_is_named() -> None:
    store = TopicStore(
        "shop", {"bootstrap_servers": "127.0.0.1:1"}, {"customer": [topic_rule("t", Cascade())]}, lane="l"
    )
    try:
        for call in (store.check, store.migrate, lambda deadline: store.progress(SOURCE, deadline)):
            with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
                await call(Deadline.after(5))
        events = Events()
        events.deleted((7,), at=10)
        result = await store.apply(events.batch(), Deadline.after(5))
        assert isinstance(result, Retry)
        assert result.unreachable
    finally:
        await store.close()


async def test_batch_without_deletions_is_applied_without_a_look(carts: Shop) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = Events()
    events.alive((7,), at=10)
    result = await store.apply(events.batch(), Deadline.after(20))
    assert result == Applied([])
    assert await store.progress(SOURCE, Deadline.after(20)) == {SOURCE[0]: 1}
