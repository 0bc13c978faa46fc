"""Topics that come and go while the service runs: a pattern's new ones are read, and what is gone is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

from integrity.core.decode.record import Decoder
from integrity.core.rules.model import RuleSet
from integrity.errors import OperationError, RulesError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""As often as clients ask brokers for what has changed."""


class Follows(Protocol):
    """A lane."""

    def follow(self, decoders: Mapping[str, tuple[str, Decoder]]) -> None: ...


Follower = tuple[Follows, Callable[[RuleSet], Mapping[str, tuple[str, Decoder]]]]
"""A lane, and what makes its decoders of the rules."""


class TopicWatch:
    """Tells lanes which topics there are."""

    def __init__(
        self,
        look: Callable[[], Awaitable[tuple[RuleSet, Collection[str]]]],
        lanes: Sequence[Follower],
        *,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`look` gives the topics that there are now, and the rules with those of them that fulfil their patterns. It
        raises RulesError where they can't be told apart, OperationError where nobody answers."""
        self._look = look
        self._lanes = tuple(lanes)
        self._every_s = every_s
        self._trouble = ""
        self._missing: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until it is cancelled. Where topics can't be told apart, or nobody answers, lanes go on with those they
        have."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                rules, existing = await self._look()
            except OperationError as exc:
                log.info("Kafka does not say which topics there are", extra={"error": exc.message})
            except RulesError as exc:
                if self._trouble != str(exc):
                    log.error("new topics are not read: mend the patterns", extra={"error": str(exc)})
                self._trouble = str(exc)
            else:
                self._trouble = ""
                self._tell_missing(rules, existing)
                for lane, decoders_of in self._lanes:
                    lane.follow(decoders_of(rules))

    def _tell_missing(self, rules: RuleSet, existing: Collection[str]) -> None:
        """Say which topics that rules name are not there any more. They stay read: they may be made anew."""
        named = {
            topic
            for parent in rules.parents
            if parent.events is not None and parent.events.pattern is None
            for topic in parent.events.topics
        }
        missing = frozenset(named - set(existing))
        for topic in sorted(missing - self._missing):
            log.error(
                "a topic is gone: events that it held and that were not read are lost; integrity scan finds their rows",
                extra={"topic": topic},
            )
        self._missing = missing
