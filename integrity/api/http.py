"""The HTTP of a running service: is it alive, is it ready, what are its metrics (contract 9); and `api.looks`.

It runs in the service's own loop and takes no signals. These three are open to all and answered from memory; the rest
needs the token when there is one, and any address but loopback needs a token.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from integrity.api.looks import Looks, Problem, routes
from integrity.errors import OperationError, SettingsError
from integrity.ports import Deadline
from integrity.settings import is_loopback

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 100
"""Beyond these a request is answered 503: a probe needs one."""

_BACKLOG: Final = 128
_STARTED_POLL_S: Final = 0.01
_RESOLVE_TIMEOUT_S: Final = 5.0


class Health(Protocol):
    """Asked at each `/readyz`; must answer at once."""

    def ready(self) -> Mapping[str, str]:
        """What keeps each lane from being ready, in a few words without data; empty when all are: assigned and
        working, or standing by, and their stores answer."""
        ...


class Renders(Protocol):
    """What `/metrics` shows."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text and its content type, for a request's Accept header."""
        ...


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where to listen. Port 0 is any free one."""

    host: str
    port: int
    has_token: bool


def application(health: Health, metrics: Renders, looks: Looks | None = None) -> Starlette:
    """The routes of this version; anything else is a 404 problem document."""

    async def livez(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        problems = dict(health.ready())
        if problems:
            return _json({"status": "not_ready", "lanes": problems}, HTTPStatus.SERVICE_UNAVAILABLE)
        return _json({"status": "ready"})

    async def rendered(request: Request) -> Response:
        content, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type, "cache-control": "no-store"})

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", rendered),
            *(routes(looks) if looks is not None else ()),
        ],
        exception_handlers={HTTPException: _problem},
    )


class HttpServer:
    """The server; `start` it, and `stop` it under a deadline."""

    def __init__(self, application: Starlette, address: HttpAddress) -> None:
        """Raises SettingsError when the address is reachable from elsewhere and there is no token."""
        if not address.has_token and not is_loopback(address.host):
            raise SettingsError(
                f"INTEGRITY_HTTP__HOST {address.host!r} is reachable from elsewhere, and there is no token.",
                hint="Set INTEGRITY_HTTP__TOKEN, or listen on 127.0.0.1.",
            )
        self._address = address
        self._server = _Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS_MAX,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises OperationError when the address can't be had."""
        listener = await _listener(self._address)
        port: int = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise OperationError("The HTTP server has ended at once.")
            await asyncio.sleep(_STARTED_POLL_S)
        return port

    async def stop(self, deadline: Deadline) -> None:
        """Stop listening and finish what is being answered; at the deadline drop it."""
        if self._task is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._task}, timeout=deadline.remaining_s())
        if not self._task.done():
            self._server.force_exit = True
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=1)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The signals are the service's: uvicorn would stop alone, and raise them again afterwards.
        yield


async def _listener(address: HttpAddress) -> socket.socket:
    # Bound here: uvicorn would end the process when it can't, and not say which port it took.
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        family, _, _, _, place = found[0]
        return socket.create_server(place[:2], family=family, backlog=_BACKLOG)
    except OSError as exc:
        # A TimeoutError is one too, without a text.
        raise OperationError(
            f"HTTP can't listen on {address.host} port {address.port}: {exc.strerror or 'the name does not resolve'}.",
            hint="Set INTEGRITY_HTTP__PORT to a free port, or 0 for any.",
        ) from exc


def _json(content: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(
        msgspec.json.encode(content), status, headers={"cache-control": "no-store"}, media_type="application/json"
    )


async def _problem(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException), "registered for this class"
    status = HTTPStatus(exc.status_code)
    problem: dict[str, object] = {"type": "about:blank", "title": status.phrase, "status": status.value}
    if isinstance(exc, Problem):
        problem |= {"detail": exc.detail, **exc.more}
    return Response(msgspec.json.encode(problem), status, headers=exc.headers, media_type="application/problem+json")
