"""One page of a sweep. Most find nothing and only move on; what is found is repaired in one transaction with the move.

Whoever moves the sweep on second finds it moved, or collides, and leaves the page to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.batch import Batch
from integrity.core.fold import lookups
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, canonical, key_hash
from integrity.core.ledger import Head, heads_to_write
from integrity.core.outcome import Outcome
from integrity.core.parts import TooManyRows, changing
from integrity.core.sweep import (
    Acted,
    Extent,
    Repaired,
    Sweep,
    Swept,
    TooManyLate,
    causes,
    is_gone,
    late_rows,
    repairs,
    repairs_below,
)
from integrity.core.undo import not_undone
from integrity.stores.descent import from_late_rows
from integrity.stores.mongo.attempt import Attempt, LooksAhead
from integrity.stores.mongo.effects import holding
from integrity.stores.mongo.ledger import Document, Ledger, hashes_of, time_of, version_of
from integrity.stores.mongo.query import EXACT
from integrity.stores.mongo.values import Unholdable, from_bson, to_bson
from integrity.stores.rule import StoreRule, policies


class Place(NamedTuple):
    """Where a sweep is: the last key that it has looked at."""

    at: datetime
    key_hash: bytes


class Page(NamedTuple):
    """A page that has been read: where it begins and ends, and which of its keys have rows, rule by rule."""

    begins: Place
    ends: Place
    late: Mapping[str, Mapping[str, Sequence[Key]]]
    more: bool


class Sweeper:
    """`dependent` and `below` are as those of `Attempt`, `rows_max` as well."""

    def __init__(self, ledger: Ledger, rules: Mapping[str, Sequence[StoreRule]], sweep: Sweep, rows_max: int) -> None:
        self._rows_max = rows_max
        self._dependent: str | None = None
        self._attempt: Attempt | None = None
        self._ledger = ledger
        self._rules = rules
        self._sweep = sweep
        self._id = f"{ledger.lane}/{sweep.age_ms}"

    @property
    def dependent(self) -> str | None:
        return self._dependent if self._attempt is None else self._attempt.dependent

    @property
    def below(self) -> str | None:
        return None if self._attempt is None else self._attempt.below

    async def look(self) -> Page | None:
        """Read the page; None when there is nothing to do. Changes nothing but the beginning of a new sweep."""
        sweep = self._sweep
        sweeps = self._ledger.collection("sweeps")
        document = await sweeps.find_one({"_id": self._id})
        if document is None:
            beginning = {"at": time_of(sweep.until_ms), "key_hash": b""}
            await sweeps.update_one({"_id": self._id}, {"$setOnInsert": beginning}, upsert=True)
            return None
        begins = Place(document["at"], bytes(document["key_hash"]))
        fates = await (
            self._ledger.collection("fates")
            .find(
                {
                    "enforced_at": {"$gte": begins.at, "$lte": time_of(sweep.until_ms)},
                    "$or": [{"enforced_at": {"$gt": begins.at}}, {"key_hash": {"$gt": begins.key_hash}}],
                },
                {"entity": 1, "key": 1, "key_hash": 1, "enforced_at": 1},
            )
            .sort([("enforced_at", 1), ("key_hash", 1)])
            .to_list(sweep.keys_max)
        )
        if not fates:
            return None
        ends = Place(fates[-1]["enforced_at"], bytes(fates[-1]["key_hash"]))
        keys: dict[str, dict[Key, None]] = {}
        for fate in fates:
            entity = fate["entity"]
            if entity in sweep.entities and entity in self._rules:
                key = key_of_ledger(fate["key"], self._rules[entity][0].spec)
                # A long key is cut there, and one of another type than the rule gives now means nothing.
                if key is not None and key_hash(entity, key) == bytes(fate["key_hash"]):
                    keys.setdefault(entity, {})[key] = None
        late = {entity: await self._late(entity, list(of_entity)) for entity, of_entity in keys.items()}
        found = {entity: of_rule for entity, of_rule in late.items() if any(of_rule.values())}
        return Page(begins, ends, found, more=len(fates) == sweep.keys_max)

    async def move(self, page: Page, session: AsyncClientSession | None = None) -> bool:
        """Move the sweep on to the end of the page; False when another process has."""
        at, ends = page.begins, page.ends
        result = await self._ledger.collection("sweeps").update_one(
            {"_id": self._id, "at": at.at, "key_hash": at.key_hash},
            # So that it is written also where the page is the same again, and of two processes one collides.
            {"$set": {"at": ends.at, "key_hash": ends.key_hash}, "$inc": {"writes": 1}},
            session=session,
        )
        return result.matched_count == 1

    async def repair(self, page: Page, extent: Extent, session: AsyncClientSession) -> Swept | None:
        """Everything but the commit; None when another process has done the page. Raises TooManyRows when there are
        more documents than the extent has."""
        is_part = extent is Extent.PART
        ends = page.begins if is_part else page.ends
        if not await self.move(page._replace(ends=ends), session):
            return None
        repaired: list[Repaired] = []
        for entity, late in page.late.items():
            repaired += await self._repair(entity, late, extent, session)
        if is_part and not repaired:
            raise TooManyRows
        return Swept(tuple(repaired), page.more or is_part, unfinished=is_part)

    async def _late(self, entity: str, keys: Sequence[Key]) -> dict[str, Sequence[Key]]:
        """The keys that are gone and that documents refer to, rule by rule."""
        spec = self._rules[entity][0].spec
        heads = await self._ledger.heads({of: key for key, of in hashes_of(entity, keys).items()}, spec, None)
        gone = [key for key in keys if key in heads and is_gone(heads[key])]
        found: dict[str, Sequence[Key]] = {}
        for rule in self._rules[entity]:
            if rule.id not in self._sweep.left_out and gone:
                self._dependent = rule.id
                found[rule.id] = await self._referenced(rule, gone)
        self._dependent = None
        return found

    async def _referenced(self, rule: StoreRule, keys: Sequence[Key]) -> Sequence[Key]:
        columns, kinds = rule.dependent.columns, rule.spec.types
        collection = self._ledger.database[rule.dependent.target.name]
        found: dict[Key, None] = {}
        holdable = [key for key in keys if _is_holdable(rule, key)]
        for filter_ in holding(rule, holdable):
            stages: list[Document] = [{"$match": filter_}]
            if rule.dependent.array:
                # Of a list, the elements that are keys; what else it holds is none.
                [column] = columns
                wanted = [to_bson(kinds[0], key[0]) for key in holdable]
                stages += [
                    {"$unwind": f"${column}"},
                    {"$match": {"$and": [{column: {"$in": wanted}}, {column: {"$not": {"$type": "array"}}}]}},
                ]
            stages.append({"$group": {"_id": {f"p{n}": f"${column}" for n, column in enumerate(columns)}}})
            cursor = await collection.aggregate(stages, collation=EXACT)
            async for document in cursor:
                held = [document["_id"][f"p{n}"] for n in range(len(columns))]
                found[tuple(map(from_bson, kinds, held))] = None
        # In the order of the page, and as the ledger writes them: 5 and 5.0 are one key.
        return [key for key in keys if key in found]

    async def _repair(
        self, entity: str, late: Mapping[str, Sequence[Key]], extent: Extent, session: AsyncClientSession
    ) -> list[Repaired]:
        ledger, rules, sweep = self._ledger, self._rules[entity], self._sweep
        own = {key for keys in late.values() for key in keys}
        hash_of: dict[Key, bytes] = {}
        heads: dict[Key, Head] = {}
        wanted = own
        while wanted:
            found = hashes_of(entity, wanted)
            hash_of |= found
            heads |= await ledger.heads({of: key for key, of in found.items()}, rules[0].spec, session)
            wanted = lookups((), hash_of.keys(), {k: h.fates for k, h in heads.items()}, policies(rules))
        gone = {key for key in own if key in heads and is_gone(heads[key])}
        gone -= await self._led_to(entity, gone, heads, session)
        # Whatever is an arrival came later than the fate: the key lives again.
        key_of = {hash_of[key]: key for key in gone}
        gone -= {key_of[arrival.key_hash] for arrival in await ledger.arrivals(list(key_of), session)}
        acted = await self._acted(hash_of, session)
        repaired: list[Repaired] = []
        changes = causes(entity, heads, gone)
        descent = from_late_rows(self._rules, extent, self._rows_max, exact=False)
        self._attempt = attempt = Attempt(ledger, self._rules, Batch((), {}, sweep.at_ms), LooksAhead(on=False))
        for rule in rules:
            keys = [key for key in late.get(rule.id, ()) if key in gone]
            groups, settled, firsts = late_rows(rule.policy, heads, keys, acted, changes)
            if extent is Extent.PART:
                groups = changing(groups)
            asks = descent.branch(rule, groups, settled, changes, None, firsts)
            rows, came = await attempt.late(descent, rule, asks, session)
            if over := descent.held(rule, ()):
                raise TooManyLate.below(over)
            await ledger.add_arrivals(rule.id, [(hash_of[key], since, id_) for key, since, id_ in came], session)
            repaired += repairs(rule.policy, entity, rule.dependent.max_rows, heads, groups, rows)
        self._attempt = None
        repaired += repairs_below(changes, heads, descent.went_along())
        writes = heads_to_write(hash_of, own, heads, {})
        await ledger.write_heads(entity, hash_of, heads, writes, heads.keys() - writes.keys(), session)
        await ledger.write_repairs(repaired, hash_of, sweep.at_ms, session)
        return repaired

    async def _led_to(
        self, entity: str, keys: set[Key], heads: Mapping[Key, Head], session: AsyncClientSession
    ) -> set[Key]:
        """The keys that a later key change has led to: they live again, though their own events have not said so."""
        of_text = {canonical(key): key for key in keys}
        found: set[Key] = set()
        moves = self._ledger.collection("fates").find(
            {"to": {"$in": list(of_text)}, "entity": entity}, {"to": 1, "version": 1}, session=session
        )
        async for move in moves:
            version = version_of(move["version"])
            if version is not None and version > heads[of_text[move["to"]]].fates[-1].version:
                found.add(of_text[move["to"]])
        return found

    async def _acted(self, hash_of: Mapping[Key, bytes], session: AsyncClientSession) -> Acted:
        """What was enforced on which dependent, and was not undone."""
        key_of = {of: key for key, of in hash_of.items()}
        fates = self._ledger.collection("fates").find(
            {"key_hash": {"$in": list(key_of)}}, {"key_hash": 1, "event": 1, "effects": 1}, session=session
        )
        noted = self._ledger.collection("undone").find({"key_hash": {"$in": list(key_of)}}, session=session)
        undone = {(key_of[bytes(each["key_hash"])], each["event"], each["dependent"]) async for each in noted}
        acted = {
            (key_of[bytes(fate["key_hash"])], fate["event"], effect["dependent"])
            async for fate in fates
            for effect in fate["effects"]
            if effect["outcome"] in (Outcome.APPLIED.value, Outcome.RESTRICTED.value)
        }
        return not_undone(acted, undone)


def _is_holdable(rule: StoreRule, key: Key) -> bool:
    """Whether any document can hold the key."""
    try:
        for kind, part in zip(rule.spec.types, key, strict=True):
            to_bson(kind, part)
    except Unholdable:
        return False
    return True
