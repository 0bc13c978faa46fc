"""The key of a MongoDB document: its `_id`, or the fields of an `_id` that is a document.

The rule's names decide which. `_id` among them is the `_id`, a scalar; beside it are fields of the shard key, by name.
Without `_id` the names are those of the fields of an `_id` that is a document: all of them, for a part of an `_id`
names no document. How the `_id` stands in a record key is the connector's:

- Debezium: `{"id": "<Extended JSON>"}`, in which text has quotes of its own; flattened, the plain value.
- MongoDB's Kafka connector: the document key, `{"_id": <Extended JSON or SimplifiedJson>}` and fields of the shard key;
  or, by `output.schema.key`, `{"documentKey._id": <text>}`, in which text has none; or a resume token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from integrity.core.decode.extended_json import scalar_of
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.record import Limits, Record, Refused
from integrity.core.decode.resume_token import token_in
from integrity.core.keys import Bounds, Key, KeyRefused, KeySpec, KeyType
from integrity.errors import Reason

ID = "_id"
DEBEZIUM_ID = "id"
"""Where the `_id` stands in a record key of Debezium's."""
_PATH_ID = "documentKey._id"
_NO_FIELDS: Mapping[str, object] = {}


class DocumentKeys:
    """Reads the keys of one parent out of the record keys of both connectors."""

    __slots__ = ("_bounds", "_connector_plain", "_debezium_plain", "_fields", "_limits", "_names")

    def __init__(self, spec: KeySpec, limits: Limits) -> None:
        self._fields = spec.fields
        self._names = frozenset(spec.names)
        self._limits = limits
        self._bounds = Bounds(limits.key_text_max, limits.digits_max)
        # Most keys are an ObjectId or a whole number, and their texts can be told at sight: nothing is left to doubt.
        is_id = spec.names == (ID,)
        self._debezium_plain = _PLAIN_DEBEZIUM.get(spec.fields[0][1]) if is_id else None
        self._connector_plain = _PLAIN_CONNECTOR.get(spec.fields[0][1]) if is_id else None

    def of_debezium(self, record: Record) -> Key:
        """The key in a record key of Debezium's connector. Refused when there is none."""
        if (plain := _plain(self._debezium_plain, record.key)) is not None:
            return plain
        document = self._record_key(record)
        try:
            if type(document) is not dict or type(document.get(DEBEZIUM_ID)) is not str:
                raise KeyRefused(
                    Reason.MISSING_KEY, "it has no text in the field id, as Debezium's MongoDB connector writes"
                )
            try:
                found = parse(document[DEBEZIUM_ID].encode("utf-8", "surrogatepass"), self._limits)
            except JsonFault as fault:
                raise KeyRefused(fault.reason, f"the text in id is {fault.message}") from None
            return self._key(found, _NO_FIELDS, is_simplified=False)
        except KeyRefused as refused:
            raise _refused(refused) from None

    def of_flattened(self, record: Record) -> Key:
        """The key in a record key that ExtractNewDocumentState has written: plain JSON, in which types are lost."""
        document = self._record_key(record)
        try:
            if type(document) is not dict or DEBEZIUM_ID not in document:
                raise KeyRefused(Reason.MISSING_KEY, "it has neither the rule's fields nor the id of a document")
            return self._key(document[DEBEZIUM_ID], _NO_FIELDS, is_simplified=True)
        except KeyRefused as refused:
            raise _refused(refused) from None

    def is_debezium(self, record: Record) -> bool:
        """Whether a record key by itself is one of Debezium's for a document: it has the text `id` and none of the
        rule's fields. Where the rule's key names `id`, text in it is a column's."""
        if record.key is None or DEBEZIUM_ID in self._names:
            return False
        try:
            document = self._record_key(record)
        except Refused:
            return False
        return type(document) is dict and type(document.get(DEBEZIUM_ID)) is str and self._names.isdisjoint(document)

    def of_connector(self, record: Record) -> Key | str:
        """The key in a record key of MongoDB's own connector, or the resume token that stands in its place."""
        if (plain := _plain(self._connector_plain, record.key)) is not None:
            return plain
        document = self._record_key(record)
        try:
            if type(document) is str:  # a JSON text once more, as the JsonConverter writes it
                document = parse(document.encode("utf-8", "surrogatepass"), self._limits)
            if type(document) is dict:
                if document.keys() == {_PATH_ID}:
                    return self._printed(document[_PATH_ID])
                if ID in document:
                    token = token_in(document[ID], self._limits)
                    return token or self._key(document[ID], document, is_simplified=True)
            raise KeyRefused(Reason.MISSING_KEY, "it is no document key: it has no _id")
        except (JsonFault, KeyRefused) as fault:
            raise _refused(fault) from None

    def _record_key(self, record: Record) -> object:
        text = record.key
        if text is None:
            message = "The record has no key: the MongoDB connectors write the document's _id there."
            raise Refused(Reason.NULL_KEY, message, "key")
        if is_bson(text):
            message = "The record key is BSON: set output.format.key=json and a StringConverter for keys."
            raise Refused(Reason.BAD_ENCODING, message, "key")
        try:
            document = parse(text, self._limits)
        except JsonFault as fault:
            raise _refused(fault) from None
        if type(document) is dict and document.keys() == {"schema", "payload"}:
            return document["payload"]
        return document

    def _key(self, found: object, beside: Mapping[str, object], *, is_simplified: bool) -> Key:
        if ID not in self._names:
            if type(found) is not dict or found.keys() != self._names:
                names = ", ".join(sorted(self._names))
                message = f"_id is no document of exactly the key's fields ({names}); an _id of one value is named _id"
                raise KeyRefused(Reason.TYPE_MISMATCH, message)
            beside = found
        else:
            beside = {**beside, ID: found}
        name = ""
        try:
            parts = []
            for name, kind in self._fields:
                if name not in beside:
                    raise KeyRefused(Reason.MISSING_KEY, "the field is not there")
                parts.append(scalar_of(kind, beside[name], self._bounds, is_simplified=is_simplified))
        except KeyRefused as refused:
            raise KeyRefused(refused.reason, f"{name}: {refused.message}") from None
        return tuple(parts)

    def _printed(self, found: object) -> Key:
        """The key in an `_id` that was printed as text: a string without quotes, anything else as JSON."""
        if type(found) is not str:
            raise KeyRefused(Reason.TYPE_MISMATCH, f"{_PATH_ID} is no text")
        try:
            value = parse(found.encode("utf-8", "surrogatepass"), self._limits)
        except JsonFault:
            value = found  # the text itself
        else:
            if type(value) is not dict or (self._fields[0][1] is KeyType.STRING and self._names == {ID}):
                message = f"{_PATH_ID} may be a string or the value that it looks like; set output.format.key=json"
                raise KeyRefused(Reason.TYPE_MISMATCH, message)
        return self._key(value, _NO_FIELDS, is_simplified=False)


_OBJECTID, _WHOLE = b"([0-9a-fA-F]{24})", b"(-?[1-9][0-9]{0,17}|0)"
_PLAIN_DEBEZIUM = {
    KeyType.OBJECTID: re.compile(rb'\{"id":"\{\\"\$oid\\": \\"%b\\"\}"\}' % _OBJECTID),
    KeyType.INT64: re.compile(rb'\{"id":"(?:%b|\{\\"\$numberLong\\": \\"%b\\"\})"\}' % (_WHOLE, _WHOLE)),
}
_PLAIN_CONNECTOR = {
    KeyType.OBJECTID: re.compile(rb'\{"_id": (?:"%b"|\{"\$oid": "%b"\})\}' % (_OBJECTID, _OBJECTID)),
    KeyType.INT64: re.compile(rb'\{"_id": (?:%b|\{"\$numberLong": "%b"\})\}' % (_WHOLE, _WHOLE)),
}
"""Record keys as the connectors write them, of one field that is an ObjectId or a whole number."""


def _plain(pattern: re.Pattern[bytes] | None, text: bytes | None) -> Key | None:
    """The key in such a record key; None: it is left to the careful way."""
    found = None if pattern is None or text is None else pattern.fullmatch(text)
    if found is None:
        return None
    part: bytes = found[found.lastindex or 0]
    return (int(part),) if pattern in _OF_WHOLE else (part.decode().lower(),)


_OF_WHOLE = (_PLAIN_DEBEZIUM[KeyType.INT64], _PLAIN_CONNECTOR[KeyType.INT64])

_LENGTH = 4


def is_bson(data: bytes) -> bool:
    """Whether bytes are a BSON document, by the length at their begin and the zero at their end."""
    return len(data) > _LENGTH and data[-1] == 0 and int.from_bytes(data[:_LENGTH], "little") == len(data)


def _refused(fault: KeyRefused | JsonFault) -> Refused:
    return Refused(fault.reason, f"The record key is refused: {fault.message}.", "key")
