"""The whole way with real parts: SQL in a source database, Debezium, Kafka, two processes, three kinds of stores."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.conftest import OpenWorld
from tests.acceptance.world import World

PARENTS = 200

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
async def world(open_world: OpenWorld) -> AsyncIterator[World]:
    async with open_world(PARENTS) as made:
        yield made


def statements(rng: random.Random, alive: set[int], free: set[int]) -> str:
    """One transaction on customers: deletes, key changes, swaps, moves onto keys that just died, re-creations."""
    parts: list[str] = []
    for _ in range(rng.randint(1, 4)):
        choice = rng.random()
        if choice < 0.3 and alive:
            key = rng.choice(sorted(alive))
            parts.append(f"delete from customers where id = {key}")
            alive.discard(key)
            free.add(key)
        elif choice < 0.65 and alive and free:
            key, to = rng.choice(sorted(alive)), rng.choice(sorted(free))
            parts.append(f"update customers set id = {to} where id = {key}")
            alive.symmetric_difference_update((key, to))
            free.symmetric_difference_update((key, to))
        elif choice < 0.8 and len(alive) > 1:
            one, two = rng.sample(sorted(alive), 2)
            parts += [
                f"update customers set id = -1 where id = {one}",
                f"update customers set id = {one} where id = {two}",
                f"update customers set id = {two} where id = -1",
            ]
        elif free:
            key = rng.choice(sorted(free))
            parts.append(f"insert into customers values ({key}, 'again')")
            free.discard(key)
            alive.add(key)
    return "; ".join(parts)


async def test_two_processes_leave_what_native_foreign_keys_leave(world: World) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    alive, free = set(range(1, PARENTS + 1)), set(range(PARENTS + 1, PARENTS + 60))
    world.start()
    world.start()
    for _ in range(150):
        if statement := statements(rng, alive, free):
            await world.parents(f"begin; {statement}; commit")
    assert await world.settle() == [], f"seed {seed}\n{world.logs()}"
    assert [await process.stop() for process in world.processes] == [0, 0]
    assert await world.differences() == [], f"seed {seed}"
    assert await world.read(world.dlq) == []
    twice = await world.orders.fetch("select row_id from effects group by table_name, row_id having count(*) > 1")
    assert twice == [], f"seed {seed}"


async def test_a_process_that_comes_late_ends_at_the_end_by_itself(world: World) -> None:
    await world.parents(f"delete from customers where id between 1 and {PARENTS} and id % 2 = 0")
    await world.parents("update customers set id = id + 5000 where id between 1 and 20")
    await world.source.execute("select pg_logical_emit_message(true, 'integrity', 'a message is no deletion')")
    while len(await world.read(world.topic)) < PARENTS + 1 + 2 * (PARENTS // 2) + 3 * 10:
        pass
    process = world.start("--exit-at-end")
    assert await process.ended(90) == 0, process.log.read_text()[-4000:]
    assert await world.differences() == []
