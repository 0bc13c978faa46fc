"""All lanes of one process: each by itself, all stopped together."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from integrity.core.retry import Backoff
from integrity.errors import Finding, LedgerError, UnfitStoreError, UnreachableError
from integrity.ports import Deadline, Store
from integrity.service.lane import Lane

log = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 30.0


async def fit(store: Store, *, migrate: bool) -> Sequence[Finding]:
    """What keeps the store from being used, after migrating it when asked. Warnings are logged.

    Raises UnreachableError, and LedgerError when the ledger is missing or of another version.
    """
    deadline = Deadline.after(CHECK_TIMEOUT_S)
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
    """One lane of this process, and whether its store was looked at yet."""

    store: Store
    lane: Lane
    fit: bool = False
    trouble: str = ""


class Supervisor:
    """Runs lanes until they are stopped, or one of them fails in a way that only a person can mend."""

    def __init__(self, members: Sequence[Member], *, migrate: bool = False) -> None:
        self._members = members
        self._migrate = migrate

    def ready(self) -> Mapping[str, str]:
        """Store -> why its lane does not get on; empty when all do."""
        troubles = {
            member.store.name: (member.lane.trouble if member.fit else member.trouble or "was not checked yet")
            for member in self._members
        }
        return {name: trouble for name, trouble in troubles.items() if trouble}

    async def check(self) -> None:
        """Look at every store once. Raises UnfitStoreError or LedgerError with what a person must mend; a store that
        does not answer is looked at again by `run`."""
        found = await asyncio.gather(*(self._check(member) for member in self._members), return_exceptions=True)
        findings: list[Finding] = []
        for member, result in zip(self._members, found, strict=True):
            if isinstance(result, UnreachableError):
                log.warning(
                    "a store does not answer; its lane waits for it, the others run",
                    extra={"store": member.store.name, "error": result.message},
                )
                member.trouble = result.message
            elif isinstance(result, BaseException):
                raise result
            else:
                findings += result
        if findings:
            raise UnfitStoreError(findings)

    async def _check(self, member: Member) -> Sequence[Finding]:
        findings = await fit(member.store, migrate=self._migrate)
        member.fit = not findings
        return findings

    async def run(self, stop: asyncio.Event, *, to_end: bool = False) -> None:
        """Until `stop`, or with `to_end` until every lane has come to the end that it saw when it began."""
        stops = [asyncio.Event() for _ in self._members]

        async def pass_on() -> None:
            await stop.wait()
            for each in stops:
                each.set()

        passing = asyncio.create_task(pass_on(), name="stop")
        try:
            async with asyncio.TaskGroup() as tasks:
                for member, ends in zip(self._members, stops, strict=True):
                    tasks.create_task(self._run(member, ends, to_end), name=f"{member.store.name}: lane")
        finally:
            passing.cancel()

    async def _run(self, member: Member, stop: asyncio.Event, to_end: bool) -> None:
        backoff, attempt = Backoff(), 0
        while not member.fit and not stop.is_set():
            try:
                findings = await self._check(member)
            except UnreachableError as exc:
                attempt += 1
                member.trouble = exc.message
                try:
                    async with asyncio.timeout(backoff.delay_s(attempt, random.random())):
                        await stop.wait()
                except TimeoutError:
                    continue
            else:
                if findings:
                    raise UnfitStoreError(findings)
        await member.lane.run(stop, to_end=to_end)
