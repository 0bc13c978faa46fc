"""SIGKILL at random moments: nothing lost, nothing twice, no orphan, and the poison alone in the dead letters."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.acceptance.conftest import OpenWorld
from tests.acceptance.test_native_foreign_keys import statements
from tests.acceptance.world import World

PARENTS = 600
KILLS = 20
POISON = [
    (b'{"id":1}', b"not json"),
    (b'{"id":"1"}', b'{"before":null,"after":null,"source":{"connector":"postgresql","lsn":1},"op":"d"}'),
    (None, b'{"before":null,"after":null,"source":{"connector":"postgresql","lsn":1},"op":"d"}'),
    (b'{"id":2}', b""),
]

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
async def world(open_world: OpenWorld) -> AsyncIterator[World]:
    async with open_world(PARENTS) as made:
        # One row that can't be deleted: its event is poison to one dependent only.
        await made.orders.execute(
            """
            create table kept(row_id bigint primary key); insert into kept values (70);
            create function refuse() returns trigger language plpgsql as $$ begin
                if exists (select from kept where row_id = old.id) then raise exception 'kept'; end if;
                return old; end $$;
            create trigger refuse before delete on orders for each row execute function refuse();
            """
        )
        yield made


async def test_twenty_sigkills_lose_nothing_and_repeat_nothing(world: World) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    alive, free = set(range(10, PARENTS + 1)), set(range(PARENTS + 1, PARENTS + 60))
    stop = asyncio.Event()

    async def traffic() -> None:
        while not stop.is_set():
            if statement := statements(rng, alive, free):
                await world.parents(f"begin; {statement}; commit")
            if len(alive) < PARENTS // 2:
                added = sorted(free)[:40]
                await world.parents(f"insert into customers select unnest(array{added}), 'new'")
                alive.update(added)
                free.difference_update(added)
            await asyncio.sleep(rng.random() * 0.1)

    survivor, victim = world.start(), world.start()
    driving = asyncio.create_task(traffic())
    killer = random.Random(seed + 1)
    try:
        for kill in range(KILLS):
            # Early, while the group forms, and late, in the middle of the work.
            await asyncio.sleep(killer.choice((0.3, 1.5, 3.0)) + killer.random() * 6)
            if kill % 4 == 1:
                key, value = POISON[kill // 4 % len(POISON)]
                await world.producer.send_and_wait(world.topic, value, key=key, partition=killer.randrange(3))
            world.processes.remove(victim)
            victim.kill()
            survivor, victim = world.start(), survivor
            world.check_running()
            assert not driving.done(), driving
    finally:
        stop.set()
    await driving
    await world.parents("delete from customers where id = 7")
    # The event is poison to orders as a whole: both rows of that customer stay, and only there.
    kept = ["orders 70: native None, ours (7,)", "orders 71: native None, ours (7,)"]
    for _ in range(300):
        world.check_running()
        different = await world.differences()
        if different == kept:
            break
        await asyncio.sleep(0.5)
    assert different == kept, f"seed {seed}"
    assert [await process.stop() for process in world.processes] == [0, 0]
    assert await world.differences() == kept, f"seed {seed}"

    effects = await world.orders.fetch(
        "select table_name, row_id, count(*) from effects group by 1, 2 having count(*) > 1"
    )
    assert effects == [], f"seed {seed}: {effects}"
    gone = await world.orders.fetchval("select count(*) from effects where table_name = 'orders'")
    assert gone == 2 * PARENTS - await world.orders.fetchval("select count(*) from orders")

    letters = await world.read(world.dlq)
    by_id = {headers["integrity.id"]: headers for _, _, headers in letters}
    assert Counter(headers["integrity.reason"] for headers in by_id.values()) == Counter(
        {
            # each of the three stores reads each unreadable record
            "bad_json": 3 * _times(0),
            "type_mismatch": 3 * _times(1),
            "null_key": 3 * _times(2),
            "empty_value": 3 * _times(3),
            "store_rejected": 1,
        }
    ), f"seed {seed}"


def _times(poison: int) -> int:
    return len([kill for kill in range(KILLS) if kill % 4 == 1 and kill // 4 % len(POISON) == poison])
