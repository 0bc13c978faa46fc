"""The heart: any batching and any delay between partitions ends where applying one event at a time ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core import fold
from integrity.core.change import Op, ParentChange
from integrity.core.fold import Follow, Leave, Mark, Policy, Referencing, Remove, Replace, Step
from integrity.core.keys import Key, KeySpec, KeyType, Scalar
from integrity.core.ledger import Fate
from integrity.core.outcome import Applied
from integrity.core.rules.model import (
    Cascade,
    Dependent,
    EventValue,
    Ignore,
    Place,
    Target,
    TargetKind,
    Tombstone,
)
from integrity.ports import Deadline
from integrity.stores import memory
from integrity.stores.memory import MemoryStore, Row, mark_values
from integrity.stores.rule import StoreRule
from tests.property.histories import random_history

PLACE = Place("test.yaml", 1, 1)
MARK = Tombstone({"deleted_at": EventValue.TIME, "deleted_by": EventValue.ID})
DEFAULT: Scalar = 0


def rule(name: str, columns: tuple[str, ...], on_delete: Step, on_update: Step) -> StoreRule:
    """A rule given by its steps; the memory store reads of the actions only the marker."""
    spec = KeySpec(tuple((f"k{i}", KeyType.INT64) for i in range(len(columns))))
    dependent = Dependent(
        id=f"customer.{name}",
        name=name,
        store="memory",
        target=Target(TargetKind.TABLE, name),
        references=dict(zip(columns, spec.names, strict=True)),
        on_delete=MARK if isinstance(on_delete, Mark) else Cascade(),
        on_update=Ignore() if isinstance(on_update, Leave) else Cascade(),
        where={},
        place=PLACE,
    )
    policy = Policy(dependent.id, on_delete, on_update, type(on_delete).__name__, type(on_update).__name__)
    return StoreRule("customer", dependent, spec, policy)


def rules_of(width: int) -> list[StoreRule]:
    columns = tuple(f"c{i}" for i in range(width))
    last = width - 1
    null, default = Replace(((last, None),)), Replace(((last, DEFAULT),))
    steps: dict[str, tuple[Step, Step]] = {
        "cascade": (Remove(), Follow()),
        "nullify": (null, Follow()),
        "nullify_both": (null, null),
        "set_default": (default, Follow()),
        "set_default_both": (default, default),
        "mark": (Mark(), Follow()),
        "mark_default": (Mark(), default),
        "cascade_default": (Remove(), default),
        "cascade_ignore": (Remove(), Leave()),
        "ignore_follow": (Leave(), Follow()),
    }
    return [rule(name, columns, *pair) for name, pair in steps.items()]


def one_by_one(truth: Sequence[ParentChange], rules: Sequence[StoreRule], rows: Mapping[str, list[Row]]) -> None:
    """What native foreign keys do: every event at once, on the rows that hold its key, in the source's order."""
    for change in truth:
        for each in rules:
            columns = each.dependent.columns
            step = each.policy.on_delete if change.op is Op.DELETED else each.policy.on_update
            table = rows[each.dependent.name]
            for row in list(table):
                marked = isinstance(each.policy.on_delete, Mark) and row["deleted_at"] is not None
                if tuple(row[c] for c in columns) != change.key or marked:
                    continue
                if isinstance(step, Remove):
                    table.remove(row)
                elif isinstance(step, Follow):
                    assert change.to is not None
                    row.update(zip(columns, change.to, strict=True))
                elif isinstance(step, Replace):
                    row.update(zip(columns, step.of(change.key), strict=True))
                elif isinstance(step, Mark):
                    row.update(mark_values(MARK, _fate(change), 0))


def _fate(change: ParentChange) -> Fate:
    assert change.version is not None
    return Fate(change.version, change.to, change.origin.event_id, change.occurred_ms)


def initial_rows(rules: Sequence[StoreRule], keys: Sequence[Key], rng: random.Random) -> dict[str, list[Row]]:
    ids = count(1)
    return {
        each.dependent.name: [
            {
                "id": next(ids),
                **dict(zip(each.dependent.columns, key, strict=True)),
                "deleted_at": None,
                "deleted_by": None,
            }
            for key in keys
            for _ in range(rng.randint(0, 2))
        ]
        for each in rules
    }


def run(
    seed: int, *, width: int, steps: int, keys: int
) -> tuple[dict[str, list[Row]], dict[str, list[Row]], MemoryStore]:
    """The rows after native foreign keys, the rows after us, and the store."""
    rng = random.Random(seed)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(keys)]
    rules = rules_of(width)
    history = random_history(rng, keys=pool, steps=steps)
    rows = initial_rows(rules, pool, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, rules, expected)
    store = MemoryStore("memory", {"customer": rules}, rows)

    async def deliver() -> None:
        for batch in history.batches(rng):
            assert isinstance(await store.apply(batch, Deadline.after(5)), Applied)

    asyncio.run(deliver())
    return expected, store.targets, store


def differences(expected: dict[str, list[Row]], found: dict[str, list[Row]]) -> list[str]:
    """One line a row that differs, `deleted_by` compared as presence: a re-emitted event has another name."""

    def view(rows: list[Row]) -> dict[object, tuple[object, ...]]:
        return {r["id"]: tuple(v for k, v in r.items() if k not in ("id", "deleted_by")) for r in rows}

    lines = []
    for name in expected:
        want, have = view(expected[name]), view(found[name])
        lines += [f"{name} row {i}: {want.get(i)} != {have.get(i)}" for i in want | have if want.get(i) != have.get(i)]
    return lines


@pytest.mark.timeout(600)
@settings(max_examples=2500, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63), width=st.sampled_from([1, 2]), steps=st.integers(1, 40), keys=st.integers(2, 7))
def test_any_batching_and_delay_ends_where_one_event_at_a_time_ends(
    seed: int, width: int, steps: int, keys: int
) -> None:
    expected, found, _ = run(seed, width=width, steps=steps, keys=keys)
    assert differences(expected, found) == []


def _histories_that_differ(histories: int) -> int:
    return sum(bool(differences(*run(seed, width=1, steps=30, keys=4)[:2])) for seed in range(histories))


def test_the_comparison_bites_without_the_chain_of_fates(monkeypatch: pytest.MonkeyPatch) -> None:
    """b's deletion enforced before a->b: without b's known fate the rows of a stay at b."""
    real = fold.settle

    def forgetful(changes, heads, *, done=frozenset()):  # type: ignore[no-untyped-def]
        settled = real(changes, heads, done=done)
        fates = {key: tuple(fate for fate in fates if fate.change >= 0) for key, fates in settled.fates.items()}
        return replace(settled, fates=fates)

    assert _histories_that_differ(150) == 0
    monkeypatch.setattr(memory, "settle", forgetful)
    assert _histories_that_differ(150) > 0


def test_the_comparison_bites_without_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    """a->b enforced before b's older deletion: without arrivals that deletion takes the rows of a."""
    real = fold.trace

    def forgetful(policy, settled, arrivals, *, left_out):  # type: ignore[no-untyped-def]
        return [
            group._replace(end=replace(group.end, arrival=None)) if isinstance(group.end, Referencing) else group
            for group in real(policy, settled, arrivals, left_out=left_out)
        ]

    monkeypatch.setattr(memory, "trace", forgetful)
    assert _histories_that_differ(150) > 0


def test_the_comparison_bites_without_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion emitted again takes the rows of a key that lives again."""
    real = fold.settle

    def forgetful(changes, heads, *, done=frozenset()):  # type: ignore[no-untyped-def]
        return real(changes, {key: head._replace(seen=None) for key, head in heads.items()}, done=done)

    monkeypatch.setattr(memory, "settle", forgetful)
    assert _histories_that_differ(150) > 0


def test_the_comparison_bites_when_a_key_change_is_taken_for_a_deletion(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fold.settle

    def headerless(changes, heads, *, done=frozenset()):  # type: ignore[no-untyped-def]
        bare = [c._replace(op=Op.DELETED, to=None) if c.op is Op.MOVED else c for c in changes]
        return real(bare, heads, done=done)

    monkeypatch.setattr(memory, "settle", headerless)
    assert _histories_that_differ(150) > 0
