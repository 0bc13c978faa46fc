"""What documents were before an event changed them: kept in the event's transaction, and put back by hand.

A document that goes is kept byte for byte; of any other the fields that are set, where a field may be missing. The
document is found again by its `_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import bson
from bson import Int64, ObjectId, json_util
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.fold import Group, Marked, Turn
from integrity.core.outcome import Retry
from integrity.core.rules.model import Tombstone
from integrity.core.undo import Choice, Kept, Looked, Portion, Verdict, not_done_yet, runs, undone_names
from integrity.stores.memory import mark_values
from integrity.stores.mongo.ledger import Document, Ledger, array_of, chunks, version_of
from integrity.stores.mongo.values import CODECS, Unholdable, in_the_type_of
from integrity.stores.mongo.verdict import CountMismatch
from integrity.stores.rule import StoreRule

_IDS_MAX: Final = 500
_BYTES_MAX: Final = 4 * 1024 * 1024
"""What is collected before it is written."""
_RAW: Final = CODECS.with_options(document_class=RawBSONDocument)
_READABLE: Final = json_util.JSONOptions(json_mode=json_util.JSONMode.RELAXED)


class Keeper:
    """What one rule keeps of the documents that it changes; nothing where it has no `undo`."""

    def __init__(self, ledger: Ledger, rule: StoreRule, session: AsyncClientSession, at_ms: int) -> None:
        self._ledger = ledger
        self._rule = rule
        self._session = session
        self._at_ms = at_ms
        self._collection = ledger.database[rule.dependent.target.name].with_options(codec_options=_RAW)
        self._waiting: list[Document] = []
        self._bytes = 0

    async def keep(self, group: Group, ids: Sequence[object]) -> None:
        """Keep the documents of a group, none of which is changed yet."""
        if self._rule.dependent.undo_ms is None or not group.trail or not ids:
            return
        goes = group.trail[-1].after is None and not group.trail[-1].marks
        paths = (*self._rule.dependent.columns, *self._marks(group))
        wanted = None if goes else dict.fromkeys(("_id", *(p for p in paths if not p.startswith("_id."))), 1)
        for chunk in chunks(ids, _IDS_MAX):
            found = 0
            async for raw in self._collection.find({"_id": {"$in": chunk}}, wanted, session=self._session):
                found += 1
                whole = bson.decode(raw.raw, codec_options=CODECS)
                for step, turn in enumerate(group.trail):
                    await self._add(turn, whole["_id"], self._images(group, step, turn, raw, whole), len(raw.raw))
            if found != len(chunk):
                raise CountMismatch
        await self.flush()

    async def keep_list(
        self, id_: object, column: str, states: Iterable[tuple[Turn, list[object], list[object]]]
    ) -> None:
        """Keep what a list of a document was before each event. `flush` is for the caller."""
        for turn, before, after in states:
            images = {"before": [_field(column, (before,))], "after": [_field(column, (after,))]}
            await self._add(turn, id_, images, len(bson.encode(images)))

    async def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            waiting, self._waiting, self._bytes = self._waiting, [], 0
            await self._ledger.collection("undo").insert_many(waiting, session=self._session)

    async def _add(self, turn: Turn, id_: object, images: Document, size: int) -> None:
        if self._bytes + size > _BYTES_MAX:
            await self.flush()
        assert self._rule.dependent.undo_ms is not None
        self._bytes += size
        self._waiting.append(
            {
                "_id": ObjectId(),
                "event": turn.event,
                "version": array_of(turn.version),
                "entity": turn.entity,
                "key": turn.key,
                "dependent": self._rule.id,
                "key_hash": turn.key_hash,
                "action": turn.action,
                "id": id_,
                **images,
                "at_ms": Int64(self._at_ms),
                "expires_ms": Int64(self._at_ms + self._rule.dependent.undo_ms),
            }
        )

    def _marks(self, group: Group) -> Mapping[str, object]:
        action = self._rule.dependent.on_delete
        if not isinstance(group.end, Marked) or not isinstance(action, Tombstone):
            return {}
        return mark_values(action, group.end.fate, self._at_ms)

    def _images(self, group: Group, step: int, turn: Turn, raw: RawBSONDocument, whole: Document) -> Document:
        """What the document is before a step, and (where it stays) after it."""
        columns, kinds = self._rule.dependent.columns, self._rule.spec.types
        stored = [_value_at(whole, column) for column in columns]
        if turn.marks:
            marks = self._marks(group)
            return {
                "before": [_field(path, _value_at(whole, path)) for path in marks],
                "after": [_field(path, (value,)) for path, value in marks.items()],
            }
        before = [
            found if step == 0 or not found else (in_the_type_of(found[0], kind, part),)
            for found, kind, part in zip(stored, kinds, turn.before, strict=True)
        ]
        if turn.after is None:
            return {"image": raw if step == 0 else _changed(raw, whole, dict(zip(columns, before, strict=True)))}
        after = [
            (None if part is None or not found else in_the_type_of(found[0], kind, part),)
            for found, kind, part in zip(stored, kinds, turn.after, strict=True)
        ]
        at = [i for i, part in enumerate(turn.after) if part != turn.before[i]]
        return {
            "before": [_field(columns[i], before[i]) for i in at],
            "after": [_field(columns[i], after[i]) for i in at],
        }


def _changed(raw: RawBSONDocument, whole: Document, values: Mapping[str, tuple[object, ...]]) -> Document:
    """The document with other values."""
    if bson.encode(whole, codec_options=CODECS) != raw.raw:
        raise Unholdable("The document holds a value that this program could not write back as it is.")
    changed: Document = bson.decode(raw.raw, codec_options=CODECS)
    for path, value in values.items():
        *way, last = path.split(".")
        inside = changed
        for part in way:
            inside = inside[part]
        if value:
            inside[last] = value[0]
    return changed


def _field(path: str, value: Sequence[object]) -> Document:
    """A field and its value; none where it is missing."""
    return {"path": path, "value": list(value)}


def _value_at(document: Mapping[str, Any], path: str) -> tuple[object, ...]:
    """The value at a dotted path; nothing where there is none."""
    value: Any = document
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ()
        value = value[part]
    return (value,)


# --- putting back -------------------------------------------------------------------------------------------------


class Undoer:
    """One portion. `dependent` is whose operation runs, or ran when an error came; None while the ledger's do."""

    def __init__(self, ledger: Ledger, rules: Mapping[str, Sequence[StoreRule]], portion: Portion) -> None:
        self.dependent: str | None = None
        self._ledger = ledger
        self._targets = {rule.id: rule.dependent.target.name for of_entity in rules.values() for rule in of_entity}
        self._page = portion
        self._undo = ledger.collection("undo").with_options(codec_options=_RAW)

    async def look(self) -> Looked | Retry:
        """What would come of the portion. Changes nothing."""
        found, before = await self._read(None)
        if unfinished := await self._unfinished(found, None):
            return unfinished
        follows = await self._follows(found)
        verdicts: dict[object, tuple[Verdict, str]] = {}
        for run in _runs(each for each in found if each["_id"] not in follows):
            verdicts |= await self._of_run(run, None)
        return _looked(found, verdicts, before)

    async def put_back(self, session: AsyncClientSession) -> Looked | Retry:
        """Everything but the commit."""
        found, before = await self._read(session)
        if unfinished := await self._unfinished(found, session):
            return unfinished
        # Whoever reads these heads to decide about their rows collides with this.
        heads = list({bytes(each["key_hash"]) for each in found})
        await self._ledger.collection("keys").update_many(
            {"_id": {"$in": heads}}, {"$inc": {"writes": 1}}, session=session
        )
        verdicts: dict[object, tuple[Verdict, str]] = {}
        for run in _runs(found):
            verdicts |= await self._of_run(run, session)
        self.dependent = None
        done = [each for each in found if verdicts[each["_id"]][0] is Verdict.PUT_BACK]
        await self._undo.delete_many({"_id": {"$in": [each["_id"] for each in done]}}, session=session)
        await self._note(done, session)
        return _looked(found, verdicts, before)

    async def _read(self, session: AsyncClientSession | None) -> tuple[list[Any], str | None]:
        portion = self._page
        conditions: list[Document] = [self._chosen()]
        if portion.before is not None:
            conditions.append({"_id": {"$lt": ObjectId(str(portion.before))}})
        cursor = self._undo.find({"$and": conditions}, session=session).sort("_id", -1).limit(portion.rows_max + 1)
        found = await cursor.to_list()
        rows = found[: portion.rows_max]
        return rows, str(rows[-1]["_id"]) if len(found) > portion.rows_max else None

    async def _unfinished(self, found: Sequence[Any], session: AsyncClientSession | None) -> Retry | None:
        events = {each["event"] for each in found}
        condition = {"parts.event": {"$in": list(events)}}
        progress = await self._ledger.collection("progress").find_one(condition, {"parts.event": 1}, session=session)
        named = () if progress is None else (part["event"] for part in progress["parts"])
        return next((not_done_yet(event) for event in named if event in events), None)

    def _chosen(self) -> Document:
        choice: Choice = self._page.choice
        conditions: list[Document] = [{"expires_ms": {"$gt": self._page.at_ms}}]
        if choice.event is not None:
            conditions.append({"event": choice.event})
        if choice.since_ms is not None:
            conditions.append({"at_ms": {"$gte": choice.since_ms}})
        if choice.dependents:
            conditions.append({"dependent": {"$in": sorted(choice.dependents)}})
        return {"$and": conditions}

    async def _follows(self, found: Sequence[Any]) -> set[object]:
        """Those of whose document a newer record is chosen as well."""
        newest: dict[tuple[str, bytes], ObjectId] = {}
        for dependent in {each["dependent"] for each in found}:
            ids = [each["id"] for each in found if each["dependent"] == dependent]
            condition: Document = {"$and": [self._chosen(), {"dependent": dependent, "id": {"$in": ids}}]}
            async for each in self._undo.find(condition, {"id": 1}).sort("_id", 1):
                newest[dependent, _name(each["id"])] = each["_id"]
        return {each["_id"] for each in found if newest[each["dependent"], _name(each["id"])] > each["_id"]}

    async def _of_run(
        self, run: Sequence[Any], session: AsyncClientSession | None
    ) -> dict[object, tuple[Verdict, str]]:
        """What comes of records of one dependent, all of documents that went or all of changed ones. Acts only within
        a session."""
        dependent = run[0]["dependent"]
        target = self._targets.get(dependent)
        if target is None:
            why = "no rule names this dependent any more"
            return {each["_id"]: (Verdict.REFUSED, why) for each in run}
        self.dependent = dependent
        collection = self._ledger.database[target].with_options(codec_options=_RAW)
        goes = "image" in run[0]
        wanted = {"_id": 1} if goes else None
        there: dict[bytes, Any] = {}
        async for document in collection.find({"_id": {"$in": [each["id"] for each in run]}}, wanted, session=session):
            there[_name(document["_id"])] = document
        verdicts: dict[object, tuple[Verdict, str]] = {}
        updates: list[UpdateOne] = []
        for each in run:
            document = there.get(_name(each["id"]))
            verdict = _verdict(each, document)
            verdicts[each["_id"]] = verdict, ""
            # A default that was there before sets nothing.
            if verdict is Verdict.PUT_BACK and not goes and each["before"]:
                updates.append(_restored(each))
        absent = [each["image"] for each in run if goes and verdicts[each["_id"]][0] is Verdict.PUT_BACK]
        if session is not None and absent:
            await collection.insert_many(absent, session=session)
        if session is not None and updates:
            result = await collection.bulk_write(updates, ordered=True, session=session)
            if result.matched_count != len(updates):
                raise CountMismatch
        return verdicts

    async def _note(self, done: Sequence[Any], session: AsyncClientSession) -> None:
        portion = self._page
        counts: dict[tuple[bytes, str, str], int] = {}
        for each in done:
            direct = bytes(each["key_hash"])
            for name in undone_names(each["entity"], each["key"], direct, each["dependent"], each["event"]):
                counts[name] = counts.get(name, 0) + 1
        writes = [
            UpdateOne(
                {"_id": {"key": key_hash, "dependent": dependent, "event": event, "at_ms": portion.at_ms}},
                {
                    "$inc": {"rows": rows},
                    "$set": {
                        "key_hash": key_hash,
                        "dependent": dependent,
                        "event": event,
                        "at_ms": portion.at_ms,
                        "actor": portion.actor,
                        "note": portion.note,
                    },
                },
                upsert=True,
            )
            for (key_hash, dependent, event), rows in counts.items()
        ]
        if writes:
            await self._ledger.collection("undone").bulk_write(writes, session=session)


async def forget(ledger: Ledger, at_ms: int, rows_max: int) -> int:
    """Remove some of what has expired; how many it were."""
    undo = ledger.collection("undo")
    ids = [each["_id"] async for each in undo.find({"expires_ms": {"$lte": at_ms}}, {"_id": 1}).limit(rows_max)]
    return (await undo.delete_many({"_id": {"$in": ids}})).deleted_count if ids else 0


def _verdict(each: Any, document: Any) -> Verdict:
    if "image" in each:
        return Verdict.PUT_BACK if document is None else Verdict.EXISTS
    if document is None:
        return Verdict.GONE
    holds = all(_name(_value_at(document, field["path"])) == _name(field["value"]) for field in each["after"])
    return Verdict.PUT_BACK if holds else Verdict.CHANGED


def _restored(each: Any) -> UpdateOne:
    """What makes of a changed document what it was."""
    values = {field["path"]: field["value"][0] for field in each["before"] if len(field["value"])}
    missing = {field["path"]: "" for field in each["before"] if not len(field["value"])}
    update: Document = ({"$set": values} if values else {}) | ({"$unset": missing} if missing else {})
    return UpdateOne({"_id": each["id"]}, update)


def _runs(found: Iterable[Any]) -> list[list[Any]]:
    def name(each: Any) -> bytes:
        return _name(each["id"])

    return runs(found, lambda each: (each["dependent"], "image" in each), name, name)


def _name(value: object) -> bytes:
    """A value as something that can be compared to the byte."""
    return bson.encode({"": list(value) if isinstance(value, tuple) else value}, codec_options=CODECS)


def _looked(found: Sequence[Any], verdicts: Mapping[object, tuple[Verdict, str]], before: str | None) -> Looked:
    rows: list[Kept] = []
    for each in found:
        version = version_of(each["version"])
        assert version is not None
        id_ = bson.decode(bson.encode({"_id": each["id"]}, codec_options=CODECS), codec_options=CODECS)
        rows.append(
            Kept(
                each["dependent"],
                each["event"],
                version,
                each["entity"],
                each["key"],
                each["action"],
                json.dumps(json.loads(json_util.dumps(id_, json_options=_READABLE))),
                *verdicts.get(each["_id"], (Verdict.PUT_BACK, "")),
            )
        )
    return Looked(tuple(rows), before)
