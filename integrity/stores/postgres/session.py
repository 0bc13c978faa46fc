"""Connections with limits on everything: one pool, opened when first used, and transactions that end in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from integrity.errors import SettingsError, UnreachableError
from integrity.ports import Deadline
from integrity.stores.postgres.faults import DRIVER_ERRORS, Fault
from integrity.stores.postgres.ledger import Connection

_ROLLBACK_S: Final = 1.5
"""How long a roll-back may take before the connection is dropped, which rolls back too: a partition that is revoked
has to be let go within 3 s."""
_CLOSE_S: Final = 3.0
_IDLE_IN_TRANSACTION_S: Final = 15
"""A process that is stopped in the middle of a transaction holds the locks of its keys no longer than this."""


def server_of(url: str) -> str:
    """host:port of a URL, for messages; never its user or password."""
    try:
        parts = urlsplit(url)
        return ",".join(host.rpartition("@")[2] for host in parts.netloc.rpartition("@")[2].split(",")) or "localhost"
    except ValueError:
        return "the address"


class Sessions:
    """Hands out connections of one server."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        pool_size: int,
        timeout_s: float,
        lock_timeout_s: float,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`more` are settings of the session, over those of every connection."""
        self.server = server_of(url)
        self._name = name
        self._url = url
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._settings = {
            "application_name": f"integrity {name}"[:63],
            "timezone": "UTC",
            "statement_timeout": str(int(timeout_s * 1000)),
            "lock_timeout": str(int(lock_timeout_s * 1000)),
            "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_S * 1000),
            # Hidden rows would be missed in silence: an error instead.
            "row_security": "off",
            # Every statement looks up a list of keys: one plan by index, whatever the length of the list.
            "plan_cache_mode": "force_generic_plan",
            "enable_seqscan": "off",
            "jit": "off",
            **more,
        }
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    async def _opened(self) -> asyncpg.Pool[asyncpg.Record]:
        async with self._opening:
            if self._pool is None:
                try:
                    self._pool = await asyncpg.create_pool(
                        self._url,
                        min_size=0,
                        max_size=self._pool_size,
                        # Statements are given up by the server first; the client's limit is for a server that hangs.
                        command_timeout=self._timeout_s + 5,
                        timeout=min(10.0, self._timeout_s),
                        server_settings=self._settings,
                        statement_cache_size=500,
                        reset=_keep,
                    )
                except ValueError as exc:
                    raise self._bad_address() from exc
            return self._pool

    def _bad_address(self) -> SettingsError:
        return SettingsError(
            f"INTEGRITY_STORES__{self._name.upper()}__URL is no address of a PostgreSQL server.",
            hint="Write postgresql://user:password@host:port/database.",
        )

    def unreachable(self, fault: Fault) -> UnreachableError:
        """What is raised where the server does not answer."""
        return UnreachableError(
            f"Store {self._name}: PostgreSQL at {self.server} can't be used. {fault.message}",
            hint="Check that it runs, its address, and the role's password.",
            unknown=fault.unknown,
        )

    @asynccontextmanager
    async def connection(self, deadline: Deadline) -> AsyncIterator[Connection]:
        """A connection, for calls that need no transaction of their own. Ends at the deadline."""
        pool = await self._opened()
        try:
            connection = await pool.acquire(timeout=max(0.001, deadline.remaining_s()))
        except ValueError as exc:  # the driver reads the address when it connects
            raise self._bad_address() from exc
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                yield connection
        except BaseException:
            await _abandon(connection)
            raise
        finally:
            await pool.release(connection, timeout=_ROLLBACK_S)

    @asynccontextmanager
    async def stream(self, deadline: Deadline) -> AsyncIterator[Connection]:
        """A connection that is kept while others are at work; each call on it has to have a limit of its own."""
        pool = await self._opened()
        try:
            connection = await pool.acquire(timeout=max(0.001, deadline.remaining_s()))
        except ValueError as exc:
            raise self._bad_address() from exc
        try:
            yield connection
        finally:
            try:
                await _abandon(connection)
            finally:
                await pool.release(connection, timeout=_ROLLBACK_S)

    async def expire(self) -> None:
        """Let the next calls connect anew: the server is not the one we want any more."""
        if self._pool is not None:
            await self._pool.expire_connections()

    async def close(self) -> None:
        """Close all connections, those that don't answer by force."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await pool.close()
            except DRIVER_ERRORS:
                pool.terminate()


async def _keep(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Nothing to undo before a connection is used again: transactions end here, and no session setting changes."""


async def _abandon(connection: Connection) -> None:
    """Roll back what is open; drop the connection, which rolls back too, when that does not work in time."""
    if connection.is_closed():
        return
    try:
        # Asked for even when no transaction seems open: a "begin" may have been on its way.
        async with asyncio.timeout(_ROLLBACK_S):
            await connection.execute("rollback")
    except DRIVER_ERRORS:
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise
