"""The demo's own parts: its records are read as Debezium's are, and what is not right is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Record, Undecodable
from integrity.demo.events import ChangeRecord, Commit, Debezium
from integrity.demo.play import RULES, letter_trouble
from integrity.demo.result import Letter
from integrity.demo.shop import EVENTS_TOPIC, Kind, different, happenings, orphans
from integrity.errors import Reason
from integrity.rules_files import load_rules

ROW = {"id": 7, "name": "Ada", "email": "a@shop.example"}
DEBEZIUM = Debezium(server="shop", database="crm", table="customers")
STORES = {"orders_db", "reviews_db", "carts"}


def _decoded(records: list[ChangeRecord]) -> list[object]:
    decode = decoder_for(load_rules(RULES).parents[0])
    return [
        decode(Record(EVENTS_TOPIC, 0, offset, 1_700_000_000_000, record.key, record.value, record.headers))
        for offset, record in enumerate(records)
    ]


def _told(decoded: list[object]) -> list[tuple[Op, object, object, object]]:
    assert all(isinstance(each, ParentChange) for each in decoded), decoded
    return [
        (each.op, each.key, each.to, each.version and each.version.position)
        for each in decoded
        if isinstance(each, ParentChange)
    ]


def _letter(place: tuple[int, int], store: str, reason: str = "bad_json") -> Letter:
    return Letter("id", reason, "", store, "*", EVENTS_TOPIC, *place, {}, None)


def test_shipped_rule_is_the_one_of_the_repository() -> None:
    repository = Path(__file__).parents[3] / "rules" / "customer.yaml"
    assert RULES.read_text() == repository.read_text()


def test_deletion_is_read_as_deletion_and_its_null_record_as_gone() -> None:
    decoded = _decoded(DEBEZIUM.deleted(ROW, Commit(100, 1)))
    assert _told(decoded) == [(Op.DELETED, (7,), None, (100,)), (Op.GONE, (7,), None, None)]


def test_key_change_is_read_with_both_keys_at_one_version() -> None:
    decoded = _decoded(DEBEZIUM.moved(7, {**ROW, "id": 9}, Commit(100, 1)))
    assert [(op, key, to) for op, key, to, _ in _told(decoded)][:2] == [
        (Op.MOVED, (7,), (9,)),
        (Op.GONE, (7,), (9,)),
    ]
    assert _told(decoded)[2][:2] == (Op.ARRIVED, (9,))
    assert {version for op, _, _, version in _told(decoded) if op is not Op.GONE} == {(100,)}


def test_torn_record_cannot_be_read() -> None:
    (decoded,) = _decoded([DEBEZIUM.torn(ROW, Commit(100, 1))])
    assert isinstance(decoded, Undecodable)
    assert decoded.reason is Reason.BAD_JSON


def test_the_same_happens_in_every_run_and_one_of_it_is_poison() -> None:
    assert happenings() == happenings()
    kinds = Counter(happening.kind for happening in happenings())
    assert kinds[Kind.POISON] == 1
    assert set(kinds) == set(Kind)


def test_reference_to_a_missing_customer_is_an_orphan_and_null_is_none() -> None:
    assert orphans({1: 10, 2: 11, 3: None}, {10}) == 1


def test_rows_gone_too_many_or_of_another_customer_differ() -> None:
    assert different({1: 10, 2: 11, 4: None}, {1: 10, 2: 12, 3: 10}) == 3
    assert different({1: None}, {1: None}) == 0


def test_the_poison_once_a_store_is_as_it_should_be() -> None:
    assert list(letter_trouble([_letter((0, 5), store) for store in STORES], (0, 5), STORES)) == []


def test_dead_letters_missing_doubled_or_of_other_records_are_told() -> None:
    told = [_letter((0, 5), "carts"), _letter((0, 5), "carts"), _letter((1, 9), "orders_db", "type_mismatch")]
    assert list(letter_trouble(told, (0, 5), STORES)) == [
        "Dead letters that are not the poison: 1 (type_mismatch).",
        "The poison is no dead letter of orders_db.",
        "The poison is no dead letter of reviews_db.",
        "The poison is a dead letter more than once.",
    ]
