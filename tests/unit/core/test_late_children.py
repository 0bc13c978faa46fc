"""`late_children.sweeps` of a rule file."""

from __future__ import annotations

import pytest

from integrity.core.rules.findings import FindingCode
from integrity.core.rules.parse import parse_rules
from integrity.errors import RulesError
from tests.unit.core.test_rules_parse import CASCADE, COLLECTION, HEAD, TABLE, VALID


def ages(text: str) -> tuple[int, ...]:
    return parse_rules({"customer.yaml": VALID + text}).parents[0].sweeps_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (60_000, 600_000, 3_600_000)),
        ("late_children: {sweeps: [1h, 1m, 1500ms]}\n", (1_500, 60_000, 3_600_000)),
        ("late_children: {sweeps: [30d]}\n", (2_592_000_000,)),
        ("late_children: {sweeps: []}\n", ()),
    ],
)
def test_ages_are_those_of_the_file_in_order_or_the_default(text: str, expected: tuple[int, ...]) -> None:
    assert ages(text) == expected


@pytest.mark.parametrize(
    ("value", "code", "column"),
    [
        ("5", FindingCode.WRONG_TYPE, 16),
        ("{}", FindingCode.EMPTY, 16),
        ("{swept: [1m]}", FindingCode.UNKNOWN_FIELD, 17),
        ("{sweeps: 1m}", FindingCode.WRONG_TYPE, 25),
        ("{sweeps: [60]}", FindingCode.WRONG_TYPE, 26),
        ("{sweeps: [1 minute]}", FindingCode.UNKNOWN_VALUE, 26),
        ("{sweeps: [999ms]}", FindingCode.UNKNOWN_VALUE, 26),
        ("{sweeps: [31d]}", FindingCode.UNKNOWN_VALUE, 26),
        ("{sweeps: [1m, 60s]}", FindingCode.REPEATED, 30),
        (f"{{sweeps: [{', '.join(f'{n}m' for n in range(1, 12))}]}}", FindingCode.WRONG_TYPE, 25),
    ],
)
def test_what_is_no_list_of_ages_is_refused_where_it_stands(value: str, code: FindingCode, column: int) -> None:
    with pytest.raises(RulesError) as caught:
        ages(f"late_children: {value}\n")
    [finding] = caught.value.findings
    assert (finding.code, finding.line, finding.column) == (code, VALID.count("\n") + 1, column)


def test_ages_belong_to_the_file_not_to_a_dependent_or_its_events() -> None:
    for text in (f"{HEAD}  late_children: {{sweeps: [1m]}}\n", f"{HEAD}"):
        dependent = f"{TABLE}, {CASCADE}" + ("" if "late" in text else ", late_children: {sweeps: [1m]}")
        with pytest.raises(RulesError) as caught:
            parse_rules({"customer.yaml": f"{text}dependents:\n  - {{{dependent}}}\n"})
        assert [finding.code for finding in caught.value.findings] == [FindingCode.UNKNOWN_FIELD]


def test_sweeps_of_a_store_are_those_of_the_parents_with_dependents_in_it() -> None:
    owner = VALID.replace("customer", "owner").replace(TABLE.replace("customer", "owner"), COLLECTION)
    owner = owner.replace("collection: reviews", "collection: notes")
    rules = parse_rules(
        {
            "customer.yaml": f"{VALID}  - {{{COLLECTION}, {CASCADE}}}\nlate_children: {{sweeps: [1m, 2m]}}\n",
            "owner.yaml": f"{owner}late_children: {{sweeps: [2m]}}\n",
        }
    )
    assert rules.sweeps_of("orders_db") == {60_000: {"customer"}, 120_000: {"customer"}}
    assert rules.sweeps_of("reviews_db") == {60_000: {"customer"}, 120_000: {"customer", "owner"}}


def test_sweeps_are_part_of_what_rules_mean() -> None:
    hashes = {
        parse_rules({"customer.yaml": VALID + text}).hash
        for text in ("", "late_children: {sweeps: [1m, 10m, 60m]}\n", "late_children: {sweeps: []}\n")
    }
    assert len(hashes) == 2


def test_rows_without_events_cannot_name_sweeps_and_are_told_why() -> None:
    files = {
        "customer.yaml": HEAD + f"dependents:\n  - {{{TABLE}, {CASCADE}, entity: order, key: {{id: int64}}}}\n",
        "order.yaml": "version: 1\nparent: order\ndependents:\n"
        "  - {store: a, table: items, references: {order_id: id}, on_delete: cascade}\n"
        "late_children: {sweeps: [1m]}\n",
    }
    with pytest.raises(RulesError) as refused:
        parse_rules(files)
    [finding] = refused.value.findings
    assert (finding.code, finding.file, finding.line) == ("needs_events", "order.yaml", 5)
    assert (
        parse_rules(files | {"order.yaml": files["order.yaml"].rsplit("late", 1)[0]}).by_entity["order"].sweeps_ms == ()
    )
