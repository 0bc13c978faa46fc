"""Waits that end: with an event, or with time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

log = logging.getLogger(__name__)

GIVE_UP_TIMEOUT_S = 1.0
"""How long something that is cancelled may take to end before it is left alone."""

_Result = TypeVar("_Result")


async def within(waiting: Awaitable[object], seconds: float) -> None:
    """Wait for it, but no longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting


async def sleep_or(event: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake at once when the event is set."""
    await within(event.wait(), seconds)


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel what runs aside, and wait a moment for its end; what it failed with is told in the log."""
    task.cancel()
    await asyncio.wait({task}, timeout=GIVE_UP_TIMEOUT_S)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.error("something that runs aside had ended unexpectedly", extra={"task": task.get_name()}, exc_info=error)


async def unless(stop: asyncio.Event, work: Awaitable[_Result]) -> _Result | None:
    """What `work` gives or raises; None when `stop` is set before, and then `work` is cancelled."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working}, timeout=GIVE_UP_TIMEOUT_S)
            if working.done() and not working.cancelled():
                working.exception()  # what it failed with while it was given up concerns nobody
