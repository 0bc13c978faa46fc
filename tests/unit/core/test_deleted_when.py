"""`events.deleted_when` and `events.epoch`: what a condition may be, and what an event that meets it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from integrity.core.change import Op, Version
from integrity.core.condition import fault_of
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Headers, Ignored
from integrity.core.rules.findings import FindingCode
from integrity.core.rules.parse import parse_rules
from integrity.errors import Reason, RulesError
from tests.unit.core.test_decode_debezium import SOURCE, change, envelope, record, refusal, rule

MARKED = "after.deleted_at != null"


def decode(condition: str, value: bytes, headers: Headers = (), epoch: int = 0) -> Decoded:
    parent = rule()
    events = replace(parent.events, deleted_when=condition, epoch=epoch)
    return decoder_for(replace(parent, events=events))(record(value, headers=headers))


def row(**fields: object) -> dict[str, object]:
    return {"id": 10} | fields


@pytest.mark.parametrize("op", ["c", "u"])
def test_a_create_or_update_that_meets_the_condition_is_a_deletion(op: str) -> None:
    found = change(decode(MARKED, envelope(op, after=row(deleted_at=5))))
    assert (found.op, found.key, found.version) == (Op.DELETED, (10,), Version(0, (4711,)))


@pytest.mark.parametrize("op", ["c", "u"])
def test_one_that_does_not_says_that_the_parent_lives(op: str) -> None:
    found = change(decode(MARKED, envelope(op, after=row(deleted_at=None))))
    assert (found.op, found.version) == (Op.ALIVE, Version(0, (4711,)))


def test_a_snapshot_read_never_deletes_whatever_it_holds() -> None:
    assert change(decode(MARKED, envelope("r", after=row(deleted_at=5)))).op is Op.ALIVE


def test_a_real_deletion_is_one_without_being_asked() -> None:
    assert change(decode(MARKED, envelope("d", before=row()))).op is Op.DELETED


def test_an_update_without_a_row_is_not_asked() -> None:
    assert isinstance(decode(MARKED, envelope("u")), Ignored)


def test_a_row_that_is_deleted_by_the_change_of_its_key_takes_what_came_along() -> None:
    """The move is at 4711: what it brought is there since then, so the deletion is just after."""
    headers = (("__debezium.oldkey", b'{"id":9}'),)
    found = change(decode(MARKED, envelope("c", after=row(deleted_at=5)), headers))
    assert (found.op, found.version) == (Op.DELETED, Version(0, (4711, 1)))


@pytest.mark.parametrize(
    ("condition", "after"),
    [
        (MARKED, row()),
        (MARKED, row(deleted_at="__debezium_unavailable_value")),
        ("after.status == 'gone'", row()),
        ("after.status > 3", row(status="gone")),
        ("after.status", row(status="gone")),
        ("before.status == 'gone'", row()),
        ("headers.reason == 'x'", row()),
    ],
)
def test_an_event_that_gives_no_answer_is_a_dead_letter(condition: str, after: dict[str, object]) -> None:
    decoded = decode(condition, envelope("u", after=after))
    assert refusal(decoded) == (Reason.BAD_ENVELOPE, "value")
    assert "gone" not in decoded.message  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("condition", "deleted"),
    [
        ("has(after.gone) && after.gone == true", False),
        ("after.status in ['closed', 'gone']", True),
        ("after.status == 'gone' && before.status != 'gone'", True),
        ("after.balance < 0.5 && after.big == 9007199254740993", True),
        ("after.address.city == 'Ghent'", True),
        ("source.schema == 'public' && op == 'u' && headers.actor == 'cleanup'", True),
        ("after.tags.exists(tag, tag == 'x')", True),
        ("after.deleted_at == null", False),
    ],
)
def test_conditions_see_the_row_its_source_and_the_headers(condition: str, deleted: bool) -> None:
    after = row(
        status="gone",
        balance=0.25,
        big=9007199254740993,
        address={"city": "Ghent"},
        tags=["x"],
        deleted_at=1,
    )
    value = envelope("u", before=row(status="new"), after=after)
    found = change(decode(condition, value, headers=(("actor", b"cleanup"), ("bad", b"\xff"))))
    assert found.op is (Op.DELETED if deleted else Op.ALIVE)


def test_a_deletion_by_condition_needs_a_version_like_every_other() -> None:
    source = SOURCE | {"lsn": None}
    assert refusal(decode(MARKED, envelope("u", source, after=row(deleted_at=5)))) == (Reason.BAD_VERSION, "value")


def test_the_epoch_of_the_rule_is_that_of_every_version() -> None:
    for value in (envelope("d"), envelope("c", after=row(deleted_at=None)), envelope("u", after=row(deleted_at=1))):
        assert change(decode(MARKED, value, epoch=3)).version == Version(3, (4711,))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("after..x", "no CEL"),
        ("row.deleted", "names 'row'"),
        ("1 + 1", "never true or false"),
        ("string(after.x)", "never true or false"),
        ("size(after.name)", "never true or false"),
        ("gone(after.x)", "can't be evaluated"),
        ("x" * 2001, "more than 2000 characters"),
    ],
)
def test_a_condition_that_can_not_be_right_is_refused(condition: str, words: str) -> None:
    fault = fault_of(condition)
    assert fault is not None
    assert words in fault


FILE = """\
version: 1
parent: customer
events:
  topic: t
  format: debezium
  key: {id: int64}
  %s
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


def test_the_rule_file_takes_both() -> None:
    both = parse_rules({"a.yaml": FILE % 'deleted_when: "after.deleted_at != null"\n  epoch: 2'})
    events = both.parents[0].events
    assert (events.deleted_when, events.epoch) == (MARKED, 2)
    assert both.hash != parse_rules({"a.yaml": FILE % "epoch: 2"}).hash


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ("deleted_when: row.x == 1", FindingCode.BAD_CONDITION),
        ("deleted_when: 5", FindingCode.WRONG_TYPE),
        ('deleted_when: ""', FindingCode.EMPTY),
        ("epoch: -1", FindingCode.NUMBER_RANGE),
        ("epoch: 1000001", FindingCode.NUMBER_RANGE),
        ("epoch: 1.5", FindingCode.WRONG_TYPE),
        ("epoch: true", FindingCode.WRONG_TYPE),
    ],
)
def test_what_is_wrong_with_them_is_a_finding_at_its_place(field: str, code: FindingCode) -> None:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": FILE % field})
    [finding] = caught.value.findings
    assert (finding.code, finding.line) == (code, 7)
