"""What an event of a key would do, down the whole graph and over all stores: which questions to ask, and what the
answers come to.

Goes from the top down, some keys at a time, and keeps the keys of rows that it still has to ask about: a chain of any
length needs no recursion. No key is asked about twice, so cycles end. Beyond `KEYS_MAX` keys nothing more is followed,
and what may lie below is told as "at least".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from integrity.core.derive import Rows, moved, step_of, what_follows
from integrity.core.fold import Follow, Policy, Remove, Replace, Step, Values
from integrity.core.history import SAMPLE_ROWS_MAX, Impact, Question
from integrity.core.keys import Key
from integrity.core.policy import copy_policy, policy_of
from integrity.core.rules.model import Dependent, RuleSet

KEYS_MAX = 20_000
"""How many keys of rows are followed for one plan."""
PORTION_KEYS = 1_000
"""How many keys are in one question."""

Event = tuple[str, Key]
"""What one transaction is for: an event of the parent, or of rows that are told of to another store."""


class _Going(NamedTuple):
    """A key that an event reaches, deleted or changed to `to`. `home` is the store whose transaction does that, for
    `event`, in the branch of the dependent `top`; None for the parent itself."""

    key: Key
    to: Key | None
    level: int
    home: str | None
    event: Event
    top: str


class Portion(NamedTuple):
    """Keys to be asked about together, and the stores that have dependents of them."""

    question: Question
    stores: tuple[str, ...]
    going: tuple[_Going, ...]


@dataclass(slots=True)
class Planned:
    """What would happen to the rows of one dependent, `level` references below the parent.

    `at_least`: there may be more rows. `held`: nothing would be changed until somebody approves it, since here or
    elsewhere in the branch some event has more rows than `max_rows` allows.
    """

    dependent: Dependent
    entity: str
    action: str
    level: int
    rows: int = 0
    sample: list[Mapping[str, object]] = field(default_factory=list)
    at_least: bool = False
    held: bool = False


class _Reference(NamedTuple):
    dependent: Dependent
    policy: Policy
    rows: Rows | None
    """What its rows are, where something depends on them anywhere."""


class Plan:
    """One walk down the graph: `ask` for a portion, `take` what the stores say of it, until there is none."""

    def __init__(
        self, rules: RuleSet, entity: str, keys: Sequence[Key], to: Key | None = None, *, keys_max: int = KEYS_MAX
    ) -> None:
        """Of a deletion of these keys, or of a change of the one key."""
        self._references = {parent.entity: _references(rules, parent.entity) for parent in rules.parents}
        self._keys_max = keys_max
        self._seen = {(entity, key, to) for key in keys}
        self._waiting: dict[tuple[str, bool], deque[_Going]] = {
            (entity, to is None): deque([_Going(key, to, 1, None, (entity, key), "") for key in keys])
        }
        self._cut: set[tuple[str, bool]] = set()
        self._found: dict[tuple[str, bool], Planned] = {}
        self._rows: dict[tuple[Event, str, bool], int] = {}
        self._tops: dict[tuple[Event, str], set[str]] = {}

    def ask(self, silent: Iterable[str] = ()) -> Portion | None:
        """The next keys to ask about; None: all is known. Stores that did not answer are asked no more."""
        away = set(silent)
        while self._waiting:
            entity, deleted = next(iter(self._waiting))
            waiting = self._waiting[entity, deleted]
            going = tuple(waiting.popleft() for _ in range(min(PORTION_KEYS, len(waiting))))
            if not waiting:
                del self._waiting[entity, deleted]
            references = self._references.get(entity, ())
            stores = tuple(sorted({each.dependent.store for each in references} - away))
            if stores:
                follow = frozenset(
                    each.dependent.id
                    for each in references
                    if each.rows and what_follows(each.rows, step_of(each.policy, deleted)) is not None
                )
                own_max = max(self._keys_max - len(self._seen), 0) + 1
                sample = any(self._has_room(each, deleted) for each in references)
                keys = [each.key for each in going]
                return Portion(Question(entity, keys, deleted, follow, own_max, sample), stores, going)
        return None

    def take(self, portion: Portion, impacts: Iterable[Impact]) -> None:
        """Count what one or more stores say of a portion, and go on with the rows that are parents."""
        entity, deleted = portion.question.entity, portion.question.deleted
        references = {each.dependent.id: each for each in self._references[entity]}
        for impact in impacts:
            reference = references[impact.dependent]
            planned = self._planned(entity, reference, deleted, min(going.level for going in portion.going))
            planned.rows += impact.rows
            planned.at_least = planned.at_least or impact.is_cut
            planned.sample += impact.sample[: SAMPLE_ROWS_MAX - len(planned.sample)]
            for going, count in zip(portion.going, impact.counts, strict=True):
                if count:
                    event, top = _within(going, entity, reference.dependent)
                    counted = event, impact.dependent, deleted
                    self._rows[counted] = self._rows.get(counted, 0) + count
                    self._tops.setdefault((event, impact.dependent), set()).add(top)
            if impact.own:
                self._follow(portion, reference, impact)

    def stop(self) -> None:
        """Ask no more: what has not been asked about may have rows."""
        self._cut |= self._waiting.keys()
        self._waiting.clear()

    def found(self) -> Sequence[Planned]:
        """Everything that is known now, from the top down."""
        self._mark_cut()
        limits = {each.dependent.id: each.dependent.max_rows for of in self._references.values() for each in of}
        over = {
            (event, top)
            for (event, dependent, deleted), rows in self._rows.items()
            if (limit := limits[dependent]) is not None
            and rows > limit
            and self._found[dependent, deleted].action not in ("ignore", "restrict")
            for top in self._tops[event, dependent]
        }
        held = {dependent for (event, dependent), tops in self._tops.items() for top in tops if (event, top) in over}
        for planned in self._found.values():
            planned.held = planned.dependent.id in held and planned.action not in ("ignore", "restrict")
        return sorted(self._found.values(), key=lambda planned: planned.level)

    def _has_room(self, reference: _Reference, deleted: bool) -> bool:
        planned = self._found.get((reference.dependent.id, deleted))
        return planned is None or len(planned.sample) < SAMPLE_ROWS_MAX

    def _planned(self, entity: str, reference: _Reference, deleted: bool, level: int) -> Planned:
        policy = reference.policy
        action = policy.on_delete_action if deleted else policy.on_update_action
        return self._found.setdefault((policy.dependent, deleted), Planned(reference.dependent, entity, action, level))

    def _follow(self, portion: Portion, reference: _Reference, impact: Impact) -> None:
        entity, rows = portion.question.entity, reference.rows
        assert rows is not None, "only rows that are parents are asked for their own keys"
        step = step_of(reference.policy, portion.question.deleted)
        for place, own in impact.own:
            going = portion.going[place]
            values = _values(step, going)
            to = None if values is None else moved(rows, own, values)
            if to == own or (rows.entity, own, to) in self._seen:
                continue
            if len(self._seen) >= self._keys_max:
                self._cut.add((rows.entity, to is None))
                continue
            self._seen.add((rows.entity, own, to))
            event, top = _within(going, entity, reference.dependent)
            self._waiting.setdefault((rows.entity, to is None), deque()).append(
                _Going(own, to, going.level + 1, reference.dependent.store, event, top)
            )

    def _mark_cut(self) -> None:
        """Of what lies below keys that were not followed there may be more rows."""
        waiting, done = list(self._cut), set(self._cut)
        while waiting:
            entity, deleted = waiting.pop()
            level = 1 + max((p.level for p in self._found.values() if p.dependent.entity == entity), default=0)
            for reference in self._references.get(entity, ()):
                self._planned(entity, reference, deleted, level).at_least = True
                step = step_of(reference.policy, deleted)
                way = None if reference.rows is None else what_follows(reference.rows, step)
                if reference.rows is not None and way is not None and (reference.rows.entity, way) not in done:
                    done.add((reference.rows.entity, way))
                    waiting.append((reference.rows.entity, way))


def _references(rules: RuleSet, entity: str) -> tuple[_Reference, ...]:
    parent = rules.by_entity[entity]
    dependents = [_Reference(each, policy_of(each, parent.key), _rows(rules, each)) for each in parent.dependents]
    return (*dependents, *(_Reference(copy.rows, copy_policy(copy), None) for copy in parent.copies))


def _rows(rules: RuleSet, dependent: Dependent) -> Rows | None:
    if dependent.entity is None or dependent.key is None or dependent.entity not in rules.by_entity:
        return None
    if dependent.array:  # an element goes, the row stays
        return None
    columns = dependent.columns
    shared = tuple((own, columns.index(name)) for own, name in enumerate(dependent.key.names) if name in columns)
    return Rows(dependent.entity, dependent.key, shared, recorded=False)


def _within(going: _Going, entity: str, dependent: Dependent) -> tuple[Event, str]:
    """The event and the branch that the rows of a dependent belong to. In another store it is an event of its own."""
    if going.home == dependent.store:
        return going.event, going.top
    return (entity, going.key), dependent.id


def _values(step: Step, going: _Going) -> Values | None:
    """What the reference becomes; None where the row goes."""
    match step:
        case Remove():
            return None
        case Follow():
            assert going.to is not None, "a reference follows a key change"
            return going.to
        case Replace():
            return step.of(going.key)
        case _:
            raise AssertionError("nothing follows from such a step")


def reachable(rules: RuleSet, entity: str) -> tuple[str, ...]:
    """The stores that an event of an entity may reach, by whatever way; sorted."""
    stores: set[str] = set()
    waiting, seen = [entity], {entity}
    while waiting:
        for dependent in rules.by_entity[waiting.pop()].followers.values():
            stores.add(dependent.store)
            rows = dependent.entity
            if rows is not None and rows in rules.by_entity and rows not in seen:
                seen.add(rows)
                waiting.append(rows)
    return tuple(sorted(stores))
