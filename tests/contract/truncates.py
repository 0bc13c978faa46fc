"""What carries out truncates of a store as a lane does, and keeps what it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from integrity.core.batch import Redrive, TopicPartition
from integrity.core.change import Truncation
from integrity.core.outcome import Outcome
from integrity.core.retry import Backoff
from integrity.core.rules.model import Events, Parent, Place, RuleSet, Tombstones, Truncates
from integrity.core.truncate import Note
from integrity.service.enforce import Enforcer
from integrity.service.halts import Halts
from integrity.service.truncate import Counting, Truncator
from tests.contract.harness import Rules
from tests.contract.world import ENTITY, TOPIC
from tests.unit.service.doubles import Letters, Watched


class Here:
    """A lane that has every partition; `enforced` says whether all is enforced."""

    def __init__(self) -> None:
        self.enforced = True
        self.asked: list[Mapping[TopicPartition, int]] = []

    def has(self, partition: TopicPartition) -> bool:
        return True

    async def ends(self) -> Mapping[TopicPartition, int]:
        return {TopicPartition(TOPIC, 1): 7}

    async def are_enforced(self, ends: Mapping[TopicPartition, int]) -> bool:
        self.asked.append(ends)
        return self.enforced


class Desk:
    """Carries out the truncates of a store, and keeps what it tells."""

    def __init__(self, store: Any, rules: Rules | None) -> None:
        """Without rules the store is a copy."""
        self.store = store
        self.letters, self.watch, self.here = Letters(), Watched(), Here()
        enforcer = Enforcer(
            store,
            self.letters,
            self.watch,
            system="test",
            rules_hash="abc",
            timeout_s=30,
            halts=Halts(store, self.watch, {}),
            backoff=Backoff(first_s=0.01, cap_s=0.1),
        )
        counting = None if rules is None else Counting(store, rule_set(rules))
        self.truncator = Truncator(store, enforcer, timeout_s=30, counting=counting)

    async def round(self) -> None:
        await self.truncator.round(self.here)

    async def waiting(self) -> list[str]:
        return [note.id for note in await self.truncator.waiting()]

    def done(self) -> dict[tuple[str, Outcome], int]:
        """Rows by dependent and outcome."""
        found: Counter[tuple[str, Outcome]] = Counter()
        for effect in self.watch.effects:
            found[effect.dependent, effect.outcome] += effect.rows
        return {at: rows for at, rows in found.items() if rows}


def rule_set(rules: Rules) -> RuleSet:
    place = Place("test.yaml", 1, 1)
    own = Events((TOPIC,), "debezium", rules[ENTITY][0].spec, Tombstones.DELETE, truncate=Truncates.DELETE_ALL)
    parents = tuple(
        Parent(
            entity,
            own if entity == ENTITY else None,
            tuple(each.dependent for each in of_entity),
            place,
            rows_key=None if entity == ENTITY else of_entity[0].spec,
        )
        for entity, of_entity in rules.items()
    )
    return RuleSet(parents, "abc", {}, {parent.entity: parent for parent in parents})


REDRIVE = TopicPartition("integrity.redrive", 0)


def back(letters: Letters, *, approved: bool = False, retries: int = 1) -> Redrive:
    """The newest dead letter, as it comes back."""
    letter = letters.published[-1]
    return Redrive(letter.id, letter.dependent, REDRIVE, 0, retries, approved)


def said(note: Note) -> Truncation:
    """The truncate of a note."""
    change = note.changes([(0,)])[0]
    return Truncation(note.entity, note.version, change.origin, note.occurred_ms)
