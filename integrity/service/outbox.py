"""Derived events from a store's outbox to Kafka: at least once, of each key in the order in which they were written.

What waits is read lower versions first, and removed only when Kafka has acknowledged it. So whoever else does the same
at the same time sees a later version of a key only after an earlier one is in its topic: the first of each version
comes in order, and a repeated one is old by its version.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from integrity.core.outbox import Outgoing
from integrity.core.retry import Backoff
from integrity.errors import OperationError
from integrity.ports import Deadline, Outbox

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""How often an empty outbox is looked into."""
RECORDS_MAX = 2_000
TIMEOUT_S = 15.0

Send = Callable[[Sequence[Outgoing], Deadline], Awaitable[None]]
"""Returns when every record is acknowledged. Raises OperationError when not."""


class OutboxPublisher:
    """Empties the outbox of one store, again and again."""

    def __init__(
        self,
        outbox: Outbox,
        send: Send,
        *,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        self._outbox = outbox
        self._send = send
        self._backoff = backoff

    async def run(self) -> None:
        """Until it is cancelled. A failure is tried again: what is not acknowledged stays in the outbox."""
        attempt = 0
        while True:
            try:
                await self.drain()
            except OperationError as exc:
                attempt += 1
                if attempt == 1 or attempt % 20 == 0:
                    log.warning(
                        "derived events wait to be published",
                        extra={"store": self._outbox.name, "attempt": attempt, "error": exc.message},
                    )
                await asyncio.sleep(self._backoff.delay_s(attempt, random.random()))
            else:
                attempt = 0
                await asyncio.sleep(LOOK_EVERY_S * random.uniform(0.5, 1.0))

    async def drain(self) -> int:
        """Publish all that waits; how many records that was. Raises OperationError."""
        count = 0
        while True:
            deadline = Deadline.after(TIMEOUT_S)
            waiting = await self._outbox.waiting(RECORDS_MAX, deadline)
            if not waiting:
                return count
            await self._send([each.record for each in waiting], deadline)
            await self._outbox.published([each.id for each in waiting], Deadline.after(TIMEOUT_S))
            count += len(waiting)
