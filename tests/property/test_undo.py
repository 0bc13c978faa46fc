"""Whatever the events of a random history did down a random graph is undone, newest first, to the last row."""

from __future__ import annotations

import asyncio
import random
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core.keys import Key
from integrity.core.outcome import Applied
from integrity.core.undo import Choice, Looked, Portion, Verdict
from integrity.ports import Deadline
from integrity.stores import descent
from integrity.stores.memory import MemoryStore
from tests.contract.undoing import DAY_MS
from tests.property.histories import AT_MS, random_history
from tests.property.test_fold_equals_one_by_one import differences
from tests.property.test_graph_equals_one_by_one import World, random_world, tangled_world


def there_and_back(seed: int, world: World, *, width: int, steps: int, keys: int) -> None:
    rng = random.Random(seed)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(keys)]
    history = random_history(rng, keys=pool, steps=steps)
    rules = {
        entity: [replace(rule, dependent=replace(rule.dependent, undo_ms=DAY_MS)) for rule in of_entity]
        for entity, of_entity in world.rules.items()
    }
    before = deepcopy(world.tables)
    store = MemoryStore("memory", rules, world.tables, chunk=rng.choice((1, 2, 5000)))

    async def run() -> None:
        for batch in history.batches(rng):
            assert isinstance(await store.apply(batch, Deadline.after(5)), Applied)
        portion = Portion(Choice(since_ms=0), rng.choice((1, 3, 1000)), AT_MS)
        while True:
            found = await store.put_back(portion, Deadline.after(5))
            assert isinstance(found, Looked)
            assert {row.verdict for row in found.rows} <= {Verdict.PUT_BACK}
            if found.before is None:
                return
            portion = replace(portion, before=found.before)

    asyncio.run(run())
    assert differences(before, store.targets) == []


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63), width=st.sampled_from([1, 2]), steps=st.integers(1, 25), keys=st.integers(2, 6))
def test_everything_that_happened_down_a_graph_is_undone(seed: int, width: int, steps: int, keys: int) -> None:
    rng = random.Random(seed)
    pool: list[Key] = [(number,) if width == 1 else (number % 2, number // 2) for number in range(keys)]
    there_and_back(seed, random_world(rng, pool), width=width, steps=steps, keys=keys)


def test_rows_that_refer_to_one_another_in_cycles_come_back() -> None:
    for seed in range(80):
        print(f"seed {seed}")
        world = tangled_world(random.Random(seed), [(number,) for number in range(4)])
        there_and_back(seed, world, width=1, steps=20, keys=4)


def test_the_comparison_bites_when_a_row_has_one_record_for_all_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    real = descent.trail
    monkeypatch.setattr(descent, "trail", lambda *args: real(*args)[-1:])
    with pytest.raises(AssertionError):
        test_rows_that_refer_to_one_another_in_cycles_come_back()
