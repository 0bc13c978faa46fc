"""The HTTP endpoints of a running process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from integrity.api.http import HttpAddress, HttpServer, application
from integrity.api.looks import Looks
from integrity.ports import Deadline
from integrity.settings import HttpSettings
from integrity.wiring.run import Service

STOP_TIMEOUT_S = 2.0


@asynccontextmanager
async def serving(service: Service, settings: HttpSettings) -> AsyncIterator[int]:
    """Answer HTTP meanwhile; gives the port. Raises SettingsError or OperationError when the
    address may not or can't be had."""
    token = settings.token.get_secret_value()
    looks = Looks(service.rules, service.stores, token, settings.read_token.get_secret_value(), service.copies)
    server = HttpServer(
        application(service.supervisor, service.metrics, looks),
        HttpAddress(settings.host, settings.port, bool(token)),
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.stop(Deadline.after(STOP_TIMEOUT_S))
