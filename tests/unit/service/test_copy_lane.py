"""The lane of a copy: where it begins, whose dead letters it takes back, what it tells."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from integrity.core.batch import Batch, TopicPartition
from integrity.core.copies import UPSERT
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record
from integrity.core.outcome import Effect, Outcome
from integrity.core.retry import Backoff
from integrity.core.rules.model import Events, Parent, Place, TargetKind, Tombstones
from integrity.service.enforce import Enforcer
from integrity.service.halts import Halts
from integrity.service.lane import Lane
from integrity.service.report import CopyReport
from integrity.service.work import Returning
from integrity.stores.memory_copy import MemoryCopy
from tests.contract.copies import copy_of
from tests.contract.world import SINGLE
from tests.unit.service.doubles import TOPIC, Letters, ScriptedSource, Watched

P0 = TopicPartition(TOPIC, 0)
COPY = "customer.customer_copy"


def alive(key: int, offset: int) -> Record:
    source = {"connector": "postgresql", "lsn": 100 + offset, "ts_ms": 1}
    after = {"id": key, "name": f"n{offset}", "mail": None}
    value = json.dumps({"before": None, "after": after, "source": source, "op": "u"}).encode()
    return Record(TOPIC, 0, offset, 1, b'{"id":%d}' % key, value, ())


def broken(offset: int) -> Record:
    return Record(TOPIC, 0, offset, 1, b'{"id":1}', b"{", ())


class Rig:
    """A lane over the model. `complete` are the topics that are compacted."""

    def __init__(self, records: Sequence[Record], complete: Sequence[str] = ()) -> None:
        self.store = MemoryCopy("store", copy_of(TargetKind.TABLE, "customer_copy"))
        self.source, self.letters, self.watch = ScriptedSource({P0: records}), Letters(), Watched()
        parent = Parent("customer", Events((TOPIC,), "debezium", SINGLE, Tombstones.DELETE), (), Place("a.yaml", 1, 1))
        enforcer = Enforcer(
            self.store,
            self.letters,
            self.watch,
            system="memory",
            rules_hash="abc",
            timeout_s=5,
            halts=Halts(self.store, self.watch, {}),
            backoff=Backoff(first_s=0.0005, cap_s=0.005),
            unread=COPY,
        )
        self.lane = Lane(
            store=self.store,
            open_source=lambda: self.source,
            enforcers=[enforcer],
            watch=self.watch,
            decoders={TOPIC: ("customer", decoder_for(parent, copied=("name", "mail")))},
            batch_size=10,
            complete=complete,
        )

    async def run(self, rows: int) -> None:
        """Until the copy has that many rows."""
        stop = asyncio.Event()
        task = asyncio.create_task(self.lane.run(stop))
        async with asyncio.timeout(20):
            while not hasattr(self.source, "on_assigned"):
                await asyncio.sleep(0)
            await self.source.assign(P0)
            while len(self.store.rows) < rows:
                await asyncio.sleep(0)
            stop.set()
            await task


async def test_new_copy_is_filled_from_the_first_record_whatever_the_group_has_committed() -> None:
    """Its group may be that of the copy as it was before its rule changed."""
    rig = Rig([alive(offset, offset) for offset in range(25)])
    rig.source.committed[P0] = 20
    await rig.run(25)
    assert rig.store.rows[0,]["name"] == "n0"


@pytest.mark.parametrize(("first", "complete", "warns"), [(3, [], True), (3, [TOPIC], False), (0, [], False)])
async def test_records_that_a_topic_has_lost_are_told_unless_it_is_compacted(
    first: int, complete: list[str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig([alive(offset, offset) for offset in range(first, 6)], complete)
    rig.source.first[P0] = first
    with caplog.at_level(logging.INFO):
        await rig.run(6 - first)
    said = [record.message for record in caplog.records if "not compacted" in record.message]
    assert bool(said) == warns


async def test_record_that_cannot_be_read_is_a_dead_letter_of_the_copy() -> None:
    rig = Rig([broken(0), alive(1, 1)])
    await rig.run(1)
    [letter] = rig.letters.published
    assert (letter.dependent, letter.store, letter.reason) == (COPY, "store", "bad_json")


@pytest.mark.parametrize(
    ("store", "dependent", "copys", "others"),
    [
        ("store", COPY, True, False),
        ("store", "customer.orders", False, True),
        ("store", "*", False, True),
        ("store", "customer.gone", False, True),
        ("other", COPY, False, False),
        ("other", "*", False, False),
    ],
)
def test_dead_letter_comes_back_to_the_one_lane_that_it_is_of(
    store: str, dependent: str, copys: bool, others: bool
) -> None:
    of_copy = Returning("redrive", "store", {COPY}, alone=True)
    of_others = Returning("redrive", "store", {"customer.orders"}, {COPY})
    assert of_copy.concerns(store, dependent) is copys
    assert of_others.concerns(store, dependent) is others


def test_audit_has_what_copies_lost_and_what_was_not_applied() -> None:
    told: list[Any] = []

    class Told:
        def applied(self, store: str, batch: Batch, effects: object, took_s: float, audited: object) -> None:
            told.append((store, effects, audited))

    effects = [
        Effect(0, COPY, UPSERT, Outcome.APPLIED, 1),
        Effect(1, COPY, UPSERT, Outcome.STALE, 0),
        Effect(2, COPY, "delete", Outcome.APPLIED, 1),
        Effect(3, COPY, UPSERT, Outcome.DEAD_LETTERED, 0),
    ]
    CopyReport(Told(), "store.customer.customer_copy").applied("store", Batch((), {}, 1), effects, 0.1)  # type: ignore[arg-type]
    assert told == [("store.customer.customer_copy", effects, effects[1:])]
