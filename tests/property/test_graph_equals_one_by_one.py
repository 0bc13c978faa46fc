"""The graph: any batching and any delay of a parent's events ends where native foreign keys end, level by level."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core.derive import Rows
from integrity.core.fold import Count, Follow, Leave, Mark, Policy, Remove, Replace, Step
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.ledger import Fate
from integrity.core.outcome import Applied
from integrity.core.rules.model import Cascade, Dependent, EventValue, Ignore, Place, Target, TargetKind, Tombstone
from integrity.ports import Deadline
from integrity.stores import descent
from integrity.stores.memory import ROWS_MAX, MemoryStore, Row, mark_values
from integrity.stores.rule import StoreRule, rows
from tests.contract.parting import pieces
from tests.property.histories import random_history
from tests.property.test_ages_and_counts import born
from tests.property.test_fold_equals_one_by_one import differences

PLACE = Place("test.yaml", 1, 1)
ONE = KeySpec((("k0", KeyType.INT64),))
MARK = Tombstone({"deleted_at": EventValue.TIME, "deleted_by": EventValue.ID})
LEVELS = 4


@dataclass
class World:
    """Rules by entity, and rows by table."""

    rules: dict[str, list[StoreRule]] = field(default_factory=dict)
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, rule: StoreRule, found: list[Row]) -> None:
        self.rules.setdefault(rule.entity, []).append(rule)
        self.tables.setdefault(rule.dependent.name, []).extend(found)


def random_world(rng: random.Random, roots: Sequence[Key], *, nested: bool = False) -> World:
    """Up to four levels of tables with any actions; some keys hold their parent's (identifying), some do not. `nested`:
    all do that others depend on, and follow it, so that a key change of a root goes down to the last level."""
    world, ids, tables = World(), count(1), count(1)
    waiting: list[tuple[str, int, Sequence[Key]]] = [("customer", 1, roots)]
    while waiting:
        entity, level, parents = waiting.pop()
        for _ in range(rng.choice((1, 1, 2)) if level > 1 else 2):
            name = f"t{next(tables)}"
            columns = tuple(f"c{i}" for i in range(len(parents[0]) if parents else 1))
            own = (*columns, "id") if nested or (rng.random() < 0.5 and len(columns) < 3) else ("id",)
            goes_on = level < LEVELS and rng.random() < 0.85
            rule = random_rule(rng, entity, name, columns, own if goes_on else None)
            if nested and goes_on:
                rule = replace(rule, policy=replace(rule.policy, on_delete=Remove(), on_update=Follow()))
            found: list[Row] = [
                {
                    "id": next(ids),
                    **dict(zip(columns, key, strict=True)),
                    "deleted_at": None,
                    "deleted_by": None,
                    "born_at": born(rng, 25),
                }
                for key in parents
                for _ in range(rng.choice((0, 1, 1, 2)) if level < 3 else rng.choice((0, 1)))
            ]
            world.add(rule, found)
            if goes_on:
                keys: list[Key] = [tuple(row[c] for c in own) for row in found]  # type: ignore[misc]
                if keys:
                    waiting.append((name, level + 1, keys))
    return world


def random_rule(
    rng: random.Random, entity: str, name: str, columns: tuple[str, ...], own: tuple[str, ...] | None
) -> StoreRule:
    last = len(columns) - 1
    identifying = own is not None and columns[last] in own
    on_delete = rng.choice(
        (Remove(), Remove(), Remove(), Replace(((last, 0),)), Replace(((last, None),)), Mark(), Leave(), Count())
    )
    on_update = rng.choice(
        (Follow(), Follow(), Follow(), Replace(((last, 0),)), Replace(((last, None),)), Leave(), Count())
    )
    if identifying:  # a part of a row's own key is never made null
        on_delete = Remove() if isinstance(on_delete, Replace) and not on_delete.refers else on_delete
        on_update = Follow() if isinstance(on_update, Replace) and not on_update.refers else on_update
    spec = KeySpec(tuple((f"k{i}", KeyType.INT64) for i in range(len(columns))))
    as_of = "born_at" if rng.random() < 0.2 else None
    return made(entity, name, spec, columns, own, on_delete, on_update, as_of=as_of)


def made(
    entity: str,
    name: str,
    spec: KeySpec,
    columns: tuple[str, ...],
    own: tuple[str, ...] | None,
    on_delete: Step,
    on_update: Step,
    rows_entity: str | None = None,
    as_of: str | None = None,
) -> StoreRule:
    key = None if own is None else KeySpec(tuple((column, KeyType.INT64) for column in own))
    dependent = Dependent(
        id=f"{entity}.{name}.{'.'.join(columns)}",
        name=name,
        store="memory",
        target=Target(TargetKind.TABLE, name),
        references=dict(zip(columns, spec.names, strict=True)),
        on_delete=MARK if isinstance(on_delete, Mark) else Cascade(),
        on_update=Ignore() if isinstance(on_update, Leave) else Cascade(),
        where={},
        place=PLACE,
        entity=None if own is None else rows_entity or name,
        key=key,
        as_of=as_of,
    )
    policy = Policy(
        dependent.id,
        on_delete,
        on_update,
        type(on_delete).__name__,
        type(on_update).__name__,
        by_age=as_of is not None,
    )
    found: Rows | None = None
    if dependent.entity is not None and key is not None:
        found = rows(dependent.entity, key, columns, recorded=True)
    return StoreRule(entity, dependent, spec, policy, found)


def happens(world: World, entity: str, key: Key, to: Key | None, fate: Fate) -> None:
    """What native foreign keys do, at once: `key` is deleted, or (with `to`) changes."""
    stack: list[tuple[str, Key, Key | None]] = [(entity, key, to)]
    while stack:
        entity, key, to = stack.pop()
        for rule in world.rules.get(entity, ()):
            columns, policy = rule.dependent.columns, rule.policy
            step = policy.on_delete if to is None else policy.on_update
            table = world.tables[rule.dependent.name]
            for row in list(table):
                marked = isinstance(policy.on_delete, Mark) and row["deleted_at"] is not None
                if tuple(row[c] for c in columns) != key or marked or _is_younger(rule, row, fate):
                    continue
                own = rule.dependent.key
                before = None if own is None else tuple(row[c] for c in own.names)
                after = before
                if isinstance(step, Remove):
                    table.remove(row)
                    after = None
                elif isinstance(step, Mark):
                    row.update(mark_values(MARK, fate, 0))
                elif isinstance(step, Follow | Replace):
                    values = to if isinstance(step, Follow) else step.of(key)
                    assert values is not None
                    row.update(zip(columns, values, strict=True))
                    after = None if own is None else tuple(row[c] for c in own.names)
                if before != after and rule.dependent.entity is not None:
                    stack.append((rule.dependent.entity, before, after))  # type: ignore[arg-type]


def _is_younger(rule: StoreRule, row: Row, fate: Fate) -> bool:
    """Whether the rule asks for the age, and the row is younger than the event, or does not say."""
    if rule.dependent.as_of is None:
        return False
    at = row[rule.dependent.as_of]
    return not isinstance(at, datetime) or at > datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=fate.occurred_ms
    )


def run(
    seed: int, *, width: int, steps: int, keys: int, world: World | None = None, in_parts: bool = False
) -> tuple[World, MemoryStore]:
    """What is to be and what is; `in_parts`: each event by itself, a few rows at a time."""
    rng = random.Random(seed)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(keys)]
    history = random_history(rng, keys=pool, steps=steps)
    world = world or random_world(rng, pool)
    expected = deepcopy(world)
    for change in history.truth:
        assert change.version is not None
        fate = Fate(change.version, change.to, change.origin.event_id, change.occurred_ms)
        happens(expected, change.entity, change.key, change.to, fate)
    rows_max = rng.randint(1, 3) if in_parts else ROWS_MAX
    store = MemoryStore("memory", world.rules, world.tables, chunk=rng.choice((1, 2, 5000)), rows_max=rows_max)

    async def deliver() -> None:
        for batch in history.batches(rng):
            if in_parts:
                await pieces(store, batch)
            else:
                assert isinstance(await store.apply(batch, Deadline.after(5)), Applied)

    asyncio.run(deliver())
    return expected, store


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63), width=st.sampled_from([1, 2]), steps=st.integers(1, 25), keys=st.integers(2, 6))
def test_any_batching_of_a_graph_ends_where_one_event_at_a_time_ends(
    seed: int, width: int, steps: int, keys: int
) -> None:
    expected, store = run(seed, width=width, steps=steps, keys=keys)
    assert differences(expected.tables, store.targets) == []


def test_a_key_change_and_the_change_back_in_one_batch_are_met_at_every_level() -> None:
    for seed in range(150):
        world = random_world(random.Random(seed), [(number,) for number in range(3)], nested=True)
        expected, store = run(seed, width=1, steps=25, keys=3, world=world)
        assert differences(expected.tables, store.targets) == [], f"seed {seed}"


def test_a_graph_that_goes_in_parts_ends_there_too() -> None:
    for seed in range(60):
        expected, store = run(seed, width=1 + seed % 2, steps=15, keys=4, in_parts=True)
        assert differences(expected.tables, store.targets) == [], f"seed {seed}"
        assert all(not parts for parts in store._state.parts.values()), f"seed {seed}"


def tangled_world(rng: random.Random, roots: Sequence[Key]) -> World:
    """Comments that answer comments, and two tables that refer to each other: the rows have cycles."""

    def on_delete() -> Step:
        return rng.choice((Remove(), Remove(), Replace(((0, 0),)), Replace(((0, None),)), Mark(), Leave(), Count()))

    def on_update() -> Step:
        return rng.choice((Follow(), Follow(), Replace(((0, 0),)), Replace(((0, None),)), Leave(), Count()))

    size = rng.randint(3, 9)
    no_mark = {"deleted_at": None, "deleted_by": None}
    a: list[Row] = [
        {
            "id": i,
            "c": rng.choice(roots)[0] if rng.random() < 0.6 else None,
            "parent": rng.choice([*range(1, size + 1), None]),
            "b": rng.choice([100, 101, 102, None]),
            **no_mark,
        }
        for i in range(1, size + 1)
    ]
    b: list[Row] = [{"id": i, "a": rng.choice([*range(1, size + 1), None]), **no_mark} for i in (100, 101, 102)]
    world = World()
    world.add(made("customer", "a", ONE, ("c",), ("id",), on_delete(), on_update()), a)
    world.add(made("a", "a", ONE, ("parent",), ("id",), on_delete(), on_update()), [])
    world.add(made("a", "b", ONE, ("a",), ("id",), on_delete(), on_update()), b)
    world.add(made("b", "a", ONE, ("b",), ("id",), on_delete(), on_update()), [])
    return world


def test_cycles_of_rows_end_where_one_event_at_a_time_ends() -> None:
    """Two events of one batch may both reach a row in such a tangle; then either may be the one that marked it."""
    for seed in range(120):
        world = tangled_world(random.Random(seed), [(number,) for number in range(4)])
        expected, store = run(seed, width=1, steps=20, keys=4, world=world)
        for table in (*expected.tables.values(), *store.targets.values()):
            for row in table:
                row["deleted_at"] = row["deleted_at"] is not None
        assert differences(expected.tables, store.targets) == [], f"seed {seed}"


def _some_history_differs() -> bool:
    for seed in range(150):
        expected, store = run(seed, width=1, steps=25, keys=4)
        if differences(expected.tables, store.targets):
            return True
    return False


def test_the_comparison_bites_when_only_the_end_of_a_row_is_carried_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that moved and was removed in one batch: what depends on it meets both, in order."""
    real = descent.journey
    monkeypatch.setattr(descent, "journey", lambda *args, **more: real(*args, **more)[-1:])
    assert _some_history_differs()


def test_the_comparison_bites_when_key_changes_of_rows_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    real = descent.journey
    monkeypatch.setattr(
        descent, "journey", lambda *args, **more: [stage for stage in real(*args, **more) if stage.values is None]
    )
    assert _some_history_differs()


def test_rows_that_go_are_told_of_as_they_are_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all below is removed, rows are not traced one by one: tables and ledgers are the same."""

    def removes(rng: random.Random) -> World:
        world = random_world(rng, [(number,) for number in range(4)])
        for entity, found in world.rules.items():
            world.rules[entity] = [
                replace(rule, policy=replace(rule.policy, on_delete=Remove())) if rng.random() < 0.8 else rule
                for rule in found
            ]
        return world

    real, quick = descent.Descent._goes, 0
    for seed in range(60):
        seen: list[bool] = []

        def goes(self: descent.Descent, rule: StoreRule, of: Rows, seen: list[bool] = seen) -> bool:
            seen.append(real(self, rule, of))
            return seen[-1]

        monkeypatch.setattr(descent.Descent, "_goes", goes)
        _, store = run(seed, width=1, steps=15, keys=4, world=removes(random.Random(seed)))
        quick += any(seen)
        monkeypatch.setattr(descent.Descent, "_goes", lambda *args: False)
        _, other = run(seed, width=1, steps=15, keys=4, world=removes(random.Random(seed)))
        assert differences(store.targets, other.targets) == [], f"seed {seed}"
        assert store._state.heads == other._state.heads, f"seed {seed}"
        assert store._state.enforced == other._state.enforced, f"seed {seed}"
    assert quick > 30
