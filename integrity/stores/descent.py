"""The way down the graph in one store: rows that are parents take what depends on them along, in one transaction.

Written once for all stores: a generator that asks for one thing after another (`Ask`) and is sent the answer. It keeps
its own stack, so that a chain of any length needs no recursion, and only the keys of rows that lie above where it
works: at most a chunk of them a reference.

Removals go from the bottom up, since the database may hold foreign keys of its own between the levels; key changes go
from the top down, for the same reason. Where one event of a batch wants the one and another event the other, the way is
down; a database that refuses that is asked again with the events apart, as with every refusal.

Cycles end: rows that are being removed further up are not followed a second time, and rows that moved are not where
they were.

More rows than one transaction is to have are removed in parts (`core.parts`): as many of the lowest as there is room
for, and a row of a level above only when nothing below it is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from integrity.core.batch import DeadLetterMark
from integrity.core.change import ParentChange, Version
from integrity.core.derive import (
    Derived,
    Happened,
    Reference,
    Rows,
    Stage,
    Went,
    below,
    derive,
    journey,
    recorded,
    trace_derived,
    went_along,
    what_follows,
)
from integrity.core.fold import Counted, Group, Remove, Removed, Settled
from integrity.core.keys import Key, canonical
from integrity.core.ledger import Done, Fate
from integrity.core.outcome import ApplyResult, Broken, Effect, Held, Outcome, Rejected
from integrity.core.parts import FULL_SHARE, Parts, TooManyRows, name_of_row
from integrity.core.sweep import Below, Extent
from integrity.core.undo import Cause, root_event, trail
from integrity.stores.rule import StoreRule


def of_branch(result: ApplyResult, below: str | None) -> ApplyResult:
    """The result of a try that failed at the dependent `below`. A refusal is the refusal of its whole branch, named by
    the dependent of the event's own entity: only with all of it is a level like what stands above it."""
    match result:
        case Rejected(dependent, reason, message) if below not in (None, dependent):
            return Rejected(dependent, reason, f"{below}, which depends on these rows: {message}")
        case Broken(dependent, reason, message) if dependent is not None and below not in (None, dependent):
            return Broken(dependent, reason, f"{below}, which depends on these rows: {message}")
        case _:
            return result


CHUNK: Final = 5_000
"""Rows whose keys are held at once for a reference, while what depends on them is removed."""
CLOSURE_MAX: Final = 20_000
"""Rows of one table that refer to one another and are removed at once; more go level by level."""
PIECE: Final = 1_000
"""Rows above that a part takes up at a time. Of as many it may have to be kept what went from below them."""
EVENTS_SHARE: Final = 10
"""How many times the rows of one event all events of a batch may have together, in a graph: what is too large for one
transaction is found out by doing it, so that a batch of usual events is not to be cut."""


class RowsStay(Exception):
    """Rows of a dependent were removed, and are there all the same."""

    def __init__(self, dependent: str) -> None:
        super().__init__(dependent)
        self.dependent = dependent
        self.message = "Rows stay although they were removed: does a trigger keep them?"


@dataclass(frozen=True, slots=True)
class Choose:
    """The rows of these groups, at most `limit` of them, in any order: the index of the group and the row's own key.
    Rows whose own key has a null part are no one's parents: they are left out. The rows must not change until the
    transaction ends, but by what is asked for. Answer: a list of pairs."""

    rule: StoreRule
    groups: Sequence[Group]
    limit: int | None


@dataclass(frozen=True, slots=True)
class CarryOut:
    """Carry out these groups. With more rows than `rows_max` (those that are only counted apart) TooManyRows is raised
    or, in a `part`, no more than so many are acted on (FULL_SHARE of them may be enough), and the others stay as they
    are. Answer: the rows of each."""

    rule: StoreRule
    groups: Sequence[Group]
    rows_max: int | None = None
    part: bool = False


@dataclass(frozen=True, slots=True)
class RemoveChosen:
    """Remove the rows that were chosen of these groups, and no other. Answer: the rows of each group."""

    rule: StoreRule
    groups: Sequence[Group]
    chosen: Sequence[tuple[int, Key]]


@dataclass(frozen=True, slots=True)
class Newest:
    """Since when the newest arrivals at these keys are there, for rows of this rule. Answer: key -> version."""

    rule: StoreRule
    keys: Sequence[Key]


@dataclass(frozen=True, slots=True)
class Record:
    """Write into the ledger what happened to keys of these rows. Answer: None."""

    rows: Rows
    happened: Sequence[Happened]
    went: Went | None = None
    """In place of that, where the store takes it (`Descent.only_go`)."""


@dataclass(frozen=True, slots=True)
class Closure:
    """The rows of these groups, the rows that refer to those by the same rule, and so on: the key that each refers to,
    and its own. Asked of exact stores only. Answer: a list of pairs, or None when there are more than `limit`."""

    rule: StoreRule
    groups: Sequence[Group]
    limit: int


Ask = Choose | CarryOut | RemoveChosen | Newest | Record | Closure
Way = Generator[Any, Any, Any]
"""Asks, or gives another Way to be gone first and its result to be sent."""

IsLeftOut = Callable[[int], object]
Branch = Generator[Ask, Any, list[int]]
_REMOVED: Final = Removed()
_NO_FIRSTS: Final[Mapping[Key, Fate]] = MappingProxyType({})
_NO_PARTS: Final[Parts] = MappingProxyType({})


def _stages(events: Sequence[Stage], of: Sequence[int]) -> tuple[list[list[Stage]], list[int]]:
    """The stages and roots of groups that go by one event each."""
    return [[events[event]._replace(change=index)] for index, event in enumerate(of)], [events[e].change for e in of]


class Descent:
    """The way down from the dependents of one entity, for one part of a batch.

    `exact` says that rows may come to a group while the transaction is open, so that only chosen rows are removed;
    otherwise the transaction sees what was there when it began. `only_go` are entities whose keys never change and of
    which the store takes `Record.went`.

    `rows_max` is how many rows of a branch one event may have, or TooManyRows is raised (None: any number); in a `part`
    it is how many rows all branches together act on, and `left` tells how many more these may be. `begun` is what parts
    have done before. `divides` tells of a dependent whether the store can take some of its rows.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[StoreRule]],
        *,
        exact: bool,
        chunk: int = CHUNK,
        only_go: Collection[str] = (),
        rows_max: int | None = None,
        part: bool = False,
        begun: Parts = _NO_PARTS,
        divides: Callable[[StoreRule], bool] = lambda rule: True,
    ) -> None:
        self.left = rows_max if part and rows_max is not None else 0
        self._is_part = part
        self._rows_max = rows_max
        self._begun = begun
        self._divides = divides
        self.cut_short: dict[str, dict[str, int]] = {}
        """What went from below rows that a part has not come to the end of: as `core.parts` keeps it."""
        self._rules = rules
        self._exact = exact
        self._chunk = chunk
        self._only_go = only_go
        self._open: set[tuple[str, Key]] = set()
        self._changes: Sequence[ParentChange] = ()
        self._keeps = any(rule.dependent.undo_ms is not None for found in rules.values() for rule in found)
        self._causes: dict[str, Cause] = {}
        """The events behind what happens further down; filled where something is kept of it."""
        self.counted: dict[tuple[int, str], int] = {}
        """(change, dependent below) -> rows."""
        self._acted_on: dict[tuple[int, str], int] = {}
        """The same without rows that are only counted."""
        self._actions: dict[tuple[int, str], str] = {}
        self._all_go: dict[str, bool] = {}
        """What `_goes` has found out."""
        self._cuts: dict[str, bool] = {}
        """What `_is_divisible` has found out."""
        self._room: int | None = None
        """How many more rows the branch may have."""

    def branch(
        self,
        rule: StoreRule,
        groups: Sequence[Group],
        settled: Settled,
        changes: Sequence[ParentChange],
        left_out: IsLeftOut | None,
        firsts: Mapping[Key, Fate] = _NO_FIRSTS,
        approved: Collection[int] = (),
    ) -> Branch:
        """Carry out the groups of a dependent and everything below. `changes` are those of the batch; `firsts` are
        the fates that act on the rows of some keys whatever is known of them; `approved` are the changes that may have
        any number of rows. Returns the rows of each group."""
        if not groups:
            return []
        stages = (
            None
            if rule.rows is None and rule.dependent.undo_ms is None
            else [
                journey(rule.policy, settled, group, left_out=left_out, first=firsts.get(group.key)) for group in groups
            ]
        )
        self._changes = changes
        if self._keeps and stages is not None:
            self._note(rule, groups, stages)
            groups = self._kept(rule, groups, stages)
        is_divisible = self._is_divisible(rule, stages, len(changes) <= len(approved))
        if self._is_part:
            if not is_divisible:
                return [0] * len(groups)
            top = self._piece(rule, groups, stages, range(len(changes)))
        else:
            top = self._reference(rule, groups, stages, range(len(changes)))
            self._room = self._rows_max if is_divisible else None
            if self._room is not None and rule.rows is not None and len(changes) > 1:
                self._room *= EVENTS_SHARE
        stack: list[Way] = [top]
        answer: Any = None
        while True:
            try:
                asked = stack[-1].send(answer)
            except StopIteration as ended:
                stack.pop()
                answer = ended.value
                if not stack:
                    return list(answer)
                continue
            if isinstance(asked, Generator):
                stack.append(asked)
                answer = None
            else:
                if self._room is not None and isinstance(asked, CarryOut):
                    asked = replace(asked, rows_max=self._room)
                answer = yield asked
                if self._room is not None and isinstance(asked, CarryOut | RemoveChosen):
                    acted_on = zip(asked.groups, answer, strict=True)
                    self._room -= sum(count for group, count in acted_on if not isinstance(group.end, Counted))
                    if self._room < 0:
                        raise TooManyRows

    def _is_divisible(self, rule: StoreRule, stages: Sequence[Sequence[Stage]] | None, are_approved: bool) -> bool:
        """Whether the rows of a branch can go in parts. They can't where keys of rows change, since what depends on one
        row has to change with it; nor where rows depend on rows of their own kind; nor where rows further down are to
        be counted before the first of them goes."""
        if rule.rows is None or stages is None:
            return self._divides(rule)
        if rule.rows.shared and any(stage.values is not None for of_group in stages for stage in of_group):
            return False
        name = f"{rule.id} {are_approved}"
        found = self._cuts.get(name)
        if found is None:
            found = self._cuts[name] = self._only_goes(rule) and all(
                self._divides(each) and (are_approved or each is rule or each.dependent.max_rows is None)
                for each in (rule, *self._go_along(rule))
            )
        return found

    def _go_along(self, rule: StoreRule) -> list[StoreRule]:
        """All dependents that something may happen to when rows of this one are removed."""
        found: dict[str, StoreRule] = {}
        waiting = [rule]
        while waiting:
            each = waiting.pop()
            if each.rows is None or (each is not rule and not isinstance(each.policy.on_delete, Remove)):
                continue
            for under in self._rules.get(each.rows.entity, ()):
                if under.id not in found:
                    found[under.id] = under
                    waiting.append(under)
        return list(found.values())

    def _only_goes(self, rule: StoreRule) -> bool:
        """Whether no key of a row changes when rows of a dependent are removed, and no row that is being removed is met
        again from below: it could go neither before nor after the row that it refers to."""
        return not self._has_cycles() and not any(
            each.rows is not None and what_follows(each.rows, each.policy.on_delete) is False
            for each in self._go_along(rule)
        )

    def _note(self, rule: StoreRule, groups: Sequence[Group], stages: Sequence[Sequence[Stage]]) -> None:
        """Remember whose the events of these journeys are."""
        for group, of_group in zip(groups, stages, strict=True):
            key = group.key
            for fate, _, values in of_group:
                self._causes[root_event(fate.event_id)] = (rule.entity, canonical(key))
                if values is not None and None not in values:
                    key = values  # type: ignore[assignment]

    def _kept(self, rule: StoreRule, groups: Sequence[Group], stages: Sequence[Sequence[Stage]]) -> Sequence[Group]:
        """The groups with their trails, where the rule keeps what its rows were."""
        if rule.dependent.undo_ms is None:
            return groups
        return [
            group
            if isinstance(group.end, Counted)
            else group._replace(trail=trail(rule.policy, rule.entity, group, of_group, self._causes))
            for group, of_group in zip(groups, stages, strict=True)
        ]

    def effects(
        self,
        rules: Sequence[StoreRule],
        changes: Sequence[ParentChange],
        outcomes: Sequence[Outcome | None],
        exceptions: Mapping[tuple[int, str], DeadLetterMark],
        only: Mapping[int, str],
    ) -> list[Effect]:
        """The effects on the dependents below those of `rules`; what parts have done before is among them."""
        if all(rule.rows is None for rule in rules):
            return []
        of_tops = {rule.id for rule in rules}
        counted = dict(self.counted)
        for index, change in enumerate(changes if self._begun and not self._is_part else ()):
            for dependent, count in self._begun.get(change.origin.event_id, {}).items():
                if dependent not in of_tops:
                    counted[index, dependent] = counted.get((index, dependent), 0) + count
        graph = {entity: [Reference(r.policy, r.rows) for r in found] for entity, found in self._rules.items()}
        tops = [Reference(rule.policy, rule.rows) for rule in rules]
        return below(changes, outcomes, tops, graph, counted, exceptions, only)

    def effects_of_part(self) -> list[Effect]:
        """How many rows further down a part has acted on."""
        return [
            Effect(change, dependent, self._actions.get((change, dependent), ""), Outcome.APPLIED, count)
            for (change, dependent), count in self.counted.items()
        ]

    def held(self, rule: StoreRule, approved: Collection[int]) -> Held | None:
        """Held when some event has more rows of a dependent further down than that one's rule allows; the event is
        held for all of its branch, which begins at `rule`."""
        limits = {each.id: each.dependent.max_rows for found in self._rules.values() for each in found}
        for (change, dependent), rows in self._acted_on.items():
            limit = limits[dependent]
            if limit is not None and rows > limit and change not in approved:
                return Held(
                    rule.id,
                    f"The event has more rows of {dependent}, which depends on these rows, than max_rows allows there "
                    f"({limit}): nothing is changed until it is approved.",
                )
        return None

    def went_along(self) -> list[Below]:
        """The rows further down that went with those of the branches, for each change."""
        return [
            Below(change, dependent, self._actions[change, dependent], rows)
            for (change, dependent), rows in self._acted_on.items()
        ]

    def _reference(
        self,
        rule: StoreRule,
        groups: Sequence[Group],
        stages: Sequence[Sequence[Stage]] | None,
        roots: Sequence[int],
    ) -> Way:
        """One dependent. `stages` are those of each group; None where its rows are nobody's parents."""
        rows = rule.rows
        if rows is None or stages is None:
            return (yield CarryOut(rule, groups))
        if rows.shared and any(stage.values is not None for of_group in stages for stage in of_group):
            return (yield self._moving(rule, rows, groups, stages, roots))
        goes, refer_to_one_another = self._goes(rule, rows), rule.entity == rows.entity and rows.recorded
        if not (goes or (refer_to_one_another and isinstance(rule.policy.on_delete, Remove))):
            return (yield self._removing(rule, rows, groups, stages, roots))
        at_once = all(isinstance(group.end, Removed) and group.born is None for group in groups)
        if at_once and goes:
            events = [of_group[-1]._replace(change=roots[of_group[-1].change]) for of_group in stages]
            return (yield self._going(rule, rows, groups, events, range(len(groups))))
        if at_once:
            tops = {group.key: of_group[-1] for group, of_group in zip(groups, stages, strict=True)}
            pairs: list[tuple[Key, Key]] | None = yield self._closure(rule, rows, groups)
            if pairs is not None:
                return (yield self._closing(rule, rows, groups, tops, pairs, roots))
        return (yield self._removing(rule, rows, groups, stages, roots))

    def _removing(
        self,
        rule: StoreRule,
        rows: Rows,
        groups: Sequence[Group],
        stages: Sequence[Sequence[Stage]],
        roots: Sequence[int],
    ) -> Way:
        """Own keys end, or stay: a chunk of removed rows after the other, each after what is below it."""
        counts = [0] * len(groups)
        ending = [index for index, group in enumerate(groups) if isinstance(group.end, Removed)]
        removed, of_removed = [groups[index] for index in ending], [stages[index] for index in ending]
        chosen: Sequence[tuple[int, Key]] = ()
        while ending:
            before = chosen
            chosen = yield Choose(rule, removed, self._chunk)
            _see_that_they_went(rule, before, chosen)
            fresh = [(group, key) for group, key in chosen if (rows.entity, key) not in self._open]
            names = {(rows.entity, key) for _, key in fresh}
            self._open |= names
            if fresh:
                yield self._level(rule, rows, derive(rows, of_removed, fresh, roots))
            self._open -= names
            if len(chosen) < self._chunk and not self._exact:
                break
            if chosen:
                found = yield RemoveChosen(rule, removed, chosen)
                for index, count in zip(ending, found, strict=True):
                    counts[index] += count
            if len(chosen) < self._chunk:
                break
        others = [i for i, g in enumerate(groups) if not (self._exact and isinstance(g.end, Removed))]
        if others:
            found = yield CarryOut(rule, [groups[index] for index in others])
            for index, count in zip(others, found, strict=True):
                counts[index] += count
        return counts

    def _goes(self, rule: StoreRule, rows: Rows) -> bool:
        """Whether all that depends on removed rows of a dependent is removed with them, nothing is kept of it, and no
        row can be met a second time."""
        found = self._all_go.get(rule.id)
        if found is None:
            below = self._rules.get(rows.entity, ())
            found = self._all_go[rule.id] = not self._has_cycles() and all(
                isinstance(each.policy.on_delete, Remove) and not each.policy.by_age and each.dependent.undo_ms is None
                for each in (rule, *below)
            )
        return found

    def _has_cycles(self) -> bool:
        """Whether some rows may, by several references, depend on themselves or others of their entity."""
        for entity in self._rules:
            met, waiting = set[str](), [entity]
            while waiting:
                for rule in self._rules.get(waiting.pop(), ()):
                    if rule.rows is not None and rule.rows.entity not in met:
                        met.add(rule.rows.entity)
                        waiting.append(rule.rows.entity)
            if entity in met:
                return True
        return False

    def _going(
        self, rule: StoreRule, rows: Rows, groups: Sequence[Group], events: Sequence[Stage], of: Sequence[int]
    ) -> Way:
        """The same as `_removing` where `_goes` says so and every group goes by one event: `of` tells which. What is
        derived of a deletion is then that deletion, and need not be traced row by row."""
        new_tuple = tuple.__new__
        counts = [0] * len(groups)
        below = self._rules.get(rows.entity, ())
        chosen: Sequence[tuple[int, Key]] = ()
        while True:
            before = chosen
            chosen = yield Choose(rule, groups, self._chunk)
            _see_that_they_went(rule, before, chosen)
            keys = [key for _, key in chosen]
            if len(set(keys)) < len(keys):
                # Two rows of one key: what depends on them belongs to both.
                return (yield self._going_on(rule, rows, groups, events, of, counts))
            of_rows = [of[index] for index, _ in chosen]
            taken: list[Sequence[int]] = []
            for each in below if chosen else ():
                under = [new_tuple(Group, (key, None, (i,), _REMOVED, None, (), ())) for i, key in enumerate(keys)]
                if not rows.recorded:
                    under = yield self._newest(each, under)
                found: Sequence[int]
                if each.rows is None:
                    found = yield CarryOut(each, under)
                elif self._goes(each, each.rows):
                    found = yield self._going(each, each.rows, under, events, of_rows)
                else:
                    found = yield self._reference(each, under, *_stages(events, of_rows))
                taken.append(found)
                of_events: dict[int, int] = {}
                for event, count in zip(of_rows, found, strict=True):
                    if count:
                        of_events[event] = of_events.get(event, 0) + count
                for event, count in of_events.items():
                    self._add_count(events[event].change, each, each.policy.on_delete_action, count)
            if rows.recorded and chosen:
                actions = [(each.id, each.policy.on_delete_action) for each in below]
                went = went_along(rule.id, keys, [stage.fate for stage in events], of_rows, actions, taken)
                if rows.entity in self._only_go and not self._begun:
                    yield Record(rows, (), went)
                else:
                    happened = went.one_by_one([self._changes[stage.change] for stage in events])
                    yield Record(rows, self._with_begun(rows, happened))
            if len(chosen) < self._chunk and not self._exact:
                break
            if chosen:
                for index, count in enumerate((yield RemoveChosen(rule, groups, chosen))):
                    counts[index] += count
            if len(chosen) < self._chunk:
                break
        if not self._exact:
            for index, count in enumerate((yield CarryOut(rule, groups))):
                counts[index] += count
        return counts

    def _going_on(
        self,
        rule: StoreRule,
        rows: Rows,
        groups: Sequence[Group],
        events: Sequence[Stage],
        of: Sequence[int],
        counts: Sequence[int],
    ) -> Way:
        """What is left of these groups, row by row; `counts` are the rows that went."""
        more: Sequence[int] = yield self._removing(rule, rows, groups, *_stages(events, of))
        return [one + other for one, other in zip(counts, more, strict=True)]

    def _newest(self, rule: StoreRule, groups: Sequence[Group]) -> Way:
        """The groups as those of the rows that came last to their keys. The keys' own events may be on their way: what
        came last is what is there now."""
        newest: Mapping[Key, Version] = yield Newest(rule, [group.key for group in groups])
        return [group._replace(since=newest.get(group.key)) for group in groups]

    def _closure(self, rule: StoreRule, rows: Rows, groups: Sequence[Group]) -> Way:
        """Rows of one table that refer to one another, from the top down; without those being removed further up."""
        found: list[tuple[Key, Key]] = []
        seen: set[Key] = set()
        if self._exact:
            below: dict[Key, list[Key]] = {}
            pairs: Sequence[tuple[Key, Key]] | None = yield Closure(rule, groups, CLOSURE_MAX)
            if pairs is None:
                return None
            for reference, own in pairs:
                below.setdefault(reference, []).append(own)
            level = [group.key for group in groups]
            while level:
                level_pairs = [(reference, own) for reference in level for own in below.pop(reference, ())]
                level = self._add(rows, level_pairs, seen, found)
            return found
        waiting: Sequence[Group] = groups
        while waiting:
            chosen: list[tuple[int, Key]] = yield Choose(rule, waiting, CLOSURE_MAX)
            level = self._add(rows, [(waiting[index].key, own) for index, own in chosen], seen, found)
            if len(found) + len(chosen) >= CLOSURE_MAX:
                return None
            waiting = [Group(own, None, (), _REMOVED) for own in level]
        return found

    def _add(
        self, rows: Rows, pairs: Iterable[tuple[Key, Key]], seen: set[Key], found: list[tuple[Key, Key]]
    ) -> list[Key]:
        """Add the rows that are new; returns their own keys."""
        new: list[Key] = []
        for reference, own in pairs:
            if own not in seen and (rows.entity, own) not in self._open:
                seen.add(own)
                new.append(own)
                found.append((reference, own))
        return new

    def _closing(
        self,
        rule: StoreRule,
        rows: Rows,
        groups: Sequence[Group],
        tops: Mapping[Key, Stage],
        pairs: Sequence[tuple[Key, Key]],
        roots: Sequence[int],
    ) -> Way:
        """Remove rows of one table that refer to one another at once: the database may forbid any order of them."""
        behind = dict(tops)
        for reference, own in pairs:
            behind[own] = behind[reference]
        derived = derive(
            rows, [[behind[own]] for _, own in pairs], [(i, own) for i, (_, own) in enumerate(pairs)], roots
        )
        names = {(rows.entity, own) for _, own in pairs}
        place = {key: index for index, key in enumerate(dict.fromkeys((*tops, *(own for _, own in pairs))))}
        every = [Group(key, None, (), _REMOVED) for key in place]
        every = list(self._kept(rule, every, [(behind[key],) for key in place]))
        done: dict[int, dict[str, Done]] = {}
        self._open |= names
        if pairs:
            yield self._below(rows, derived, done, without=rule)
        self._open -= names
        if not self._exact:
            counts = yield CarryOut(rule, every)
        elif pairs:
            counts = yield RemoveChosen(rule, every, [(place[reference], own) for reference, own in pairs])
        else:
            counts = [0] * len(every)
        for index, (_, own) in enumerate(pairs):
            if count := counts[place[own]] if own not in tops else 0:
                self._add_count(derived.roots[index], rule, rule.policy.on_delete_action, count)
                done.setdefault(index, {})[rule.id] = rule.policy.on_delete_action, count
        yield Record(rows, self._with_begun(rows, recorded(derived, done, rule.id, self._changes)))
        return [counts[place[group.key]] for group in groups]

    def _moving(
        self,
        rule: StoreRule,
        rows: Rows,
        groups: Sequence[Group],
        stages: Sequence[Sequence[Stage]],
        roots: Sequence[int],
    ) -> Way:
        """Own keys change: every row is chosen before any changes, so that swaps and chains need no order. Rows that
        end where they are may have been elsewhere on their way, which what depends on them meets."""
        acting = [index for index, of_group in enumerate(stages) if of_group]
        found: list[tuple[int, Key]] = yield Choose(rule, [groups[index] for index in acting], None)
        chosen = [(acting[place], key) for place, key in found]
        fresh = [(group, key) for group, key in chosen if (rows.entity, key) not in self._open]
        derived = derive(rows, stages, fresh, roots)
        from_below = all(isinstance(groups[index].end, Removed) for index, _ in fresh)
        names = {(rows.entity, key) for _, key in fresh}
        if from_below:
            self._open |= names
            yield self._level(rule, rows, derived)
            self._open -= names
        counts = yield self._finish(rule, groups, chosen)
        if not from_below:
            yield self._level(rule, rows, derived)
        return counts

    def _finish(self, rule: StoreRule, groups: Sequence[Group], chosen: Sequence[tuple[int, Key]]) -> Way:
        if not self._exact:
            return (yield CarryOut(rule, groups))
        counts = [0] * len(groups)
        removed = [(index, key) for index, key in chosen if isinstance(groups[index].end, Removed)]
        if removed:
            counts = list((yield RemoveChosen(rule, groups, removed)))
        others = [index for index, group in enumerate(groups) if not isinstance(group.end, Removed)]
        if others:
            found = yield CarryOut(rule, [groups[index] for index in others])
            for index, count in zip(others, found, strict=True):
                counts[index] += count
        return counts

    def _level(self, rule: StoreRule, rows: Rows, derived: Derived) -> Way:
        """What depends on the rows of one dependent, one reference after the other."""
        done: dict[int, dict[str, Done]] = {}
        yield self._below(rows, derived, done, without=None)
        if rows.recorded:
            yield Record(rows, self._with_begun(rows, recorded(derived, done, rule.id, self._changes)))
        return None

    # --- in parts

    def _piece(
        self,
        rule: StoreRule,
        groups: Sequence[Group],
        stages: Sequence[Sequence[Stage]] | None,
        roots: Sequence[int],
    ) -> Way:
        """As many rows of one dependent, and of what depends on them, as there is room for; the lowest first."""
        rows = rule.rows
        if rows is None or stages is None:
            return (yield self._some(rule, groups))
        counts = [0] * len(groups)
        ending = [index for index, group in enumerate(groups) if isinstance(group.end, Removed)]
        removed, of_removed = [groups[index] for index in ending], [stages[index] for index in ending]
        chosen: Sequence[tuple[int, Key]] = ()
        while ending and self.left > 0:
            before, size = chosen, min(self._chunk, PIECE, self.left)
            chosen = yield Choose(rule, removed, size)
            _see_that_they_went(rule, before, chosen)
            if not chosen:
                break
            derived = derive(rows, of_removed, chosen, roots)
            done: dict[int, dict[str, Done]] = {}
            is_cleared = yield self._clear(rows, derived, done)
            happened = recorded(derived, done, rule.id, self._changes) if rows.recorded else ()
            if not is_cleared:
                for each in happened:
                    if each.done:
                        of_row = self.cut_short.setdefault(name_of_row(each.cause, each.fate.event_id), {})
                        for dependent, (_, count) in each.done.items():
                            of_row[dependent] = of_row.get(dependent, 0) + count
                break
            if happened:
                yield Record(rows, self._with_begun(rows, happened))
            for index, count in zip(ending, (yield RemoveChosen(rule, removed, chosen)), strict=True):
                counts[index] += count
                self.left -= count
        if ending and self.left > 0 and not self._exact:
            # Those without a key of their own.
            for index, count in zip(ending, (yield self._some(rule, removed)), strict=True):
                counts[index] += count
        others = [index for index, group in enumerate(groups) if not isinstance(group.end, Removed)]
        if others and self.left > 0:
            for index, count in zip(others, (yield self._some(rule, [groups[i] for i in others])), strict=True):
                counts[index] += count
        return counts

    def _some(self, rule: StoreRule, groups: Sequence[Group]) -> Way:
        """As many rows of these groups as there is room for."""
        limit = self.left
        counts: Sequence[int] = yield CarryOut(rule, groups, limit, part=True)
        # A store may stop short of it: then there may be more.
        self.left = 0 if sum(counts) >= limit * FULL_SHARE else limit - sum(counts)
        return list(counts)

    def _clear(self, rows: Rows, derived: Derived, done: dict[int, dict[str, Done]]) -> Way:
        """Carry out what depends on rows that are to go, as far as there is room; whether that was all of it. Rows that
        are only counted are counted when all others are done."""
        counting: list[tuple[StoreRule, Sequence[Group]]] = []
        for each, groups, stages in self._under(rows, derived):
            if not rows.recorded:
                groups = yield self._newest(each, groups)
            acting = [index for index, group in enumerate(groups) if not isinstance(group.end, Counted)]
            counting.append((each, [group for group in groups if isinstance(group.end, Counted)]))
            if not acting:
                continue
            if self.left <= 0:
                return False
            chosen, of_chosen = [groups[i] for i in acting], None if stages is None else [stages[i] for i in acting]
            counts: Sequence[int] = yield self._piece(each, chosen, of_chosen, derived.roots)
            for group, count in zip(chosen, counts, strict=True):
                if count:
                    self._count(each, group, count, derived, done)
        if self.left <= 0:
            return False
        for each, groups in counting:
            counts = (yield CarryOut(each, groups)) if groups else ()
            for group, count in zip(groups, counts, strict=True):
                if count:
                    self._count(each, group, count, derived, done)
        return True

    def _with_begun(self, rows: Rows, happened: Sequence[Happened]) -> Sequence[Happened]:
        """The same, with what parts before have done below the same rows."""
        if not self._begun:
            return happened
        actions = {rule.id: rule.policy.on_delete_action for rule in self._rules.get(rows.entity, ())}
        found: list[Happened] = []
        for each in happened:
            done = dict(each.done)
            for dependent, count in self._begun.get(name_of_row(each.cause, each.fate.event_id), {}).items():
                action, more = done.get(dependent, (actions.get(dependent, ""), 0))
                done[dependent] = action, more + count
            found.append(each._replace(done=done))
        return found

    def _below(
        self, rows: Rows, derived: Derived, done: dict[int, dict[str, Done]], *, without: StoreRule | None
    ) -> Way:
        for each, groups, stages in self._under(rows, derived, without=without):
            if not rows.recorded:
                groups = yield self._newest(each, groups)
            counts = yield self._reference(each, groups, stages, derived.roots)
            for group, count in zip(groups, counts, strict=True):
                if count:
                    self._count(each, group, count, derived, done)
        return None

    def _under(
        self, rows: Rows, derived: Derived, *, without: StoreRule | None = None
    ) -> Iterable[tuple[StoreRule, Sequence[Group], Sequence[Sequence[Stage]] | None]]:
        """What depends on rows, with where its own rows end and how they come there."""
        settled = derived.settled()
        for each in self._rules.get(rows.entity, ()):
            if each is without:
                continue
            groups: Sequence[Group] = trace_derived(each.policy, settled)
            if not groups:
                continue
            stages = None
            if each.rows is not None or each.dependent.undo_ms is not None:
                stages = [journey(each.policy, settled, group) for group in groups]
                groups = list(self._kept(each, groups, stages))
            yield each, groups, stages

    def _count(
        self,
        rule: StoreRule,
        group: Group,
        count: int,
        derived: Derived,
        done: dict[int, dict[str, Done]],
    ) -> None:
        policy = rule.policy
        if len(group.path) == 1 and not group.counting:  # nearly all
            [index] = group.path
            action = policy.on_delete_action if derived.deletes[index] else policy.on_update_action
            self._add_count(derived.roots[index], rule, action, count)
            of_fate = done.get(index)
            if of_fate is None:
                done[index] = {rule.id: (action, count)}
            else:
                of_fate[rule.id] = action, of_fate.get(rule.id, (action, 0))[1] + count
            return
        for root in {derived.roots[index] for index in (*group.path, *group.counting)}:
            self.counted[root, rule.id] = self.counted.get((root, rule.id), 0) + count
        for root in {derived.roots[index] for index in group.path}:
            self._acted_on[root, rule.id] = self._acted_on.get((root, rule.id), 0) + count
        for index in (*group.path, *group.counting):
            action = policy.on_delete_action if derived.deletes[index] else policy.on_update_action
            before = done.setdefault(index, {}).get(rule.id, (action, 0))[1]
            done[index][rule.id] = action, before + count
            self._actions.setdefault((derived.roots[index], rule.id), action)

    def _add_count(self, root: int, rule: StoreRule, action: str, count: int) -> None:
        """Add rows that an event of the batch has acted on."""
        name = root, rule.id
        self.counted[name] = self.counted.get(name, 0) + count
        self._acted_on[name] = self._acted_on.get(name, 0) + count
        self._actions.setdefault(name, action)


def from_late_rows(
    rules: Mapping[str, Sequence[StoreRule]],
    extent: Extent,
    rows_max: int,
    *,
    exact: bool,
    chunk: int = CHUNK,
    only_go: Collection[str] = (),
    divides: Callable[[StoreRule], bool] = lambda rule: True,
) -> Descent:
    """The way down from rows that a sweep finds. Where `max_rows` limits them they are counted as a whole."""
    return Descent(
        rules,
        exact=exact,
        chunk=chunk,
        only_go=only_go,
        rows_max=None if extent is Extent.ANY else rows_max,
        part=extent is Extent.PART,
        divides=lambda rule: rule.dependent.max_rows is None and divides(rule),
    )


def _see_that_they_went(rule: StoreRule, removed: Sequence[tuple[int, Key]], chosen: Sequence[tuple[int, Key]]) -> None:
    """Raises RowsStay when rows that were removed are chosen again: they would be for ever."""
    if removed and not set(removed).isdisjoint(chosen):
        raise RowsStay(rule.id)
