"""All lanes of one process: each by itself, all stopped together."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from integrity.core.retry import Backoff
from integrity.errors import Finding, LedgerError, OperationError, UnfitStoreError, UnreachableError
from integrity.ports import Deadline
from integrity.service.collector import collect_rarely
from integrity.service.expiry import Expiry
from integrity.service.lane import Lane
from integrity.service.outbox import OutboxPublisher
from integrity.service.sweep import Sweeper
from integrity.service.waiting import sleep_or, unless

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 30.0
LAST_DRAIN_S = 5.0
"""How long a stopping process goes on to publish what its outbox holds; the rest waits for the next one."""
FIRST_CHECK_TIMEOUT_S = 10.0
"""The first look is at all stores at once: one that hangs must not keep the lanes of the others waiting for long."""


class Fittable(Protocol):
    """A store, as far as it is looked at before its lane begins."""

    name: str

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        """See `Store.check`."""
        ...

    async def migrate(self, deadline: Deadline) -> None:
        """See `Store.migrate`."""
        ...


class Beside(Protocol):
    """What runs beside a lane."""

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        ...


async def fit(store: Fittable, timeout_s: float, *, migrate: bool) -> Sequence[Finding]:
    """What keeps the store from being used, after migrating it when asked. Warnings are logged.

    Raises UnreachableError, and LedgerError when the ledger is missing or of another version.
    """
    deadline = Deadline.after(timeout_s)
    if migrate:
        await store.migrate(deadline)
    findings = await store.check(deadline)
    for finding in findings:
        if finding.code.startswith("ledger_"):
            raise LedgerError(finding.message, hint=finding.hint)
        if finding.severity != "error":
            log.warning("a store is not as it should be", extra={"store": store.name, "finding": str(finding)})
    return [finding for finding in findings if finding.severity == "error"]


@dataclass(slots=True)
class Member:
    """One lane of this process, and whether its store was looked at yet. `copy` is what the lane of a copy is called
    beside that of its store."""

    store: Fittable
    lane: Lane
    sweeper: Sweeper | None
    fit: bool = False
    trouble: str = ""
    outbox: OutboxPublisher | None = None
    expiry: Expiry | None = None
    copy: str = ""
    more: Sequence[Beside] = ()

    @property
    def name(self) -> str:
        return self.copy or self.store.name


class Supervisor:
    """Runs lanes until they are stopped, or one of them fails in a way that only a person can mend."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        migrate: bool = False,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        self._members = members
        self._migrate = migrate
        self._backoff = backoff

    def ready(self) -> Mapping[str, str]:
        """Store -> why its lane does not get on; empty when all do."""
        troubles = {
            member.name: (member.lane.trouble if member.fit else member.trouble or "was not checked yet")
            for member in self._members
        }
        return {name: trouble for name, trouble in troubles.items() if trouble}

    async def check(self, stop: asyncio.Event | None = None) -> bool:
        """Look at every store once; False when `stop` is set, which ends the wait for stores that do not answer. Such
        a store is looked at again by `run`.

        Raises what a person must mend: an UnfitStoreError of all findings in all stores, or the LedgerError of a
        store; an ExceptionGroup of them when there are several.
        """
        stop = stop or asyncio.Event()
        checks = asyncio.gather(
            *(self._check(member, FIRST_CHECK_TIMEOUT_S) for member in self._members), return_exceptions=True
        )
        found = await unless(stop, checks)
        if found is None:
            return False
        findings: list[Finding] = []
        faults: list[Exception] = []
        for member, result in zip(self._members, found, strict=True):
            if isinstance(result, UnreachableError):
                log.warning(
                    "a store does not answer; its lane waits for it, the others run",
                    extra={"store": member.store.name, "error": result.message},
                )
                member.trouble = result.message
            elif isinstance(result, Exception):
                faults.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                findings += result
        if findings:
            faults.append(UnfitStoreError(findings))
        match faults:
            case []:
                return not stop.is_set()
            case [fault]:
                raise fault
            case _:
                raise ExceptionGroup("stores are not fit", faults)

    async def _check(self, member: Member, timeout_s: float) -> Sequence[Finding]:
        findings = await fit(member.store, timeout_s, migrate=self._migrate)
        member.fit = not findings
        return findings

    async def run(self, stop: asyncio.Event, *, to_end: bool = False) -> None:
        """Until `stop`, or with `to_end` until every lane has come to the end that it saw when it began."""
        stops = [asyncio.Event() for _ in self._members]

        async def pass_on() -> None:
            await stop.wait()
            for each in stops:
                each.set()

        aside = [
            asyncio.create_task(pass_on(), name="stop"),
            asyncio.create_task(collect_rarely(), name="collector"),
        ]
        try:
            async with asyncio.TaskGroup() as tasks:
                for member, ends in zip(self._members, stops, strict=True):
                    tasks.create_task(self._run(member, ends, to_end), name=f"{member.name}: lane")
        finally:
            for task in aside:
                task.cancel()
            await asyncio.wait(aside)

    async def _run(self, member: Member, stop: asyncio.Event, to_end: bool) -> None:
        attempt = 0
        while not member.fit and not stop.is_set():
            try:
                findings = await unless(stop, self._check(member, CHECK_TIMEOUT_S))
            except UnreachableError as exc:
                attempt += 1
                member.trouble = exc.message
                await sleep_or(stop, self._backoff.delay_s(attempt, random.random()))
            else:
                if findings:
                    raise UnfitStoreError(findings)
        async with asyncio.TaskGroup() as tasks:
            beside: list[asyncio.Task[None]] = []
            if member.sweeper is not None:
                beside.append(tasks.create_task(member.sweeper.run(stop), name=f"{member.store.name}: sweeps"))
            if member.expiry is not None:
                beside.append(tasks.create_task(member.expiry.run(stop), name=f"{member.store.name}: expiry"))
            if member.outbox is not None:
                beside.append(tasks.create_task(member.outbox.run(), name=f"{member.store.name}: outbox"))
            for each in member.more:
                beside.append(tasks.create_task(each.run(stop), name=f"{member.store.name}: {type(each).__name__}"))
            await member.lane.run(stop, to_end=to_end)
            for task in beside:
                task.cancel()
        if member.outbox is None:
            return
        try:
            async with asyncio.timeout(LAST_DRAIN_S):
                await member.outbox.drain()
        except (OperationError, TimeoutError):
            log.warning("derived events stay in the outbox", extra={"store": member.store.name})
