"""Dead letters of parked tenants come back by themselves, when the database of their tenant can be used again.

What is parked is what the topics of dead letters say; nothing else is remembered. Of the processes of a group the one
that reads the topic of redrives does it, and each letter goes the way that it goes when a person sends it: marked,
sent, audited. A letter whose key was in use again since stays, for a person to decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Final, Protocol

from integrity.core.outcome import Retry
from integrity.errors import OperationError
from integrity.kafka.dead_letters import Status
from integrity.kafka.letters import Filter, Letter, LetterIndex
from integrity.service.redrive import Done, Person, Redriver
from integrity.service.tenants import Databases, Dispatcher
from integrity.service.waiting import sleep_or, unless

log = logging.getLogger(__name__)

BY_ITSELF: Final = Person("integrity", "The database of its tenant can be used again.")
LOOK_EVERY_S: Final = 5.0
AGAIN_S: Final = 120.0
"""How often the dead letters are looked through while some are parked: other processes park them too."""
LETTERS_MAX: Final = 20_000
"""Letters of a round. What is left is for the next one."""
LOST_S: Final = 600.0
"""A letter that this program has marked as retried and that is not resolved after so long was perhaps never sent."""
REFUSED_MAX: Final = 100_000
"""Letters that are remembered since they were refused."""
PAUSE_MAX_S: Final = 600.0
"""A letter that comes back again and again waits longer each time, up to this."""


class Opens(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[tuple[LetterIndex, Redriver]]:
        """The dead letters as they are now, and what sends them back."""
        ...


class TenantRedriver:
    """Sends back the parked dead letters of one store."""

    def __init__(
        self,
        databases: Databases,
        dispatcher: Dispatcher,
        open_: Opens,
        *,
        is_mine: Callable[[], bool],
        parked: Callable[[], Mapping[str, int]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`is_mine` tells whether this process is the one that does it; `parked` how many letters there are, by store,
        as far as is known."""
        self._databases = databases
        self._dispatcher = dispatcher
        self._open = open_
        self._is_mine = is_mine
        self._parked = parked
        self._clock = clock
        self._refused: dict[str, str] = {}
        """Letters that can't be sent, with when they failed."""
        self._next_s = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. A failure is tried again in the next round."""
        while not stop.is_set():
            if self.is_due():
                self._next_s = self._clock() + AGAIN_S
                try:
                    await unless(stop, self.round())
                except OperationError as exc:
                    log.warning(
                        "parked dead letters are sent back later",
                        extra={"store": self._databases.name, "error": exc.message},
                    )
                    self._next_s = self._clock() + 2 * LOOK_EVERY_S
            await sleep_or(stop, LOOK_EVERY_S)

    def is_due(self) -> bool:
        """Whether it is time for a round."""
        if not self._is_mine():
            self._next_s = 0.0
            return False
        is_time = self._clock() >= self._next_s
        return self._dispatcher.back.is_set() or (is_time and self._parked().get(self._databases.name, 0) > 0)

    async def round(self) -> int:
        """Send back what can be; how many letters that were. Raises OperationError."""
        self._dispatcher.back.clear()
        sent = 0
        async with self._open() as (index, redriver):
            for tenant, ids in self._due(index).items():
                if tenant in self._dispatcher.parked:
                    continue
                if problem := await self._databases.of(tenant).probe():
                    self._dispatcher.suspend(tenant, Retry(problem, unreachable=True))
                    continue
                done = await redriver.retry(Filter(ids=list(ids), statuses=(Status.OPEN, Status.RETRIED)), None)
                sent += done.done
                self._tell(tenant, ids, done)
        return sent

    def _due(self, index: LetterIndex) -> dict[str, dict[str, str]]:
        """By tenant: letter -> when it failed."""
        found: dict[str, dict[str, str]] = {}
        chosen = Filter(store=self._databases.name, statuses=(Status.OPEN, Status.RETRIED), parked=True)
        count = 0
        for letter in index.find(chosen):
            if letter.parked in self._dispatcher.parked or not self._is_due(letter):
                continue
            if count == LETTERS_MAX:
                self._dispatcher.back.set()  # for another round at once
                break
            found.setdefault(letter.parked, {})[letter.id] = letter.failed_at
            count += 1
        return found

    def _is_due(self, letter: Letter) -> bool:
        if self._refused.get(letter.id) == letter.failed_at:
            return False
        if letter.status is Status.OPEN:
            return letter.retries == 0 or self._age_s(letter) >= min(PAUSE_MAX_S, 2.0 ** min(letter.retries, 20))
        return letter.actor == BY_ITSELF.name and self._age_s(letter) >= LOST_S

    def _age_s(self, letter: Letter) -> float:
        return self._clock() - datetime.fromisoformat(letter.status_at.replace("Z", "+00:00")).timestamp()

    def _tell(self, tenant: str, ids: Mapping[str, str], done: Done) -> None:
        fields = {"store": self._databases.name, "tenant": tenant}
        if done.done:
            log.info("dead letters of a tenant were sent back", extra={**fields, "letters": done.done})
        for refusal in done.refusals:
            if len(self._refused) < REFUSED_MAX and refusal.id in ids:
                self._refused[refusal.id] = ids[refusal.id]
        if done.refused:
            log.warning(
                "dead letters of a tenant stay until somebody decides: see integrity dlq list",
                extra={**fields, "letters": done.refused, "first": done.refusals[0].id, "why": done.refusals[0].why},
            )
