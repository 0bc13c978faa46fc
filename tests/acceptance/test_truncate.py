"""TRUNCATE in the source, with a connector, processes and three kinds of stores, and a SIGKILL in the middle of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from integrity.core.keys import key_hash
from tests.acceptance.conftest import OpenWorld
from tests.acceptance.world import World

PARENTS = 1_500
"""Two pages of keys."""

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(900)]


async def until(world: World, what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await what():
            world.check_running()
            await asyncio.sleep(0.1)


async def test_truncate_is_carried_out_once_though_all_processes_are_killed_in_its_middle(
    open_world: OpenWorld,
) -> None:
    async with open_world(PARENTS) as world:
        rules = world.directory / "rules" / "customer.yaml"
        rules.write_text(rules.read_text().replace("  format:", "  truncate: delete_all\n  format:"))
        orders = world.orders
        world.start(), world.start()
        await world.parents("delete from customers where id = 1")
        assert await world.settle() == []  # the snapshot has been read by every lane

        # The rows of the last key in the order of the pages are locked: the pages before it are done, and no more.
        last = max(range(2, PARENTS + 1), key=lambda id_: key_hash("customer", (id_,)))
        holder = orders.transaction()
        await holder.start()
        await orders.execute("select from orders where customer_id = $1 for update", last)
        other = await world.another()
        await world.source.execute("truncate customers")
        await world.native.execute("delete from customers where id <> 0")

        async def is_in_the_middle() -> bool:
            return 0 < int(await other.fetchval("select count(*) from orders")) < 2 * (PARENTS - 1)

        await until(world, is_in_the_middle)
        for process in world.processes:
            process.kill()
        assert await other.fetchval("select count(*) from integrity.truncates") == 1
        await holder.rollback()
        await other.close()

        # What is created after it, before it is carried out or later, is none of its business.
        await world.parents("insert into customers values (5000, 'new')")
        await world.children("orders", [(9_000_000, 5000)])
        world.processes.clear()
        world.start(), world.start()
        # MongoDB keeps the open transactions of processes that were killed for up to a minute.
        assert await world.settle(timeout_s=300) == [], world.logs()
        twice = await orders.fetch(
            "select table_name, row_id from effects group by table_name, row_id having count(*) > 1"
        )
        assert twice == []
        assert [await process.stop() for process in world.processes] == [0, 0]
        assert await orders.fetchval("select count(*) from integrity.truncates") == 0
        assert await world.read(world.dlq) == []
