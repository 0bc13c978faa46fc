"""The model that every other store is compared with: rows are dicts in lists, a transaction is a copy.

Small enough to be read as the definition of `apply`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple, assert_never
from uuid import UUID

from integrity.core.batch import Batch, Share, TopicPartition, shares, standing
from integrity.core.change import Version
from integrity.core.derive import keys_of, numbered
from integrity.core.fold import (
    Counted,
    Group,
    Marked,
    Referencing,
    Removed,
    Settled,
    Turn,
    lookups,
    settle,
    trace,
)
from integrity.core.gate import held
from integrity.core.history import SAMPLE_ROWS_MAX, CameFrom, Enforced, Impact, KeyHistory, LeftOut, Question, Repair
from integrity.core.keys import Key, KeyType, canonical, key_hash
from integrity.core.ledger import Fate, Head, HeadUpdate, Pending, done_by_fate, heads_to_write
from integrity.core.outbox import Outgoing, outgoing
from integrity.core.outcome import Applied, ApplyResult, Diverged, Effect, Held, Rejected, Retry, TooLarge, Unfinished
from integrity.core.parts import (
    Parts,
    TooManyRows,
    acting,
    added,
    already,
    changing,
    heads_of_part,
    in_part,
    place_of,
    remaining,
)
from integrity.core.redrive import (
    Admitted,
    admit,
    aside,
    keys_in_question,
    made_up_for,
    repaired_by,
    retrace,
    share_credit,
)
from integrity.core.rules.model import Dependent, EventValue, Literal, Tombstone
from integrity.core.scan import Known, Page, Referenced, known_of, order_of
from integrity.core.sweep import (
    Extent,
    Repaired,
    Sweep,
    SweepResult,
    Swept,
    TooManyLate,
    causes,
    extents,
    is_gone,
    late_rows,
    repairs,
    repairs_below,
)
from integrity.core.truncate import KnownKeys
from integrity.core.undo import (
    Kept,
    Looked,
    Names,
    Portion,
    Slot,
    Undone,
    UndoResult,
    Verdict,
    list_states,
    not_done_yet,
    not_undone,
    undone_names,
)
from integrity.errors import Finding
from integrity.ports import Deadline, Waiting
from integrity.stores.descent import (
    CHUNK,
    Ask,
    Branch,
    CarryOut,
    Choose,
    Closure,
    Descent,
    Newest,
    Record,
    RemoveChosen,
    from_late_rows,
)
from integrity.stores.lists import parts_of, places_of
from integrity.stores.rule import StoreRule, policies

Row = dict[str, object]

ROWS_MAX: Final = 100_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Kept(NamedTuple):
    """A row as it was: all of it, or (where it stays) the columns that were set, and what they were set to."""

    turn: Turn
    dependent: str
    id: object
    at_ms: int
    expires_ms: int
    before: Row
    after: Row | None


@dataclass
class _State:
    targets: dict[str, list[Row]]
    heads: dict[tuple[str, Key], Head] = field(default_factory=dict)
    arrivals: dict[tuple[str, Key], list[tuple[Version, Row]]] = field(default_factory=dict)
    """(dependent id, key) -> rows that came there, and since when."""
    progress: dict[TopicPartition, int] = field(default_factory=dict)
    exceptions: dict[tuple[str, Key, str, str], Pending] = field(default_factory=dict)
    """(entity, key, dependent id, event) -> the dead letter."""
    excepted_ms: dict[str, int] = field(default_factory=dict)
    """Dead letter -> when it was made."""
    enforced: dict[tuple[str, Key], list[Enforced]] = field(default_factory=dict)
    repairs: dict[tuple[str, Key], list[Repair]] = field(default_factory=dict)
    swept: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Age of a sweep -> the last key it has looked at, by when it was enforced and its hash."""
    outbox: dict[int, Outgoing] = field(default_factory=dict)
    sent: int = 0
    """How many records have ever been in the outbox."""
    parts: dict[TopicPartition, Parts] = field(default_factory=dict)
    """What parts of events have done, beside the progress."""
    kept: dict[int, _Kept] = field(default_factory=dict)
    """What rows were before events changed them, in the order in which that happened."""
    undone: dict[tuple[Names, int], Undone] = field(default_factory=dict)
    """What was put back, and when."""
    numbered: int = 0
    """How many records have ever been kept."""
    notes: dict[str, bytes] = field(default_factory=dict)
    """Truncates that are to be carried out."""

    def draft(self) -> _State:
        """A copy to change, in which an arrival is still the very row of its target."""
        rows: dict[int, Row] = {}

        def own(row: Row) -> Row:
            return rows[id(row)] if id(row) in rows else rows.setdefault(id(row), dict(row))

        return _State(
            {name: [own(row) for row in table] for name, table in self.targets.items()},
            dict(self.heads),
            {key: [(since, own(row)) for since, row in came] for key, came in self.arrivals.items()},
            dict(self.progress),
            dict(self.exceptions),
            dict(self.excepted_ms),
            {key: list(enforced) for key, enforced in self.enforced.items()},
            {key: list(repairs) for key, repairs in self.repairs.items()},
            dict(self.swept),
            dict(self.outbox),
            self.sent,
            dict(self.parts),
            dict(self.kept),
            dict(self.undone),
            self.numbered,
            dict(self.notes),
        )


class _Decision(NamedTuple):
    """What the events of a share come to: the keys that were looked at, their heads, what counts, and what may still
    happen of what came back from dead letters."""

    read: set[Key]
    heads: dict[Key, Head]
    settled: Settled
    admitted: Admitted


class MemoryStore:
    """A Store over dicts. `targets` maps a table, collection or topic name to its rows."""

    exclusive = False

    def __init__(
        self,
        name: str,
        rules: Mapping[str, Sequence[StoreRule]],
        targets: dict[str, list[Row]],
        *,
        chunk: int = CHUNK,
        rows_max: int = ROWS_MAX,
    ) -> None:
        """`chunk` bounds the rows whose keys are held at once on the way down, `rows_max` those of one dependent that
        one transaction acts on."""
        self.name = name
        self._chunk = chunk
        self._rows_max = rows_max
        self._rules = rules
        self._state = _State(targets)

    @property
    def targets(self) -> dict[str, list[Row]]:
        return self._state.targets

    def head(self, entity: str, key: Key) -> Head | None:
        return self._state.heads.get((entity, key))

    def arrivals(self) -> int:
        """How many rows count as arrivals."""
        return sum(len(rows) for rows in self._state.arrivals.values())

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        return ()

    def ddl(self) -> str:
        return ""

    async def migrate(self, deadline: Deadline) -> None:
        return None

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        return {p: self._state.progress[p] for p in partitions if p in self._state.progress}

    async def close(self) -> None:
        return None

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        state = self._state
        head = state.heads.get((entity, key))
        if head is None:
            return None
        came_from = [
            CameFrom(canonical(source), each.fate.version, each.fate.event_id, each.enforced_ms)
            for (of, source), enforced in state.enforced.items()
            for each in enforced
            if of == entity and each.fate.to == key
        ]
        return KeyHistory(
            head.seen,
            head.last,
            tuple(state.enforced.get((entity, key), ())),
            tuple(sorted(came_from, key=lambda each: each.version)),
            tuple(
                LeftOut(
                    each.dependent, each.event, each.version, each.reason, each.letter, state.excepted_ms[each.letter]
                )
                for (of, known, _, _), each in state.exceptions.items()
                if (of, known) == (entity, key)
            ),
            tuple(state.repairs.get((entity, key), ())),
            tuple(undone for ((of, _, _), _), undone in state.undone.items() if of == key_hash(entity, key)),
        )

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        return [self._impact(rule, question) for rule in self._rules.get(question.entity, ())]

    async def clock_ms(self, deadline: Deadline) -> int | None:
        return None

    def _impact(self, rule: StoreRule, question: Question) -> Impact:
        dependent = rule.dependent
        counts: list[int] = []
        sample: dict[int, Row] = {}
        own: list[tuple[int, Key]] = []
        for place, key in enumerate(question.keys):
            rows = [
                row
                for row in self.targets[dependent.target.name]
                if _is_in_reach(rule, row, key)
                and (dependent.as_of is None or _micros(row[dependent.as_of]) is not None)
            ]
            counts.append(sum(_references(dependent, row, key) for row in rows))
            sample |= {id(row): {"id": row["id"]} for row in rows}
            if dependent.id in question.follow and dependent.key is not None:
                keys = [tuple(row[name] for name in dependent.key.names) for row in rows]
                own += [(place, each) for each in keys if None not in each]  # type: ignore[misc]
        action = rule.policy.on_delete_action if question.deleted else rule.policy.on_update_action
        named = tuple([*sample.values()][:SAMPLE_ROWS_MAX])
        return Impact(rule.id, action, tuple(counts), named, own=tuple(own[: question.own_max]))

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        for extent in extents(sweep):
            try:
                return self._sweep(sweep, extent)
            except TooManyRows:
                continue
        return TooLarge()

    def _sweep(self, sweep: Sweep, extent: Extent) -> SweepResult:
        draft = self._state.draft()
        after = draft.swept.setdefault(sweep.age_ms, (sweep.until_ms, b""))
        newest = {(enforced[-1].enforced_ms, key_hash(*of)): of for of, enforced in draft.enforced.items() if enforced}
        due = sorted(place for place in newest if after < place and place[0] <= sweep.until_ms)[: sweep.keys_max]
        repaired: list[Repaired] = []
        for place in due:
            if extent is not Extent.PART:
                draft.swept[sweep.age_ms] = place
            entity, key = newest[place]
            if entity in sweep.entities:
                try:
                    repaired += self._repair(draft, entity, key, sweep, extent)
                except TooManyLate as exc:
                    return exc.result
        if extent is Extent.PART:
            if not repaired:
                raise TooManyRows
            self._state = draft
            return Swept(tuple(repaired), more=True, unfinished=True)
        self._state = draft
        return Swept(tuple(repaired), more=len(due) == sweep.keys_max)

    def _repair(self, state: _State, entity: str, key: Key, sweep: Sweep, extent: Extent) -> list[Repaired]:
        heads = {known: head for (of, known), head in state.heads.items() if of == entity}
        gone = heads[key]
        if not is_gone(gone) or any(
            each.fate.to == key and each.fate.version > gone.fates[-1].version
            for (of, _), enforced in state.enforced.items()
            for each in enforced
            if of == entity
        ):
            return []
        acted = {
            (known, each.fate.event_id, dependent)
            for (of, known), enforced in state.enforced.items()
            for each in enforced
            for dependent in each.done
            if of == entity
        }
        known_of = {key_hash(entity, known): known for known in heads}
        undone = {(known_of[of], event, dependent) for (of, dependent, event), _ in state.undone if of in known_of}
        acted = not_undone(acted, undone)
        repaired: list[Repaired] = []
        changes, batch = causes(entity, heads, [key]), Batch((), {}, sweep.at_ms)
        descent = from_late_rows(self._rules, extent, self._rows_max, exact=False, chunk=self._chunk)
        for rule in self._rules.get(entity, ()):
            if rule.id not in sweep.left_out:
                groups, settled, firsts = late_rows(rule.policy, heads, [key], acted, changes)
                if extent is Extent.PART:
                    groups = changing(groups)
                rows = self._descend(state, descent.branch(rule, groups, settled, changes, None, firsts), batch)
                repaired += repairs(rule.policy, entity, rule.dependent.max_rows, heads, groups, rows)
                if over := descent.held(rule, ()):
                    raise TooManyLate.below(over)
        repaired += repairs_below(changes, heads, descent.went_along())
        _add_repairs(state, repaired, sweep.at_ms)
        return repaired

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        draft = self._state.draft()
        numbers, more = _page(draft, portion)
        if unfinished := _unfinished(draft, numbers):
            return unfinished
        newest = {(each.dependent, each.id): n for n, each in draft.kept.items() if _is_chosen(portion, each)}
        found = [(n, draft.kept[n]) for n in numbers]
        follows = {n for n, each in found if newest[each.dependent, each.id] != n}
        rows = [_told(each, Verdict.PUT_BACK if n in follows else self._put_back(draft, each)) for n, each in found]
        return Looked(tuple(rows), more)

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        draft = self._state.draft()
        numbers, more = _page(draft, portion)
        if unfinished := _unfinished(draft, numbers):
            return unfinished
        rows: list[Kept] = []
        for number in numbers:
            each, turn = draft.kept[number], draft.kept[number].turn
            verdict = self._put_back(draft, each)
            rows.append(_told(each, verdict))
            if verdict is not Verdict.PUT_BACK:
                continue
            del draft.kept[number]
            for name in undone_names(turn.entity, turn.key, turn.key_hash, each.dependent, turn.event):
                before = draft.undone.get((name, portion.at_ms))
                count = 1 if before is None else before.rows + 1
                undone = Undone(each.dependent, turn.event, count, portion.at_ms, portion.actor, portion.note)
                draft.undone[name, portion.at_ms] = undone
        self._state = draft
        return Looked(tuple(rows), more)

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        gone = [number for number, each in self._state.kept.items() if each.expires_ms <= at_ms][:rows_max]
        for number in gone:
            del self._state.kept[number]
        return len(gone)

    def _put_back(self, state: _State, each: _Kept) -> Verdict:
        rule = next((rule for of in self._rules.values() for rule in of if rule.id == each.dependent), None)
        if rule is None:
            return Verdict.REFUSED
        table = state.targets[rule.dependent.target.name]
        row = next((row for row in table if row["id"] == each.id), None)
        if each.after is None:
            if row is not None:
                return Verdict.EXISTS
            table.append(dict(each.before))
            return Verdict.PUT_BACK
        if row is None:
            return Verdict.GONE
        if any(row[column] != value for column, value in each.after.items()):
            return Verdict.CHANGED
        row.update(each.before)
        return Verdict.PUT_BACK

    def _keep(
        self, state: _State, rule: StoreRule, turn: Turn, row: Row, before: Row, after: Row | None, at_ms: int
    ) -> None:
        """Keep what a row was before an event."""
        assert rule.dependent.undo_ms is not None
        expires_ms = at_ms + rule.dependent.undo_ms
        state.kept[state.numbered] = _Kept(turn, rule.id, row["id"], at_ms, expires_ms, before, after)
        state.numbered += 1

    def _keep_all(self, state: _State, rule: StoreRule, group: Group, rows: Sequence[Row], at_ms: int) -> None:
        """Keep what the rows of a group are before anything happens to them."""
        columns = rule.dependent.columns
        for turn in group.trail:
            reference = dict(zip(columns, turn.before, strict=True))
            for row in rows:
                if turn.marks:
                    assert isinstance(rule.dependent.on_delete, Tombstone) and isinstance(group.end, Marked)
                    marks = mark_values(rule.dependent.on_delete, group.end.fate, at_ms)
                    self._keep(state, rule, turn, row, {column: row[column] for column in marks}, marks, at_ms)
                elif turn.after is None:
                    self._keep(state, rule, turn, row, {**row, **reference}, None, at_ms)
                else:
                    after: Row = dict(zip(columns, turn.after, strict=True))
                    self._keep(state, rule, turn, row, dict(reference), after, at_ms)

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        return list(self._state.notes.values())

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        found = sorted((key_hash(of, key), key, head) for (of, key), head in self._state.heads.items() if of == entity)
        page = [each for each in found if each[0] > after][:keys_max]
        return KnownKeys([each[1:] for each in page], page[-1][0] if len(page) == keys_max else None)

    async def waiting(self, records_max: int, deadline: Deadline) -> Sequence[Waiting]:
        found = sorted(self._state.outbox.items(), key=lambda item: (item[1].version, item[0]))
        return [Waiting(name, record) for name, record in found[:records_max]]

    async def published(self, ids: Sequence[object], deadline: Deadline) -> None:
        for name in ids:
            assert isinstance(name, int)
            self._state.outbox.pop(name, None)

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        counts = standing(batch, self._state.progress)
        if isinstance(counts, str):
            return Diverged(counts)
        parts = {event: of for at in batch.spans for event, of in self._state.parts.get(at, {}).items()}
        effects: list[Effect] = []
        draft = self._state.draft()
        try:
            for share in shares(batch, counts, self._rules.keys()):
                found = self._enforce(draft, share, batch, self._descent(batch, parts), parts)
                if not isinstance(found, list):
                    return found
                effects += found
        except TooManyRows:
            if len(batch.changes) > 1:
                return TooLarge()
            return self._part(batch, counts, parts) if batch.spans else self._part_alone(batch)
        _forget(draft, [(discard.dependent, discard.event) for discard in batch.discards])
        for partition, span in batch.spans.items():
            draft.progress[partition] = max(span.next, counts.get(partition, 0))
            draft.parts[partition] = remaining(draft.parts.get(partition, {}), batch.changes)
        for note in batch.notes:
            if note.data is None:
                draft.notes.pop(note.id, None)
            elif not note.fresh or note.id not in draft.notes:
                draft.notes[note.id] = note.data
        self._state = draft
        return Applied(effects)

    def _descent(self, batch: Batch, begun: Parts, *, part: bool = False) -> Descent:
        rows_max = self._rows_max if batch.is_bound else None
        return Descent(self._rules, exact=False, chunk=self._chunk, rows_max=rows_max, part=part, begun=begun)

    def _part(self, batch: Batch, counts: Mapping[TopicPartition, int], parts: Parts) -> ApplyResult:
        """Some rows of the batch's one change."""
        draft = self._state.draft()
        [share] = shares(batch, counts, self._rules.keys())
        decision = self._decide(draft, share)
        assert not isinstance(decision, Rejected), "it would have been before any row was counted"
        effects: list[Effect] = []
        descent, settled = self._descent(batch, parts, part=True), in_part(decision.settled)
        for rule in self._rules[share.entity]:
            groups, left = acting(self._groups(draft, rule, share, decision, settled)), descent.left
            if not groups or left <= 0:
                continue
            done = already(parts, share.changes, rule.id)
            approved = share.approved | done.keys()
            if over := held(rule.id, rule.dependent.max_rows, groups, self._count(draft, rule, groups), approved):
                return over
            firsts, left_out = dict(decision.admitted.starts.get(rule.id, ())), share.left_out(rule.id)
            way = descent.branch(rule, groups, settled, share.changes, left_out, firsts, approved)
            rows = self._descend(draft, way, batch)
            if descent.left == left:
                continue
            effects += share_credit(rule.policy, share, decision.settled, decision.admitted, groups, rows, {})
            for key, update in heads_of_part(groups, decision.heads).items():
                _write_head(draft, share.entity, key, draft.heads.get((share.entity, key)), update)
        effects += descent.effects_of_part()
        at = place_of(batch)
        draft.parts[at] = added(draft.parts.get(at, {}), batch, effects, descent.cut_short)
        self._state = draft
        return Unfinished(sum(effect.rows for effect in effects))

    def _part_alone(self, batch: Batch) -> ApplyResult:
        """The same where there is no progress to keep what was done: the part stands for itself."""
        draft = self._state.draft()
        [share] = shares(batch, {}, self._rules.keys())
        effects = self._enforce(draft, share, batch, self._descent(batch, {}, part=True), {}, part=True)
        if not isinstance(effects, list):
            return effects
        self._state = draft
        return Unfinished(sum(effect.rows for effect in effects), effects)

    def _enforce(
        self, state: _State, share: Share, batch: Batch, descent: Descent, parts: Parts, *, part: bool = False
    ) -> list[Effect] | Rejected | Held:
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        decision = self._decide(state, share)
        if isinstance(decision, Rejected):
            return decision
        read, heads, settled, admitted = decision
        effects: list[Effect] = []
        for rule in rules:
            left_out = share.left_out(rule.id)
            groups = self._groups(state, rule, share, decision, settled)
            if part:
                groups = changing(groups)
                if over := held(rule.id, rule.dependent.max_rows, groups, self._count(state, rule, groups)):
                    return over
            done = already(parts, changes, rule.id)
            approved = share.approved | done.keys()
            firsts = dict(admitted.starts.get(rule.id, ()))
            way = descent.branch(rule, groups, settled, changes, left_out, firsts, approved)
            rows = self._descend(state, way, batch)
            over = held(rule.id, rule.dependent.max_rows, groups, rows, approved)
            if over := over or descent.held(rule, approved):
                return over
            effects += share_credit(rule.policy, share, decision.settled, decision.admitted, groups, rows, done)
        effects += descent.effects(rules, changes, settled.outcomes, share.exceptions, admitted.only)
        own = {change.key for change in changes}
        for key, update in heads_to_write(read, own, heads, settled.updates).items():
            _write_head(state, entity, key, heads.get(key), update)
            if update.seen is not None:
                for rule in rules:
                    kept = [a for a in state.arrivals.pop((rule.id, key), []) if a[0] > update.seen]
                    if kept:
                        state.arrivals[rule.id, key] = kept
        _note(state, entity, settled.updates, effects, batch)
        for key, fate, more in made_up_for(admitted, effects):
            state.enforced[entity, key] = [
                each._replace(done={**each.done, **more}) if each.fate.version == fate.version else each
                for each in state.enforced[entity, key]
            ]
        _add_repairs(state, repaired_by(entity, admitted, effects), batch.at_ms)
        _forget(state, admitted.over)
        for change, dependent, mark, version in admitted.left_out:
            event = change.origin.event_id
            state.excepted_ms[mark.id] = batch.at_ms
            state.exceptions[entity, change.key, dependent, event] = Pending(
                dependent, event, version, mark.id, mark.reason.value
            )
        return [effect._replace(change=share.indexes[effect.change]) for effect in effects]

    def _decide(self, state: _State, share: Share) -> _Decision | Rejected:
        """What the events of a share come to."""
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        read: set[Key] = set()
        heads: dict[Key, Head] = {}
        while missing := lookups(changes, read, {k: h.fates for k, h in heads.items()}, policies(rules)):
            read |= missing
            heads |= {key: head for key in missing if (head := state.heads.get((entity, key)))}
        settled = settle(changes, heads, done=aside(share, heads), keep_alive=rules[0].keeps_alive)
        asked = keys_in_question(share, settled)
        pending: dict[Key, list[Pending]] = {}
        for (of_entity, key, _, _), each in state.exceptions.items():
            if of_entity == entity and key in asked:
                pending.setdefault(key, []).append(each)
        admitted = admit(share, settled, policies(rules), pending)
        return admitted if isinstance(admitted, Rejected) else _Decision(read, heads, settled, admitted)

    def _groups(
        self, state: _State, rule: StoreRule, share: Share, decision: _Decision, settled: Settled
    ) -> list[Group]:
        left_out = share.left_out(rule.id)
        arrivals = {key: {since for since, _ in state.arrivals.get((rule.id, key), ())} for key in settled.updates}
        groups = trace(rule.policy, settled, arrivals, left_out=left_out)
        return groups + retrace(rule.policy, settled, decision.admitted, left_out=left_out)

    def _count(self, state: _State, rule: StoreRule, groups: Sequence[Group]) -> list[int]:
        """How many rows each group has."""
        if rule.dependent.array:
            return self._execute_lists(state.draft(), rule, groups, 0)
        table = state.targets[rule.dependent.target.name]
        return [len(self._rows_of(state, rule, table, group)) for group in groups]

    def _descend(self, state: _State, way: Branch, batch: Batch) -> list[int]:
        """Carry out the groups of a dependent, and all that depends on its rows."""
        answer: object = None
        while True:
            try:
                answer = self._answer(state, way.send(answer), batch)
            except StopIteration as ended:
                rows: list[int] = ended.value
                return rows

    def _answer(self, state: _State, ask: Ask, batch: Batch) -> object:
        match ask:
            case Choose(rule, groups, limit):
                chosen = [(index, own) for index, _, own in self._named(state, rule, groups) if None not in own]
                return chosen[:limit]
            case CarryOut(rule, groups, rows_max, part):
                if part:
                    return self._execute(state, rule, groups, batch.at_ms, rows_max)
                if rows_max is not None and sum(self._count(state, rule, acting(groups))) > rows_max:
                    raise TooManyRows
                return self._execute(state, rule, groups, batch.at_ms)
            case RemoveChosen(rule, groups, chosen):
                wanted = {own for _, own in chosen}
                going = [(index, row) for index, row, own in self._named(state, rule, groups) if own in wanted]
                for index, row in going:
                    self._keep_all(state, rule, groups[index], [row], batch.at_ms)
                gone = {id(row) for _, row in going}
                table = state.targets[rule.dependent.target.name]
                table[:] = [row for row in table if id(row) not in gone]
                return [sum(index == group for index, _ in going) for group in range(len(groups))]
            case Newest(rule, keys):
                arrivals = {key: state.arrivals.get((rule.id, key)) for key in keys}
                return {key: max(since for since, _ in came) for key, came in arrivals.items() if came}
            case Record(rows, happened):
                heads = {key: h for key in keys_of(happened) if (h := state.heads.get((rows.entity, key)))}
                found = numbered(happened, heads)
                for key, update in found.updates.items():
                    _write_head(state, rows.entity, key, heads.get(key), update)
                _note(state, rows.entity, found.updates, found.effects, batch)
                for record in outgoing(rows, happened, found.versions) if rows.published else ():
                    state.outbox[state.sent] = record
                    state.sent += 1
                return None
            case Closure():
                raise AssertionError("only an exact store is asked for it")
            case _:
                assert_never(ask)

    def _named(self, state: _State, rule: StoreRule, groups: Sequence[Group]) -> list[tuple[int, Row, Key]]:
        """The rows of these groups: the index of the group, the row, its own key."""
        assert rule.rows is not None
        table, names = state.targets[rule.dependent.target.name], rule.rows.spec.names
        return [
            (index, row, tuple(row[name] for name in names))  # type: ignore[misc]
            for index, group in enumerate(groups)
            for row in self._rows_of(state, rule, table, group)
        ]

    def _execute(
        self, state: _State, rule: StoreRule, groups: Sequence[Group], at_ms: int, limit: int | None = None
    ) -> list[int]:
        """Carry out all groups at once: choose every group's rows before any row changes. With `limit`, no more rows
        than that; what is left stays as it is."""
        dependent = rule.dependent
        table = state.targets[dependent.target.name]
        if dependent.array:
            return self._execute_lists(state, rule, groups, at_ms, limit)
        chosen = [self._rows_of(state, rule, table, group) for group in groups]
        left_over: set[int] = set()
        if limit is not None:
            for rows in chosen:
                left_over.update(map(id, rows[limit:]))
                del rows[limit:]
                limit -= len(rows)
        gone: set[int] = set()
        for group, rows in zip(groups, chosen, strict=True):
            end = group.end
            self._keep_all(state, rule, group, rows, at_ms)
            if group.since is not None:
                before = state.arrivals[rule.id, group.key]
                state.arrivals[rule.id, group.key] = [a for a in before if a[0] != group.since or id(a[1]) in left_over]
            match end:
                case Removed():
                    gone.update(map(id, rows))
                case Marked():
                    assert isinstance(dependent.on_delete, Tombstone)
                    for row in rows:
                        row.update(zip(dependent.columns, end.key, strict=True))
                        row.update(mark_values(dependent.on_delete, end.fate, at_ms))
                case Referencing():
                    for row in rows:
                        row.update(zip(dependent.columns, end.values, strict=True))
                    if end.arrival is not None:
                        key = tuple(value for value in end.values if value is not None)
                        state.arrivals.setdefault((rule.id, key), []).extend((end.arrival, row) for row in rows)
                case Counted():
                    pass
                case _:
                    assert_never(end)
        table[:] = [row for row in table if id(row) not in gone]
        return [len(rows) for rows in chosen]

    def _execute_lists(
        self, state: _State, rule: StoreRule, groups: Sequence[Group], at_ms: int, limit: int | None = None
    ) -> list[int]:
        """The same where the reference is a list: each element is a reference of its own, and the rows stay. A row is
        done as a whole."""
        dependent = rule.dependent
        [column] = dependent.columns
        places = places_of(groups)
        before = {key: state.arrivals.get((rule.id, key), []) for key in places}
        if limit is None:
            for key, sinces in places.items():
                state.arrivals[rule.id, key] = [a for a in before[key] if a[0] not in sinces]
        counts = [0] * len(groups)
        for row in state.targets[dependent.target.name]:
            elements = row[column]
            if limit is not None and sum(counts) >= limit:
                break
            if not isinstance(elements, list) or not _is_in_scope(row, dependent.where):
                continue
            for key, sinces in places.items():
                of_key = state.arrivals.get((rule.id, key), [])
                state.arrivals[rule.id, key] = [a for a in of_key if a[0] not in sinces or a[1] is not row]
            came = {key: [since for since, arrived in of_key if arrived is row] for key, of_key in before.items()}
            parts = parts_of([(element,) for element in elements], places, came)
            slots = [
                Slot(element, () if part is None else groups[part].trail)
                for element, part in zip(elements, parts, strict=True)
            ]
            for turn, was, became in list_states(slots, lambda _, value: value):
                self._keep(state, rule, turn, row, {column: was}, {column: became}, at_ms)
            left: list[object] = []
            for element, part in zip(elements, parts, strict=True):
                end = None if part is None else groups[part].end
                if part is not None:
                    counts[part] += 1
                match end:
                    case None:
                        left.append(element)
                    case Counted():
                        left.append(element)
                    case Referencing(values=(value,)) if value is not None:
                        left.append(value)
                        if end.arrival is not None:
                            state.arrivals.setdefault((rule.id, (value,)), []).append((end.arrival, row))
                    case _:
                        pass  # no reference any more: the element goes
            row[column] = left
        return counts

    def _rows_of(self, state: _State, rule: StoreRule, table: list[Row], group: Group) -> list[Row]:
        arrived = {id(row): since for since, row in state.arrivals.get((rule.id, group.key), ())}
        as_of = rule.dependent.as_of
        return [
            row
            for row in table
            if _is_in_reach(rule, row, group.key)
            and arrived.get(id(row)) == group.since
            and (as_of is None or group.holds(_micros(row[as_of])))
        ]


def _page(state: _State, portion: Portion) -> tuple[list[int], int | None]:
    """The records of a portion, newest first, and where the next one begins."""
    chosen = [n for n in reversed(state.kept) if _is_chosen(portion, state.kept[n])]
    rest = [n for n in chosen if portion.before is None or n < int(portion.before)]
    numbers = rest[: portion.rows_max]
    return numbers, numbers[-1] if len(rest) > len(numbers) else None


def _unfinished(state: _State, numbers: Iterable[int]) -> Retry | None:
    events = {event for parts in state.parts.values() for event in parts}
    found = (state.kept[number].turn.event for number in numbers)
    return next((not_done_yet(event) for event in found if event in events), None)


def _is_chosen(portion: Portion, each: _Kept) -> bool:
    choice = portion.choice
    return (
        each.expires_ms > portion.at_ms
        and choice.event in (None, each.turn.event)
        and (choice.since_ms is None or each.at_ms >= choice.since_ms)
        and (not choice.dependents or each.dependent in choice.dependents)
    )


def _told(each: _Kept, verdict: Verdict) -> Kept:
    turn = each.turn
    row = canonical((each.id,)) if isinstance(each.id, int | str) else str(each.id)
    return Kept(each.dependent, turn.event, turn.version, turn.entity, turn.key, turn.action, row, verdict)


def mark_values(action: Tombstone, fate: Fate, at_ms: int) -> Row:
    """What `tombstone.set` sets for a fate."""
    values: Row = {}
    for column, value in action.set.items():
        match value:
            case EventValue.TIME:
                values[column] = datetime.fromtimestamp(fate.occurred_ms / 1000, UTC)
            case EventValue.ID:
                values[column] = fate.event_id
            case EventValue.NOW:
                values[column] = datetime.fromtimestamp(at_ms / 1000, UTC)
            case _:
                values[column] = value
    return values


def _forget(state: _State, over: Iterable[tuple[str, str]]) -> None:
    """Exceptions (dependent, event) that are none any more."""
    if gone := set(over):
        state.exceptions = {at: each for at, each in state.exceptions.items() if at[2:] not in gone}


def _is_in_scope(row: Row, where: Mapping[str, Literal | tuple[Literal, ...]]) -> bool:
    return all(_fits(row[column], wanted) for column, wanted in where.items())


def _is_in_reach(rule: StoreRule, row: Row, key: Key) -> bool:
    dependent = rule.dependent
    marker = dependent.on_delete.marker if isinstance(dependent.on_delete, Tombstone) else None
    held = [row[column] for column in dependent.columns]
    if dependent.array:
        return isinstance(held[0], list) and key[0] in held[0] and _is_in_scope(row, dependent.where)
    return tuple(held) == key and (marker is None or row[marker] is None) and _is_in_scope(row, dependent.where)


def _references(dependent: Dependent, row: Row, key: Key) -> int:
    """How many references of a row in reach are to that key: a list may hold it twice."""
    if not dependent.array:
        return 1
    elements = row[dependent.columns[0]]
    assert isinstance(elements, list)
    return elements.count(key[0])


def _micros(value: object) -> int | None:
    """When a row came to be, in microseconds since the epoch; None when that is in doubt. Of a date it is when the day
    is over, since the row may have been written at any time of it."""
    match value:
        case datetime():
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        case date():
            moment = datetime(value.year, value.month, value.day, tzinfo=UTC) + timedelta(days=1)
        case _:
            return None
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _fits(value: object, wanted: Literal | tuple[Literal, ...]) -> bool:
    # Python takes true for 1; no store does.
    choices = wanted if isinstance(wanted, tuple) else (wanted,)
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in choices)


def _note(
    state: _State, entity: str, updates: Mapping[Key, HeadUpdate], effects: Sequence[Effect], batch: Batch
) -> None:
    """Keep what each new fate did, for the history of its key."""
    done = done_by_fate(effects)
    for key, update in updates.items():
        state.enforced.setdefault((entity, key), []).extend(
            Enforced(
                fate._replace(event=fate.event_id, change=-1), done.get(fate.change, {}), batch.at_ms, batch.trace_id
            )
            for fate in update.fates
        )


def _add_repairs(state: _State, repaired: Iterable[Repaired], at_ms: int) -> None:
    for each in repaired:
        repair = Repair(each.dependent, each.action, each.rows, each.fate.event_id, at_ms)
        state.repairs.setdefault((each.entity, each.key), []).append(repair)


def _write_head(state: _State, entity: str, key: Key, head: Head | None, update: HeadUpdate) -> None:
    before = head.fates if head else ()
    state.heads[entity, key] = Head(
        update.seen,
        before + tuple(fate._replace(event=fate.event_id, change=-1) for fate in update.fates),
        update.last or (head.last if head else None),
    )


class MemoryScanner:
    """The Scannable of a MemoryStore: the definition of what refers to what."""

    def __init__(self, store: MemoryStore, rules: Mapping[str, Sequence[StoreRule]], page: int = 1_000) -> None:
        self.name = store.name
        self._store = store
        self._rules = {rule.id: rule for of_entity in rules.values() for rule in of_entity}
        self._page = page

    async def references(self, dependent: str, deadline: Deadline) -> AsyncGenerator[Page]:
        counts, mistyped = self._counts(self._rules[dependent])
        order = order_of(self._rules[dependent].spec)
        found = [Referenced(key, counts[key]) for key in sorted(counts, key=order)]
        for start in range(0, max(len(found), 1), self._page):
            yield Page(found[start : start + self._page], 0 if start else mistyped)

    async def referring(self, dependent: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[int]:
        counts, _ = self._counts(self._rules[dependent])
        return [counts.get(key, 0) for key in keys]

    async def known(self, entity: str, keys: Sequence[Key], deadline: Deadline) -> Sequence[Known]:
        return [known_of(self._store.head(entity, key)) for key in keys]

    async def close(self) -> None:
        return None

    def _counts(self, rule: StoreRule) -> tuple[dict[Key, int], int]:
        counts: dict[Key, int] = {}
        mistyped = 0
        dependent, kinds = rule.dependent, rule.spec.types
        marker = dependent.on_delete.marker if isinstance(dependent.on_delete, Tombstone) else None
        for row in self._store.targets[dependent.target.name]:
            if not _is_in_scope(row, dependent.where) or (marker is not None and row[marker] is not None):
                continue
            held = tuple(row[column] for column in dependent.columns)
            listed = held[0] if dependent.array else None
            if dependent.array and not isinstance(listed, list):
                continue
            for values in [(element,) for element in listed] if isinstance(listed, list) else [held]:
                if None in values:
                    continue
                key = tuple(_part(kind, value) for kind, value in zip(kinds, values, strict=True))
                if None in key:
                    mistyped += 1
                else:
                    counts[key] = counts.get(key, 0) + 1  # type: ignore[index, arg-type]
        return counts, mistyped


def _part(kind: KeyType, value: object) -> object:
    """The value, if it is of that type; else None."""
    wanted = _TYPES[kind]
    return value if isinstance(value, wanted) and (wanted is bool) == isinstance(value, bool) else None


_TYPES: Mapping[KeyType, type] = {
    KeyType.INT32: int,
    KeyType.INT64: int,
    KeyType.NUMERIC: Decimal,
    KeyType.STRING: str,
    KeyType.UUID: UUID,
    KeyType.BOOL: bool,
    KeyType.DATE: date,
    KeyType.TIMESTAMP: datetime,
    KeyType.BYTES: bytes,
    KeyType.OBJECTID: str,
}
