"""When a truncate that deletes all parents is carried out, and by whom: a lane over a scripted group member."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from integrity.core.batch import Page, TopicPartition
from integrity.core.change import Origin, Truncation, Version
from integrity.core.decode.record import Decoded, Record
from integrity.core.truncate import read_note
from integrity.kafka.dead_letters import Status
from integrity.kafka.redrives import Ask, Returned, outgoing
from integrity.ports import Deadline
from integrity.service import lane as lanes
from integrity.service.lane import Lane
from integrity.service.truncate import Counting, Truncator
from integrity.service.work import Piece, Reader, Returning, halves
from integrity.stores.memory import MemoryStore, Row
from tests.contract.truncates import Here, rule_set
from tests.unit.service.doubles import (
    TOPIC,
    BentStore,
    Letters,
    ScriptedSource,
    Watched,
    cascade_rule,
    deleted,
    enforcers_of,
)
from tests.unit.service.doubles import decode as decode_key
from tests.unit.service.test_lane import P0, P1, Rig, running, until

REDRIVES = "integrity.redrive"
AT = TopicPartition(REDRIVES, 0)


def decode(record: Record) -> Decoded:
    """As the doubles do, and `t<lsn>` is a truncate."""
    if record.value is None or record.value[:1] != b"t":
        return decode_key(record)
    version = Version(0, (int(record.value[1:]),))
    return Truncation("customer", version, Origin(*record[:4]), record.timestamp_ms)


def alive(key: int, offset: int, *, partition: int = 0) -> Record:
    return deleted(key, offset, partition=partition)._replace(value=b"c%d" % (1000 + offset))


def truncated(offset: int, *, partition: int = 0) -> Record:
    return Record(TOPIC, partition, offset, 1_700_000_000_000, None, b"t5000", ())


class Store(BentStore):
    """Of five parents, all with a row, each worth a row of the ledger."""

    def __init__(self) -> None:
        rule = replace(cascade_rule(), keeps_alive=True)
        rule = replace(rule, dependent=replace(rule.dependent, store="memory"))
        self.rules = {"customer": [rule]}
        rows: list[Row] = [{"id": key, "customer_id": key} for key in range(5)]
        super().__init__(MemoryStore("memory", self.rules, {"orders": rows}))

    async def notes(self, deadline: Deadline) -> Any:
        return await self.store.notes(deadline)

    async def known_keys(self, *arguments: Any) -> Any:
        return await self.store.known_keys(*arguments)


class TruncatingRig(Rig):
    def __init__(self, source: ScriptedSource) -> None:
        store: Any = Store()
        self.store, self.source = store, source
        self.letters, self.watch = Letters(), Watched()
        self.stop = asyncio.Event()
        enforcers = enforcers_of(store, self.letters, self.watch)
        self.truncator = Truncator(
            store, enforcers.pop(), timeout_s=5, counting=Counting(store.store, rule_set(store.rules))
        )
        self.lane = Lane(
            store=store,
            open_source=lambda: source,
            enforcers=enforcers,
            watch=self.watch,
            decoders={TOPIC: ("customer", decode)},
            batch_size=10,
            truncator=self.truncator,
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "TRUNCATES_EVERY_S", 0.002)


def records(*, created: int) -> dict[TopicPartition, list[Record]]:
    """Keys 0 to 3 live by partition 0, key 4 by partition 1; then the truncate, and `created` is created again."""
    return {
        P0: [*(alive(key, key) for key in range(4)), truncated(4)],
        P1: [alive(4, 0, partition=1), alive(created, 1, partition=1)._replace(value=b"c6000")],
    }


async def test_truncate_waits_for_partitions_of_other_processes_and_then_sees_what_they_have_enforced() -> None:
    rig = TruncatingRig(ScriptedSource(records(created=4)))
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 5})
        await asyncio.sleep(0.02)
        assert rig.keys_left() == {0, 1, 2, 3, 4}
        assert not await rig.lane.caught_up(Deadline.after(0))
        other = TruncatingRig(rig.source)
        other.store.store = rig.store.store
        piece = Piece()
        Reader({TOPIC: ("customer", decode)}).read(P1, rig.source.log[P1], piece)
        piece.spans[P1] = lanes.Span(0, 2)
        await other.lane._enforcers[0].enforce(piece)  # the other process does its part
        await until(lambda: rig.keys_left() == {4})
        rig.source.committed[P1] = 2
        assert await rig.lane.caught_up(Deadline.after(20))
    assert not rig.letters.published


async def test_to_the_end_is_when_truncates_are_carried_out_too() -> None:
    rig = TruncatingRig(ScriptedSource(records(created=0)))
    async with running(rig, P0, P1, to_end=True) as task:
        await asyncio.wait_for(asyncio.shield(task), 20)
    assert rig.keys_left() == {0}
    assert rig.source.committed == {P0: 5, P1: 2}


async def test_truncate_of_a_partition_that_another_process_has_is_left_to_it() -> None:
    rig = TruncatingRig(ScriptedSource(records(created=0)))
    async with running(rig, P0, P1):
        await until(lambda: rig.keys_left() == {0})
    rig = TruncatingRig(ScriptedSource(records(created=0)))
    piece = Piece()
    Reader({TOPIC: ("customer", decode)}).read(P0, rig.source.log[P0], piece)
    piece.spans[P0] = lanes.Span(0, 5)
    await rig.lane._enforcers[0].enforce(piece)
    async with running(rig, P1):
        await until(lambda: rig.source.committed == {P1: 2})
        await asyncio.sleep(0.02)
        assert rig.keys_left() == {0, 1, 2, 3, 4}


def test_notes_go_with_the_first_half_of_a_piece_and_are_counted() -> None:
    piece = Piece()
    Reader({TOPIC: ("customer", decode)}).read(P0, records(created=0)[P0], piece)
    assert piece.counts["customer", "t"] == 1
    first, second = halves(piece)
    assert (len(first.notes), len(second.notes)) == (1, 0)


async def test_held_truncate_comes_back_approved_to_its_dependent_alone() -> None:
    """From the topic of redrives, as `integrity dlq retry --id` sends it."""
    rig = TruncatingRig(ScriptedSource(records(created=0)))
    reader = Reader({TOPIC: ("customer", decode)}, Returning(REDRIVES, "memory", {"customer.orders"}))
    piece = Piece(spans={P0: lanes.Span(0, 5)})
    reader.read(P0, rig.source.log[P0], piece)
    [told] = piece.notes
    assert told.data is not None
    first = read_note(told.data)
    held = msgspec.structs.replace(first, held={"customer.orders": "e" * 32})
    piece.notes[0] = held.to_keep()  # as it is when its rows have been counted
    place = Here()
    await rig.lane._enforcers[0].enforce(piece)
    await rig.truncator.round(place)
    assert rig.keys_left() == {0, 1, 2, 3, 4}
    ask = Returned(Ask.APPROVE, "e" * 32, "customer", "customer.orders", "memory", 3, truncated(4))
    sent = outgoing(REDRIVES, ask)
    back = Piece(spans={AT: lanes.Span(0, 1)})
    reader.read(AT, [Record(REDRIVES, 0, 0, 1, sent.key, sent.value, sent.headers)], back)
    await rig.lane._enforcers[0].enforce(back)
    [note] = await rig.truncator.waiting()
    assert (note.at, note.only, note.page) == (AT, "customer.orders", Page("customer.orders", True, 3))
    await rig.truncator.round(place)
    assert rig.keys_left() == {4}, "of 4 nothing was heard"
    assert [(change.id, change.status) for change in rig.letters.marked] == [("e" * 32, Status.RESOLVED)]
    assert await rig.truncator.waiting() == []
