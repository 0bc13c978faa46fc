"""The index of dead letters, read from real topics, and the records that it leads to."""

from __future__ import annotations

import os

import pytest

from integrity.core.decode.record import Record
from integrity.demo.servers import KafkaServer
from integrity.errors import Reason
from integrity.kafka.dead_letters import DeadLetter, DeadLetters, Stage, Status, StatusChange
from integrity.kafka.letters import Filter, chunks, open_letters
from integrity.ports import Deadline

pytestmark = pytest.mark.servers

COUNT = 1_200
AT_MS = 1_600_000_000_000
HEADERS = (("trace", b"\x00"), ("trace", None), ("traceparent", b"x"))


def letter(offset: int, *, dependent: str = "customer.orders", value: bytes = b"{}", retries: int = 0) -> DeadLetter:
    record = Record("customers", offset % 2, offset, AT_MS + offset, b"%d" % (offset % 7), value, HEADERS)
    status = Status.HELD if offset == 9 else Status.OPEN
    return DeadLetter(
        record=record,
        reason=Reason.STORE_REJECTED,
        message="no",
        entity="customer",
        dependent=dependent,
        store="orders_db",
        attempts=1,
        stage=Stage.STORE,
        rules="abc",
        failed_at_ms=AT_MS + retries,
        retries=retries,
        status=status,
    )


async def test_letters_are_found_by_what_they_are_and_lead_to_their_records_as_they_came(
    kafka: KafkaServer, topic_name: str
) -> None:
    client = {"bootstrap_servers": kafka.bootstrap_servers}
    async with open_letters(client, topic_name, Deadline.after(15)) as reader:
        empty = await reader.index()
        assert (list(empty.find(Filter())), empty.count(Filter())) == ([], {})
        empty.close()
    large = letter(5, dependent="customer.notes", value=os.urandom(2_000_000))
    sent = [letter(offset) for offset in range(COUNT)]
    letters = DeadLetters(client, topic=topic_name, group="integrity")
    await letters.publish([*sent, large], Deadline.after(60))
    await letters.publish([letter(3, retries=1)], Deadline.after(30))
    changes = [StatusChange(sent[4].id, Status.DISCARDED, AT_MS, "customer.orders", "orders_db", "", "ada", "by hand")]
    await letters.mark(changes, Deadline.after(30))
    await letters.close(Deadline.after(5))

    async with open_letters(client, topic_name, Deadline.after(15)) as reader:
        index = await reader.index()
        found = list(index.find(Filter(dependent="customer.orders")))
        assert [(each.partition, each.offset) for each in found] == sorted((n % 2, n) for n in range(COUNT))
        assert {each.offset for each in found if each.retries} == {3}
        assert [each.offset for each in index.find(Filter(statuses=[Status.HELD]))] == [9]
        [gone] = index.find(Filter(ids=[sent[4].id]))
        assert (gone.status, gone.actor, gone.note) == (Status.DISCARDED, "ada", "by hand")
        assert sum(index.count(Filter()).values()) == COUNT + 1
        assert [each.truncated for each in index.find(Filter(dependent="customer.notes"))] == [True]
        assert next(index.find(Filter(since="2020-09-13T12:26:40.001Z"))).offset == 3
        assert len(list(index.find(Filter(), 10))) == 10

        scattered = [each for each in found if each.offset % 400 in (3, 4)]
        for run in (scattered, next(chunks(found))):
            records = await reader.payloads(run)
            assert {each.id for each in run} == records.keys()
            for each in run:
                assert records[each.id] == sent[each.offset].record
        index.close()
