"""A copy of a parent in MongoDB: progress, versions and documents in one transaction a batch.

What is known of each key of the batch is read and written, so that of two processes with one key the second gets a
write conflict and tries again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.batch import Batch, Share, shares, standing
from integrity.core.copies import Known, Put, marks_of, plan
from integrity.core.keys import Key, KeyRefused, KeyType
from integrity.core.outcome import Applied, ApplyResult, Broken, Diverged, Effect, Rejected
from integrity.core.truncate import KnownKeys
from integrity.errors import Finding, Reason
from integrity.ports import Deadline
from integrity.stores.mongo import setup
from integrity.stores.mongo.cells import to_value
from integrity.stores.mongo.effects import Enforcer
from integrity.stores.mongo.ledger import Document, Ledger, Progress, hashes_of, offsets
from integrity.stores.mongo.query import EXACT
from integrity.stores.mongo.store import MongoStore, commit
from integrity.stores.mongo.values import Unholdable, to_bson
from integrity.stores.mongo.verdict import CAUSES, verdict_of
from integrity.stores.rule import CopyRule


class MongoCopy(MongoStore):
    """A Store that holds one copy. `lane` names the consumer group; its progress and versions are its own."""

    def __init__(
        self,
        name: str,
        url: str,
        rule: CopyRule,
        *,
        lane: str,
        schema: str = "integrity",
        pool_size: int = 4,
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(
            name, url, {rule.entity: (rule.rows,)}, lane=lane, schema=schema, pool_size=pool_size, timeout_s=timeout_s
        )
        self._copy = rule

    async def check(self, deadline: Deadline) -> Sequence[Finding]:
        findings = await super().check(deadline)
        with setup.reach(self._at, self._budget_s(deadline)):
            return [*findings, *await _unique(self._ledger(), self._copy)]

    async def known_of(self, key: Key, deadline: Deadline) -> Known | None:
        """See `InspectableCopy.known_of`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            hashes = {of: key for key, of in hashes_of(self._copy.entity, [key]).items()}
            return (await self._ledger().known(hashes, None)).get(key)

    async def known_keys(self, entity: str, after: bytes, keys_max: int, deadline: Deadline) -> KnownKeys:
        """See `Truncatable.known_keys`."""
        with setup.reach(self._at, self._budget_s(deadline)):
            return await self._ledger().copied_keys(entity, self._copy.spec, after, keys_max)

    async def apply(self, batch: Batch, deadline: Deadline) -> ApplyResult:
        attempt = _Attempt(self._ledger(), self._copy, batch)
        try:
            async with self._transaction(deadline) as session:
                result = await attempt.run(session)
                if isinstance(result, Applied):
                    await commit(session, deadline)
                return result
        except CAUSES as exc:
            verdict = verdict_of(exc, attempt.dependent)
            # One copy is all that this lane does: nothing else goes on while it is mended, so it waits.
            return Broken(None, verdict.reason, verdict.message) if isinstance(verdict, Broken) else verdict


class _Attempt:
    """One batch in one transaction. `dependent` is the copy while its documents are written, else None."""

    def __init__(self, ledger: Ledger, rule: CopyRule, batch: Batch) -> None:
        self.dependent: str | None = None
        self._ledger = ledger
        self._rule = rule
        self._batch = batch
        self._collection = ledger.database[rule.copy.rows.target.name]

    async def run(self, session: AsyncClientSession) -> Applied | Diverged | Rejected:
        batch, ledger = self._batch, self._ledger
        counts = standing(batch, offsets(await ledger.progress(batch.spans, session)))
        if isinstance(counts, str):
            return Diverged(counts)
        reached = {at: Progress(max(span.next, counts.get(at, 0))) for at, span in batch.spans.items()}
        await ledger.write_progress(reached, batch.at_ms, session)
        effects: list[Effect] = []
        for share in shares(batch, counts, [self._rule.entity]):
            done = await self._copy(share, session)
            if isinstance(done, Rejected):
                return done
            effects += done
        await ledger.write_notes(batch.notes, session)
        return Applied(effects)

    async def _copy(self, share: Share, session: AsyncClientSession) -> list[Effect] | Rejected:
        rule = self._rule
        hashes = {of: key for key, of in hashes_of(rule.entity, {change.key for change in share.changes}).items()}
        known = await self._ledger.known(hashes, session)
        found = plan(rule.copy, share.changes, known, done=share.done, left_out=share.exceptions)
        if isinstance(found, Rejected):
            return found
        await self._ledger.write_known(hashes, found.known, session)
        self.dependent = rule.id
        gone = Enforcer(self._ledger, rule.rows, session, self._batch.at_ms)
        if found.removed:
            await gone.carry_out(found.removed, {})
        refused = await self._put(found.puts, session)
        if found.marked and refused is None:
            await gone.carry_out(found.marked, {})
        self.dependent = None
        return refused or [effect._replace(change=share.indexes[effect.change]) for effect in found.effects]

    async def _put(self, puts: Sequence[Put], session: AsyncClientSession) -> Rejected | None:
        kept = [put for put in puts if put.kept]
        for chosen, upsert in (([put for put in puts if not put.kept], True), (kept, False)):
            if not chosen:
                continue
            writes: list[UpdateOne] = []
            for put in chosen:
                written = self._write(put, upsert=upsert)
                if isinstance(written, Rejected):
                    return written
                writes.append(written)
            result = await self._collection.bulk_write(writes, ordered=False, session=session)
            if not upsert and result.matched_count != len(chosen):
                unsent = f"The source did not send {', '.join(sorted(chosen[0].kept))} (unchanged TOAST)"
                return self._rejected(
                    Reason.VALUE_REJECTED, f"{unsent}, and the document that had it is not there any more."
                )
        return None

    def _write(self, put: Put, *, upsert: bool) -> UpdateOne | Rejected:
        copy, kinds = self._rule.copy, self._rule.spec.types
        # A field that is a list equals each of its elements, and is none of ours.
        fits: Document = {
            column: {"$eq": to_bson(kind, part)} | ({} if column == "_id" else {"$not": {"$type": "array"}})
            for column, kind, part in zip(copy.rows.columns, kinds, put.key, strict=True)
        }
        values: Document = dict.fromkeys(marks_of(copy))
        for column, field in copy.values.items():
            if field not in put.kept:
                try:
                    values[column] = to_value(put.cells[field])
                except KeyRefused as exc:
                    return self._rejected(exc.reason, f"The field {field} of the row: {exc.message}.")
                except Unholdable as exc:
                    return self._rejected(Reason.VALUE_REJECTED, f"The field {field} of the row: {exc.message}")
        update: Document = {"$set": values} if values else {"$setOnInsert": {}}
        return UpdateOne(fits, update, upsert=upsert, collation=EXACT)

    def _rejected(self, reason: Reason, message: str) -> Rejected:
        return Rejected(self._rule.id, reason, message)


async def _unique(ledger: Ledger, rule: CopyRule) -> list[Finding]:
    """The key names a document, and nothing else has to."""
    rows = rule.copy.rows
    name, key = rows.target.name, set(rows.columns)
    if key == {"_id"}:
        return []
    found: list[Finding] = []
    place = rows.place
    named = False
    existing = await ledger.database.list_collection_names(filter={"name": name})
    indexes = await (await ledger.database[name].list_indexes()).to_list() if existing else []
    for index in indexes:
        if not index.get("unique"):
            continue
        whole = not index.get("partialFilterExpression") and not index.get("hidden")
        if KeyType.STRING in rule.spec.types and index.get("collation"):
            whole = False
        if index["key"].keys() == key and whole:
            named = True
        elif not key <= index["key"].keys():
            text = (
                f"{rule.id}: the unique index {index['name']} is over what a copy may hold twice for a moment, since"
                " keys of one topic are read in any order: such an event becomes a dead letter."
            )
            hint = f"db.getCollection({json.dumps(name)}).dropIndex({json.dumps(index['name'])})"
            found.append(Finding("copy_unique", text, hint, place.file, place.line, place.column, "warning"))
    if not named:
        text = f"{rule.id}: no unique index of {name} is over exactly {', '.join(rows.columns)}."
        fields = json.dumps(dict.fromkeys(rows.columns, 1))
        hint = f"db.getCollection({json.dumps(name)}).createIndex({fields}, {{unique: true}}), or copy the key to _id"
        found.append(Finding("copy_key_not_unique", text, hint, place.file, place.line, place.column))
    return found
