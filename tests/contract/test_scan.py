"""Orphans are found, and go the way of a deletion, over every store."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from integrity.core.batch import DeadLetterMark
from integrity.core.history import Repair
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.outcome import Diverged
from integrity.core.rules.model import Cascade, Ignore, Nullify, Restrict
from integrity.core.scan import SOURCE_TOPIC, Heard
from integrity.errors import OperationError, Reason
from integrity.ports import Deadline, Scannable, Store
from integrity.service.scan import Count, Found, ParentRows, Subject, scan
from integrity.service.scan_repair import Mended, Repairer, refusal
from integrity.stores.rule import StoreRule
from tests.contract.graph_rules import items
from tests.contract.graph_rules import orders as order_rows
from tests.contract.harness import Feature, Harness
from tests.contract.world import AT_MS, COMPOSITE, ENTITY, MARK, SINGLE, TOPIC, Events, apply, orders, rule, rules_of

VALUES: dict[KeyType, Sequence[Any]] = {
    KeyType.INT32: [-(2**31), -1, 0, 9, 10, 2**31 - 1],
    KeyType.INT64: [-(2**63), -1, 0, 9, 10, 2**53, 2**53 + 1, 2**63 - 1],
    KeyType.NUMERIC: [
        Decimal(t) for t in ("-1000", "-10.5", "-10.25", "-0.001", "0", "0.001", "0.01", "9", "10", "1e3")
    ],
    KeyType.STRING: ["", " ", "10", "9", "A", "B", "_", "a", "a b", "ab", "b", "é", "\uffff", "\U0001f600"],
    KeyType.UUID: [UUID(int=0), UUID(int=2**64), UUID(int=2**127), UUID(int=2**128 - 1)],
    KeyType.BOOL: [False, True],
    KeyType.DATE: [date(1, 1, 2), date(1969, 12, 31), date(1970, 1, 1), date(2024, 2, 29), date(9999, 12, 30)],
    KeyType.TIMESTAMP: [
        datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 0, 1_000, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 0, 1, tzinfo=UTC),
    ],
    KeyType.BYTES: [b"\xff", b"\0", b"a", b"\0\0", b"ab", b"b\0\0"],
    KeyType.OBJECTID: ["0" * 24, "0a" + "0" * 22, "a0" + "0" * 22, "f" * 24],
}
"""Keys whose order differs from one way of comparing to another."""


def parents(spec: KeySpec = SINGLE, name: str = "customers", entity: str = ENTITY) -> StoreRule:
    """Parents, as rows of the same store that refer to themselves."""
    return rule(Ignore(), Ignore(), name=name, spec=spec, columns=spec.names, entity=entity)


class Quiet:
    def compared(self, dependent: str, rows: int) -> None: ...

    def waits(self, dependent: str, candidates: int, seconds: float) -> None: ...

    def looked_up(self, dependent: str, keys: int, of: int) -> None: ...


def subject(scanner: Scannable, of: StoreRule, parent: StoreRule) -> Subject:
    return Subject(of.entity, of.spec, of.dependent, scanner, ParentRows(scanner, parent.id), parent.id)


async def found_in(of: Subject, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Found:
    """What a scan finds; `meanwhile` happens in the grace period."""

    async def sleep(seconds: float) -> None:
        assert seconds == 60
        if meanwhile is not None:
            await meanwhile()

    return await scan(of, Quiet(), Deadline.after(60), grace_s=60, timeout_s=30, sleep=sleep)


def keys_of(found: Found) -> dict[Key, int]:
    return {key: rows for page in found.orphans.pages(2, 10**9) for key, rows in page}


class Notes:
    """An audit."""

    def __init__(self) -> None:
        self.told: list[tuple[Key, str, str, str, int, str]] = []

    def write(self, batch: Any, effects: Any, took_ms: float, actor: str = "") -> None:
        self.told += [
            (batch.changes[change].key, dependent, action, outcome, rows, actor)
            for change, dependent, action, outcome, rows in effects
        ]


async def yes(deadline: Deadline) -> bool:
    return True


async def mend(store: Store, found: Found, notes: Notes | None = None, caught_up: Any = yes) -> Mended:
    repairer = Repairer(
        found.subject, store, caught_up, notes or Notes(), actor="ada", timeout_s=30, clock=lambda: AT_MS / 1000
    )
    return await repairer.run(found)


async def references(harness: Harness, target: str = "orders", column: str = "customer_id") -> dict[object, object]:
    return {row["id"]: row[column] for row in await harness.rows(target)}


async def test_keys_of_every_type_are_compared_in_one_order(harness: Harness) -> None:
    rules: list[StoreRule] = []
    rows: dict[str, list[dict[str, object]]] = {}
    for kind, values in VALUES.items():
        spec = KeySpec((("code", kind),))
        of = rule(Cascade(), name=f"orders_{kind}", spec=spec, entity=f"c_{kind}")
        rules += [of, parents(spec, f"customers_{kind}", f"c_{kind}")]
        rows[f"orders_{kind}"] = [{"id": n, "customer_code": value} for n, value in enumerate([*values, *values])]
        rows[f"customers_{kind}"] = [{"id": n, "code": value} for n, value in enumerate(values) if n % 2]
    await harness.open(rules_of(*rules), rows)
    scanner = harness.scanner()
    for of, parent in zip(rules[::2], rules[1::2], strict=True):
        found = await found_in(subject(scanner, of, parent))
        values = VALUES[of.spec.types[0]]
        assert keys_of(found) == {(value,): 2 for value in values[::2]}, of.id
        assert (found.keys, found.rows, found.mistyped) == (len(values), 2 * len(values), 0)
        assert found.heard[Heard.NOTHING] == Count(found.orphans.keys, found.orphans.rows)
        found.orphans.close()


async def test_composite_references_are_compared_part_by_part(harness: Harness) -> None:
    of, parent = rule(Cascade(), spec=COMPOSITE), parents(COMPOSITE)
    keys = [("a", 2), ("a", 10), ("ab", 1), ("b", -1), ("b", 3)]
    rows = orders(*keys, ("a", None), (None, 1)) | {
        "customers": [{"id": n, "tenant": t, "code": c} for n, (t, c) in enumerate([*keys[1::2], ("zz", 1)])]
    }
    await harness.open(rules_of(of, parent), rows)
    found = await found_in(subject(harness.scanner(), of, parent))
    assert keys_of(found) == {("a", 2): 1, ("ab", 1): 1, ("b", 3): 1}, "with a null part it is no reference"
    found.orphans.close()


async def test_only_rows_in_reach_are_orphans(harness: Harness) -> None:
    of, parent = rule(Cascade(), where={"kind": ("a", "b"), "archived_at": None}), parents()
    rows = [
        {"id": 1, "customer_id": 1, "kind": "a"},
        {"id": 2, "customer_id": 2, "kind": "c"},
        {"id": 3, "customer_id": 3, "kind": "b", "archived_at": datetime(2024, 1, 1, tzinfo=UTC)},
        {"id": 4, "customer_id": 4, "kind": "b"},
        {"id": 5, "customer_id": None, "kind": "b"},
    ]
    await harness.open(rules_of(of, parent), {"orders": rows, "customers": [{"id": 4}, {"id": 5}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    assert keys_of(found) == {(1,): 1}
    found.orphans.close()


@pytest.mark.needs(Feature.MARKS)
async def test_marked_rows_are_no_orphans(harness: Harness) -> None:
    of, parent = rule(MARK), parents()
    rows = [{"id": 1, "customer_id": 1}, {"id": 2, "customer_id": 1, "deleted_at": datetime(2024, 1, 1, tzinfo=UTC)}]
    store = await harness.open(rules_of(of, parent), {"orders": rows, "customers": [{"id": 4}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    assert keys_of(found) == {(1,): 1}
    await mend(store, found)
    found.orphans.close()
    again = await found_in(subject(harness.scanner(), of, parent))
    assert (again.orphans.keys, again.keys) == (0, 0)
    assert [row["deleted_by"] for row in await harness.rows("orders")] == [f"{SOURCE_TOPIC}/0/{AT_MS}", None]
    again.orphans.close()


@pytest.mark.needs(Feature.ARRAYS)
async def test_elements_of_lists_are_references(harness: Harness) -> None:
    of, parent = rule(Cascade(), array=True), parents()
    rows = [{"id": 1, "customer_id": [1, 2, 1]}, {"id": 2, "customer_id": [2]}]
    store = await harness.open(rules_of(of, parent), {"orders": rows, "customers": [{"id": 2}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    assert keys_of(found) == {(1,): 2}
    await mend(store, found)
    found.orphans.close()
    assert await references(harness) == {1: [2], 2: [2]}


async def test_parent_that_comes_in_the_grace_period_leaves_no_orphan(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    await harness.open(rules_of(of, parent), orders(1, 2) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent), lambda: harness.write("customers", {"id": 2}))
    assert (found.candidates, keys_of(found)) == (2, {(1,): 1})
    found.orphans.close()


async def test_orphans_go_once_as_a_deletion_says_and_the_ledger_tells_why(harness: Harness) -> None:
    """1 was never heard of, 2 was seen alive, 3 was deleted before its row came, 4 has become 5, 6 lives."""
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), {"customers": [{"id": 5}, {"id": 6}]})
    events = Events()
    events.deleted((2,), 1)
    events.alive((2,), 2)
    events.deleted((3,), 3)
    events.moved((4,), (5,), 4)
    await apply(store, events.batch())
    await harness.write(
        "orders", *({"id": n, "customer_id": n} for n in (1, 2, 3, 4, 5, 6)), {"id": 7, "customer_id": 3}
    )
    found = await found_in(subject(harness.scanner(), of, parent))
    assert keys_of(found) == {(1,): 1, (2,): 1, (3,): 2, (4,): 1}
    assert found.heard == {
        Heard.NOTHING: (1, 1), Heard.ALIVE: (1, 1), Heard.DELETED: (1, 2), Heard.MOVED: (1, 1)
    }  # fmt: skip
    notes = Notes()
    mended = await mend(store, found, notes)
    assert (mended.keys, mended.rows, mended.left) == (4, {"customer.orders": 5}, [])
    assert await references(harness) == {4: 5, 5: 5, 6: 6}, "a key change is never a deletion"
    assert sorted(notes.told) == [
        ((key,), "customer.orders", "cascade", "repaired", rows, "ada")
        for key, rows in [(1, 1), (2, 1), (3, 2), (4, 1)]
    ]
    history = await store.history(ENTITY, (1,), Deadline.after(30))
    assert history is not None
    assert [(each.fate.event_id, each.done) for each in history.enforced] == [
        (f"{SOURCE_TOPIC}/0/{AT_MS}", {"customer.orders": ("cascade", 1)})
    ]
    history = await store.history(ENTITY, (3,), Deadline.after(30))
    assert history is not None
    assert history.repairs == (Repair("customer.orders", "cascade", 2, f"{TOPIC}/0/2", AT_MS),)
    assert (await mend(store, found)).returned == 4, "nothing is left of them"
    found.orphans.close()


async def test_parent_that_is_created_after_a_repair_is_like_any_other(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    await mend(store, found)
    found.orphans.close()
    events = Events()
    events.alive((1,), 5)
    await apply(store, events.batch())
    await harness.write("orders", {"id": 2, "customer_id": 1})
    events.deleted((1,), 6)
    await apply(store, events.batch())
    assert await references(harness) == {}


async def test_one_dependent_is_mended_and_no_other(harness: Harness) -> None:
    of, other, parent = rule(Cascade()), rule(Cascade(), name="reviews"), parents()
    rows = orders(1) | {"reviews": [{"id": 1, "customer_id": 1}], "customers": [{"id": 9}]}
    store = await harness.open(rules_of(of, other, parent), rows)
    notes = Notes()
    for each in (of, other):
        found = await found_in(subject(harness.scanner(), each, parent))
        await mend(store, found, notes)
        found.orphans.close()
        if each is of:
            assert len(await harness.rows("reviews")) == 1
    assert [each[1] for each in notes.told] == ["customer.orders", "customer.reviews"]
    assert await harness.rows("reviews") == []


async def test_what_depends_on_orphans_goes_with_them(harness: Harness) -> None:
    of, below, parent = order_rows(), items(), parents()
    rows = orders(1, 2) | {
        "items": [{"id": 1, "order_id": 1}, {"id": 2, "order_id": 1}, {"id": 3, "order_id": 2}],
        "customers": [{"id": 2}],
    }
    store = await harness.open(rules_of(of, below, parent), rows)
    found = await found_in(subject(harness.scanner(), of, parent))
    mended = await mend(store, found)
    found.orphans.close()
    assert mended.rows == {"customer.orders": 1, "order.items": 2}
    assert await references(harness, "items", "order_id") == {3: 2}
    # Of items, the orders themselves are the parents.
    own = rule(Ignore(), Ignore(), name="orders", columns=("id",), entity="order")
    await harness.write("items", {"id": 4, "order_id": 7}, {"id": 5, "order_id": 1})
    scanner = harness.scanner()
    scanner._rules[own.id] = replace(own, dependent=replace(own.dependent, target=_target(scanner, of)))  # type: ignore[attr-defined]
    found = await found_in(subject(scanner, below, own))
    assert keys_of(found) == {(1,): 1, (7,): 1}
    await mend(store, found)
    found.orphans.close()
    assert await references(harness, "items", "order_id") == {3: 2}


async def test_orphans_of_rows_that_went_with_their_parent_go_as_late_ones(harness: Harness) -> None:
    """In PostgreSQL nothing but a hash is kept of such rows."""
    of, below = order_rows(), items()
    store = await harness.open(rules_of(of, below), orders(1, 2) | {"items": [{"id": 1, "order_id": 1}]})
    events = Events()
    change = events.deleted((1,), 10)
    await apply(store, events.batch())
    await harness.write("items", {"id": 4, "order_id": 1}, {"id": 5, "order_id": 1}, {"id": 6, "order_id": 2})
    own = rule(Ignore(), Ignore(), name="orders", columns=("id",), entity="order")
    scanner = harness.scanner()
    scanner._rules[own.id] = replace(own, dependent=replace(own.dependent, target=_target(scanner, of)))  # type: ignore[attr-defined]
    found = await found_in(subject(scanner, below, own))
    assert keys_of(found) == {(1,): 2}
    assert (await mend(store, found)).rows == {"order.items": 2}
    found.orphans.close()
    assert await references(harness, "items", "order_id") == {6: 2}
    history = await store.history("order", (1,), Deadline.after(30))  # type: ignore[attr-defined]
    name = f"{change.origin.event_id}/customer.orders/[1]"
    assert [(each.fate.event_id, each.done) for each in history.enforced] == [(name, {"order.items": ("cascade", 1)})]
    assert history.repairs == (Repair("order.items", "cascade", 2, name, AT_MS),)
    assert await harness.head("order", (1,)) is not None, "recorded in one way"


def _target(scanner: Any, of: StoreRule) -> Any:
    return scanner._rules[of.id].dependent.target


async def test_more_rows_than_the_rule_allows_stay_and_are_told(harness: Harness) -> None:
    of, parent = rule(Nullify(("customer_id",)), max_rows=2), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 1, 1, 2, 2) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    mended = await mend(store, found)
    found.orphans.close()
    assert (mended.keys, mended.left_keys, [each.key for each in mended.left]) == (1, 1, [(1,)])
    assert "max_rows" in mended.left[0].why
    assert await references(harness) == {1: 1, 2: 1, 3: 1, 4: None, 5: None}


async def test_rows_that_a_dead_letter_stands_for_wait_with_it(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 2) | {"customers": [{"id": 9}]})
    events = Events()
    events.deleted((1,), 1)
    letter = DeadLetterMark(Reason.CONSTRAINT_VIOLATION, "f" * 32)
    await apply(store, events.batch(exceptions={(0, "customer.orders"): letter}))
    found = await found_in(subject(harness.scanner(), of, parent))
    mended = await mend(store, found)
    found.orphans.close()
    assert [each.key for each in mended.left] == [(1,)]
    assert letter.id in mended.left[0].why
    assert await references(harness) == {1: 1}


async def test_nothing_is_mended_while_events_wait(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent))

    async def no(deadline: Deadline) -> bool:
        return False

    with pytest.raises(OperationError, match="behind the events"):
        await mend(store, found, caught_up=no)
    found.orphans.close()
    assert await references(harness) == {1: 1}


async def test_parent_that_is_there_again_before_the_act_keeps_its_rows(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 2) | {"customers": [{"id": 9}]})
    found = await found_in(subject(harness.scanner(), of, parent))
    await harness.write("customers", {"id": 1})
    mended = await mend(store, found)
    found.orphans.close()
    assert (mended.keys, mended.returned) == (1, 1)
    assert await references(harness) == {1: 1}


async def test_repair_is_refused_where_the_parents_side_is_in_doubt(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    await harness.open(rules_of(of, parent), orders(1, 2))
    found = await found_in(subject(harness.scanner(), of, parent))
    assert found.parents == 0
    assert "no parent at all" in (refusal(found, share_max=1, allow_no_parents=False) or "")
    assert refusal(found, share_max=1, allow_no_parents=True) is None
    await harness.write("customers", {"id": 2})
    found.orphans.close()
    found = await found_in(subject(harness.scanner(), of, parent))
    assert "50.0% of the keys" in (refusal(found, share_max=0.1, allow_no_parents=False) or "")
    found.orphans.close()
    restricting = replace(found.subject, dependent=replace(of.dependent, on_delete=Restrict()))
    assert "restrict" in (refusal(replace(found, subject=restricting), share_max=1, allow_no_parents=True) or "")


async def test_scan_that_is_given_up_lets_go_of_its_stores(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    await harness.open(rules_of(of, parent), orders(*range(10)) | {"customers": [{"id": 9}]})
    scanner = harness.scanner()
    pages = scanner.references(of.id, Deadline.after(30))
    assert (await anext(pages)) is not None
    await asyncio.wait_for(pages.aclose(), 10)
    found = await found_in(subject(scanner, of, parent))
    assert found.orphans.keys == 9
    found.orphans.close()


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect here what a producer that is fenced leaves: aiokafka's futures, which log that nobody asked for them."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
async def test_process_that_works_goes_on_after_a_repair(harness: Harness) -> None:
    of, parent = rule(Cascade()), parents()
    store = await harness.open(rules_of(of, parent), orders(1, 2) | {"customers": [{"id": 2}]})
    service = await harness.another()
    found = await found_in(subject(harness.scanner(), of, parent))
    assert (await mend(store, found)).keys == 1
    found.orphans.close()
    events = Events()
    events.deleted((2,), 1)
    batch = events.batch()
    result = await service.apply(batch, Deadline.after(30))
    if isinstance(result, Diverged):  # it was taken over, and takes back
        await service.progress(list(batch.spans), Deadline.after(30))
        await apply(service, batch)
    assert await references(harness) == {}
