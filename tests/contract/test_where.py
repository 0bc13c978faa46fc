"""`where` holds a rule to rows that equal, are listed, or are null, whatever the type of the values."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from integrity.core.rules.model import Cascade, Literal
from integrity.stores.memory import Row
from tests.contract.harness import Harness
from tests.contract.world import Events, apply, rule, rules_of

ROWS: list[Row] = [
    {"id": 1, "kind": "a", "priority": 1, "active": True},
    {"id": 2, "kind": "b", "priority": 2, "active": False},
    {"id": 3, "kind": "c", "priority": 3, "active": None, "archived_at": datetime(2020, 1, 1, tzinfo=UTC)},
    {"id": 4, "kind": None, "priority": None, "active": None, "archived_at": datetime(2021, 1, 1, tzinfo=UTC)},
]


@pytest.mark.parametrize(
    ("column", "wanted", "reached"),
    [
        ("kind", "a", [1]),
        ("priority", 2, [2]),
        ("active", True, [1]),
        ("active", False, [2]),
        ("kind", ("a", "c", "z"), [1, 3]),
        ("priority", (1, 3, 9), [1, 3]),
        ("active", (True,), [1]),
        ("active", (True, False), [1, 2]),
        ("kind", None, [4]),
        ("priority", None, [4]),
        ("active", None, [3, 4]),
        ("archived_at", None, [1, 2]),
    ],
)
async def test_where_reaches_these_rows_only(
    harness: Harness, column: str, wanted: Literal | tuple[Literal, ...], reached: list[int]
) -> None:
    rows = [row | {"customer_id": 1} for row in ROWS]
    store = await harness.open(rules_of(rule(Cascade(), where={column: wanted})), {"orders": rows})
    events = Events()
    events.moved((1,), (2,), 10)
    assert [effect.rows for effect in await apply(store, events.batch())] == [len(reached)]
    assert [row["id"] for row in await harness.rows("orders") if row["customer_id"] == 2] == reached
    events.deleted((2,), 20)
    await apply(store, events.batch())
    assert [row["id"] for row in await harness.rows("orders")] == [n for n in (1, 2, 3, 4) if n not in reached]


async def test_conditions_of_where_add_up(harness: Harness) -> None:
    where: dict[str, Literal | tuple[Literal, ...]] = {"kind": ("a", "b"), "active": False, "archived_at": None}
    rows = [row | {"customer_id": 1} for row in ROWS]
    store = await harness.open(rules_of(rule(Cascade(), where=where)), {"orders": rows})
    events = Events()
    events.deleted((1,), 10)
    assert [effect.rows for effect in await apply(store, events.batch())] == [1]
    assert [row["id"] for row in await harness.rows("orders")] == [1, 3, 4]
