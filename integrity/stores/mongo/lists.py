"""What a rule with `array` does to its collection: each element of the list is a reference, and the document stays, so
that whatever depends on the document is not concerned.

A list is read as BSON and written as a whole, by the document's `_id`: an owner that pushes to it meanwhile is a write
conflict. It is written only if all that stays of it is written back byte for byte.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import UpdateOne
from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.change import Version
from integrity.core.fold import Counted, Group, Referencing
from integrity.core.gate import held
from integrity.core.keys import Key
from integrity.core.outcome import Held
from integrity.core.parts import TooManyRows
from integrity.core.undo import Slot, list_states
from integrity.stores.lists import parts_of, places_of
from integrity.stores.mongo.effects import READ_DOCUMENTS, Acted, Came, ended_of, holding, token
from integrity.stores.mongo.ledger import Arrival, Document, Ledger, chunks
from integrity.stores.mongo.query import EXACT, reader
from integrity.stores.mongo.undo import Keeper
from integrity.stores.mongo.values import CODECS, Unholdable, element_key, in_the_type_of
from integrity.stores.mongo.verdict import CountMismatch
from integrity.stores.rule import StoreRule

_WRITES_MAX = 1_000
"""Documents in one statement."""
_RAW = CODECS.with_options(document_class=RawBSONDocument)


class _Chosen(NamedTuple):
    id: object
    elements: list[Any]
    raw: bytes
    """The document with its `_id` and its list alone, as the server holds it."""


class ListEnforcer:
    """As `Enforcer`, for a reference that is a list of keys."""

    def __init__(self, ledger: Ledger, rule: StoreRule, session: AsyncClientSession, at_ms: int) -> None:
        self._rule = rule
        self._session = session
        [self._column] = rule.dependent.columns
        [self._kind] = rule.spec.types
        self._collection = ledger.database[rule.dependent.target.name]
        self._raw = self._collection.with_options(codec_options=_RAW)
        self._keeper = Keeper(ledger, rule, session, at_ms)

    async def carry_out(
        self,
        groups: Sequence[Group],
        arrivals: Mapping[Key, Sequence[Arrival]],
        approved: Collection[int] = (),
        *,
        rows_max: int | None = None,
        in_part: bool = False,
    ) -> Acted | Held:
        """Carry out all groups. Held: some event has more elements than the rule allows, and nothing was changed. With
        more than `rows_max` elements TooManyRows is raised or, `in_part`, only so many documents are acted on that
        these have as many elements."""
        counts = [0] * len(groups)
        came: list[Came] = []
        writes: list[UpdateOne] = []
        limit = None if in_part else self._rule.dependent.max_rows
        acting = 0
        acted: set[bytes] = set()
        async for document, places in self._placed(groups, arrivals):
            left: list[object] = []
            changes = 0
            for element, place in zip(document.elements, places, strict=True):
                if place is None:
                    left.append(element)
                    continue
                counts[place] += 1
                match groups[place].end:
                    case Counted():
                        left.append(element)
                        continue
                    case Referencing(values=(value,), arrival=since) if value is not None:
                        left.append(in_the_type_of(element, self._kind, value))
                        if since is not None:
                            came.append(((value,), since, document.id))
                    case _:
                        pass  # no reference any more: the element goes
                changes += 1
            if not changes:
                continue
            acting += changes
            if rows_max is not None and not in_part and acting > rows_max:
                # Whether it is to be held has to be known before its first part.
                writes.clear()
                if limit is None:
                    raise TooManyRows
                if over := held(self._rule.id, limit, groups, counts, approved):
                    return over
                continue
            if bson.encode(_decoded(document.raw), codec_options=CODECS) != document.raw:
                raise Unholdable("The list holds a value that this program could not write back as it is.")
            if self._rule.dependent.undo_ms is not None:
                slots = [
                    Slot(element, () if place is None else groups[place].trail)
                    for element, place in zip(document.elements, places, strict=True)
                ]
                await self._keeper.keep_list(document.id, self._column, list_states(slots, self._in_its_type))
            writes.append(UpdateOne({"_id": document.id}, {"$set": {self._column: left}}))
            acted.add(token(document.id))
            if in_part and rows_max is not None and acting >= rows_max:
                break
            if len(writes) % _WRITES_MAX == 0 and (over := held(self._rule.id, limit, groups, counts, approved)):
                return over
        if over := held(self._rule.id, limit, groups, counts, approved):
            return over
        if rows_max is not None and not in_part and acting > rows_max:
            raise TooManyRows
        await self._keeper.flush()
        await self._write(writes)
        return Acted(counts, came, ended_of(groups, arrivals, acted) if in_part else [])

    async def held(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], approved: Collection[int]
    ) -> Held | None:
        """Held when some event has more elements than the rule allows; they are counted no further than that."""
        limit = self._rule.dependent.max_rows
        if limit is None:
            return None
        counts = [0] * len(groups)
        async for _, places in self._placed(groups, arrivals):
            for place in places:
                if place is not None:
                    counts[place] += 1
            if over := held(self._rule.id, limit, groups, counts, approved):
                return over
        return None

    async def _placed(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]]
    ) -> AsyncIterator[tuple[_Chosen, list[int | None]]]:
        """The documents of which some element is in a group, and the number of the group of each element."""
        places = places_of(groups)
        came_to: dict[bytes, dict[Key, list[Version]]] = {}
        for key in places:
            for arrival in arrivals.get(key, ()):
                came_to.setdefault(token(arrival.document), {}).setdefault(key, []).append(arrival.since)
        seen: set[bytes] = set()
        async for document in self._documents(list(places)):
            of = token(document.id)
            if of in seen:
                continue  # it holds keys of two filters
            seen.add(of)
            keys = [None if (part := element_key(self._kind, e)) is None else (part,) for e in document.elements]
            found = parts_of(keys, places, came_to.get(of, {}))
            if any(place is not None for place in found):
                yield document, found

    def _in_its_type(self, element: object, value: object) -> object:
        return in_the_type_of(element, self._kind, value)  # type: ignore[arg-type]

    async def _documents(self, keys: Sequence[Key]) -> AsyncIterator[_Chosen]:
        read = reader(self._column)
        for filter_ in holding(self._rule, keys):
            cursor = self._raw.find(
                filter_, {self._column: 1}, session=self._session, batch_size=READ_DOCUMENTS, collation=EXACT
            )
            while documents := await cursor.to_list(READ_DOCUMENTS):
                for document in documents:
                    whole = _decoded(document.raw)
                    elements = read(whole)
                    assert isinstance(elements, list), "the filter asks for an array"
                    yield _Chosen(whole["_id"], elements, document.raw)

    async def _write(self, statements: Sequence[UpdateOne]) -> None:
        matched = 0
        for chunk in chunks(statements, _WRITES_MAX):
            result = await self._collection.bulk_write(list(chunk), ordered=False, session=self._session)
            matched += result.matched_count
        if matched != len(statements):
            raise CountMismatch


def _decoded(raw: bytes) -> Document:
    return bson.decode(raw, codec_options=CODECS)
