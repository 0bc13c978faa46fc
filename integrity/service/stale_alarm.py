"""Notices a source that counts its versions anew: then most of what it tells is older than what the ledger has seen.

After a failover to another cluster, a restore or a new slot, positions may begin low again. Such events do nothing,
which is right for one late event and wrong for a source: only a person can tell, by raising `events.epoch`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from integrity.core.outcome import Outcome

log = logging.getLogger(__name__)

WINDOW_EVENTS = 200
"""Looked at together. A connector that starts again repeats some events, whose newest are duplicates, not stale."""


class StaleAlarm:
    """Fed with what came of each batch, store by store."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._alarmed: set[str] = set()

    def take(self, store: str, outcomes: Mapping[Outcome, int]) -> None:
        """Say so once when more than half of a window's effects were stale; again only after a window that was not."""
        stale, all_ = self._counts.get(store, (0, 0))
        stale += outcomes.get(Outcome.STALE, 0)
        all_ += sum(outcomes.values())
        if all_ < WINDOW_EVENTS:
            self._counts[store] = stale, all_
            return
        self._counts[store] = 0, 0
        if 2 * stale <= all_:
            self._alarmed.discard(store)
        elif store not in self._alarmed:
            self._alarmed.add(store)
            log.error(
                "most events are older than what the ledger has seen and do nothing: if the source began to count its "
                "versions anew, raise events.epoch in its rule",
                extra={"store": store, "stale": stale, "effects": all_},
            )
