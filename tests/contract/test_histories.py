"""Random histories with one partition delayed: every store ends where one event at a time ends, and tells of each event
what the in-memory model tells."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest

from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.rules.model import Cascade, Ignore, Nullify, Restrict, SetDefault
from integrity.stores.memory import MemoryStore
from integrity.stores.rule import StoreRule
from tests.contract.conftest import NAMES
from tests.contract.harness import Feature, Harness
from tests.contract.world import MARK, apply, rule, rules_of
from tests.property.histories import random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one

SEEDS = 40
assert "memory" in NAMES


def rules(width: int, *, marks: bool) -> list[StoreRule]:
    """Every pair of actions that composes differently."""
    columns = tuple(f"c{i}" for i in range(width))
    spec = KeySpec(tuple((f"k{i}", KeyType.INT64) for i in range(width)))
    last = columns[-1]
    null, default = Nullify((last,)), SetDefault({last: 0})
    pairs = {
        "cascade": (Cascade(), Cascade()),
        "nullify": (null, Cascade()),
        "nullify_both": (null, null),
        "set_default": (default, Cascade()),
        "set_default_both": (default, default),
        "cascade_default": (Cascade(), default),
        "cascade_ignore": (Cascade(), Ignore()),
        "ignore_follow": (Ignore(), Cascade()),
        "restrict_follow": (Restrict(), Cascade()),
    }
    found = [rule(one, two, name=name, spec=spec, columns=columns) for name, (one, two) in pairs.items()]
    if marks:
        found += [
            rule(MARK, two, name=name, spec=spec, columns=columns)
            for name, two in {"mark": Cascade(), "mark_default": default}.items()
        ]
    return found


async def run(harness: Harness, seed: int, *, marks: bool) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    width, size = 1 + seed % 2, rng.randint(2, 7)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(size)]
    chosen = rules(width, marks=marks)
    history = random_history(rng, keys=pool, steps=rng.randint(5, 40))
    rows = initial_rows(chosen, pool, rng)
    expected = deepcopy(rows)
    one_by_one(history.truth, chosen, expected)
    store = await harness.open(rules_of(*chosen), rows)
    model = MemoryStore("model", rules_of(*chosen), rows)
    for batch in history.batches(rng):
        assert sorted(await apply(store, batch)) == sorted(await apply(model, batch))
    found = {name: await harness.rows(name) for name in expected}
    columns = next((list(row) for table in rows.values() for row in table), [])
    found = {name: [{c: row[c] for c in columns} for row in table] for name, table in found.items()}
    assert differences(expected, found) == []


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_random_history_ends_where_one_event_at_a_time_ends(harness: Harness, seed: int) -> None:
    await run(harness, seed, marks=False)


@pytest.mark.needs(Feature.MARKS)
@pytest.mark.parametrize("seed", range(1000, 1000 + SEEDS // 2))
async def test_random_history_with_marks_ends_where_one_event_at_a_time_ends(harness: Harness, seed: int) -> None:
    await run(harness, seed, marks=True)
