"""Removes what was kept for an undo and has expired: now and then, a portion at a time, beside the lane."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from integrity.errors import OperationError
from integrity.ports import Deadline
from integrity.service.waiting import sleep_or

log = logging.getLogger(__name__)

EVERY_S: Final = 300.0
ROWS_MAX: Final = 2_000
"""What one transaction removes."""


class Forgets(Protocol):
    """A store, as far as what has expired is removed from it."""

    name: str

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """See `Undoable.forget_kept`."""
        ...


class Expiry:
    """What has expired in one store."""

    def __init__(self, store: Forgets, *, timeout_s: float, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """A round now and then, until `stop`. A failure is tried again in the next one."""
        while not stop.is_set():
            try:
                await self.round(stop)
            except OperationError as exc:
                log.info(
                    "what was kept for an undo and has expired is removed later",
                    extra={"store": self._store.name, "error": exc.message},
                )
            await sleep_or(stop, EVERY_S)

    async def round(self, stop: asyncio.Event) -> int:
        """Remove all that has expired; how many rows that was. Raises OperationError."""
        at_ms, rows = int(self._clock() * 1000), 0
        while not stop.is_set():
            gone = await self._store.forget_kept(at_ms, ROWS_MAX, Deadline.after(self._timeout_s))
            rows += gone
            if gone < ROWS_MAX:
                break
        return rows
