"""One batch in one transaction, step by step as in the memory store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, assert_never

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import OperationFailure

from integrity.core.batch import Batch, Share, TopicPartition, shares, standing
from integrity.core.derive import Happened, Rows, keys_of, numbered
from integrity.core.fold import Group, Settled, lookups, settle, trace
from integrity.core.keys import Key
from integrity.core.ledger import Head, HeadUpdate, heads_to_write
from integrity.core.outbox import outgoing
from integrity.core.outcome import Applied, Diverged, Effect, Held, Rejected, Unfinished
from integrity.core.parts import Parts, acting, added, already, changing, heads_of_part, in_part, place_of, remaining
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
from integrity.stores.descent import (
    CLOSURE_MAX,
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
from integrity.stores.mongo.effects import Acted, Came, Enforcer
from integrity.stores.mongo.ledger import Arrival, Ledger, Progress, hashes_of, offsets
from integrity.stores.mongo.lists import ListEnforcer
from integrity.stores.mongo.verdict import NoLookAhead
from integrity.stores.rule import StoreRule, policies

LEVELS_AHEAD: Final = 200
AHEAD_MAX: Final = 2_000
"""Levels and documents that are looked at in one query, whole documents in the server's memory."""
RECORDED_MAX: Final = 5_000
"""Keys of documents whose fates wait to be written together."""


class Late(NamedTuple):
    """How many documents a sweep has changed, and the arrivals to keep."""

    rows: list[int]
    came: list[Came]


@dataclass(slots=True)
class LooksAhead:
    """Whether the server takes queries for many levels at once; until it refuses one."""

    on: bool = True


class Attempt:
    """`dependent` is the branch whose operation runs, or ran when an error came; None while the ledger's do. `below` is
    the dependent itself, where it is further down the graph."""

    def __init__(
        self,
        ledger: Ledger,
        rules: Mapping[str, Sequence[StoreRule]],
        batch: Batch,
        looks_ahead: LooksAhead,
        rows_max: int = 0,
        *,
        part: bool = False,
    ) -> None:
        """The whole batch, or a `part`: some documents of its only event (see `core.parts`). `rows_max` is how many of
        one dependent a transaction acts on."""
        self._looks_ahead = looks_ahead
        self.dependent: str | None = None
        self.below: str | None = None
        self._ledger = ledger
        self._rules = rules
        self._batch = batch
        self._rows_max = rows_max
        self._is_part = part
        self._parts: Parts = {}

    async def run(self, session: AsyncClientSession) -> Applied | Unfinished | Diverged | Rejected | Held:
        """Everything but the commit. Only after Applied or Unfinished there is anything to commit. Raises TooManyRows
        for a whole that is too large."""
        batch, ledger = self._batch, self._ledger
        found = await ledger.progress(batch.spans, session)
        counts = standing(batch, offsets(found))
        if isinstance(counts, str):
            return Diverged(counts)
        self._parts = {event: of for at in counts for event, of in found[at].parts.items()}
        if self._is_part and batch.spans:
            return await self._part(found, counts, session)
        # First, so that of two processes with one partition the second collides before it has done any work.
        reached = {
            at: Progress(
                max(span.next, counts.get(at, 0)), remaining(found[at].parts if at in counts else {}, batch.changes)
            )
            for at, span in batch.spans.items()
        }
        await ledger.write_progress(reached, batch.at_ms, session)
        effects: list[Effect] = []
        for share in shares(batch, counts, self._rules.keys()):
            done = await self._enforce(share, session)
            if not isinstance(done, list):
                return done
            effects += done
        await ledger.clear_exceptions([(each.dependent, each.event) for each in batch.discards], session)
        await ledger.write_notes(batch.notes, session)
        if self._is_part:  # of no partition: it stands for itself
            return Unfinished(sum(effect.rows for effect in effects), effects)
        return Applied(effects)

    async def _part(
        self,
        found: Mapping[TopicPartition, Progress],
        counts: Mapping[TopicPartition, int],
        session: AsyncClientSession,
    ) -> Unfinished | Rejected | Held:
        batch, ledger = self._batch, self._ledger
        effects: list[Effect] = []
        way = _Way(self._descent())
        for share in shares(batch, counts, self._rules.keys()):
            decided = await self._decide(share, session)
            if isinstance(decided, Rejected):
                return decided
            hash_of, heads = decided.hash_of, decided.heads
            settled = in_part(decided.settled)
            led_to: dict[Key, HeadUpdate] = {}
            for rule in self._rules[share.entity]:
                mine, groups = self._groups(rule, share, decided, settled)
                groups = acting(groups)
                left = way.descent.left
                if not groups or left <= 0:
                    continue
                self.dependent = rule.id
                approved = share.approved | already(self._parts, share.changes, rule.id).keys()
                if over := await self._held(rule, groups, mine, approved, session):
                    return over
                firsts, left_out = dict(decided.admitted.starts.get(rule.id, ())), share.left_out(rule.id)
                way.top, way.arrivals[rule.id] = rule, mine
                asks = way.descent.branch(rule, groups, settled, share.changes, left_out, firsts, approved)
                rows = await self._descend(asks, way, session)
                self.dependent = self.below = None
                came, way.came = way.came, []
                if way.descent.left == left:
                    continue
                effects += share_credit(rule.policy, share, decided.settled, decided.admitted, groups, rows, {})
                await ledger.add_arrivals(rule.id, [(hash_of[key], since, id_) for key, since, id_ in came], session)
                led_to |= heads_of_part(groups, heads)
            await self._write_down(way, session)
            await ledger.remove_arrivals(way.ended, session)
            # As a whole does: what the decision rests on is written too.
            await ledger.write_heads(share.entity, hash_of, heads, led_to, heads.keys(), session)
        effects += way.descent.effects_of_part()
        place = place_of(batch)
        before = found.get(place, Progress(batch.spans[place].start))
        reached = {place: Progress(before.next, added(self._parts, batch, effects, way.descent.cut_short))}
        await ledger.write_progress(reached, batch.at_ms, session)
        return Unfinished(sum(effect.rows for effect in effects))

    async def _held(
        self,
        rule: StoreRule,
        groups: Sequence[Group],
        arrivals: Mapping[Key, Sequence[Arrival]],
        approved: Collection[int],
        session: AsyncClientSession,
    ) -> Held | None:
        of = ListEnforcer if rule.dependent.array else Enforcer
        return await of(self._ledger, rule, session, self._batch.at_ms).held(groups, arrivals, approved)

    def _descent(self) -> Descent:
        rows_max = self._rows_max if self._batch.is_bound else None
        return Descent(self._rules, exact=False, rows_max=rows_max, part=self._is_part, begun=self._parts)

    def _groups(
        self, rule: StoreRule, share: Share, decided: _Decided, settled: Settled
    ) -> tuple[dict[Key, list[Arrival]], list[Group]]:
        """What came to the keys for this dependent, and where its documents end."""
        left_out = share.left_out(rule.id)
        mine = {key: [a for a in of_key if a.dependent == rule.id] for key, of_key in decided.arrivals.items()}
        sinces = {key: {a.since for a in of_key} for key, of_key in mine.items()}
        groups = trace(rule.policy, settled, sinces, left_out=left_out)
        return mine, groups + retrace(rule.policy, settled, decided.admitted, left_out=left_out)

    async def _decide(self, share: Share, session: AsyncClientSession) -> _Decided | Rejected:
        """What the events of a share come to."""
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        hash_of: dict[Key, bytes] = {}
        heads: dict[Key, Head] = {}
        while missing := lookups(changes, hash_of.keys(), {k: h.fates for k, h in heads.items()}, policies(rules)):
            found = hashes_of(entity, missing)
            hash_of |= found
            heads |= await self._ledger.heads({of: key for key, of in found.items()}, rules[0].spec, session)
        settled = settle(changes, heads, done=aside(share, heads), keep_alive=rules[0].keeps_alive)
        asked = {hash_of[key]: key for key in keys_in_question(share, settled)}
        pending = await self._ledger.pending(asked, session) if asked else {}
        admitted = admit(share, settled, policies(rules), pending)
        if isinstance(admitted, Rejected):
            return admitted
        arrivals = await self._arrivals(settled, admitted, hash_of, session)
        return _Decided(hash_of, heads, settled, admitted, arrivals)

    async def _enforce(self, share: Share, session: AsyncClientSession) -> list[Effect] | Rejected | Held:
        changes, rules = share.changes, self._rules[share.entity]
        decided = await self._decide(share, session)
        if isinstance(decided, Rejected):
            return decided
        hash_of, heads, settled, admitted, arrivals = decided
        writes = heads_to_write(hash_of, {change.key for change in changes}, heads, settled.updates)
        # Without a fate nothing rests on the heads that were read only. They are written before the effects: whoever
        # comes second collides here, and has not done the work in vain.
        decides = any(update.fates for update in writes.values()) or bool(share.redrives) or bool(admitted.again)
        touched = heads.keys() - writes.keys() if decides else set()
        await self._ledger.write_heads(share.entity, hash_of, heads, writes, touched, session)
        effects: list[Effect] = []
        way = _Way(self._descent())
        ended = [a.id for key, of_key in arrivals.items() for a in of_key if _is_passed(a, writes.get(key))]
        for rule in rules:
            left_out = share.left_out(rule.id)
            mine, groups = self._groups(rule, share, decided, settled)
            if self._is_part:
                groups = changing(groups)
            done = already(self._parts, changes, rule.id)
            # What has begun is never held: some of its documents are gone.
            approved = share.approved | done.keys()
            self.dependent = rule.id
            # A list counts its elements while it goes through them, unless that is not all of them.
            counts_first = self._is_part or not rule.dependent.array
            if counts_first and (over := await self._held(rule, groups, mine, approved, session)):
                return over
            way.top, way.approved = rule, approved
            way.arrivals[rule.id] = mine
            firsts = dict(admitted.starts.get(rule.id, ()))
            branch = way.descent.branch(rule, groups, settled, changes, left_out, firsts, approved)
            rows = await self._descend(branch, way, session)
            if over := way.held or way.descent.held(rule, approved):
                return over
            self.dependent = self.below = None
            came, way.came = way.came, []
            effects += share_credit(rule.policy, share, decided.settled, decided.admitted, groups, rows, done)
            await self._ledger.add_arrivals(rule.id, [(hash_of[key], since, id_) for key, since, id_ in came], session)
        effects += way.descent.effects(rules, changes, settled.outcomes, share.exceptions, admitted.only)
        await self._write_down(way, session)
        await self._ledger.remove_arrivals([*ended, *way.ended], session)
        await self._record(share, admitted, hash_of, writes, effects, session)
        return [effect._replace(change=share.indexes[effect.change]) for effect in effects]

    async def late(self, descent: Descent, rule: StoreRule, asks: Branch, session: AsyncClientSession) -> Late:
        """Carry out the groups of a dependent that a sweep has found, and all that depends on its documents: how many
        there are, and the arrivals to keep."""
        way = _Way(descent)
        self.dependent, way.top = rule.id, rule
        rows = await self._descend(asks, way, session)
        assert way.held is None, "only events are held, and a sweep has none"
        self.dependent = self.below = None
        await self._write_down(way, session)
        return Late(rows, way.came)

    async def _descend(self, asks: Branch, way: _Way, session: AsyncClientSession) -> list[int]:
        """Carry out the groups of a dependent, and all that depends on its documents."""
        answer: object = None
        while True:
            try:
                ask = asks.send(answer)
            except StopIteration as ended:
                rows: list[int] = ended.value
                return rows
            answer = await self._answer(ask, way, session)

    async def _answer(self, ask: Ask, way: _Way, session: AsyncClientSession) -> object:
        if isinstance(ask, Record):
            way.happened.setdefault(ask.rows, []).extend(ask.happened)
            if sum(map(len, way.happened.values())) >= RECORDED_MAX:
                await self._write_down(way, session)
            return None
        if not isinstance(ask, Choose):
            way.ahead.clear()
        self.below = ask.rule.id
        enforcer = Enforcer(self._ledger, ask.rule, session, self._batch.at_ms)
        arrivals = way.arrivals.setdefault(ask.rule.id, {})
        match ask:
            case Choose(_, groups, limit):
                if self._goes_down_a_line(ask) and not arrivals:
                    return await self._from_ahead(ask, way, enforcer)
                return await enforcer.own_keys(groups, arrivals, limit)
            case CarryOut(_, groups, rows_max, part):
                if ask.rule.dependent.array:
                    acted = await self._carry_out_of_lists(ask, way, session)
                    if acted is None:
                        return [0] * len(groups)
                else:
                    acted = await enforcer.carry_out(groups, arrivals, rows_max=rows_max, in_part=part)
                way.came += acted.came
                if part:
                    way.ended += acted.ended
                else:
                    way.end(groups, arrivals)
                return acted.rows
            case RemoveChosen(_, groups, chosen):
                return await enforcer.remove_chosen(groups, arrivals, chosen)
            case Newest(rule, keys):
                hashes = {of: key for key, of in hashes_of(rule.entity, keys).items()}
                found: dict[Key, list[Arrival]] = {}
                for arrival in await self._ledger.arrivals(list(hashes), session):
                    if arrival.dependent == rule.id:
                        found.setdefault(hashes[arrival.key_hash], []).append(arrival)
                arrivals |= found
                return {key: max(a.since for a in of_key) for key, of_key in found.items()}
            case Closure():
                raise AssertionError("only an exact store is asked for it")
            case _:
                assert_never(ask)

    def _goes_down_a_line(self, ask: Choose) -> bool:
        """Documents of one collection that refer to one another may be a long chain, a query for each of which would
        outlast every transaction. Where a level is one document, many levels are looked at in one query."""
        rows, groups = ask.rule.rows, ask.groups
        return (
            self._looks_ahead.on
            and rows is not None
            and rows.entity == ask.rule.entity
            and len(rows.spec.names) == len(ask.rule.dependent.columns) == 1
            and ask.limit == CLOSURE_MAX
            and len(groups) == 1
            and (groups[0].since, groups[0].born) == (None, None)
        )

    async def _from_ahead(self, ask: Choose, way: _Way, enforcer: Enforcer) -> list[tuple[int, Key]]:
        [group] = ask.groups
        if group.key not in way.ahead:
            try:
                ahead = await enforcer.lines_below(group.key, LEVELS_AHEAD, AHEAD_MAX)
            except OperationFailure as exc:
                if exc.has_error_label("TransientTransactionError"):
                    raise
                # Too much for the server's memory, or a collection that it does not look through: level by level then.
                self._looks_ahead.on = False
                raise NoLookAhead from exc
            if ahead is None:
                return await enforcer.own_keys(ask.groups, {}, ask.limit)
            way.ahead = ahead
        return [(0, own) for own in way.ahead[group.key]]

    async def _carry_out_of_lists(self, ask: CarryOut, way: _Way, session: AsyncClientSession) -> Acted | None:
        """None when there are too many elements."""
        enforcer = ListEnforcer(self._ledger, ask.rule, session, self._batch.at_ms)
        # Further down it is the way itself that knows how many rows an event has.
        approved = way.approved if ask.rule is way.top else {index for group in ask.groups for index in group.path}
        arrivals = way.arrivals.get(ask.rule.id, {})
        acted = await enforcer.carry_out(ask.groups, arrivals, approved, rows_max=ask.rows_max, in_part=ask.part)
        if isinstance(acted, Held):
            way.held = acted
            return None
        return acted

    async def _write_down(self, way: _Way, session: AsyncClientSession) -> None:
        """Write what happened to documents that are parents without events of their own."""
        ledger = self._ledger
        for rows, happened in way.happened.items():
            hash_of = hashes_of(rows.entity, keys_of(happened))
            heads = await ledger.heads({of: key for key, of in hash_of.items()}, rows.spec, session)
            found = numbered(happened, heads)
            await ledger.write_heads(rows.entity, hash_of, heads.keys(), found.updates, (), session)
            await ledger.write_fates(rows.entity, hash_of, found.updates, found.effects, self._batch, session)
            if rows.published:
                await ledger.write_outbox(outgoing(rows, happened, found.versions), session)
        way.happened.clear()

    async def _arrivals(
        self, settled: Settled, admitted: Admitted, hash_of: Mapping[Key, bytes], session: AsyncClientSession
    ) -> dict[Key, list[Arrival]]:
        """What came to the batch's own keys, as far as it is kept."""
        keys = {hash_of[key]: key for key in (*settled.updates, *admitted.keys) if key in settled.heads}
        found: dict[Key, list[Arrival]] = {}
        for arrival in await self._ledger.arrivals(list(keys), session):
            found.setdefault(keys[arrival.key_hash], []).append(arrival)
        return found

    async def _record(
        self,
        share: Share,
        admitted: Admitted,
        hash_of: Mapping[Key, bytes],
        writes: Mapping[Key, HeadUpdate],
        effects: Sequence[Effect],
        session: AsyncClientSession,
    ) -> None:
        ledger = self._ledger
        await ledger.write_fates(share.entity, hash_of, writes, effects, self._batch, session)
        await ledger.add_done(made_up_for(admitted, effects), hash_of, session)
        repaired = repaired_by(share.entity, admitted, effects)
        await ledger.write_repairs(repaired, hash_of, self._batch.at_ms, session)
        await ledger.clear_exceptions(admitted.over, session)
        await ledger.write_exceptions(share.entity, admitted.left_out, hash_of, self._batch.at_ms, session)


class _Decided(NamedTuple):
    """What the events of a share come to: the hashes of the keys that were looked at, their heads, what counts, what
    may still happen of what came back from dead letters, and what arrived at the keys."""

    hash_of: dict[Key, bytes]
    heads: dict[Key, Head]
    settled: Settled
    admitted: Admitted
    arrivals: dict[Key, list[Arrival]]


@dataclass(slots=True)
class _Way:
    """The way down from the dependents of one entity: per dependent what came to its keys, what came and what ended
    meanwhile, and what is to be written down."""

    descent: Descent
    arrivals: dict[str, dict[Key, list[Arrival]]] = field(default_factory=dict)
    came: list[Came] = field(default_factory=list)
    ended: list[object] = field(default_factory=list)
    happened: dict[Rows, list[Happened]] = field(default_factory=dict)
    top: StoreRule | None = None
    approved: Collection[int] = ()
    ahead: dict[Key, list[Key]] = field(default_factory=dict)
    """What refers to keys further down a line of documents that refer to one another."""
    held: Held | None = None
    """Set when the dependent at the top of the way has too many rows: nothing is to be committed then."""

    def end(self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]]) -> None:
        """The arrivals that were acted on are none any more."""
        self.ended += [a.id for group in groups for a in arrivals.get(group.key, ()) if a.since == group.since]


def _is_passed(arrival: Arrival, update: HeadUpdate | None) -> bool:
    """The key's own events have reached the version at which it came: it is like every other from now on."""
    return update is not None and update.seen is not None and arrival.since <= update.seen
