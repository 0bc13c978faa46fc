"""A copy of a parent in PostgreSQL: progress, versions and rows in one transaction a batch.

What the ledger knows of a key is read without a lock, and written, before the row is, only if it is still that: of two
processes with one key the second waits for the first, and then tries again. Rows are written by one statement, deleted
or marked as a dependent's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from integrity.core.batch import Batch, Share, TopicPartition, shares, standing
from integrity.core.copies import Known, Plan, Put, plan
from integrity.core.keys import Key, KeyRefused, canonical, key_hasher
from integrity.core.outcome import Applied, ApplyResult, Broken, Diverged, Effect, Rejected, Retry
from integrity.core.truncate import KnownKeys
from integrity.errors import Finding, LedgerError, Reason, UnreachableError
from integrity.ports import Deadline
from integrity.stores.postgres.catalog import ledger_findings
from integrity.stores.postgres.cells import ToText
from integrity.stores.postgres.copy_catalog import CopyTable, resolve_copy
from integrity.stores.postgres.effects import Effects
from integrity.stores.postgres.faults import DRIVER_ERRORS, Fault, Kind, fault_of, result_of
from integrity.stores.postgres.ledger import Collision, Connection, Ledger, Progress, ddl, offsets
from integrity.stores.postgres.names import quoted
from integrity.stores.postgres.session import Sessions
from integrity.stores.postgres.types import Unfit
from integrity.stores.rule import CopyRule

_LOCK_TIMEOUT_S: Final = 3.0


class PostgresCopy:
    """A Store that holds one copy. `lane` names the consumer group; its progress and versions are its own."""

    exclusive = False

    def __init__(
        self,
        name: str,
        url: str,
        rule: CopyRule,
        *,
        lane: str,
        schema: str = "integrity",
        pool_size: int = 2,
        timeout_s: float = 30.0,
        lock_timeout_s: float = _LOCK_TIMEOUT_S,
    ) -> None:
        self.name = name
        self._rule = rule
        self._ledger = Ledger(schema, lane)
        self._sessions = Sessions(name, url, pool_size=pool_size, timeout_s=timeout_s, lock_timeout_s=lock_timeout_s)
        self._hash_of = key_hasher(lane)  # which is of one entity
        self._table: CopyTable | None = None
        self._effects: Effects | None = None

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
            raise self._ledger_fault(fault_of(exc), "made") from exc

    async def progress(self, partitions: Sequence[TopicPartition], deadline: Deadline) -> Mapping[TopicPartition, int]:
        try:
            async with self._sessions.connection(deadline) as connection:
                return offsets(await self._ledger.progress(connection, partitions, lock=False))
        except DRIVER_ERRORS as exc:
            raise self._ledger_fault(fault_of(exc), "read") from exc

    async def notes(self, deadline: Deadline) -> Sequence[bytes]:
        """See `Truncatable.notes`."""
        try:
            async with self._sessions.connection(deadline) as connection:
                return await self._ledger.notes(connection)
        except DRIVER_ERRORS as exc:
            raise self._ledger_fault(fault_of(exc), "read") from exc

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        try:
            async with self._sessions.connection(deadline) as connection:
                return await self._ledger.copied_keys(connection, self._rule.spec, after, keys_max)
        except DRIVER_ERRORS as exc:
            raise self._ledger_fault(fault_of(exc), "read") from exc

    async def known_of(self, key: Key, deadline: Deadline) -> Known | None:
        """See `InspectableCopy.known_of`."""
        try:
            async with self._sessions.connection(deadline) as connection:
                return (await self._ledger.known(connection, {self._hash_of(canonical(key)): key})).get(key)
        except DRIVER_ERRORS as exc:
            raise self._ledger_fault(fault_of(exc), "read") from exc

    async def close(self) -> None:
        await self._sessions.close()

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        at = _Place(None)
        try:
            async with self._sessions.connection(deadline) as connection:
                return await self._transaction(connection, batch, at)
        except Collision:
            return Retry("Another process wrote of the same key at the same time.")
        except _Refused as exc:
            return exc.result
        except Unfit as exc:
            return self._rejected(Reason.VALUE_REJECTED, f"A value does not fit its column: {exc}.")
        except DRIVER_ERRORS as exc:
            fault = fault_of(exc)
            if fault.kind is Kind.SERVER:
                await self._sessions.expire()
            result = result_of(fault, at.dependent)
            # One copy is all that this lane does: nothing else goes on while it is mended, so it waits.
            return Broken(None, result.reason, result.message) if isinstance(result, Broken) else result

    # --- one transaction ----------------------------------------------------------------------------------------

    async def _transaction(self, connection: Connection, batch: Batch, at: _Place) -> ApplyResult:
        if self._table is None:
            await self._resolve(connection)
        if self._table is None or self._effects is None:
            message = f"The copy {self._rule.id} does not fit the store: its rule, or the table, has to be mended."
            return Broken(None, Reason.SCHEMA_MISMATCH, message)
        await connection.execute("begin isolation level read committed")
        found = await self._ledger.progress(connection, batch.spans.keys(), lock=True)
        counts = standing(batch, offsets(found))
        if isinstance(counts, str):
            await connection.execute("rollback")
            return Diverged(counts)
        effects: list[Effect] = []
        for share in shares(batch, counts, [self._rule.entity]):
            done = await self._copy(connection, share, batch.at_ms, self._table, self._effects, at)
            if isinstance(done, Rejected):
                await connection.execute("rollback")
                return done
            effects += done
        reached = {at: Progress(max(span.next, counts.get(at, 0))) for at, span in batch.spans.items()}
        await self._ledger.write_notes(connection, batch.notes)
        await self._ledger.write_progress(connection, reached, found.keys(), batch.at_ms)
        at.dependent = self._rule.id  # a deferred constraint tells at the end
        await connection.execute("commit")
        return Applied(effects)

    async def _copy(
        self, connection: Connection, share: Share, at_ms: int, table: CopyTable, gone: Effects, at: _Place
    ) -> list[Effect] | Rejected:
        hashes = {self._hash_of(canonical(key)): key for key in {change.key for change in share.changes}}
        known = await self._ledger.known(connection, hashes)
        found = plan(self._rule.copy, share.changes, known, done=share.done, left_out=share.exceptions)
        if isinstance(found, Rejected):
            return found
        await self._ledger.write_known(connection, hashes, known, found.known)
        at.dependent = self._rule.id
        if found.removed:
            await gone.execute(connection, found.removed, {}, at_ms, split=False)
        await self._put(connection, table, found)
        if found.marked:
            await gone.execute(connection, found.marked, {}, at_ms, split=False)
        at.dependent = None
        return [effect._replace(change=share.indexes[effect.change]) for effect in found.effects]

    async def _put(self, connection: Connection, table: CopyTable, found: Plan) -> None:
        by_kept: dict[frozenset[str], list[Put]] = {}
        for put in found.puts:
            by_kept.setdefault(put.kept, []).append(put)
        for kept, puts in by_kept.items():
            values = [value for value in table.values if value.field not in kept]
            columns: list[list[Any]] = [
                [codec.assign(put.key[position]) for put in puts] for position, codec in enumerate(table.rows.codecs)
            ]
            for value in values:
                columns.append([self._text(value.field, value.to_text, put) for put in puts])
            status = await connection.execute(self._sql(table, [v.column for v in values], bool(kept)), *columns)
            if kept and int(status.rpartition(" ")[2]) != len(puts):
                unsent = f"The source did not send {', '.join(sorted(kept))} (unchanged TOAST)"
                message = f"{unsent}, and the row that had it is not there any more."
                raise _Refused(self._rejected(Reason.VALUE_REJECTED, message))

    def _text(self, field: str, to_text: ToText, put: Put) -> str | None:
        cell = put.cells[field]
        if cell.value is None:
            return None
        try:
            return to_text(cell)
        except KeyRefused as exc:
            raise _Refused(self._rejected(exc.reason, f"The field {field} of the row: {exc.message}.")) from exc
        except Unfit as exc:
            message = f"The field {field} of the row does not fit its column: {exc}."
            raise _Refused(self._rejected(Reason.VALUE_REJECTED, message)) from exc

    def _sql(self, table: CopyTable, values: Sequence[str], updates: bool) -> str:
        """The statement that writes rows; `updates` only those that are there."""
        rows = table.rows
        keys = self._rule.copy.rows.columns
        type_of = {value.column: value.type for value in table.values}
        marks = [setting.column for setting in rows.settings]
        arrays = [codec.written(f"${place}") for place, codec in enumerate(rows.codecs, 1)]
        arrays += [f"${place}::text[]" for place in range(len(keys) + 1, len(keys) + len(values) + 1)]
        names = [f"k{i}" for i in range(len(keys))] + [f"v{i}" for i in range(len(values))]
        given = f"unnest({', '.join(arrays)}) u({', '.join(names)})"
        read = [f"u.v{i}::{type_of[column]}" for i, column in enumerate(values)]
        target = quoted(rows.schema, rows.name)
        if updates:
            sets = [f"{quoted(c)} = {text}" for c, text in zip(values, read, strict=True)]
            sets += [f"{quoted(column)} = null" for column in marks]
            fits = " and ".join(f"t.{quoted(column)} = u.k{i}" for i, column in enumerate(keys))
            if not sets:
                return f"select from {target} t, {given} where {fits}"
            return f"update {target} t set {', '.join(sets)} from {given} where {fits}"
        into = [quoted(column) for column in (*keys, *values, *marks)]
        chosen = [*(f"u.k{i}" for i in range(len(keys))), *read, *("null" for _ in marks)]
        conflict = ", ".join(quoted(column) for column in keys)
        changed = [f"{quoted(column)} = excluded.{quoted(column)}" for column in (*values, *marks)]
        act = f"do update set {', '.join(changed)}" if changed else "do nothing"
        return (
            f"insert into {target} as t ({', '.join(into)}) select {', '.join(chosen)} from {given}"
            f" on conflict ({conflict}) {act}"
        )

    # --- what went wrong ----------------------------------------------------------------------------------------

    def _rejected(self, reason: Reason, message: str) -> Rejected:
        return Rejected(self._rule.id, reason, message)

    def _ledger_fault(self, fault: Fault, what: str) -> LedgerError | UnreachableError:
        if fault.kind is Kind.RULE:
            return LedgerError(
                f"Store {self.name}: the ledger can't be {what}. {fault.message}", hint="Run `integrity migrate`."
            )
        return self._sessions.unreachable(fault)

    async def _resolve(self, connection: Connection) -> list[Finding]:
        self._table, findings = await resolve_copy(connection, self._rule, self._ledger.schema)
        self._effects = None
        if self._table is not None:
            self._effects = Effects(self._table.rows, self._ledger.arrivals_table)
        return findings


class _Place:
    """Whose statement runs: the copy's, or the ledger's (None)."""

    def __init__(self, dependent: str | None) -> None:
        self.dependent = dependent


class _Refused(Exception):
    """A row cannot be written; caught in `apply`."""

    def __init__(self, result: Rejected) -> None:
        super().__init__(result.message)
        self.result = result
