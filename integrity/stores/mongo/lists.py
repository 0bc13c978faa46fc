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
from integrity.stores.lists import parts_of, places_of
from integrity.stores.mongo.effects import READ_DOCUMENTS, Came, holding, token
from integrity.stores.mongo.ledger import Arrival, Document, Ledger, chunks
from integrity.stores.mongo.query import EXACT, reader
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

    async def carry_out(
        self, groups: Sequence[Group], arrivals: Mapping[Key, Sequence[Arrival]], approved: Collection[int] = ()
    ) -> tuple[list[int], list[Came]] | Held:
        """Carry out all groups; return the number of elements of each, and the arrivals to keep. Held: some event has
        more elements than the rule allows, and nothing was changed."""
        places = places_of(groups)
        came_to: dict[bytes, dict[Key, list[Version]]] = {}
        for key in places:
            for arrival in arrivals.get(key, ()):
                came_to.setdefault(token(arrival.document), {}).setdefault(key, []).append(arrival.since)
        counts = [0] * len(groups)
        came: list[Came] = []
        seen: set[bytes] = set()
        writes: list[UpdateOne] = []
        limit = self._rule.dependent.max_rows
        async for document in self._documents(list(places)):
            of = token(document.id)
            if of in seen:
                continue  # it holds keys of two filters
            seen.add(of)
            keys = [None if (part := element_key(self._kind, e)) is None else (part,) for e in document.elements]
            parts = parts_of(keys, places, came_to.get(of, {}))
            if all(part is None for part in parts):
                continue
            left: list[object] = []
            for element, part in zip(document.elements, parts, strict=True):
                if part is None:
                    left.append(element)
                    continue
                counts[part] += 1
                match groups[part].end:
                    case Counted():
                        left.append(element)
                    case Referencing(values=(value,), arrival=since) if value is not None:
                        left.append(in_the_type_of(element, self._kind, value))
                        if since is not None:
                            came.append(((value,), since, document.id))
                    case _:
                        pass  # no reference any more: the element goes
            if all(part is None or isinstance(groups[part].end, Counted) for part in parts):
                continue
            if bson.encode(_decoded(document.raw), codec_options=CODECS) != document.raw:
                raise Unholdable("The list holds a value that this program could not write back as it is.")
            writes.append(UpdateOne({"_id": document.id}, {"$set": {self._column: left}}))
            if len(writes) % _WRITES_MAX == 0 and (over := held(self._rule.id, limit, groups, counts, approved)):
                return over
        if over := held(self._rule.id, limit, groups, counts, approved):
            return over
        await self._write(writes)
        return counts, came

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
