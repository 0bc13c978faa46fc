"""Dependents of one store whose rule does not fit it any more: a column is gone, a privilege was revoked.

A halted dependent is left out, loudly: each of its events becomes a dead letter, and the other dependents go on. The
store is asked again and again whether the rule fits; when it does, the dependent takes part again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from integrity.core.rules.model import Place
from integrity.errors import Finding, OperationError, Reason
from integrity.ports import Deadline, Store

log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 3
"""How often a batch is tried before the dependent whose rule is broken is halted: a schema change takes a moment."""
RECHECK_S: Final = 10.0
CHECK_TIMEOUT_S: Final = 30.0
REASONS: Final = (Reason.SCHEMA_MISMATCH, Reason.PRIVILEGE)


class HaltWatch(Protocol):
    def halted(self, dependent: str, halted: bool) -> None: ...


class Halt(NamedTuple):
    """Why a dependent is halted: its dead letters say the same."""

    reason: Reason
    message: str


class Halts:
    """The halted dependents of one lane, shared by its sessions."""

    def __init__(
        self,
        store: Store,
        watch: HaltWatch,
        places: Mapping[str, Sequence[Place]],
        *,
        recheck_s: float = RECHECK_S,
        tenant: str = "",
    ) -> None:
        """`places` says where each dependent's rule is written, and those of what depends on its rows in this store,
        which tells whose finding a finding is: a dependent is halted for its whole branch."""
        self._store = store
        self._named = {"store": store.name, "tenant": tenant} if tenant else {"store": store.name}
        self._watch = watch
        self._places = places
        self._recheck_s = recheck_s
        self._halted: dict[str, Halt] = {}
        self._any = asyncio.Event()

    @property
    def halted(self) -> Mapping[str, Halt]:
        return self._halted

    @property
    def trouble(self) -> str:
        """What /readyz says; empty when nothing is halted."""
        return "; ".join(f"{dependent} is halted: {halt.message}" for dependent, halt in self._halted.items())

    def halt(self, dependent: str, reason: Reason, message: str) -> None:
        """Leave this dependent out from now on."""
        if dependent not in self._halted:
            self._halted[dependent] = Halt(reason, message)
            self._any.set()
            self._watch.halted(dependent, True)
            log.error(
                "a rule does not fit its store any more: its dependent is halted, its events become dead letters",
                extra={**self._named, "dependent": dependent, "reason": reason.value, "error": message},
            )

    def _resume(self, dependent: str) -> None:
        del self._halted[dependent]
        self._watch.halted(dependent, False)
        log.warning(
            "a rule fits its store again: its dependent goes on; retry the dead letters of the meantime",
            extra={**self._named, "dependent": dependent},
        )

    async def watch(self) -> None:
        """Ask the store again and again while something is halted. Never ends."""
        while True:
            await self._any.wait()
            await asyncio.sleep(self._recheck_s)
            await self.recheck()
            if not self._halted:
                self._any.clear()

    async def recheck(self) -> None:
        """Ask the store once; dependents without a fault take part again."""
        try:
            findings = await self._store.check(Deadline.after(CHECK_TIMEOUT_S))
        except OperationError as exc:
            log.info("a store could not be checked", extra={**self._named, "error": exc.message})
            return
        for dependent in tuple(self._halted):
            if not self._is_broken(dependent, findings):
                self._resume(dependent)

    def _is_broken(self, dependent: str, findings: Collection[Finding]) -> bool:
        places = {(place.file, place.line) for place in self._places.get(dependent, ())}
        return any(
            finding.severity == "error" and (not finding.line or (finding.file, finding.line) in places)
            for finding in findings
        )
