"""The databases of tenants, opened when they are used, over the in-memory store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from integrity.core.batch import Batch
from integrity.core.outcome import Applied, Broken, Retry
from integrity.errors import LedgerError, OperationError, Reason, UnreachableError
from integrity.ports import Deadline
from integrity.stores.tenants import IDLE_S, TenantStores
from tests.unit.service.doubles import BentStore, memory_store

EMPTY = Batch((), {}, 0)


class Server:
    """Counts the databases that are open, and those that are worked in."""

    def __init__(self, connections_max: int) -> None:
        self.open: list[str] = []
        self.open_max = self.busy = self.busy_max = 0
        self.prepared: list[str] = []
        self.bent: dict[str, BentStore] = {}
        self.fault: Exception | None = None
        self.now_s = 0.0
        self.stores = TenantStores(
            "shop_db",
            self._made,  # type: ignore[arg-type]
            self._prepare,
            connections_max=connections_max,
            timeout_s=5,
            clock=lambda: self.now_s,
        )

    def _made(self, tenant: str) -> Any:
        server = self

        class Opened(BentStore):
            async def apply(self, batch: Batch, deadline: Deadline) -> Any:
                server.busy += 1
                server.busy_max = max(server.busy, server.busy_max)
                try:
                    return await super().apply(batch, deadline)
                finally:
                    server.busy -= 1

            async def close(self) -> None:
                await asyncio.sleep(0)
                server.open.remove(tenant)

        self.open.append(tenant)
        self.open_max = max(self.open_max, len(self.open))
        store = self.bent[tenant] = Opened(memory_store(0))
        store.name = tenant
        return store

    async def _prepare(self, store: Any) -> None:
        self.prepared.append(store.name)
        if self.fault is not None:
            raise self.fault

    async def apply(self, tenant: str) -> Any:
        return await self.stores.of(tenant).apply(EMPTY, Deadline.after(0))


async def test_never_more_are_open_than_there_are_connections() -> None:
    server = Server(3)
    tenants = [f"t{n % 17}" for n in range(200)]
    found = await asyncio.gather(*(server.apply(tenant) for tenant in tenants))
    assert all(isinstance(result, Applied) for result in found), "and a deadline begins when a turn has come"
    assert (server.open_max, server.busy_max) == (3, 3)
    await server.stores.close()
    assert server.open == []


async def test_the_one_used_longest_ago_makes_room_and_the_others_stay_open() -> None:
    server = Server(2)
    for tenant in ("a", "b", "a", "c", "a"):
        await server.apply(tenant)
    assert server.open == ["a", "c"]
    assert server.prepared == ["a", "b", "c"], "each is looked at once"
    await server.apply("b")
    assert server.prepared == ["a", "b", "c"]


async def test_what_nobody_uses_is_closed_after_a_while() -> None:
    server = Server(4)
    await server.apply("a")
    server.now_s = IDLE_S - 1
    await server.apply("b")
    server.now_s = IDLE_S
    await server.stores.close_idle()
    assert server.open == ["b"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (UnreachableError("away"), Retry("away", unreachable=True)),
        (UnreachableError("no such database", unknown=True), Broken(None, Reason.UNKNOWN_TENANT, "no such database")),
        (LedgerError("no ledger"), Broken(None, Reason.SCHEMA_MISMATCH, "no ledger")),
    ],
)
async def test_what_is_wrong_with_a_database_is_its_own_answer(fault: OperationError, expected: Any) -> None:
    server = Server(1)
    server.fault = fault
    assert await server.apply("a") == expected
    assert server.open == [], "and it is not kept open"
    assert await server.stores.of("a").probe() == fault.message
    server.fault = None
    assert await server.stores.of("a").probe() == ""
    assert isinstance(await server.apply("a"), Applied)


async def test_a_connection_that_failed_is_not_used_again_and_the_database_is_looked_at_anew() -> None:
    server = Server(2)
    await server.apply("a")
    server.bent["a"].bend = lambda batch: Retry("gone", unreachable=True)
    assert await server.apply("a") == Retry("gone", unreachable=True)
    assert server.open == [] and "a" not in server.stores.tenants
    await server.apply("a")
    assert server.prepared == ["a", "a"] and server.stores.tenants == {"a"}


async def test_a_call_that_is_cancelled_gives_its_turn_back() -> None:
    server = Server(1)
    await server.apply("a")
    server.bent["a"].gate.clear()
    waiting = asyncio.create_task(server.apply("a"))
    behind = asyncio.create_task(server.apply("b"))
    while not server.busy:
        await asyncio.sleep(0)
    waiting.cancel()
    assert isinstance(await asyncio.wait_for(behind, 5), Applied)
    assert server.open == ["b"]


async def test_a_question_has_to_be_about_one_tenant() -> None:
    with pytest.raises(OperationError, match="a database for each tenant") as raised:
        await Server(1).stores.history("customer", (1,), Deadline.after(1))
    assert "--tenant" in raised.value.hint
