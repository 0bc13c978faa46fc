"""What one rule does to its collection: every group's documents are chosen before any is changed.

So swaps and chains come out right whatever their order. The choice and the changes are in one snapshot, and a document
that anybody changed since is a write conflict: what is written by `_id` is what was chosen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, assert_never

import bson
from pymongo import DeleteMany, UpdateMany
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection

from integrity.core.change import Version
from integrity.core.fold import Counted, Group, Marked, Referencing, Removed, Values
from integrity.core.gate import held
from integrity.core.keys import Key
from integrity.core.outcome import Held
from integrity.core.parts import TooManyRows
from integrity.core.rules.model import Tombstone
from integrity.stores.memory import mark_values
from integrity.stores.mongo.ledger import Arrival, Document, Ledger, chunks
from integrity.stores.mongo.query import EXACT, Filter, path_reader, reader, referencing, within_reach
from integrity.stores.mongo.undo import Keeper
from integrity.stores.mongo.values import CODECS, Unholdable, from_bson, in_the_type_of, micros_of, own_part, to_bson
from integrity.stores.mongo.verdict import CountMismatch
from integrity.stores.rule import StoreRule

_KEYS_MAX = 1_000
"""Keys in one filter."""
_IDS_MAX = 1_000
"""Documents in one statement."""
READ_DOCUMENTS = 10_000
"""Documents that are read at a time."""


_DEPTH = "integrity_depth"
"""A field that no document of a user has."""


class _Chosen(NamedTuple):
    """A document: its `_id`, its reference as it is stored, when it came to be, in microseconds (where that matters),
    and (where more was asked for) all that was read of it."""

    id: object
    stored: tuple[object, ...]
    micros: int | None
    whole: Document


_NOTHING: Document = {}


Came = tuple[Key, Version, object]
"""An arrival to be: the key, since when, and the `_id` of the document."""


class Acted(NamedTuple):
    """The number of documents (or elements) of each group; the arrivals to keep; and of a part the `id` of those that
    are none any more. Of a whole it is known without looking: all of the groups."""

    rows: list[int]
    came: list[Came]
    ended: list[object]


class _Changes:
    """What to set, and on which documents."""

    def __init__(self) -> None:
        self._sets: list[tuple[Document, list[object]]] = []

    def add(self, values: Document, ids: list[object]) -> None:
        if values and ids:
            self._sets.append((values, ids))

    def statements(self) -> list[UpdateMany]:
        return [
            UpdateMany({"_id": {"$in": chunk}}, {"$set": values})
            for values, ids in self._sets
            for chunk in chunks(ids, _IDS_MAX)
        ]

    def documents(self) -> int:
        return sum(len(ids) for _, ids in self._sets)


class Enforcer:
    """Carries out one rule within a transaction. `hash_of` has every key of the batch and of its ends."""

    def __init__(self, ledger: Ledger, rule: StoreRule, session: AsyncClientSession, at_ms: int) -> None:
        self._ledger = ledger
        self._rule = rule
        self._session = session
        self._at_ms = at_ms
        self._collection: AsyncCollection[Document] = ledger.database[rule.dependent.target.name]
        self._keeper = Keeper(ledger, rule, session, at_ms)

    async def carry_out(
        self,
        groups: Sequence[Group],
        arrivals: Mapping[Key, Sequence[Arrival]],
        *,
        rows_max: int | None = None,
        in_part: bool = False,
    ) -> Acted:
        """Carry out all groups. With more than `rows_max` documents TooManyRows is raised or, `in_part`, so many are
        acted on and no more."""
        chosen = await self._choose(groups, arrivals, rows_max, in_part)
        removed: list[object] = []
        changes = _Changes()
        came: list[Came] = []
        for group, documents in zip(groups, chosen, strict=True):
            end = group.end
            await self._keeper.keep(group, [document.id for document in documents])
            match end:
                case Removed():
                    removed += [document.id for document in documents]
                case Marked():
                    self._change(changes, documents, group.key, end.key, self._mark(end) if documents else {})
                case Referencing():
                    self._change(changes, documents, group.key, end.values, {})
                    if end.arrival is not None:
                        key = tuple(value for value in end.values if value is not None)
                        came += [(key, end.arrival, document.id) for document in documents]
                case Counted():
                    pass
                case _:
                    assert_never(end)
        await self._remove(removed)
        await self._update(changes)
        ended: list[object] = []
        if in_part:
            acted = {token(document.id) for documents in chosen for document in documents}
            ended = ended_of(groups, arrivals, acted)
        return Acted([len(documents) for documents in chosen], came, ended)

    async def held(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], approved: Collection[int]
    ) -> Held | None:
        """Held when some event has more documents than the rule allows; they are counted no further than that."""
        limit = self._rule.dependent.max_rows
        if limit is None:
            return None
        counts = [0] * len(groups)
        place_of = self._placing(groups, arrivals)
        async for documents in self._documents(list({group.key for group in groups})):
            for document in documents:
                place = place_of(document)
                if place is not None:
                    counts[place] += 1
            if over := held(self._rule.id, limit, groups, counts, approved):
                return over
        return None

    async def own_keys(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], limit: int | None
    ) -> list[tuple[int, Key]]:
        """The index of the group and the own key of each document, at most `limit`; without those that have none."""
        of_rows = self._rule.rows
        assert of_rows is not None
        own = [(kind, path_reader(path)) for path, kind in of_rows.spec.fields]
        place_of = self._placing(groups, arrivals)
        found: list[tuple[int, Key]] = []
        async for documents in self._documents(list({group.key for group in groups}), of_rows.spec.names):
            for document in documents:
                place = place_of(document)
                key = tuple([own_part(kind, read(document.whole)) for kind, read in own])
                if place is not None and None not in key:
                    found.append((place, key))  # type: ignore[arg-type]
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    async def lines_below(self, start: Key, levels: int, limit: int) -> dict[Key, list[Key]] | None:
        """The documents that refer to `start`, those that refer to those, and so on, in one query: of keys up to so
        many levels down, the own keys of the documents that refer to each. None when there are more than `limit`. For
        a reference and an own key of one part each."""
        of_rows = self._rule.rows
        assert of_rows is not None
        [column], [kind] = self._rule.dependent.columns, self._rule.spec.types
        [(own_path, own_kind)] = of_rows.spec.fields
        reference, own = reader(f"n.{column}"), path_reader(f"n.{own_path}")
        look: Document = {
            "from": self._collection.name,
            "startWith": {"$literal": to_bson(kind, start[0])},
            "connectFromField": own_path,
            "connectToField": column,
            "restrictSearchWithMatch": {"$and": within_reach(self._rule.dependent)},
            "maxDepth": levels,
            "depthField": _DEPTH,
            "as": "n",
        }
        # Any document carries the query; nothing of it is read.
        stages: list[Document] = [{"$limit": 1}, {"$project": {"_id": 1}}, {"$graphLookup": look}, {"$unwind": "$n"}]
        wanted = dict.fromkeys((f"n.{column}", f"n.{own_path}", f"n.{_DEPTH}"), 1)
        cursor = await self._collection.aggregate(
            [*stages, {"$project": wanted}, {"$limit": limit + 1}], session=self._session, collation=EXACT
        )
        found: dict[Key, list[Key]] = {start: []}
        count = 0
        while documents := await cursor.to_list(READ_DOCUMENTS):
            for document in documents:
                key = own_part(own_kind, own(document))
                if key is not None:
                    found.setdefault((from_bson(kind, reference(document)),), []).append((key,))
                    if document["n"][_DEPTH] < levels:
                        found.setdefault((key,), [])
                count += 1
        return None if count > limit else found

    async def remove_chosen(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], chosen: Sequence[tuple[int, Key]]
    ) -> list[int]:
        """Remove the documents with these own keys; how many of each group."""
        of_rows = self._rule.rows
        assert of_rows is not None
        own = [(kind, path_reader(path)) for path, kind in of_rows.spec.fields]
        wanted, place_of = set(chosen), self._placing(groups, arrivals)
        rows, removed = [0] * len(groups), list[object]()
        for part in chunks(chosen, _KEYS_MAX):
            names = {key: [to_bson(k, v) for k, v in zip(of_rows.spec.types, key, strict=True)] for _, key in part}
            filters = [referencing(of_rows.spec.names, names)]
            keys = list({groups[index].key for index, _ in part})
            async for documents in self._documents(keys, of_rows.spec.names, filters):
                for document in documents:
                    place = place_of(document)
                    key = tuple([own_part(kind, read(document.whole)) for kind, read in own])
                    if place is not None and (place, key) in wanted:
                        rows[place] += 1
                        removed.append(document.id)
                        await self._keeper.keep(groups[place], [document.id])
        await self._remove(removed)
        return rows

    def _placing(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]]
    ) -> Callable[[_Chosen], int | None]:
        """What tells the group that a document belongs to."""
        places: dict[Key, dict[Version | None, list[int]]] = {}
        for place, group in enumerate(groups):
            places.setdefault(group.key, {}).setdefault(group.since, []).append(place)
        since_of = {key: {token(a.document): a.since for a in arrivals[key]} for key in places if arrivals.get(key)}
        kinds = self._rule.spec.types

        def place_of(document: _Chosen) -> int | None:
            key = tuple(map(from_bson, kinds, document.stored))
            came = since_of.get(key)
            of_age = places[key].get(came.get(token(document.id)) if came else None, ())
            return next((place for place in of_age if groups[place].holds(document.micros)), None)

        return place_of

    async def _choose(
        self,
        groups: Sequence[Group],
        arrivals: Mapping[Key, Sequence[Arrival]],
        rows_max: int | None = None,
        in_part: bool = False,
    ) -> list[list[_Chosen]]:
        chosen: list[list[_Chosen]] = [[] for _ in groups]
        place_of = self._placing(groups, arrivals)
        acting = 0
        async for documents in self._documents(list({group.key for group in groups})):
            for document in documents:
                place = place_of(document)
                if place is None:
                    continue
                if rows_max is not None and not isinstance(groups[place].end, Counted):
                    acting += 1
                    if acting > rows_max:
                        if in_part:
                            return chosen
                        raise TooManyRows
                chosen[place].append(document)
        return chosen

    async def _documents(
        self, keys: Sequence[Key], more: Sequence[str] = (), filters: Sequence[Filter] = ()
    ) -> AsyncIterator[list[_Chosen]]:
        """Every document within reach that holds one of the keys, some thousands at a time."""
        columns = self._rule.dependent.columns
        as_of = self._rule.dependent.as_of
        paths = columns if as_of is None else (*columns, as_of)
        # A part of _id comes with the whole, and cannot be asked for beside it.
        fields = dict.fromkeys(("_id", *(path for path in (*paths, *more) if not path.startswith("_id."))), 1)
        read = [reader(column) for column in columns]
        born = None if as_of is None else reader(as_of)
        for filter_ in holding(self._rule, keys):
            cursor = self._collection.find(
                {"$and": [filter_, *filters]} if filters else filter_,
                fields,
                session=self._session,
                batch_size=READ_DOCUMENTS,
                collation=EXACT,
            )
            while documents := await cursor.to_list(READ_DOCUMENTS):
                yield [
                    _Chosen(
                        document["_id"],
                        tuple([of(document) for of in read]),
                        None if born is None else micros_of(born(document)),
                        document if more else _NOTHING,
                    )
                    for document in documents
                ]

    def _change(
        self, changes: _Changes, documents: Sequence[_Chosen], before: Key, after: Values, more: Document
    ) -> None:
        """Parts of the reference that stay are not written, so that they keep their type."""
        by_types: dict[tuple[type, ...], list[_Chosen]] = {}
        for document in documents:
            by_types.setdefault(tuple(map(type, document.stored)), []).append(document)
        for alike in by_types.values():
            values: Document = {
                column: None if new is None else in_the_type_of(stored, kind, new)
                for column, kind, stored, old, new in zip(
                    self._rule.dependent.columns, self._rule.spec.types, alike[0].stored, before, after, strict=True
                )
                if new != old
            }
            changes.add(values | more, [document.id for document in alike])

    def _mark(self, end: Marked) -> Document:
        action = self._rule.dependent.on_delete
        assert isinstance(action, Tombstone)
        try:
            return mark_values(action, end.fate, self._at_ms)
        except (ValueError, OverflowError, OSError) as exc:
            raise Unholdable("The event's time is beyond the years 1 to 9999.") from exc

    async def _remove(self, ids: Sequence[object]) -> None:
        if ids:
            statements = [DeleteMany({"_id": {"$in": chunk}}) for chunk in chunks(ids, _IDS_MAX)]
            result = await self._collection.bulk_write(statements, ordered=False, session=self._session)
            if result.deleted_count != len(ids):
                raise CountMismatch

    async def _update(self, changes: _Changes) -> None:
        if statements := changes.statements():
            result = await self._collection.bulk_write(statements, ordered=False, session=self._session)
            if result.matched_count != changes.documents():
                raise CountMismatch


def ended_of(
    groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], acted: Collection[bytes]
) -> list[object]:
    """The arrivals of these groups whose documents were acted on."""
    return [
        arrival.id
        for group in groups
        for arrival in arrivals.get(group.key, ())
        if arrival.since == group.since and token(arrival.document) in acted
    ]


def holding(rule: StoreRule, keys: Sequence[Key]) -> Iterator[Filter]:
    """Filters for the documents within reach that hold one of the keys; each key is in one of them."""
    columns, kinds = rule.dependent.columns, rule.spec.types
    reach = within_reach(rule.dependent)
    for chunk in chunks(keys, _KEYS_MAX):
        parts = {key: [to_bson(kind, part) for kind, part in zip(kinds, key, strict=True)] for key in chunk}
        yield {"$and": [referencing(columns, parts), *reach]}


def token(id_: object) -> bytes:
    """An `_id` as something that can be looked up: it may be a document."""
    return bson.encode({"": id_}, codec_options=CODECS)
