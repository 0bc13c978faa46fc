"""What the tests of the PostgreSQL store share: a database with a few tables, and a wire that can be watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg

from integrity.ports import Deadline
from integrity.stores.postgres import PostgresStore
from integrity.stores.rule import StoreRule
from tests.contract.world import rules_of

LANE = "integrity.store"


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, sql: str, *arguments: object) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]
    finally:
        await connection.close()


@asynccontextmanager
async def store_of(
    url: str, *rules: StoreRule, lane: str = LANE, schema: str = "integrity", lock_timeout_s: float = 0.3, **more: float
) -> AsyncIterator[PostgresStore]:
    """A store, migrated; its findings are up to the test."""
    store = PostgresStore(
        "shop", url, rules_of(*rules), lane=lane, schema=schema, lock_timeout_s=lock_timeout_s, **more
    )
    try:
        await store.migrate(Deadline.after(30))
        yield store
    finally:
        await store.close()


async def codes(store: PostgresStore) -> list[str]:
    return [finding.code for finding in await store.check(Deadline.after(30))]


@dataclass
class Wire:
    """A proxy between a client and a server. `turns` counts how often the client spoke after the server: round trips.
    `cut_before_answer_to` cuts the connection when these bytes have gone to the server, once."""

    url: str
    turns: int = 0
    cut_before_answer_to: bytes = b""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    parts = urlsplit(url)
    wire = Wire("")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], bool]) -> None:
        try:
            while data := await reader.read(1 << 20):
                if not seen(data):
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(parts.hostname, parts.port)
        wire.writers += [writer, to_writer]
        client_spoke = cut = False

        def up(data: bytes) -> bool:
            nonlocal client_spoke, cut
            if not client_spoke:
                wire.turns += 1
            client_spoke = True
            if wire.cut_before_answer_to and wire.cut_before_answer_to in data:
                wire.cut_before_answer_to = b""
                cut = True
            return True

        def down(data: bytes) -> bool:
            nonlocal client_spoke
            client_spoke = False
            return not cut

        await asyncio.gather(pump(reader, to_writer, up), pump(to_reader, writer, down))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire.url = url.replace(f":{parts.port}/", f":{port}/")
    try:
        yield wire
    finally:
        server.close()
        for writer in wire.writers:
            writer.close()
