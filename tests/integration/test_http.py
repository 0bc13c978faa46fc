"""The HTTP server on a real socket, in the loop of the test."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping

import httpx
import pytest

from integrity.api.http import HttpAddress, HttpServer, application
from integrity.errors import OperationError
from integrity.ports import Deadline
from integrity.telemetry import Metrics


class Lanes:
    def ready(self) -> Mapping[str, str]:
        return {}


def server(port: int = 0) -> HttpServer:
    app = application(Lanes(), Metrics(version="1", rules="r"))
    return HttpServer(app, HttpAddress("127.0.0.1", port, has_token=False))


async def test_any_free_port_is_told_and_answers_until_the_stop() -> None:
    running = server()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    port = await running.start()
    assert port > 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        assert (await client.get("/livez")).status_code == 200
        assert "server" not in (await client.get("/metrics")).headers
    await running.stop(Deadline.after(5))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/livez")


async def test_a_port_that_is_taken_is_one_sentence() -> None:
    first = server()
    port = await first.start()
    with pytest.raises(OperationError, match=f"can't listen on 127.0.0.1 port {port}"):
        await server(port).start()
    await first.stop(Deadline.after(5))


async def test_a_client_that_never_finishes_does_not_hold_up_the_stop() -> None:
    running = server()
    port = await running.start()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    await writer.drain()
    async with asyncio.timeout(30):
        await running.stop(Deadline.after(3))
    writer.close()


async def test_a_server_that_was_never_started_stops() -> None:
    await server().stop(Deadline.after(0))
