"""Looks again, some time after, at keys that are gone: for rows that were written late (contract 5.10).

Runs beside a lane and never holds it up. A round begins only when everything that was in the parents' topics is
enforced: else a row of a parent that was created again would be taken for a late row of the former one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, assert_never

from integrity.core.outcome import Broken, Rejected, Retry, TooLarge
from integrity.core.sweep import Repaired, Sweep, Swept
from integrity.ports import Deadline, Sweepable
from integrity.service.waiting import sleep_or

log = logging.getLogger(__name__)

EVERY_S: Final = 15.0
"""How often a round is made; half the youngest age when that is less."""
KEYS_MAX: Final = 2_000
CAUGHT_UP_TIMEOUT_S: Final = 10.0


class SweepWatch(Protocol):
    """What a sweep tells the outside. Never blocks, never raises."""

    def repaired(self, store: str, at_ms: int, repaired: Sequence[Repaired], took_s: float) -> None: ...


class Sweeper:
    """The sweeps of one store."""

    def __init__(
        self,
        store: Sweepable,
        watch: SweepWatch,
        ages: Mapping[int, frozenset[str]],
        caught_up: Callable[[Deadline], Awaitable[bool]],
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`ages` are in milliseconds, each with its entities. `caught_up` tells whether everything that was in their
        topics when it was asked is enforced. `timeout_s` bounds one page, and is how long a transaction may be open."""
        self._store = store
        self._watch = watch
        self._ages = ages
        self._caught_up = caught_up
        self._timeout_s = timeout_s
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        """A round now and then, until `stop`."""
        if not self._ages:
            return
        every_s = min(EVERY_S, min(self._ages) / 2000)
        while not stop.is_set():
            await self.round()
            await sleep_or(stop, every_s)

    async def round(self) -> None:
        """Every page of every sweep that is due."""
        if not await self._caught_up(Deadline.after(CAUGHT_UP_TIMEOUT_S)):
            return
        for age_ms, entities in self._ages.items():
            await self._sweep(age_ms, entities)

    async def _sweep(self, age_ms: int, entities: frozenset[str]) -> None:
        now_ms = int(self._clock() * 1000)
        # A key's time is that at which its transaction began: one that is still open must not be passed over.
        until_ms = now_ms - max(age_ms, round(self._timeout_s * 1000))
        keys_max, left_out, goes_on = KEYS_MAX, frozenset[str](), False
        while True:
            began = time.monotonic()
            sweep = Sweep(age_ms, until_ms, entities, keys_max, now_ms, left_out, goes_on)
            result = await self._store.sweep(sweep, Deadline.after(self._timeout_s))
            match result:
                case Swept(repaired, more, goes_on):
                    if repaired:
                        self._watch.repaired(self._store.name, now_ms, repaired, time.monotonic() - began)
                        self._tell(repaired)
                    if not more:
                        return
                    if not goes_on:
                        keys_max, left_out = KEYS_MAX, frozenset()
                case TooLarge():
                    assert keys_max > 1, "a page of a single key is never too large"
                    keys_max //= 2
                case Rejected(dependent, reason, message):
                    if keys_max > 1:
                        keys_max //= 2
                    else:
                        # No event stands for these rows any more that could become a dead letter: they stay.
                        left_out |= {dependent}
                        log.error(
                            "rows that were written late can't be changed and stay",
                            extra={
                                "store": self._store.name,
                                "dependent": dependent,
                                "reason": reason.value,
                                "error": message,
                            },
                        )
                case Retry(message) | Broken(message=message):
                    log.info(
                        "a sweep failed and is tried again later", extra={"store": self._store.name, "error": message}
                    )
                    return
                case _:
                    assert_never(result)

    def _tell(self, repaired: tuple[Repaired, ...]) -> None:
        rows: dict[str, int] = {}
        for each in repaired:
            rows[each.dependent] = rows.get(each.dependent, 0) + each.rows
        for dependent, count in rows.items():
            log.warning(
                "rows were written after their parent was gone; they went the same way",
                extra={"store": self._store.name, "dependent": dependent, "rows": count},
            )
