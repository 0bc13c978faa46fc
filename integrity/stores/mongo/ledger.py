"""The ledger's collections, and its documents as the core's values and back.

`<schema>.progress`    a document a lane and partition: the next offset to enforce, what parts of its event have done
`<schema>.keys`        a document a known key (its head), `_id` its hash
`<schema>.fates`       a document a deletion or key change, with what it did to each dependent
`<schema>.arrivals`    a document a dependent that came to a key by a key change, until the key's own events follow
`<schema>.exceptions`  a document an effect left out: its `_id` is its dead letter's
`<schema>.sweeps`      a document a lane and sweep: the last key that it has looked at
`<schema>.repairs`     a document a key and dependent whose rows were written late, and treated as a fate said
`<schema>.undo`        a document a document and event that changed it: what it was before, where the rule says undo
`<schema>.undone`      a document a key, dependent and event of which somebody put back what it had changed
`<schema>.outbox`      a document a derived event that waits to be published
`<schema>.copied`      a document a copy and key: the newest version that was done, deletions too
`<schema>.truncates`   a document a lane and truncate that is to be carried out: the event and its record
`<schema>.meta`        the ledger's version, and the probe of `check`

A version is the array [epoch, part, ...]. Every written document is changed for sure (`writes` counts), since MongoDB
sees a conflict only between writes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

from pymongo import InsertOne, UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase

from integrity.core.batch import Batch, NoteWrite, TopicPartition
from integrity.core.change import EARLIEST, Version
from integrity.core.copies import Known
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, KeySpec, canonical, key_hash, parse_canonical
from integrity.core.ledger import Fate, Head, HeadUpdate, LastRecord, Pending
from integrity.core.outbox import Outgoing
from integrity.core.outcome import Effect, Outcome
from integrity.core.parts import Parts
from integrity.core.redrive import LeftOut, MadeUpFor
from integrity.core.sweep import Repaired
from integrity.core.truncate import KnownKeys
from integrity.ports import Waiting

Document = dict[str, Any]
T = TypeVar("T")

LEDGER_VERSION: Final = 1
COLLECTIONS: Final = (
    "progress",
    "keys",
    "fates",
    "arrivals",
    "exceptions",
    "outbox",
    "sweeps",
    "repairs",
    "copied",
    "undo",
    "undone",
    "truncates",
    "meta",
)
INDEXES: Final[tuple[tuple[str, tuple[str, ...], Document | None], ...]] = (
    ("fates", ("key_hash",), None),
    ("fates", ("enforced_at", "key_hash"), None),
    ("fates", ("to",), {"to": {"$gt": ""}}),
    ("arrivals", ("key_hash",), None),
    ("exceptions", ("key_hash",), None),
    ("repairs", ("key_hash",), None),
    ("outbox", ("version",), None),
    ("undo", ("event", "_id"), None),
    ("undo", ("dependent", "id"), None),
    ("undo", ("dependent", "at_ms"), None),
    ("undo", ("expires_ms",), None),
    ("undone", ("key_hash",), None),
)
"""Collection, fields, and of which documents only."""
LEDGER_ID: Final = "ledger"

_DISPLAY_CHARACTERS_MAX: Final = 1024
"""How much of a key is kept to be read by people; the hash is what identifies it."""
_HASH_MAX: Final = bytes(17)
"""After every hash: bytes are compared by their length first."""
_READ_DOCUMENTS: Final = 10_000
_LOOKUP_KEYS_MAX: Final = 10_000
"""Keys in one filter: 16 bytes each, far below the 16 MB of a command."""


class UnreadableLedger(Exception):
    """A key in the ledger is none of the type that the rule gives now."""


class Arrival(NamedTuple):
    """A row of the arrivals: `id` is its own, `document` the `_id` of the dependent document that came."""

    id: object
    dependent: str
    key_hash: bytes
    since: Version
    document: object


class Progress(NamedTuple):
    """The next offset of a partition, and what parts of an event have done already."""

    next: int
    parts: Parts = MappingProxyType({})


def offsets(found: Mapping[TopicPartition, Progress]) -> dict[TopicPartition, int]:
    """The next offset of each partition."""
    return {partition: progress.next for partition, progress in found.items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    """Reads and writes the ledger of one lane inside a transaction."""

    database: AsyncDatabase[Document]
    schema: str
    lane: str

    def collection(self, name: str) -> AsyncCollection[Document]:
        return self.database[f"{self.schema}.{name}"]

    def name_of(self, name: str) -> str:
        return f"{self.schema}.{name}"

    # --- progress ---------------------------------------------------------------------------------------------------

    async def progress(
        self, partitions: Iterable[TopicPartition], session: AsyncClientSession | None = None
    ) -> dict[TopicPartition, Progress]:
        by_id = {self._progress_id(partition): partition for partition in partitions}
        cursor = self.collection("progress").find({"_id": {"$in": list(by_id)}}, session=session)
        return {
            by_id[document["_id"]]: Progress(
                document["next"],
                {
                    of["event"]: {each["dependent"]: each["rows"] for each in of["rows"]}
                    for of in document.get("parts", ())
                },
            )
            async for document in cursor
        }

    async def write_progress(
        self,
        reached: Mapping[TopicPartition, Progress],
        at_ms: int,
        session: AsyncClientSession,
    ) -> None:
        writes: list[InsertOne[Document] | UpdateOne] = [
            UpdateOne(
                {"_id": self._progress_id(partition)},
                {
                    "$set": {
                        "lane": self.lane,
                        "topic": partition.topic,
                        "partition": partition.partition,
                        "next": progress.next,
                        "parts": [
                            {"event": event, "rows": [{"dependent": id_, "rows": rows} for id_, rows in of.items()]}
                            for event, of in progress.parts.items()
                        ],
                        "at": time_of(at_ms),
                    },
                    "$inc": {"writes": 1},
                },
                upsert=True,
            )
            for partition, progress in reached.items()
        ]
        if writes:
            await self.collection("progress").bulk_write(writes, session=session)

    def _progress_id(self, partition: TopicPartition) -> str:
        # No topic has a slash in its name, so that this is unambiguous, read from its end.
        return f"{self.lane}/{partition.topic}/{partition.partition}"

    # --- copies -----------------------------------------------------------------------------------------------------

    async def known(self, hashes: Mapping[bytes, Key], session: AsyncClientSession | None) -> dict[Key, Known]:
        """What is known of these keys of the lane's copy."""
        found: dict[Key, Known] = {}
        for chunk in chunks(list(hashes), _LOOKUP_KEYS_MAX):
            ids = [self._copied_id(hashed) for hashed in chunk]
            cursor = self.collection("copied").find({"_id": {"$in": ids}}, session=session, batch_size=_READ_DOCUMENTS)
            async for document in cursor:
                version = version_of(document["version"])
                assert version is not None
                key = hashes[bytes(document["_id"]["key"])]
                missed = tuple(each for array in document["missed"] if (each := version_of(array)) is not None)
                found[key] = Known(version, document["alive"], last_of(document["last"]), missed)
        return found

    async def write_known(
        self, hashes: Mapping[bytes, Key], known: Mapping[Key, Known], session: AsyncClientSession
    ) -> None:
        writes: list[InsertOne[Document] | UpdateOne] = [
            UpdateOne(
                {"_id": self._copied_id(hashed)},
                {
                    "$set": {
                        "version": array_of(known[key].version),
                        "alive": known[key].alive,
                        "missed": [array_of(version) for version in known[key].missed],
                        "last": _last(known[key].last),
                        "key": canonical(key)[:_DISPLAY_CHARACTERS_MAX],
                    },
                    "$inc": {"writes": 1},
                },
                upsert=True,
            )
            for hashed, key in sorted(hashes.items())
            if key in known
        ]
        if writes:
            await self.collection("copied").bulk_write(writes, ordered=False, session=session)

    async def copied_keys(self, entity: str, spec: KeySpec, after: bytes, keys_max: int) -> KnownKeys:
        """What is known of the next living keys of the lane's copy, by their hashes."""
        chosen = {"_id": {"$gt": self._copied_id(after), "$lt": self._copied_id(_HASH_MAX)}, "alive": True}
        documents = await self.collection("copied").find(chosen).sort("_id", 1).to_list(keys_max)
        found: list[tuple[Key, Head]] = []
        for document in documents:
            key, version = key_of_ledger(document["key"], spec), version_of(document["version"])
            if key is not None and version is not None and key_hash(entity, key) == bytes(document["_id"]["key"]):
                found.append((key, Known(version, True, last_of(document["last"])).head))
        after_ = bytes(documents[-1]["_id"]["key"]) if len(documents) == keys_max else None
        return KnownKeys(found, after_, len(documents) - len(found))

    def _copied_id(self, hashed: bytes) -> Document:
        return {"copy": self.lane, "key": hashed}

    # --- heads and fates --------------------------------------------------------------------------------------------

    async def heads(
        self, hashes: Mapping[bytes, Key], spec: KeySpec, session: AsyncClientSession | None
    ) -> dict[Key, Head]:
        """The heads of those keys that the ledger knows."""
        found: dict[bytes, Document] = {}
        for chunk in chunks(list(hashes), _LOOKUP_KEYS_MAX):
            cursor = self.collection("keys").find(
                {"_id": {"$in": chunk}}, {"seen": 1, "last": 1}, session=session, batch_size=_READ_DOCUMENTS
            )
            found |= {bytes(document["_id"]): document async for document in cursor}
        fates: dict[bytes, list[Fate]] = {}
        for chunk in chunks(list(found), _LOOKUP_KEYS_MAX):
            cursor = self.collection("fates").find(
                {"key_hash": {"$in": chunk}}, session=session, batch_size=_READ_DOCUMENTS
            )
            async for document in cursor:
                fates.setdefault(bytes(document["key_hash"]), []).append(fate_of(document, spec))
        return {
            hashes[of]: Head(
                version_of(document["seen"]),
                tuple(sorted(fates.get(of, ()), key=lambda fate: fate.version)),
                last_of(document["last"]),
            )
            for of, document in found.items()
        }

    async def write_heads(
        self,
        entity: str,
        hash_of: Mapping[Key, bytes],
        known: Collection[Key],
        writes: Mapping[Key, HeadUpdate],
        touched: Iterable[Key],
        session: AsyncClientSession,
    ) -> None:
        """Write heads, and touch those that were read only, so that whoever writes them at the same time collides."""
        new = [
            {
                "_id": hash_of[key],
                "entity": entity,
                "key": canonical(key)[:_DISPLAY_CHARACTERS_MAX],
                "seen": array_of(update.seen),
                "last": _last(update.last),
                "writes": 1,
            }
            for key, update in writes.items()
            if key not in known
        ]
        old = [
            UpdateOne({"_id": hash_of[key]}, {"$set": _changed(update), "$inc": {"writes": 1}})
            for key, update in writes.items()
            if key in known
        ]
        old += [UpdateOne({"_id": hash_of[key]}, {"$inc": {"writes": 1}}) for key in touched]
        if new:
            await self.collection("keys").insert_many(new, session=session)
        if old:
            await self.collection("keys").bulk_write(old, session=session)

    async def write_fates(
        self,
        entity: str,
        hash_of: Mapping[Key, bytes],
        writes: Mapping[Key, HeadUpdate],
        effects: Iterable[Effect],
        batch: Batch,
        session: AsyncClientSession,
    ) -> None:
        """Write the new fates; `effects` count their changes within the share."""
        done: dict[int, list[Document]] = {}
        for effect in effects:
            if effect.outcome is not Outcome.DUPLICATE and effect.outcome is not Outcome.STALE:
                done.setdefault(effect.change, []).append(
                    {
                        "dependent": effect.dependent,
                        "action": effect.action,
                        "outcome": effect.outcome.value,
                        "rows": effect.rows,
                    }
                )
        documents = [
            {
                "_id": {"key": hash_of[key], "version": array_of(fate.version)},
                "key_hash": hash_of[key],
                "entity": entity,
                "key": canonical(key)[:_DISPLAY_CHARACTERS_MAX],
                "version": array_of(fate.version),
                "to": None if fate.to is None else canonical(fate.to),
                "event": fate.event_id,
                "occurred_ms": _whole(fate.occurred_ms),
                "effects": done.get(fate.change, []),
                "enforced_at": time_of(batch.at_ms),
                "trace_id": batch.trace_id,
            }
            for key, update in writes.items()
            for fate in update.fates
        ]
        if documents:
            await self.collection("fates").insert_many(documents, session=session)

    # --- the outbox -------------------------------------------------------------------------------------------------

    async def write_outbox(self, records: Sequence[Outgoing], session: AsyncClientSession) -> None:
        """Keep derived events until they are published."""
        if records:
            documents: list[Document] = [record._asdict() for record in records]
            await self.collection("outbox").insert_many(documents, session=session)

    async def waiting(self, records_max: int) -> list[Waiting]:
        """What is to be published, lower versions first."""
        cursor = self.collection("outbox").find().sort([("version", 1), ("_id", 1)]).limit(records_max)
        return [Waiting(d.pop("_id"), Outgoing(**d)) async for d in cursor]

    async def clear_outbox(self, ids: Sequence[object]) -> None:
        """Forget what is published."""
        for chunk in chunks(ids, _LOOKUP_KEYS_MAX):
            await self.collection("outbox").delete_many({"_id": {"$in": chunk}})

    # --- arrivals and exceptions ------------------------------------------------------------------------------------

    async def arrivals(self, hashes: Sequence[bytes], session: AsyncClientSession) -> list[Arrival]:
        found: list[Arrival] = []
        for chunk in chunks(hashes, _LOOKUP_KEYS_MAX):
            cursor = self.collection("arrivals").find(
                {"key_hash": {"$in": chunk}}, session=session, batch_size=_READ_DOCUMENTS
            )
            async for document in cursor:
                since = version_of(document["since"])
                assert since is not None
                of = bytes(document["key_hash"])
                found.append(Arrival(document["_id"], document["dependent"], of, since, document["id"]))
        return found

    async def remove_arrivals(self, ids: Sequence[object], session: AsyncClientSession) -> None:
        for chunk in chunks(ids, _LOOKUP_KEYS_MAX):
            await self.collection("arrivals").delete_many({"_id": {"$in": chunk}}, session=session)

    async def add_arrivals(
        self, dependent: str, came: Iterable[tuple[bytes, Version, object]], session: AsyncClientSession
    ) -> None:
        """`came`: the key's hash, since when, and the `_id` of the document."""
        documents: list[Document] = [
            {"dependent": dependent, "key_hash": of, "since": array_of(since), "id": document}
            for of, since, document in came
        ]
        if documents:
            await self.collection("arrivals").insert_many(documents, session=session)

    async def pending(self, hashes: Mapping[bytes, Key], session: AsyncClientSession) -> dict[Key, list[Pending]]:
        """The effects that were left out of these keys."""
        found: dict[Key, list[Pending]] = {}
        for chunk in chunks(list(hashes), _LOOKUP_KEYS_MAX):
            cursor = self.collection("exceptions").find({"key_hash": {"$in": chunk}}, session=session)
            async for document in cursor:
                found.setdefault(hashes[bytes(document["key_hash"])], []).append(
                    Pending(
                        document["dependent"],
                        document["event"],
                        version_of(document["version"]) or EARLIEST,
                        document["_id"],
                        document["reason"],
                    )
                )
        return found

    async def write_exceptions(
        self,
        entity: str,
        left_out: Sequence[LeftOut],
        hash_of: Mapping[Key, bytes],
        at_ms: int,
        session: AsyncClientSession,
    ) -> None:
        writes: list[InsertOne[Document] | UpdateOne] = []
        for change, dependent, mark, version in left_out:
            values = {
                "entity": entity,
                "key_hash": hash_of[change.key],
                "version": array_of(version),
                "event": change.origin.event_id,
                "dependent": dependent,
                "reason": mark.reason.value,
                "at": time_of(at_ms),
            }
            writes.append(UpdateOne({"_id": mark.id}, {"$set": values}, upsert=True))
        if writes:
            await self.collection("exceptions").bulk_write(writes, session=session)

    async def add_done(
        self, found: Sequence[MadeUpFor], hash_of: Mapping[Key, bytes], session: AsyncClientSession
    ) -> None:
        """Add what redrives did to the fates of their events, in place of what stood there."""
        for key, fate, done in found:
            name = {"_id": {"key": hash_of[key], "version": array_of(fate.version)}}
            fates = self.collection("fates")
            await fates.update_one(name, {"$pull": {"effects": {"dependent": {"$in": list(done)}}}}, session=session)
            effects = [
                {"dependent": dependent, "action": action, "outcome": Outcome.APPLIED.value, "rows": rows}
                for dependent, (action, rows) in done.items()
            ]
            await fates.update_one(name, {"$push": {"effects": {"$each": effects}}}, session=session)

    async def write_repairs(
        self, repaired: Sequence[Repaired], hash_of: Mapping[Key, bytes], at_ms: int, session: AsyncClientSession
    ) -> None:
        """Keep what became of documents that were written late."""
        documents: list[Document] = [
            {
                "key_hash": hash_of[each.key],
                "entity": each.entity,
                "dependent": each.dependent,
                "action": each.action,
                "rows": each.rows,
                "event": each.fate.event_id,
                "at": time_of(at_ms),
            }
            for each in repaired
        ]
        if documents:
            await self.collection("repairs").insert_many(documents, session=session)

    async def clear_exceptions(self, over: Iterable[tuple[str, str]], session: AsyncClientSession) -> None:
        """Forget exceptions (dependent, event): they were made up for, or given up. There are few of them."""
        if names := [{"dependent": dependent, "event": event} for dependent, event in over]:
            await self.collection("exceptions").delete_many({"$or": names}, session=session)

    # --- truncates --------------------------------------------------------------------------------------------------

    async def write_notes(self, notes: Iterable[NoteWrite], session: AsyncClientSession) -> None:
        """Keep or forget truncates that are to be carried out."""
        collection = self.collection("truncates")
        for id_, data, fresh in notes:
            name = {"_id": {"lane": self.lane, "id": id_}}
            if data is None:
                await collection.delete_one(name, session=session)
            else:
                values = {"$setOnInsert" if fresh else "$set": {"note": data}}
                await collection.update_one(name, values, upsert=True, session=session)

    async def notes(self) -> list[bytes]:
        """The truncates that are to be carried out."""
        return [bytes(each["note"]) async for each in self.collection("truncates").find({"_id.lane": self.lane})]

    async def known_keys(self, entity: str, spec: KeySpec, after: bytes, keys_max: int) -> KnownKeys:
        """What is known of the next keys of an entity, by their hashes."""
        cursor = self.collection("keys").find({"_id": {"$gt": after}, "entity": entity}, {"key": 1})
        documents = await cursor.sort("_id", 1).to_list(keys_max)
        hashes: dict[bytes, Key] = {}
        for document in documents:
            key, hashed = key_of_ledger(document["key"], spec), bytes(document["_id"])
            # A long key is cut there, and one of another type than the rule gives now means nothing.
            if key is not None and key_hash(entity, key) == hashed:
                hashes[hashed] = key
        heads = await self.heads(hashes, spec, None)
        after_ = bytes(documents[-1]["_id"]) if len(documents) == keys_max else None
        return KnownKeys(list(heads.items()), after_, len(documents) - len(hashes))


def commands(database: str, schema: str) -> str:
    """What `migrate` does, for mongosh."""
    lines = [f"use({json.dumps(database)});"]
    lines += [f"db.createCollection({json.dumps(f'{schema}.{name}')});" for name in COLLECTIONS]
    lines += [
        f"db.getCollection({json.dumps(f'{schema}.{name}')}).createIndex({{{': 1, '.join(fields)}: 1}}"
        f"{'' if only is None else f', {json.dumps(index_options(only))}'});"
        for name, fields, only in INDEXES
    ]
    lines.append(
        f"db.getCollection({json.dumps(f'{schema}.meta')}).updateOne("
        f"{{_id: {json.dumps(LEDGER_ID)}}}, {{$setOnInsert: {{version: {LEDGER_VERSION}}}}}, {{upsert: true}});"
    )
    return "\n".join(lines) + "\n"


def index_options(only: Document | None) -> Document:
    """The options of an index of the ledger."""
    return {} if only is None else {"partialFilterExpression": only}


def hashes_of(entity: str, keys: Iterable[Key]) -> dict[Key, bytes]:
    return {key: key_hash(entity, key) for key in keys}


def chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """The items in runs of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _changed(update: HeadUpdate) -> Document:
    return {"seen": array_of(update.seen)} | ({"last": _last(update.last)} if update.last else {})


def fate_of(document: Document, spec: KeySpec) -> Fate:
    """A fate from its document. Raises UnreadableLedger."""
    version = version_of(document["version"])
    assert version is not None
    to = document["to"]
    try:
        key = None if to is None else parse_canonical(to, spec)
    except ValueError as exc:
        raise UnreadableLedger from exc
    return Fate(version, key, document["event"], int(document["occurred_ms"]))


def last_of(document: Document | None) -> LastRecord | None:
    """The last record of a key, as its head keeps it."""
    return LastRecord(**document) if document else None


def _last(last: LastRecord | None) -> Document | None:
    return None if last is None else last._asdict()


def array_of(version: Version | None) -> list[int | str] | None:
    """A version as the ledger keeps it."""
    return None if version is None else [_whole(part) for part in (version.epoch, *version.position)]


def version_of(array: Sequence[int | str] | None) -> Version | None:
    if array is None:
        return None
    epoch, *position = map(int, array)
    return Version(epoch, tuple(position))


def _whole(number: int) -> int | str:
    """A number of a source as it is; as text when it is beyond 64 bits. It is compared here, never by MongoDB."""
    return number if -(2**63) <= number < 2**63 else str(number)


def time_of(at_ms: int) -> datetime:
    """Milliseconds since the epoch as a time in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)
