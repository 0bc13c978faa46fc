"""A batch on the state: the same steps as the model's, yielding what has to be published for it.

Runs inside an open transaction of the state, which its caller commits when everything is durable in Kafka, and rolls
back otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, assert_never

import msgspec
from aiokafka.partitioner import murmur2

from integrity.core.batch import Batch, Share, TopicPartition, shares
from integrity.core.change import Version
from integrity.core.derive import keys_of, numbered
from integrity.core.fold import Counted, Group, Marked, Referencing, Removed, Settled, lookups, settle, trace
from integrity.core.gate import held
from integrity.core.keys import Key, canonical, key_hash
from integrity.core.ledger import Head, HeadUpdate, done_by_fate, heads_to_write
from integrity.core.outbox import Outgoing, outgoing
from integrity.core.outcome import Effect, Held, Rejected
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
    LeftOut,
    MadeUpFor,
    admit,
    aside,
    keys_in_question,
    made_up_for,
    repaired_by,
    retrace,
    share_credit,
)
from integrity.core.rules.graph import derived_topic
from integrity.core.sweep import Repaired
from integrity.errors import Reason
from integrity.stores.descent import (
    Ask,
    Branch,
    CarryOut,
    Choose,
    Closure,
    Descent,
    Newest,
    Record,
    RemoveChosen,
)
from integrity.stores.rule import StoreRule, policies
from integrity.stores.topic import records
from integrity.stores.topic.records import (
    ExceptionRecord,
    FateRecord,
    HeadRecord,
    Mark,
    ProgressRecord,
    RepairRecord,
    Write,
)
from integrity.stores.topic.state import Child, State
from integrity.stores.topic.undo import images
from integrity.stores.topic.values import Unwritable, read_row

CHUNK: Final = 2000
"""How many children are in memory at once."""

Work = Generator[list[Write], None, list[Effect]]


class _Decided(NamedTuple):
    """What the events of a share come to: the keys that were looked at, their heads, what counts, and what may still
    happen of what came back from dead letters."""

    read: set[Key]
    heads: dict[Key, Head]
    settled: Settled
    admitted: Admitted


class Refused(Exception):
    """An effect on one dependent can never be written."""

    def __init__(self, dependent: str, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.dependent = dependent
        self.reason = reason
        self.message = message


class HeldBack(Exception):
    """An event has more rows than its rule allows."""

    def __init__(self, result: Held) -> None:
        super().__init__(result.message)
        self.result = result


class Enforcement:
    """One batch. `counts` is the progress that counts for it; `starts` are the first offsets that child partitions
    still have: a child below has been deleted by retention, and is not written again. `derived_partitions` is how many
    partitions each topic of derived events has. `rows_max` is how many children of one dependent a transaction acts on
    (None: any number)."""

    def __init__(
        self,
        state: State,
        rules: Mapping[str, Sequence[StoreRule]],
        batch: Batch,
        counts: Mapping[TopicPartition, int],
        *,
        ledger: TopicPartition,
        lane: str,
        starts: Mapping[TopicPartition, int],
        derived_partitions: Mapping[str, int],
        rows_max: int | None = None,
    ) -> None:
        self._state = state
        self._rows_max = rows_max
        self._rules = rules
        self._batch = batch
        self._counts = counts
        self._ledger = ledger
        self._lane = lane
        self._starts = starts
        self._derived_partitions = derived_partitions
        self._branch = ""
        """The dependent of the event's own entity, at whose rows or below it the work is."""

    def run(self) -> Work:
        """Yields records to publish, in order; returns the effects. Raises Refused, HeldBack or TooManyRows."""
        parts = self._parts()
        effects: list[Effect] = []
        for share in shares(self._batch, self._counts, self._rules.keys()):
            effects += yield from self._share(share, parts, self._descent(parts))
        yield self._forget([(discard.dependent, discard.event) for discard in self._batch.discards])
        yield self._notes()
        changes, progress = self._batch.changes, list[Write]()
        for at, span in self._batch.spans.items():
            of = self._state.parts(at) if at in self._counts else {}
            progress.append(self._progress(at, max(span.next, self._counts.get(at, 0)), remaining(of, changes)))
        yield progress
        return effects

    def part(self) -> Work:
        """The same for some children of the batch's only event (see `core.parts`); the effects are those of the part.
        Raises Refused or HeldBack."""
        assert self._rows_max is not None, "without a bound there are no parts"
        parts, place = self._parts(), place_of(self._batch)
        effects: list[Effect] = []
        descent = self._descent(parts, part=True)
        for share in shares(self._batch, self._counts, self._rules.keys()):
            decided = self._decide(share)
            settled = in_part(decided.settled)
            led_to: dict[Key, HeadUpdate] = {}
            for rule in self._rules[share.entity]:
                groups = acting(self._groups(rule, share, decided, settled))
                left = descent.left
                if not groups or left <= 0:
                    continue
                self._branch = rule.id
                approved = share.approved | already(parts, share.changes, rule.id).keys()
                self._bound(self._number(rule), rule, groups, approved)
                firsts, left_out = dict(decided.admitted.starts.get(rule.id, ())), share.left_out(rule.id)
                asks = descent.branch(rule, groups, settled, share.changes, left_out, firsts, approved)
                rows = yield from self._descend(asks)
                if descent.left == left:
                    continue
                effects += share_credit(rule.policy, share, decided.settled, decided.admitted, groups, rows, {})
                led_to |= heads_of_part(groups, decided.heads)
            yield self.heads(share.entity, (), decided.heads, led_to, ())
        effects += descent.effects_of_part()
        reached = self._counts.get(place, self._batch.spans[place].start)
        yield [self._progress(place, reached, added(parts, self._batch, effects, descent.cut_short))]
        return effects

    def part_alone(self) -> Work:
        """The same where there is no progress to keep what was done: the part stands for itself."""
        effects: list[Effect] = []
        for share in shares(self._batch, {}, self._rules.keys()):
            effects += yield from self._share(share, {}, self._descent({}, part=True), part=True)
        return effects

    def _descent(self, begun: Parts, *, part: bool = False) -> Descent:
        rows_max = self._rows_max if self._batch.is_bound else None
        return Descent(self._rules, exact=False, rows_max=rows_max, part=part, begun=begun)

    def _parts(self) -> Parts:
        """What parts of events have done already."""
        return {event: of for at in self._counts for event, of in self._state.parts(at).items()}

    def _progress(self, at: TopicPartition, next_: int, parts: Parts) -> Write:
        record = ProgressRecord(next_, {event: dict(of) for event, of in parts.items()})
        self._state.set_progress(at, record)
        return self.record(records.progress_key(self._lane, at), records.encode(record))

    def _decide(self, share: Share) -> _Decided:
        """What the events of a share come to. Raises Refused."""
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        spec = rules[0].spec
        read: set[Key] = set()
        heads: dict[Key, Head] = {}
        while missing := lookups(changes, read, {k: h.fates for k, h in heads.items()}, policies(rules)):
            read |= missing
            heads |= {key: head for key in missing if (head := self._state.head(key_hash(entity, key), spec))}
        settled = settle(changes, heads, done=aside(share, heads), keep_alive=rules[0].keeps_alive)
        pending = {
            key: found
            for key in keys_in_question(share, settled)
            if (found := self._state.pending(key_hash(entity, key)))
        }
        admitted = admit(share, settled, policies(rules), pending)
        if isinstance(admitted, Rejected):
            raise Refused(admitted.dependent, admitted.reason, admitted.message)
        return _Decided(read, heads, settled, admitted)

    def _groups(self, rule: StoreRule, share: Share, decided: _Decided, settled: Settled) -> list[Group]:
        left_out = share.left_out(rule.id)
        arrivals = self._arrivals(self._number(rule), share.entity, settled)
        groups = trace(rule.policy, settled, arrivals, left_out=left_out)
        return groups + retrace(rule.policy, settled, decided.admitted, left_out=left_out)

    def _share(self, share: Share, parts: Parts, descent: Descent, *, part: bool = False) -> Work:
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        decided = self._decide(share)
        read, heads, settled, admitted = decided
        effects: list[Effect] = []
        for rule in rules:
            left_out = share.left_out(rule.id)
            groups = self._groups(rule, share, decided, settled)
            if part:
                groups = changing(groups)
            done = already(parts, changes, rule.id)
            # What has begun is never held: some of its children are gone.
            approved = share.approved | done.keys()
            self._branch = rule.id
            self._bound(self._number(rule), rule, groups, approved)
            firsts = dict(admitted.starts.get(rule.id, ()))
            asks = descent.branch(rule, groups, settled, changes, left_out, firsts, approved)
            rows = yield from self._descend(asks)
            if over := descent.held(rule, approved):
                raise HeldBack(over)
            effects += share_credit(rule.policy, share, decided.settled, decided.admitted, groups, rows, done)
        effects += descent.effects(rules, changes, settled.outcomes, share.exceptions, admitted.only)
        own = {change.key for change in changes}
        yield self.heads(entity, rules, heads, heads_to_write(read, own, heads, settled.updates), effects)
        yield self._add_done(entity, made_up_for(admitted, effects))
        yield self.repairs(repaired_by(entity, admitted, effects))
        yield self._forget(admitted.over)
        yield self._exceptions(entity, admitted.left_out)
        return [effect._replace(change=share.indexes[effect.change]) for effect in effects]

    def _bound(self, number: int, rule: StoreRule, groups: Sequence[Group], approved: Collection[int]) -> None:
        """Raises HeldBack when some event has more children than the rule allows."""
        if rule.dependent.max_rows is not None and groups:
            parts = [(key_hash(rule.entity, group.key), group.since, group.born) for group in groups]
            counts = self._state.choose(number, parts)
            if over := held(rule.id, rule.dependent.max_rows, groups, counts, approved):
                raise HeldBack(over)

    def late(self, rule: StoreRule, asks: Branch) -> Generator[list[Write], None, list[int]]:
        """Carry out the groups of a dependent that a sweep has found, and all that depends on its children."""
        self._branch = rule.id
        return (yield from self._descend(asks))

    def _few_enough(self, rule: StoreRule, groups: Sequence[Group], rows_max: int) -> None:
        """Raises TooManyRows."""
        if groups:
            parts = [(key_hash(rule.entity, group.key), group.since, group.born) for group in groups]
            if sum(self._state.choose(self._number(rule), parts, rows_max + 1)) > rows_max:
                raise TooManyRows

    def _descend(self, asks: Branch) -> Generator[list[Write], None, list[int]]:
        """Carry out the groups of a dependent, and all that depends on its children."""
        answer: object = None
        while True:
            try:
                ask = asks.send(answer)
            except StopIteration as ended:
                rows: list[int] = ended.value
                return rows
            answer = yield from self._answer(ask)

    def _answer(self, ask: Ask) -> Generator[list[Write], None, object]:
        match ask:
            case Choose(rule, groups, limit):
                named = ((child.part, own) for child, own in self._named(rule, groups) if own is not None)
                return list(islice(named, limit))
            case CarryOut(rule, groups, rows_max, part):
                if rows_max is not None and not part:
                    self._few_enough(rule, acting(groups), rows_max)
                return (yield from self.execute(self._number(rule), rule, groups, rows_max if part else None))
            case RemoveChosen(rule, groups, chosen):
                return (yield from self._remove(rule, groups, set(chosen)))
            case Newest(rule, keys):
                number = self._number(rule)
                found = {key: self._state.arrivals_at(number, key_hash(rule.entity, key)) for key in keys}
                return {key: max(since for _, since in arrivals) for key, arrivals in found.items() if arrivals}
            case Record(rows, happened):
                heads = {
                    key: head
                    for key in keys_of(happened)
                    if (head := self._state.head(key_hash(rows.entity, key), rows.spec))
                }
                numbers = numbered(happened, heads)
                yield self.heads(rows.entity, (), heads, numbers.updates, numbers.effects)
                if rows.published:
                    yield [self._derived(record) for record in outgoing(rows, happened, numbers.versions)]
                return None
            case Closure():
                raise AssertionError("only an exact store is asked for it")
            case _:
                assert_never(ask)

    def _derived(self, record: Outgoing) -> Write:
        """A derived event, in the transaction of what it follows from; its key gives the partition as everywhere."""
        topic = derived_topic(record.entity)
        at = TopicPartition(topic, (murmur2(record.key) & 0x7FFFFFFF) % self._derived_partitions[topic])
        headers = () if record.traceparent is None else (("traceparent", record.traceparent.encode()),)
        return Write(at, record.key, record.value, headers, self._branch)

    def _number(self, rule: StoreRule) -> int:
        number = self._state.number(rule.id)
        assert number is not None, "the state knows every rule of the store"
        return number

    def _named(self, rule: StoreRule, groups: Sequence[Group]) -> Iterator[tuple[Child, Key | None]]:
        """The children of these groups, each with its own key."""
        number = self._number(rule)
        row = self._state.row_rule(number)
        parts = [(key_hash(rule.entity, group.key), group.since, group.born) for group in groups]
        after = 0
        if not any(self._state.choose(number, parts)):
            return
        while children := self._state.chosen(after, CHUNK):
            after = children[-1].number
            for child in children:
                yield child, row.own(read_row(child.value))

    def _remove(
        self, rule: StoreRule, groups: Sequence[Group], chosen: Collection[tuple[int, Key]]
    ) -> Generator[list[Write], None, list[int]]:
        """Remove the children that were chosen."""
        number = self._number(rule)
        hashes = [key_hash(rule.entity, group.key) for group in groups]
        rows = [0] * len(groups)
        writes: list[Write] = []
        for child, own in self._named(rule, groups):
            if own is not None and (child.part, own) in chosen:
                rows[child.part] += 1
                writes += self._act(number, rule, groups[child.part], hashes[child.part], child)
            if len(writes) >= CHUNK:
                yield writes
                writes = []
        yield writes
        return rows

    def _arrivals(self, number: int, entity: str, settled: Settled) -> dict[Key, set[Version]]:
        if not self._state.arrivals():
            return {}
        found = {
            key: {since for _, since in self._state.arrivals_at(number, key_hash(entity, key))}
            for key in settled.updates
        }
        return {key: since for key, since in found.items() if since}

    def execute(
        self, number: int, rule: StoreRule, groups: Sequence[Group], limit: int | None = None
    ) -> Generator[list[Write], None, list[int]]:
        """Carry out all groups at once: choose every group's children before any of them changes. With `limit`, no
        more children than that; what is left stays as it is."""
        if not groups:
            return []
        hashes = [key_hash(rule.entity, group.key) for group in groups]
        parts = [(digest, group.since, group.born) for digest, group in zip(hashes, groups, strict=True)]
        counts = self._state.choose(number, parts, limit)
        if limit is None:
            yield self._leave(number, groups, hashes)
        after = 0
        while any(counts) and (children := self._state.chosen(after, CHUNK)):
            after = children[-1].number
            writes: list[Write] = []
            for child in children:
                if limit is not None and groups[child.part].since is not None:
                    name = records.arrival_key(rule.id, child.at)
                    self._state.remove_arrival(name)
                    writes.append(self.record(name, None))
                writes += self._act(number, rule, groups[child.part], hashes[child.part], child)
            yield writes
        return counts

    def _leave(self, number: int, groups: Sequence[Group], hashes: Sequence[bytes]) -> list[Write]:
        """The arrivals that are acted on are no arrivals at their key any more."""
        writes: list[Write] = []
        for group, digest in zip(groups, hashes, strict=True):
            if group.since is not None:
                for name, since in self._state.arrivals_at(number, digest):
                    if since == group.since:
                        self._state.remove_arrival(name)
                        writes.append(self.record(name, None))
        return writes

    def _act(self, number: int, rule: StoreRule, group: Group, digest: bytes, child: Child) -> list[Write]:
        at = TopicPartition(child.at.topic, child.at.partition)
        headers = records.marked(child.headers, Mark(child.offset, rule.id, digest.hex(), group.born))
        match group.end:
            case Removed() | Marked():
                kept = self._keep(number, rule, group, child)
                self._state.remove(child.id)
                return [*kept, Write(at, child.at.key, None, headers, self._branch)]
            case Referencing(values, arrival):
                if child.offset < self._starts.get(at, 0):
                    self._state.remove(child.id)
                    return []
                row = self._state.row_rule(number)
                writes = self._keep(number, rule, group, child)
                try:
                    value = row.rewritten(child.value, read_row(child.value), group.key, values)
                except Unwritable as exc:
                    raise self._refused(rule, exc) from exc
                if value != child.value:
                    self._state.rewrite(child, value, headers)
                    writes.append(Write(at, child.at.key, value, headers, self._branch))
                if arrival is not None:
                    key = tuple(value for value in values if value is not None)
                    writes.append(self.record(*self._state.add_arrival(number, child.at, rule.entity, key, arrival)))
                return writes
            case Counted():
                return []
            case _:
                assert_never(group.end)

    def _keep(self, number: int, rule: StoreRule, group: Group, child: Child) -> list[Write]:
        """Keep what a child is before it changes, where the rule says so."""
        row, at_ms = self._state.row_rule(number), self._batch.at_ms
        try:
            found = [self._state.keep(image) for image in images(rule, row, group, child, at_ms)]
        except Unwritable as exc:
            raise self._refused(rule, exc) from exc
        # A record too large for the ledger is the fault of this dependent, not the ledger's.
        return [self.record(key, value)._replace(dependent=self._branch) for key, value in found]

    def _refused(self, rule: StoreRule, exc: Unwritable) -> Refused:
        where = "" if rule.id == self._branch else f"{rule.id}, which depends on these rows: "
        return Refused(self._branch, exc.reason, where + exc.message)

    def heads(
        self,
        entity: str,
        rules: Sequence[StoreRule],
        heads: Mapping[Key, Head],
        updates: Mapping[Key, HeadUpdate],
        effects: Sequence[Effect],
    ) -> list[Write]:
        """Write heads and their new fates."""
        writes: list[Write] = []
        rows = done_by_fate(effects)
        any_arrivals = self._state.arrivals() > 0
        for key, update in updates.items():
            digest = key_hash(entity, key)
            before = heads.get(key)
            last = update.last or (before.last if before else None)
            head = records.encode(HeadRecord(entity, records.clear_key(canonical(key)), update.seen, last))
            self._state.put_head(digest, head)
            writes.append(self.record(records.head_key(digest), head))
            for fate in update.fates:
                data = records.encode(
                    FateRecord.of(fate, rows.get(fate.change, {}), self._batch.at_ms, self._batch.trace_id)
                )
                self._state.put_fate(digest, fate.version, data)
                writes.append(self.record(records.fate_key(digest, fate.version), data))
            if any_arrivals and update.seen is not None:
                writes += self._settle(rules, digest, update.seen)
        return writes

    def _settle(self, rules: Sequence[StoreRule], digest: bytes, seen: Version) -> list[Write]:
        """Arrivals that the key's own events have reached are rows like all others."""
        writes: list[Write] = []
        for rule in rules:
            number = self._state.number(rule.id)
            assert number is not None
            for name, since in self._state.arrivals_at(number, digest):
                if since <= seen:
                    self._state.remove_arrival(name)
                    writes.append(self.record(name, None))
        return writes

    def _exceptions(self, entity: str, left_out: Sequence[LeftOut]) -> list[Write]:
        writes: list[Write] = []
        for change, dependent, mark, version in left_out:
            event = change.origin.event_id
            key, text = records.exception_key(dependent, event), records.clear_key(canonical(change.key))
            digest = key_hash(entity, change.key).hex()
            at_ms = self._batch.at_ms
            record = ExceptionRecord(digest, entity, text, event, dependent, mark.reason.value, mark.id, at_ms, version)
            value = records.encode(record)
            self._state.put_exception(key, value)
            writes.append(self.record(key, value))
        return writes

    def _add_done(self, entity: str, found: Sequence[MadeUpFor]) -> list[Write]:
        """What redrives did at fates that are known."""
        writes: list[Write] = []
        for key, fate, done in found:
            digest = key_hash(entity, key)
            before = self._state.fate(digest, fate.version)
            if before is not None:
                data = records.encode(msgspec.structs.replace(before, rows={**before.rows, **done}))
                self._state.put_fate(digest, fate.version, data)
                writes.append(self.record(records.fate_key(digest, fate.version), data))
        return writes

    def repairs(self, repaired: Sequence[Repaired]) -> list[Write]:
        """Keep what became of children that were written late."""
        writes: list[Write] = []
        for each in repaired:
            digest, at_ms = key_hash(each.entity, each.key), self._batch.at_ms
            name = records.repair_key(digest, each.dependent, at_ms)
            before = self._state.repair(name)  # by a part of the same sweep
            rows = each.rows + (0 if before is None else before.rows)
            value = records.encode(RepairRecord(each.dependent, each.action, rows, each.fate.event_id, at_ms))
            self._state.put_repair(name, digest, value)
            writes.append(self.record(name, value))
        return writes

    def _forget(self, over: Sequence[tuple[str, str]]) -> list[Write]:
        """Exceptions (dependent, event) that are none any more."""
        writes: list[Write] = []
        for dependent, event in over:
            key = records.exception_key(dependent, event)
            self._state.put_exception(key, None)
            writes.append(self.record(key, None))
        return writes

    def _notes(self) -> list[Write]:
        """Keep or forget truncates that are to be carried out."""
        writes: list[Write] = []
        for id_, data, fresh in self._batch.notes:
            if not fresh or not self._state.has_note(id_):
                self._state.put_note(id_, data)
                writes.append(self.record(records.note_key(self._lane, id_), data))
        return writes

    def record(self, key: bytes, value: bytes | None) -> Write:
        """A record of the ledger."""
        return Write(self._ledger, key, value, (), None)
