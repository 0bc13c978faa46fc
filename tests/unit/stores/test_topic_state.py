"""The view: what reading on makes of it, and when a record of ours hides one of its owner's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integrity.core.batch import TopicPartition
from integrity.core.change import Version
from integrity.core.fold import Born
from integrity.core.keys import KeyType, key_hash
from integrity.stores.topic import records
from integrity.stores.topic.records import ChildKey, Mark, ProgressRecord, ReadRecord, WritesRecord
from integrity.stores.topic.state import State
from tests.unit.stores.test_topic_values import row_rule

LEDGER = "integrity.ledger.shop"
CHILD = ChildKey("carts", 0, b"k")
OLD, NEW = key_hash("customer", (7,)), key_hash("customer", (8,))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path / "view.sqlite", [row_rule({"customer_id": KeyType.INT64})], lane="lane")
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


def owner(offset: int, value: bytes | None, key: bytes = b"k") -> ReadRecord:
    return ReadRecord("carts", 0, offset, key, value, ())


def ours(offset: int, value: bytes | None, *, base: int, dependent: str = "customer.carts") -> ReadRecord:
    mark = Mark(base, dependent, OLD.hex() if dependent else "")
    return ReadRecord("carts", 0, offset, b"k", value, records.marked((), mark))


def read(state: State, *read: ReadRecord) -> None:
    newest = [record.offset for record in read if records.mark_of(record.headers)]
    state.set_ours(TopicPartition("carts", 0), tuple((offset, offset) for offset in newest))
    state.take(read, LEDGER)


def chosen(state: State, digest: bytes) -> list[bytes]:
    state.choose(0, [(digest, None, None)])
    return [child.at.key for child in state.chosen(0, 100)]


def mends(state: State) -> list[bytes | None]:
    return [value for _, _, value in state.mends()]


def test_children_are_found_by_the_newest_reference_they_hold(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":7}', b"l"), owner(2, b'{"customer_id":8}'))
    assert chosen(state, OLD) == [b"l"]
    assert chosen(state, NEW) == [b"k"]
    read(state, owner(3, None))
    assert chosen(state, NEW) == []
    assert state.children() == 1


def test_one_key_in_two_partitions_is_two_children(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(0, b'{"customer_id":7}')._replace(partition=1))
    assert chosen(state, OLD) == [b"k", b"k"]


def test_value_that_is_no_row_is_skipped_and_counted(state: State) -> None:
    read(state, owner(0, b"nonsense"), owner(1, b'{"x":1}', b"l"), owner(2, b'{"customer_id":"7"}', b"m"))
    read(state, owner(3, b'{"customer_id":null}', b"n"), ReadRecord("carts", 0, 4, None, b'{"customer_id":7}', ()))
    assert state.skipped == 4
    assert chosen(state, OLD) == []


def test_record_of_ours_over_the_one_it_was_made_from_hides_nothing(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), ours(1, b'{"customer_id":8}', base=0))
    assert not state.overtaken
    read(state, ours(5, None, base=1))
    assert not state.overtaken


def test_owner_that_turned_to_another_parent_in_between_is_mended(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, None, base=0))
    assert mends(state) == [b'{"customer_id":9}']


def test_owner_that_still_referenced_the_key_in_between_goes_the_same_way(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":7,"n":2}'), ours(2, None, base=0))
    assert mends(state) == []


def test_owner_that_changed_another_field_in_between_keeps_it_under_the_new_reference(state: State) -> None:
    rewritten = ours(2, b'{"customer_id":8,"n":1}', base=0)
    read(state, owner(0, b'{"customer_id":7,"n":1}'), owner(1, b'{"n":2,"customer_id":7}'), rewritten)
    assert mends(state) == [b'{"n":2,"customer_id":8}']


@pytest.mark.parametrize(("born_ms", "mended"), [(1_700_000_000_010, False), (1_700_000_000_011, True)])
def test_owner_that_wrote_a_row_too_young_for_the_event_gets_it_back(
    tmp_path: Path, born_ms: int, mended: bool
) -> None:
    state = State(tmp_path / "aged.sqlite", [row_rule({"customer_id": KeyType.INT64}, as_of="at")], lane="lane")
    new = b'{"customer_id":7,"at":%d}' % born_ms
    mark = Mark(0, "customer.carts", OLD.hex(), Born(None, 1_700_000_000_010))
    gone = ReadRecord("carts", 0, 2, b"k", None, records.marked((), mark))
    read(state, owner(0, b'{"customer_id":7,"at":1700000000000}'), owner(1, new), gone)
    assert mends(state) == ([new] if mended else [])
    state.close()


def test_owner_that_wrote_no_row_in_between_is_mended(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b"nonsense"), ours(2, None, base=0))
    assert mends(state) == [b"nonsense"]


def test_child_that_its_owner_deleted_in_between_is_not_brought_back(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, None), ours(2, b'{"customer_id":8}', base=0))
    assert mends(state) == [None]


def test_child_deleted_on_both_sides_needs_no_mending(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, None), ours(2, None, base=0))
    assert mends(state) == []


def test_owner_that_wrote_after_us_needs_no_mending(state: State) -> None:
    record = owner(3, b'{"customer_id":5}')
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, None, base=0), record)
    assert mends(state) == []


def test_mended_record_is_mended_once(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, None, base=0))
    read(state, ours(3, b'{"customer_id":9}', base=2, dependent=""))
    assert mends(state) == []


def test_owner_that_wrote_before_a_mend_is_mended_too(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, None, base=0))
    read(state, owner(3, b'{"customer_id":5}'), ours(4, b'{"customer_id":9}', base=2, dependent=""))
    assert mends(state) == [b'{"customer_id":5}']


def test_two_records_of_ours_after_an_owner_are_taken_together(state: State) -> None:
    first, second = ours(2, b'{"customer_id":8,"n":1}', base=0), ours(3, None, base=0)
    read(state, owner(0, b'{"customer_id":7,"n":1}'), owner(1, b'{"customer_id":9,"n":2}'), first, second)
    assert mends(state) == [b'{"customer_id":9,"n":2}']


def test_mark_that_an_owner_copied_means_nothing(state: State) -> None:
    state.take(
        [owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, b'{"customer_id":5}', base=0)], LEDGER
    )
    assert not state.overtaken


def test_rollback_takes_back_what_a_batch_did(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'))
    state.begin()
    state.choose(0, [(OLD, None, None)])
    (child,) = state.chosen(0, 10)
    state.remove(child.id)
    state.add_arrival(0, CHILD, "customer", (8,), Version(0, (1,)))
    state.set_progress(TopicPartition("t", 0), ProgressRecord(5))
    state.rollback()
    assert chosen(state, OLD) == [b"k"]
    assert state.arrivals() == 0
    assert state.progress() == {}


def test_arrivals_are_apart_from_plain_children(state: State) -> None:
    read(state, owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":7}', b"l"))
    since = Version(0, (20, 1))
    name, value = state.add_arrival(0, CHILD, "customer", (7,), since)
    parts = [(OLD, None, None), (OLD, since, None), (OLD, Version(0, (20,)), None)]
    assert state.choose(0, parts) == [1, 1, 0]
    assert [child.at.key for child in state.chosen(0, 10)] == [b"l", b"k"]
    state.remove_arrival(name)
    state.take([ReadRecord(LEDGER, 0, 0, name, value, ())], LEDGER)
    assert state.arrivals_at(0, OLD) == [(name, since)]


def test_ledger_tells_which_records_are_ours(state: State) -> None:
    writes = records.encode(WritesRecord(((2, 2),)))
    name = records.writes_key(TopicPartition("carts", 0))
    state.take([ReadRecord(LEDGER, 0, 0, name, writes, ())], LEDGER)
    state.take([owner(0, b'{"customer_id":7}'), owner(1, b'{"customer_id":9}'), ours(2, None, base=0)], LEDGER)
    assert mends(state) == [b'{"customer_id":9}']


def test_progress_of_another_lane_is_not_taken(state: State) -> None:
    at = TopicPartition("t", 0)
    for offset, lane in enumerate(("lane", "other")):
        record = ReadRecord(LEDGER, 0, offset, records.progress_key(lane, at), b'{"next":%d}' % (7 + offset), ())
        state.take([record], LEDGER)
    assert state.progress() == {at: 7}
