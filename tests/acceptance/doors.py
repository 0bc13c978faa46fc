"""A server for each tenant, as far as clients can tell: 127.0.0.N leads to one and the same server, and can be shut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Door:
    """Where clients come in at one address. What goes through it is cut when it is shut, and refused from then on."""

    def __init__(self, host: str, port: int, to: str) -> None:
        self._at, self._to = (host, port), (to, port)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._lead, *self._at)

    async def shut(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            inner_reader, inner_writer = await asyncio.open_connection(*self._to)
            self._open.add(inner_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, inner_writer))
                both.create_task(_pump(inner_reader, writer))
            self._open.discard(inner_writer)
        finally:
            self._open.discard(writer)
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def doors(url: str, tenants: Iterable[str]) -> AsyncIterator[Mapping[str, Door]]:
    """An open door for each tenant N, at 127.0.0.N and the port of the server that the URL names."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    made = {tenant: Door(f"127.0.0.{tenant}", parts.port, parts.hostname) for tenant in tenants}
    try:
        for door in made.values():
            await door.open()
        yield made
    finally:
        for door in made.values():
            await door.shut()


def through_doors(url: str) -> str:
    """The same URL, of a server for each tenant."""
    parts = urlsplit(url)
    return url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.{{tenant}}:{parts.port}", 1)
