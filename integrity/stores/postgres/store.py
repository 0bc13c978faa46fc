"""A PostgreSQL database as a dependent store: progress, fence, fold and effects in one transaction a batch.

READ COMMITTED is enough: an event of a key locks the key's row in the ledger before it reads anything that depends on
it, and what has no row yet collides when it is inserted.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, assert_never

import asyncpg

from integrity.core.batch import Batch, Share, TopicPartition, shares, standing
from integrity.core.change import Op, Version
from integrity.core.derive import Happened, Rows, keys_of, numbered
from integrity.core.fold import Group, Settled, lookups, settle, trace
from integrity.core.gate import held
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key, key_hash
from integrity.core.ledger import HeadUpdate, heads_to_write
from integrity.core.outbox import outgoing
from integrity.core.outcome import (
    Applied,
    ApplyResult,
    Broken,
    Diverged,
    Effect,
    Held,
    Outcome,
    Rejected,
    Retry,
    TooLarge,
    Unfinished,
)
from integrity.core.parts import (
    FULL_SHARE,
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
from integrity.core.sweep import Extent, Sweep, SweepResult, TooManyLate, extents
from integrity.core.truncate import KnownKeys
from integrity.core.undo import Looked, Portion, UndoResult
from integrity.errors import Finding, LedgerError, OperationError, Reason, UnfitStoreError
from integrity.ports import Deadline, Waiting
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
    RowsStay,
    from_late_rows,
    of_branch,
)
from integrity.stores.postgres import inspect
from integrity.stores.postgres.catalog import ledger_findings, resolve
from integrity.stores.postgres.choosing import Chooser
from integrity.stores.postgres.effects import Effects, Miscounted, Table
from integrity.stores.postgres.faults import DRIVER_ERRORS, Kind, fault_of, result_of
from integrity.stores.postgres.keeping import Keeper
from integrity.stores.postgres.ledger import Collision, Connection, Heads, Ledger, Progress, ddl, offsets
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.session import Sessions
from integrity.stores.postgres.straight import may_go_straight, straight_keys
from integrity.stores.postgres.sweep import Sweeper
from integrity.stores.postgres.types import Unfit
from integrity.stores.postgres.undo import Undoer
from integrity.stores.rule import StoreRule, merged, policies, with_rows

ROWS_MAX: Final = 100_000
"""Rows of one dependent that a transaction acts on: some tenths of a second, in which these rows are locked. Fewer
would make a parent with millions of rows slower, since each part pays for a commit."""
RECORDED_MAX: Final = 5_000
"""Keys of rows whose fates wait to be written together."""
LOOKED_UP_S: Final = 10.0
"""How long whoever asks does without looking into the catalogue again: a question about a deep graph is many."""
LOCK_TIMEOUT_S: Final = 3.0
"""How long a statement waits for a row that somebody else has locked."""


class PostgresStore:
    """The Store of one PostgreSQL database. `lane` is the consumer group: progress is its own, the ledger is shared.

    `timeout_s` bounds a statement, `lock_timeout_s` a wait for a lock, `rows_max` the rows of one dependent that a
    transaction acts on. Nothing connects before the first call.
    """

    exclusive = False

    def __init__(
        self,
        name: str,
        url: str,
        rules: Mapping[str, Sequence[StoreRule]],
        *,
        lane: str,
        schema: str = "integrity",
        pool_size: int = 2,
        timeout_s: float = 30.0,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
        copies: Mapping[str, Sequence[StoreRule]] = MappingProxyType({}),
        rows_max: int = ROWS_MAX,
    ) -> None:
        """`copies` is what removes or marks rows of copies: only `impact` looks at it."""
        self.name = name
        self._rows_max = rows_max
        self._in_parts: set[str] = set()
        """Events of which the last part acted on as many rows as it may."""
        self._rules = rules
        self._only_go = _only_go(rules)
        self._straight = frozenset(entity for entity, of_entity in rules.items() if may_go_straight(of_entity))
        self._looked_at = merged(rules, copies)
        self._lane = lane
        self._ledger = Ledger(schema, lane)
        self._sessions = Sessions(name, url, pool_size=pool_size, timeout_s=timeout_s, lock_timeout_s=lock_timeout_s)
        # Whoever asks never waits for a batch, nor a batch for it.
        self._aside = Sessions(name, url, pool_size=1, timeout_s=timeout_s, lock_timeout_s=lock_timeout_s)
        self._effects: dict[str, Effects] | None = None
        self._choosers: dict[str, Chooser] = {}
        self._looked: dict[str, tuple[float, Sequence[Table]]] = {}
        self._constraints_at_once = False

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        try:
            async with self._sessions.connection(deadline) as connection:
                findings = await ledger_findings(connection, self._ledger.schema)
                return [*findings, *await self._resolve(connection)]
        except DRIVER_ERRORS as exc:
            raise self._sessions.unreachable(fault_of(exc)) from exc

    def ddl(self) -> str:
        return ddl(self._ledger.schema)

    async def migrate(self, deadline: Deadline) -> None:
        try:
            async with self._sessions.connection(deadline) as connection:
                for finding in await ledger_findings(connection, self._ledger.schema):
                    if finding.code == "ledger_newer":
                        raise LedgerError(f"Store {self.name}: {finding.message}.", hint=finding.hint)
                await connection.execute(self.ddl())
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.RULE:
                raise LedgerError(
                    f"Store {self.name}: the ledger can't be made. {fault.message}",
                    hint=f"Run the statements of `integrity migrate --print` as the owner of {self._schema}.",
                ) from exc
            raise self._sessions.unreachable(fault) from exc

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        try:
            async with self._sessions.connection(deadline) as connection:
                return offsets(await self._ledger.progress(connection, partitions, lock=False))
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.RULE:
                raise LedgerError(
                    f"Store {self.name}: the ledger can't be read. {fault.message}", hint="Run `integrity migrate`."
                ) from exc
            raise self._sessions.unreachable(fault) from exc

    async def close(self) -> None:
        await self._aside.close()
        await self._sessions.close()

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        async with self._asking(deadline, LedgerError, "the ledger can't be read", "Run `integrity migrate`.") as found:
            try:
                return await inspect.history(found, self._ledger.schema, self._looked_at[entity][0].spec, entity, key)
            except ValueError as exc:
                text = f"Store {self.name}: the ledger holds keys of another type than the rule gives now."
                raise LedgerError(text) from exc

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        async with self._asking(deadline, OperationError, "a table can't be read", "See the privileges.") as found:
            tables = await self._looked_up(found, question.entity)
            return [await inspect.impact(found, table, question) for table in tables]

    async def clock_ms(self, deadline: Deadline) -> int | None:
        async with self._asking(deadline, OperationError, "the clock can't be read", "See the privileges.") as found:
            return int(await found.fetchval("select extract(epoch from pg_catalog.clock_timestamp()) * 1000"))

    async def _looked_up(self, connection: Connection, entity: str) -> Sequence[Table]:
        """The tables with dependents of an entity as they are now; what was looked up a moment ago is."""
        at_s, tables = self._looked.get(entity, (0.0, ()))
        if not tables or time.monotonic() - at_s > LOOKED_UP_S:
            at_s, rules = time.monotonic(), [with_rows(rule) for rule in self._looked_at[entity]]
            resolved = await resolve(connection, rules, self._ledger.schema)
            if faults := [finding for finding in resolved.findings if finding.severity == "error"]:
                raise UnfitStoreError(faults)
            tables = [resolved.tables[rule.id] for rule in rules]
            self._looked[entity] = at_s, tables
        return tables

    async def sweep(self, sweep: Sweep, deadline: Deadline) -> SweepResult:
        at = _Place()
        try:
            async with self._aside.connection(deadline) as connection:
                at.connection = connection
                if self._effects is None:
                    await self._resolve(connection)
                for extent in extents(sweep):
                    await connection.execute("begin isolation level read committed")
                    way = _SweepWay(self, connection, Batch((), {}, sweep.at_ms), at, extent)
                    try:
                        result = await Sweeper(self._ledger, self._lane, at.on_dependent).run(
                            connection, sweep, self._rules, self._effects_of, way
                        )
                    except TooManyRows:
                        await connection.execute("rollback")
                        at.on_dependent(None)
                        continue
                    await connection.execute("commit")
                    return result
                return TooLarge()
        except TooManyLate as exc:
            return exc.result
        except RowsStay as exc:
            answer = of_branch(Rejected(at.dependent or exc.dependent, Reason.STORE_REJECTED, exc.message), at.below)
        except Collision:
            return Retry("Another process wrote of the same key at the same time.")
        except Miscounted:
            return Retry("Somebody else removed some of the same rows at the same time.")
        except Unfit as exc:
            assert at.dependent is not None
            refused = Rejected(at.dependent, Reason.VALUE_REJECTED, f"A value does not fit its column: {exc}.")
            answer = of_branch(refused, at.below)
        except _Unresolved as exc:
            broken = Broken(at.dependent or exc.dependent, Reason.SCHEMA_MISMATCH, exc.message)
            answer = of_branch(broken, at.below)
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc, closed=_is_closed(at.connection))
            if fault.kind is Kind.SERVER:
                await self._aside.expire()
            answer = of_branch(result_of(fault, at.dependent), at.below)
        assert isinstance(answer, Retry | Rejected | Broken), "a fault is no success"
        return answer

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """See `Truncatable.notes`."""
        async with self._asking(deadline, LedgerError, "the ledger can't be read", "Run `integrity migrate`.") as found:
            return await self._ledger.notes(found)

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        spec = self._rules[entity][0].spec
        async with self._asking(deadline, LedgerError, "the ledger can't be read", "Run `integrity migrate`.") as found:
            return await self._ledger.known_keys(found, entity, spec, after, keys_max)

    async def kept(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.kept`."""
        async with self._asking(deadline, LedgerError, "what was kept can't be read", "Run `integrity migrate`.") as on:
            resolved = await resolve(on, self._all_rules, self._ledger.schema)
            async with on.transaction(isolation="repeatable_read", readonly=True):
                return await Undoer(self._ledger.schema, resolved.tables).look(on, portion)

    async def put_back(self, portion: Portion, deadline: Deadline) -> UndoResult:
        """See `Undoable.put_back`."""
        at = _Place()
        try:
            async with self._aside.connection(deadline) as connection:
                at.connection = connection
                resolved = await resolve(connection, self._all_rules, self._ledger.schema)
                await connection.execute("begin isolation level read committed")
                undoer = Undoer(self._ledger.schema, resolved.tables, at.on_dependent)
                found = await undoer.put_back(connection, portion)
                await connection.execute("commit" if isinstance(found, Looked) else "rollback")
                return found
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc, closed=_is_closed(at.connection))
            if fault.kind is Kind.SERVER:
                await self._aside.expire()
            answer = result_of(fault, at.dependent)
            assert isinstance(answer, Retry | Rejected | Broken), "a fault is no success"
            return answer

    async def forget_kept(self, at_ms: int, rows_max: int, deadline: Deadline) -> int:
        """See `Undoable.forget_kept`."""
        async with self._asking(
            deadline, LedgerError, "what was kept can't be removed", "Run `integrity migrate`."
        ) as on:
            return await Undoer(self._ledger.schema, {}).forget(on, at_ms, rows_max)

    @asynccontextmanager
    async def _asking(
        self, deadline: Deadline, refused: type[OperationError], message: str, hint: str
    ) -> AsyncIterator[Connection]:
        """A connection of its own; `refused` is raised for what only a person can mend."""
        try:
            async with self._aside.connection(deadline) as connection:
                yield connection
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.RULE:
                raise refused(f"Store {self.name}: {message}. {fault.message}", hint=hint) from exc
            raise self._sessions.unreachable(fault) from exc

    async def waiting(self, records_max: int, deadline: Deadline) -> Sequence[Waiting]:
        """See `Outbox.waiting`."""
        try:
            async with self._sessions.connection(deadline) as connection:
                return await self._ledger.waiting(connection, records_max)
        except DRIVER_ERRORS as exc:
            raise self._sessions.unreachable(fault_of(exc)) from exc

    async def published(self, ids: Sequence[object], deadline: Deadline) -> None:
        """See `Outbox.published`."""
        try:
            async with self._sessions.connection(deadline) as connection:
                await self._ledger.clear_outbox(connection, ids)
        except DRIVER_ERRORS as exc:
            raise self._sessions.unreachable(fault_of(exc)) from exc

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        at = _Place()
        try:
            async with self._sessions.connection(deadline) as connection:
                at.connection = connection
                return await self._whole_or_part(connection, batch, at)
        except Collision:
            return Retry("Another process wrote of the same key at the same time.")
        except Miscounted:
            return Retry("Somebody else removed some of the same rows at the same time.")
        except Unfit as exc:
            assert at.dependent is not None
            refused = Rejected(at.dependent, Reason.VALUE_REJECTED, f"A value does not fit its column: {exc}.")
            return of_branch(refused, at.below)
        except RowsStay as exc:
            return of_branch(Rejected(at.dependent or exc.dependent, Reason.STORE_REJECTED, exc.message), at.below)
        except _Unresolved as exc:
            broken = Broken(at.dependent or exc.dependent, Reason.SCHEMA_MISMATCH, exc.message)
            return of_branch(broken, at.below)
        except DRIVER_ERRORS as exc:
            return await self._fault(exc, at, batch)

    # --- one transaction ----------------------------------------------------------------------------------------

    async def _whole_or_part(self, connection: Connection, batch: Batch, at: _Place) -> ApplyResult:
        if self._effects is None:
            await self._resolve(connection)
        if len(batch.changes) == 1 and batch.changes[0].origin.event_id in self._in_parts:
            return await self._transaction(connection, batch, at, part=True)
        try:
            return await self._transaction(connection, batch, at, part=False)
        except TooManyRows:
            await connection.execute("rollback")
        at.dependent = at.below = None
        if len(batch.changes) > 1:
            return TooLarge()
        return await self._transaction(connection, batch, at, part=True)

    async def _transaction(self, connection: Connection, batch: Batch, at: _Place, *, part: bool) -> ApplyResult:
        """The whole batch, or some rows of its only event. Raises TooManyRows for a whole that is too large."""
        await connection.execute("begin isolation level read committed")
        found = await self._ledger.progress(connection, batch.spans.keys(), lock=True)
        counts = standing(batch, offsets(found))
        if isinstance(counts, str):
            await connection.execute("rollback")
            return Diverged(counts)
        parts = {event: of for at_ in counts for event, of in found[at_].parts.items()}
        effects: list[Effect] = []
        # A part of no partition stands for itself.
        writes_progress = not part or bool(batch.spans)
        cut_short: Parts = {}
        for share in shares(batch, counts, self._rules.keys()):
            way = _Way(self._descent(batch, parts, part=part), batch, is_part=part)
            run = self._part if part and writes_progress else self._enforce
            done = await run(connection, share, parts, way, at)
            if not isinstance(done, list):
                await connection.execute("rollback")
                return done
            effects += done
            cut_short = way.descent.cut_short
        if part and writes_progress:
            place = place_of(batch)
            before = found.get(place, Progress(batch.spans[place].start))
            reached = {place: Progress(before.next, added(parts, batch, effects, cut_short))}
        else:
            await self._ledger.clear_exceptions(connection, [(each.dependent, each.event) for each in batch.discards])
            reached = {
                partition: Progress(
                    max(span.next, counts.get(partition, 0)),
                    remaining(found[partition].parts if partition in counts else {}, batch.changes),
                )
                for partition, span in batch.spans.items()
            }
            await self._ledger.write_notes(connection, batch.notes)
        await self._ledger.write_progress(connection, reached, found.keys(), batch.at_ms)
        at.committing = True
        await connection.execute("commit")
        self._constraints_at_once = False
        if not part:
            return Applied(effects)
        rows = sum(effect.rows for effect in effects)
        if not writes_progress:
            return Unfinished(rows, effects)
        event = batch.changes[0].origin.event_id
        # When there were fewer rows than there might be, it is probably done: a whole transaction finds out.
        (self._in_parts.add if rows >= self._rows_max * FULL_SHARE else self._in_parts.discard)(event)
        return Unfinished(rows)

    async def _part(
        self, connection: Connection, share: Share, parts: Parts, way: _Way, at: _Place
    ) -> list[Effect] | Rejected | Held:
        """Some rows of the share's only event, and what the ledger has to know of them: see `core.parts`."""
        decided = await self._decide(connection, share)
        if isinstance(decided, Rejected):
            return decided
        decided = replace(decided, settled=in_part(decided.settled))
        effects: list[Effect] = []
        led_to: dict[Key, HeadUpdate] = {}
        for rule in self._rules[share.entity]:
            left = way.descent.left
            if left <= 0:
                break
            acted = await self._act(connection, rule, share, decided, parts, way, at)
            if isinstance(acted, Held):
                return acted
            if way.descent.left < left:
                effects += acted
                led_to |= way.led_to
        if not effects:
            return await self._why_nothing(connection, share, decided, way)
        await self._record(connection, way)
        await self._ledger.write_heads(connection, share.entity, led_to, decided.read, (), way.batch)
        return effects + way.descent.effects_of_part()

    async def _why_nothing(
        self, connection: Connection, share: Share, decided: _Decided, way: _Way
    ) -> list[Effect] | Rejected:
        """Nothing, or Rejected for a dependent whose rows a part has acted on, and that are there all the same."""
        for rule in self._rules[share.entity]:
            groups = acting(trace(rule.policy, decided.settled, decided.arrivals.get(rule.id, {})))
            effects = self._effects_of(rule)
            if rule.rows is None and groups and effects.in_parts and share.left_out(rule.id) is None:
                hashes = way.hashes_of(rule, groups)
                found = await effects.count(connection, groups, hashes or {}, 1, split=hashes is not None)
                if any(found):
                    return Rejected(rule.id, Reason.STORE_REJECTED, RowsStay(rule.id).message)
        return []

    async def _decide(self, connection: Connection, share: Share, begun: Heads | None = None) -> _Decided | Rejected:
        """What the events of a share come to. `begun` are the heads of their keys, if they were read already."""
        rules = self._rules[share.entity]
        own = dict.fromkeys([change[2] for change in share.changes]).keys()
        read, keys = await self._read(connection, share, rules, own, begun)
        if share.only and share.entity in self._only_go:
            await self._ledger.read_removed(connection, own - read.heads.keys(), read)
        settled = settle(share.changes, read.heads, done=aside(share, read.heads), keep_alive=rules[0].keeps_alive)
        asked = keys_in_question(share, settled)
        pending = await self._ledger.read_pending(connection, asked, read.hashes) if asked else {}
        admitted = admit(share, settled, policies(rules), pending)
        if isinstance(admitted, Rejected):
            return admitted
        ids = [rule.id for rule in rules]
        redriven = admitted.keys
        known = [key for key in read.heads if key in settled.updates or key in redriven]
        arrivals = await self._ledger.read_arrivals(connection, known, read.hashes, ids) if known else {}
        return _Decided(read, own, keys, settled, admitted, arrivals)

    async def _enforce(
        self, connection: Connection, share: Share, parts: Parts, way: _Way, at: _Place
    ) -> list[Effect] | Rejected | Held:
        rules, batch = self._rules[share.entity], way.batch
        begun: Heads | None = None
        keys = None if parts or way.is_part or self._constraints_at_once else self._straight_keys(share)
        if keys is not None:
            begun = Heads()
            await self._ledger.read_heads(connection, share.entity, rules[0].spec, begun, own=keys)
            if not begun.heads:
                return await self._go_straight(connection, share, keys, begun, batch, at)
        decided = await self._decide(connection, share, begun)
        if isinstance(decided, Rejected):
            return decided
        read, settled, admitted, arrivals = decided.read, decided.settled, decided.admitted, decided.arrivals
        effects: list[Effect] = []
        for rule in rules:
            acted = await self._act(connection, rule, share, decided, parts, way, at)
            if isinstance(acted, Held):
                return acted
            effects += acted
        effects += way.descent.effects(rules, share.changes, settled.outcomes, share.exceptions, admitted.only)
        await self._record(connection, way)
        updates = heads_to_write(decided.keys, decided.own, read.heads, settled.updates)
        await self._ledger.write_heads(connection, share.entity, updates, read, effects, batch)
        reached = {
            read.hashes[key]: seen
            for of_key in arrivals.values()
            for key, since in of_key.items()
            if key in settled.updates and (seen := settled.updates[key].seen) is not None and min(since) <= seen
        }
        if reached:
            await self._ledger.clear_arrivals(connection, reached, [rule.id for rule in rules])
        await self._ledger.add_done(connection, made_up_for(admitted, effects), read.hashes)
        await self._ledger.write_repairs(
            connection, repaired_by(share.entity, admitted, effects), read.hashes, batch.at_ms
        )
        await self._ledger.clear_exceptions(connection, admitted.over)
        await self._ledger.write_exceptions(connection, admitted.left_out, read.hashes, batch.at_ms)
        if len(share.changes) == len(batch.changes):
            return effects
        return [effect._replace(change=share.indexes[effect.change]) for effect in effects]

    def _straight_keys(self, share: Share) -> Sequence[Key] | None:
        keys = straight_keys(share) if share.entity in self._straight else None
        # Not before it is known that no rule is left out: one that does not fit has no effects to look at.
        if keys is None or not all(self._effects_of(rule).removes_plainly for rule in self._rules[share.entity]):
            return None
        return keys

    async def _go_straight(
        self, connection: Connection, share: Share, keys: Sequence[Key], read: Heads, batch: Batch, at: _Place
    ) -> list[Effect]:
        """What the long way comes to for `straight_keys` without heads: see `straight`."""
        new_tuple, applied = tuple.__new__, Outcome.APPLIED
        effects: list[Effect] = []
        for rule in self._rules[share.entity]:
            at.dependent = at.below = rule.id
            effects_of = self._effects_of(rule)
            rows_max = self._rows_max if effects_of.in_parts and batch.is_bound else None
            rows = await effects_of.remove(connection, keys, rows_max)
            at.dependent = at.below = None
            id_, action = rule.id, rule.policy.on_delete_action
            effects += [
                new_tuple(Effect, (index, id_, action, applied, count))
                for index, count in zip(share.indexes, rows, strict=True)
            ]
        await self._ledger.write_gone_heads(connection, share, read, effects, batch)
        return effects

    async def _act(
        self,
        connection: Connection,
        rule: StoreRule,
        share: Share,
        decided: _Decided,
        parts: Parts,
        way: _Way,
        at: _Place,
    ) -> list[Effect] | Held:
        settled, admitted = decided.settled, decided.admitted
        arrivals = decided.arrivals.get(rule.id, {})
        if arrivals:
            way.told_apart[rule.id] = decided.read.hashes
        left_out = share.left_out(rule.id)
        groups = trace(rule.policy, settled, arrivals, left_out=left_out)
        groups += retrace(rule.policy, settled, admitted, left_out=left_out)
        done = already(parts, share.changes, rule.id)
        # What has begun is never held: some of its rows are gone.
        approved = share.approved | done.keys() if done else share.approved
        if way.is_part:
            groups, done = acting(groups) if way.batch.spans else changing(groups), {}
            way.led_to = heads_of_part(groups, decided.read.heads)
        rows: list[int] = []
        if groups:
            at.dependent = rule.id
            max_rows = rule.dependent.max_rows
            if max_rows is not None:
                hashes = way.told_apart.get(rule.id, {})
                rows = await self._effects_of(rule).count(
                    connection, groups, hashes, max_rows + 1, split=bool(arrivals)
                )
                if over := held(rule.id, max_rows, groups, rows, approved):
                    return over
            firsts = dict(admitted.starts.get(rule.id, ()))
            branch = way.descent.branch(rule, groups, settled, share.changes, left_out, firsts, approved)
            rows = await self._descend(connection, branch, way, at)
            if self._constraints_at_once:
                await connection.execute("set constraints all immediate")
                await connection.execute("set constraints all deferred")
            at.dependent = at.below = None
            # Again: rows may have come between the count and the act.
            if over := held(rule.id, max_rows, groups, rows, approved):
                return over
            if over := way.descent.held(rule, approved):
                return over
        return share_credit(rule.policy, share, settled, admitted, groups, rows, done)

    async def _descend(self, connection: Connection, asks: Branch, way: _Way, at: _Place) -> list[int]:
        """Carry out the groups of a dependent, and all that depends on its rows."""
        answer: object = None
        while True:
            try:
                ask = asks.send(answer)
            except StopIteration as ended:
                rows: list[int] = ended.value
                return rows
            if not isinstance(ask, Record):
                at.below = ask.rule.id
            answer = await self._answer(connection, ask, way)

    async def _answer(self, connection: Connection, ask: Ask, way: _Way) -> object:
        match ask:
            case Choose(rule, groups, limit):
                chooser = self._chooser_of(rule)
                hashes = way.hashes_of(rule, groups)
                return await chooser.choose(connection, groups, hashes, limit)
            case Closure(rule, groups, limit):
                return await self._chooser_of(rule).closure(connection, groups, limit)
            case CarryOut(rule, groups, rows_max, part):
                hashes = way.hashes_of(rule, groups)
                return await self._effects_of(rule).execute(
                    connection,
                    groups,
                    hashes or {},
                    way.batch.at_ms,
                    split=hashes is not None,
                    rows_max=rows_max,
                    part=part,
                )
            case RemoveChosen(rule, groups, chosen):
                return await self._chooser_of(rule).remove(connection, groups, chosen, way.batch.at_ms)
            case Newest(rule, keys):
                hashed = {key: key_hash(rule.entity, key) for key in keys}
                arrivals = await self._ledger.read_arrivals(connection, keys, hashed, [rule.id])
                return {key: max(since) for key, since in arrivals.get(rule.id, {}).items()}
            case Record(rows, happened, went):
                if went is not None:
                    await self._ledger.write_went(connection, rows.entity, went, way.batch)
                    return None
                way.happened.setdefault(rows, []).extend(happened)
                if sum(map(len, way.happened.values())) >= RECORDED_MAX:
                    await self._record(connection, way)
                return None
            case _:
                assert_never(ask)

    async def _record(self, connection: Connection, way: _Way) -> None:
        """Write what happened to rows that are parents without events of their own."""
        for rows, happened in way.happened.items():
            if rows.entity in self._only_go:
                await self._ledger.write_gone(connection, rows.entity, happened, way.batch)
                continue
            read = Heads()
            await self._ledger.read_heads(connection, rows.entity, rows.spec, read, own=keys_of(happened))
            found = numbered(happened, read.heads)
            await self._ledger.write_heads(connection, rows.entity, found.updates, read, found.effects, way.batch)
            if rows.published:
                await self._ledger.write_outbox(connection, outgoing(rows, happened, found.versions))
        way.happened.clear()

    async def _read(
        self, connection: Connection, share: Share, rules: Sequence[StoreRule], own: Set[Key], begun: Heads | None
    ) -> tuple[Heads, set[Key]]:
        """Lock and read the heads of every key that the fold may reach; also which keys those are."""
        read, keys = begun or Heads(), set[Key]()
        spec, chosen = rules[0].spec, policies(rules)
        led_to: set[Key] = set()
        missing = lookups(share.changes, keys, {}, chosen)
        while missing:
            # The first time, what events are about is missing, and seldom more.
            all_own = not keys and len(missing) == len(own)
            mine: Set[Key] = own if all_own else missing & own
            reached: Collection[Key] = () if all_own else missing - mine
            if begun is None or keys:
                await self._ledger.read_heads(connection, share.entity, spec, read, own=mine, reached=reached)
            keys |= missing
            if not read.heads:
                break  # nothing leads on
            if read.older:
                led_to = await self._read_older(connection, share, read, keys, led_to)
            missing = lookups(share.changes, keys, {k: h.fates for k, h in read.heads.items()}, chosen)
        return read, keys

    async def _read_older(
        self, connection: Connection, share: Share, read: Heads, keys: set[Key], done: set[Key]
    ) -> set[Key]:
        """Read the older fates that rows may meet on their way: those later than the first event of the batch."""
        first = min(
            (_earliest(change.version, read, change.key) for change in share.changes if _acts(change.op)), default=None
        )
        if first is None:
            return done
        wanted = {
            key
            for key in read.older
            if key not in done and read.heads[key].fates and read.heads[key].fates[-1].version > first
        }
        if wanted:
            await self._ledger.read_older_fates(connection, self._rules[share.entity][0].spec, wanted, first, read)
        return done | wanted

    # --- what went wrong ----------------------------------------------------------------------------------------

    async def _fault(self, exc: BaseException, at: _Place, batch: Batch) -> ApplyResult:
        fault = fault_of(exc, closed=_is_closed(at.connection))
        if fault.kind is Kind.SERVER:
            await self._sessions.expire()
        if at.committing:
            if fault.kind is Kind.EVENT:
                # A deferred constraint: it tells at the end, and not for whom. The next attempt asks after each one.
                self._constraints_at_once = True
                return Retry(f"{fault.message} Constraints will be checked one dependent at a time.")
            return Retry(fault.message, unreachable=fault.kind is Kind.SERVER)
        return of_branch(result_of(fault, at.dependent), at.below)

    def _descent(self, batch: Batch, begun: Parts, *, part: bool) -> Descent:
        return Descent(
            self._rules,
            exact=True,
            only_go=self._only_go,
            rows_max=self._rows_max if batch.is_bound else None,
            part=part,
            begun=begun,
            divides=lambda rule: self._effects_of(rule).in_parts,
        )

    @property
    def _all_rules(self) -> list[StoreRule]:
        return [rule for of_entity in self._rules.values() for rule in of_entity]

    @property
    def _schema(self) -> str:
        return quoted(self._ledger.schema)

    async def _resolve(self, connection: Connection) -> list[Finding]:
        resolved = await resolve(connection, self._all_rules, self._ledger.schema)
        at = self._ledger.arrivals_table
        keepers = {
            id: Keeper(table, self._ledger.undo_table)
            for id, table in resolved.tables.items()
            if table.rule.dependent.undo_ms is not None
        }
        self._effects = {id: Effects(table, at, keepers.get(id)) for id, table in resolved.tables.items()}
        self._choosers = {
            id: Chooser(
                table, at, keepers.get(id), tangled=(table.schema, table.name) in self._below(table, resolved.tables)
            )
            for id, table in resolved.tables.items()
            if table.rule.rows
        }
        return resolved.findings

    def _below(self, table: Table, tables: Mapping[str, Table]) -> set[tuple[str, str]]:
        """The names of all tables that depend on the rows of a dependent, however far down."""
        found: dict[str, tuple[str, str]] = {}
        waiting = [table.rule]
        while waiting:
            rows = waiting.pop().rows
            for rule in () if rows is None else self._rules.get(rows.entity, ()):
                if rule.id not in found and rule.id in tables:
                    found[rule.id] = tables[rule.id].schema, tables[rule.id].name
                    waiting.append(rule)
        return set(found.values())

    def _effects_of(self, rule: StoreRule) -> Effects:
        found = (self._effects or {}).get(rule.id)
        if found is None:
            raise _Unresolved(rule.id)
        return found

    def _chooser_of(self, rule: StoreRule) -> Chooser:
        found = self._choosers.get(rule.id)
        if found is None:
            raise _Unresolved(rule.id)
        return found


@dataclass(frozen=True, slots=True)
class _Decided:
    """What the events of a share come to: the heads that were read, the keys of the events and all that were read, what
    counts, what may still happen of what came back from dead letters, and what arrived, by dependent and key."""

    read: Heads
    own: Set[Key]
    keys: set[Key]
    settled: Settled
    admitted: Admitted
    arrivals: Mapping[str, Mapping[Key, Collection[Version]]]


@dataclass(slots=True)
class _Way:
    """The way down from the dependents of one entity, and what is to be recorded of it."""

    descent: Descent
    batch: Batch
    told_apart: dict[str, Mapping[Key, bytes]] = field(default_factory=dict)
    """Dependents of the event's own entity where rows have arrived, with the hashes of the keys."""
    happened: dict[Rows, list[Happened]] = field(default_factory=dict)
    is_part: bool = False
    led_to: Mapping[Key, HeadUpdate] = field(default_factory=dict)
    """In a part, the heads that the dependent's rows need where they come to."""

    def hashes_of(self, rule: StoreRule, groups: Sequence[Group]) -> Mapping[Key, bytes] | None:
        """The hashes of keys where arrivals have to be told from other rows; None where there are none."""
        if rule.id in self.told_apart:
            known = self.told_apart[rule.id]
            return {group.key: known.get(group.key) or key_hash(rule.entity, group.key) for group in groups}
        if any(group.since is not None for group in groups):
            return {group.key: key_hash(rule.entity, group.key) for group in groups}
        return None


class _SweepWay:
    """The way down from rows that a sweep finds; see `sweep.Way`."""

    def __init__(self, store: PostgresStore, connection: Connection, batch: Batch, at: _Place, extent: Extent) -> None:
        self.extent = extent
        self._store = store
        self._connection = connection
        self._at = at
        self._batch = batch
        self._way = _Way(self._descent(), batch)

    def begin(self) -> Descent:
        self._way.descent = self._descent()
        return self._way.descent

    def _descent(self) -> Descent:
        store = self._store
        return from_late_rows(
            store._rules,
            self.extent,
            store._rows_max,
            exact=True,
            only_go=store._only_go,
            divides=lambda rule: store._effects_of(rule).in_parts,
        )

    async def go(self, asks: Branch) -> list[int]:
        return await self._store._descend(self._connection, asks, self._way, self._at)

    async def end(self) -> None:
        await self._store._record(self._connection, self._way)


def _only_go(rules: Mapping[str, Sequence[StoreRule]]) -> frozenset[str]:
    """Entities without events of their own whose keys only ever go: none holds its parent's key, which may change, and
    nobody elsewhere is told of them by version."""
    made_of: dict[str, list[Rows]] = {}
    for rule in (rule for of_entity in rules.values() for rule in of_entity):
        if rule.rows is not None:
            made_of.setdefault(rule.rows.entity, []).append(rule.rows)
    return frozenset(
        entity
        for entity, found in made_of.items()
        if all(rows.recorded and not rows.published and not rows.shared for rows in found)
    )


def _is_closed(connection: Connection | None) -> bool:
    """Also of a connection that went back to the pool, which then says nothing of itself any more."""
    try:
        return connection is None or connection.is_closed()
    except asyncpg.InterfaceError:
        return True


class _Place:
    """Where in a transaction we are, to say whose fault a fault is."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dependent: str | None = None
        self.below: str | None = None
        """The dependent itself, where it is further down the graph."""
        self.committing = False

    def on_dependent(self, dependent: str | None) -> None:
        self.dependent, self.below = dependent, None


class _Unresolved(Exception):
    """A rule did not fit the store when it was last looked up."""

    def __init__(self, dependent: str) -> None:
        super().__init__(dependent)
        self.dependent = dependent
        self.message = f"The rule {dependent} does not fit the store: `integrity doctor` says why."


def _acts(op: Op) -> bool:
    return op in (Op.DELETED, Op.MOVED, Op.GONE, Op.MISSING)


def _earliest(version: Version | None, read: Heads, key: Key) -> Version:
    """The version of a change, or one that is not later: a null record acts at once after what was seen of its key."""
    if version is not None:
        return version
    head = read.heads.get(key)
    return head.seen if head is not None and head.seen is not None else Version(0, ())
