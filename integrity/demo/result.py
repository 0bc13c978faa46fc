"""What the demo counts: while it runs from the audit trail, at its end from the stores themselves."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from integrity.core.change import Op
from integrity.core.outcome import Outcome
from integrity.core.rules.model import Action, Dependent, RuleSet, action_name
from integrity.demo.shop import Kind, Published

FEED_MAX: Final = 6
_FEED_KEPT: Final = 60
_FEED_DELAY_S: Final = 0.6

Place = tuple[int, int]
"""Partition and offset of a record of the events' topic."""


class Work(NamedTuple):
    """What a store does: for which dependent, after which event, by which action."""

    store: str
    dependent: str
    event: str
    action: str


def works(rules: RuleSet) -> list[Work]:
    """Everything that the rules can make a store do, in their order."""
    found: list[Work] = []
    for parent in rules.parents:
        for dependent in parent.dependents:
            found.append(_work(dependent, "delete", dependent.on_delete))
            found.append(_work(dependent, "key change", dependent.on_update))
    return found


def _work(dependent: Dependent, event: str, action: Action) -> Work:
    return Work(dependent.store, dependent.name, event, action_name(action))


@dataclass(slots=True)
class Happened:
    """One line of the feed: a happening, and what each dependent had to do about it."""

    published: Published
    at_s: float = field(default_factory=time.monotonic)
    rows: Counter[str] = field(default_factory=Counter)
    letters: set[str] = field(default_factory=set)
    """Dependents for whose store the happening is a dead letter."""


class Tally:
    """Adds up audit records, beside what has been published."""

    def __init__(self, rules: RuleSet) -> None:
        self.rows: dict[Work, int] = dict.fromkeys(works(rules), 0)
        self.effects = 0
        """Audit records of events that were decoded: one an event and dependent."""
        self.kinds: Counter[Kind] = Counter()
        self.records = 0
        self.poison: Place | None = None
        self.dead_letters = 0
        self._feed: deque[Happened] = deque(maxlen=_FEED_KEPT)
        self._by_place: dict[Place, Happened] = {}
        self._before: dict[Place, list[dict[str, Any]]] = {}
        self._dependents = {dependent.store: dependent.name for each in rules.parents for dependent in each.dependents}

    def publish(self, published: Published) -> None:
        """Take note of what has been published."""
        self.kinds[published.happening.kind] += 1
        self.records += len(published.places)
        if published.happening.kind is Kind.POISON:
            self.poison = published.places[0]
        happened = Happened(published)
        if published.happening.kind not in (Kind.INSERT, Kind.UPDATE):
            self._feed.append(happened)
        for place in published.places:
            self._by_place[place] = happened
            # A lane may have been faster than the acknowledgement.
            for entry in self._before.pop(place, ()):
                self._note(happened, entry)

    def audit(self, value: bytes) -> None:
        """Take note of one audit record."""
        entry: dict[str, Any] = json.loads(value)
        if entry["outcome"] == Outcome.DEAD_LETTERED:
            self.dead_letters += 1
        if entry["action"] is not None:
            self.effects += 1
            if entry["outcome"] == Outcome.APPLIED and entry["rows"]:
                event = "key change" if entry["op"] == Op.MOVED.value else "delete"
                work = Work(entry["store"], self._dependents[entry["store"]], event, entry["action"])
                self.rows[work] = self.rows.get(work, 0) + entry["rows"]
        place = (entry["partition"], entry["offset"])
        if place in self._by_place:
            self._note(self._by_place[place], entry)
        else:
            self._before.setdefault(place, []).append(entry)

    def feed(self) -> list[Happened]:
        """What happened last to dependents, a moment ago: until then the stores have had time to follow."""
        seen = [happened for happened in self._feed if time.monotonic() - happened.at_s > _FEED_DELAY_S]
        return seen[-FEED_MAX:]

    def _note(self, happened: Happened, entry: dict[str, Any]) -> None:
        name = self._dependents[entry["store"]]
        if entry["outcome"] == Outcome.DEAD_LETTERED:
            happened.letters.add(name)
        elif entry["outcome"] == Outcome.APPLIED:
            happened.rows[name] += entry["rows"]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it lies in its topic."""

    id: str
    reason: str
    message: str
    store: str
    dependent: str
    topic: str
    partition: int
    offset: int
    headers: Mapping[str, str]
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Result:
    """The final figures. `trouble` says in a sentence each what is not as it should be; empty: all is well."""

    kafka: str
    events: Mapping[str, int]
    records: int
    rows: Mapping[Work, int]
    letters: Sequence[Letter]
    poison: Place
    orphans: Mapping[str, int]
    different: Mapping[str, int]
    start_s: float
    enforce_s: float
    total_s: float
    trouble: Sequence[str]

    @property
    def is_fine(self) -> bool:
        return not self.trouble

    def document(self) -> dict[str, object]:
        """What --json prints."""
        return {
            "ok": self.is_fine,
            "trouble": list(self.trouble),
            "kafka": self.kafka,
            "events": {"total": sum(self.events.values()), **self.events},
            "records": self.records,
            "rows": [{**work._asdict(), "rows": rows} for work, rows in self.rows.items()],
            "dead_letters": [
                {
                    "id": letter.id,
                    "reason": letter.reason,
                    "message": letter.message,
                    "store": letter.store,
                    "dependent": letter.dependent,
                    "topic": letter.topic,
                    "partition": letter.partition,
                    "offset": letter.offset,
                }
                for letter in self.letters
            ],
            "poison": {"partition": self.poison[0], "offset": self.poison[1]},
            "orphans": {"total": sum(self.orphans.values()), **self.orphans},
            "different_from_native_foreign_keys": {"total": sum(self.different.values()), **self.different},
            "seconds": {
                "start": round(self.start_s, 2),
                "enforce": round(self.enforce_s, 2),
                "total": round(self.total_s, 2),
            },
        }
