"""Rows that are younger than an event, and what events report, against applying the events one at a time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core import fold
from integrity.core.fold import Count
from integrity.core.keys import Key
from integrity.core.outcome import Applied, Outcome
from integrity.ports import Deadline
from integrity.stores import memory
from integrity.stores.memory import MemoryStore
from tests.property.histories import AT_MS, random_history
from tests.property.test_fold_equals_one_by_one import differences, initial_rows, one_by_one, rules_of

SKEW_MS = 20


def born(rng: random.Random, steps: int) -> datetime | None:
    """A moment before, between or after the events of a history; rarely none."""
    if rng.random() < 0.1:
        return None
    return datetime.fromtimestamp(AT_MS / 1000, UTC) + timedelta(milliseconds=rng.randint(90, 110 + 4 * steps))


def pool_of(width: int, keys: int) -> list[Key]:
    return [(number,) if width == 1 else (number % 2, number // 2) for number in range(keys)]


def run_with_ages(seed: int, *, width: int, steps: int, keys: int) -> list[str]:
    """How the rows after us differ from those after one event at a time."""
    rng = random.Random(seed)
    rules = rules_of(width, as_of="born_at")
    told = random_history(rng, keys=pool_of(width, keys), steps=steps).skewed(rng, rng.choice((0, SKEW_MS)))
    rows = initial_rows(rules, pool_of(width, keys), rng)
    for table in rows.values():
        for row in table:
            row["born_at"] = born(rng, steps)
    expected = deepcopy(rows)
    one_by_one(told.truth, rules, expected)
    store = MemoryStore("memory", {"customer": rules}, rows)

    async def deliver() -> None:
        for batch in told.batches(rng):
            assert isinstance(await store.apply(batch, Deadline.after(5)), Applied)

    asyncio.run(deliver())
    return differences(expected, store.targets)


@pytest.mark.timeout(600)
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**63), width=st.sampled_from([1, 2]), steps=st.integers(1, 40), keys=st.integers(2, 7))
def test_rows_younger_than_an_event_are_left_alone_by_it_in_any_batching_and_delay(
    seed: int, width: int, steps: int, keys: int
) -> None:
    """Each event by its own time, though clocks disagree with the order of versions."""
    assert run_with_ages(seed, width=width, steps=steps, keys=keys) == []


@pytest.mark.timeout(600)
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**63),
    width=st.sampled_from([1, 2]),
    steps=st.integers(1, 40),
    keys=st.integers(2, 7),
    by_age=st.booleans(),
)
def test_rows_that_events_report_are_those_they_would_find_one_at_a_time(
    seed: int, width: int, steps: int, keys: int, by_age: bool
) -> None:
    """However what has arrived in the source's order is cut into batches: where an event comes late, which rows are
    its own is not decided any more. A restricted event finds rows without an end to them, so that they count again."""
    rng = random.Random(seed)
    rules = rules_of(width, as_of="born_at" if by_age else None)
    told = random_history(rng, keys=pool_of(width, keys), steps=steps, reemit=False).skewed(rng, SKEW_MS)
    rows = initial_rows(rules, pool_of(width, keys), rng)
    for table in rows.values():
        for row in table:
            row["born_at"] = born(rng, steps)
    expected = one_by_one(told.truth, rules, deepcopy(rows))
    store = MemoryStore("memory", {"customer": rules}, rows)
    found: Counter[tuple[int, str]] = Counter()
    for batch in told.in_order(rng):
        result = asyncio.run(store.apply(batch, Deadline.after(5)))
        assert isinstance(result, Applied)
        for effect in result.effects:
            found[batch.changes[effect.change].origin.timestamp_ms, effect.dependent] += effect.rows
            restricts = effect.action == Count.__name__ and effect.rows > 0
            assert (effect.outcome is Outcome.RESTRICTED) == restricts
    assert +found == expected


def _that_differ(histories: int) -> int:
    return sum(bool(run_with_ages(seed, width=1, steps=30, keys=4)) for seed in range(histories))


def test_the_comparison_bites_when_a_way_is_cut_at_its_first_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later fates on the way of a row may be earlier by the clock."""
    real = fold.trace

    def simple(policy, settled, arrivals, *, left_out):  # type: ignore[no-untyped-def]
        groups = []
        for group in real(replace(policy, by_age=False), settled, arrivals, left_out=left_out):
            first = next(f for f in settled.fates[group.key] if f.change in (*group.path, *group.counting))
            groups.append(group._replace(born=fold.Born(None, first.occurred_ms)))
        return groups

    assert _that_differ(40) == 0
    monkeypatch.setattr(memory, "trace", simple)
    assert _that_differ(40) > 0
