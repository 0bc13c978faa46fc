"""The format `cloudevents`: CloudEvents 1.0 in Kafka, binary and structured, as JSON.

With `types` in the rule they are domain events: the attribute `type` says what happened. Without, they are change
events: what Debezium's CloudEventsConverter writes, whose op and source are in the attributes `iodebezium...`, is put
together again and read as an envelope, key changes and null records included; data that is a whole envelope, or a
change document of MongoDB, is read as it is.

The attribute `id` decides nothing: both halves of a key change have the same one, since Debezium makes it of the log
position. A null record with the headers of an event is that event, without data; one without them is a null record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from integrity.core.decode.debezium import debezium_decoder
from integrity.core.decode.domain import DomainEvents, never_raising
from integrity.core.decode.json import JsonFault, check_text, parse
from integrity.core.decode.mongodb import mongodb_decoder
from integrity.core.decode.record import Decoded, Decoder, Limits, Record, Refused
from integrity.core.rules.model import Parent
from integrity.errors import Reason

Attributes = Mapping[str, object]
"""The attributes of an event by name; those of a binary one are text."""

_PREFIX = "ce_"
_STRUCTURED = "application/cloudevents"
_JSON = re.compile(r"(?:application|text)/(?:[a-z0-9.+-]+\+)?json", re.ASCII)
_DEBEZIUM = "iodebezium"
_OP = "iodebeziumop"
_DEBEZIUM_TYPE = re.compile(r"io\.debezium\.connector\.[a-z0-9_.]+\.DataChangeEvent", re.ASCII | re.IGNORECASE)
# An attribute has the name of a field without its underscores; txId is of source, txid of the transaction.
_SOURCE = {
    name.replace("_", ""): name
    for name in (
        "version", "connector", "name", "ts_ms", "snapshot", "db", "sequence", "schema", "table", "txId", "lsn",
        "server_id", "gtid", "file", "pos", "row", "thread", "change_lsn", "commit_lsn", "event_serial_no", "scn",
        "commit_scn", "rs_id", "ssn", "lcr_position", "scn_idx", "collection", "ord", "lsid", "txnNumber", "wallTime",
    )
}  # fmt: skip
_TRANSACTION = {"txid": "id", "txtotalorder": "total_order", "txdatacollectionorder": "data_collection_order"}
_NUMBERS = frozenset(
    {
        "ts_ms", "lsn", "server_id", "pos", "row", "event_serial_no", "ord", "txnNumber", "wallTime", "total_order",
        "data_collection_order",
    }
)  # fmt: skip
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_EPOCH, _MILLISECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(milliseconds=1)
_NULL = msgspec.Raw(b"null")
_decode_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def cloudevents_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the row that are wanted, None: no row is."""
    assert parent.events is not None
    if parent.events.types is None:
        return never_raising(_Wrapped(parent, limits, copied).says, limits, followed=True)
    return never_raising(_Domain(parent, limits, copied).says, limits)


class _Domain:
    """Domain events."""

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        self._events = DomainEvents(parent, limits, copied)
        self._limits = limits

    def says(self, record: Record) -> Decoded:
        event = _event(record, self._limits)
        if event is None:
            return self._events.gone(record)
        attributes, is_structured = event
        type_ = _type(attributes)
        if _OP in attributes and _DEBEZIUM_TYPE.fullmatch(type_):
            message = "It is a change event of Debezium, and the rule names types of domain events: leave types out."
            raise Refused(Reason.BAD_ENVELOPE, message, "value")
        return self._events.says(
            _traced(record, attributes),
            type_,
            lambda: _payload_of(record, attributes, is_structured, self._limits),
            _milliseconds(attributes.get("time")),
        )


def _payload_of(record: Record, attributes: Attributes, is_structured: bool, limits: Limits) -> object:
    if not is_structured:
        return _binary_data(record, limits)
    if "data_base64" in attributes:
        raise Refused(Reason.BAD_ENVELOPE, "The data of the event is no JSON: it is data_base64.", "value")
    return attributes.get("data")


def data_of(record: Record, limits: Limits) -> object:
    """The data of a domain event; None where there is no event. Raises Refused and JsonFault."""
    event = _event(record, limits)
    return None if event is None else _payload_of(record, *event, limits)


class _Wrapped:
    """Change events."""

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        self._decode = debezium_decoder(parent, limits, copied)
        self._decode_document = mongodb_decoder(parent, limits, copied)
        self._limits = limits

    def says(self, record: Record) -> Decoded:
        found = _opened(record, self._limits)
        if found is None:
            return self._decode(record)
        opened, is_document = found
        return self._decode_document(opened) if is_document else self._decode(opened)


def change_event(record: Record, limits: Limits) -> Record | None:
    """The record with the change event that it wraps for its value; None where it wraps none."""
    try:
        found = _opened(record, limits)
    except (Refused, JsonFault):
        return None
    return None if found is None else found[0]


def _opened(record: Record, limits: Limits) -> tuple[Record, bool] | None:
    """The record with the change event for its value, and whether that is a document of MongoDB's own connector; None
    for a null record. Raises Refused and JsonFault."""
    event = _event(record, limits)
    if event is None:
        return None
    attributes, is_structured = event
    _type(attributes)
    if record.value is None:
        raise Refused(Reason.BAD_ENVELOPE, "The event has no data.", "value")
    if is_structured:
        data = _data(record.value, limits)
    else:
        _binary_data(record, limits)
        data = record.value
    is_document = False
    if _OP in attributes:
        data = _envelope(attributes, data)
    elif not _is_envelope(data):
        is_document = _is_document(data)
        if not is_document:
            raise Refused(
                Reason.BAD_ENVELOPE,
                "The event has no iodebeziumop. If Debezium wrote it, set extension.attributes.enable=true at its "
                "CloudEventsConverter; if it is a domain event, say by events.types what its type means.",
                "value",
            )
    return _traced(record, attributes)._replace(value=data), is_document


def _data(value: bytes, limits: Limits) -> bytes:
    """The data of a structured event; with its schema, where the event stands in one."""
    parts = _parts(value)
    if parts.keys() != {"schema", "payload"}:
        return bytes(parts.get("data", _NULL))
    data = bytes(_parts(bytes(parts["payload"])).get("data", _NULL))
    schema = parse(bytes(parts["schema"]), limits)
    fields = schema.get("fields") if type(schema) is dict else None
    for each in fields if type(fields) is list and data != _NULL else ():
        if type(each) is dict and each.get("field") == "data":
            return b'{"schema":%b,"payload":%b}' % (json.dumps(each).encode(), data)
    return data


def _is_envelope(data: bytes) -> bool:
    """Whether the data is a whole envelope of Debezium: it tells its op and its source."""
    parts = _payload(data)
    return "op" in parts and bytes(parts.get("source", _NULL)).startswith(b"{")


def _is_document(data: bytes) -> bool:
    """Whether the data is a change document of MongoDB, which tells its operation and its place."""
    parts = _payload(data)
    return "operationType" in parts and "_id" in parts


def _payload(data: bytes) -> Mapping[str, msgspec.Raw]:
    """The fields of an object, out of its schema if it has one; none of anything else."""
    try:
        parts = _parts(data)
        return _parts(bytes(parts["payload"])) if parts.keys() == {"schema", "payload"} else parts
    except Refused:
        return {}


def _envelope(attributes: Attributes, data: bytes) -> bytes:
    """The envelope that an event was made of. The rows stay as they are, byte for byte."""
    source: dict[str, object] = {}
    transaction: dict[str, object] = {}
    for attribute, value in attributes.items():
        name = attribute.removeprefix(_DEBEZIUM)
        if name in _SOURCE and name != attribute:
            source[_SOURCE[name]] = _plain(_SOURCE[name], value)
        elif name in _TRANSACTION and name != attribute and value is not None:
            transaction[_TRANSACTION[name]] = _plain(_TRANSACTION[name], value)
    parts = _parts(data)
    schema = b""
    if parts.keys() == {"schema", "payload"}:
        schema, parts = bytes(parts["schema"]), _parts(bytes(parts["payload"]))
    envelope = b'{"before":%b,"after":%b,"source":%b,"transaction":%b,"op":%b}' % (
        bytes(parts.get("before", _NULL)),
        bytes(parts.get("after", _NULL)),
        json.dumps(source).encode(),
        json.dumps(transaction or None).encode(),
        json.dumps(_plain("op", attributes[_OP])).encode(),
    )
    return b'{"schema":%b,"payload":%b}' % (schema, envelope) if schema else envelope


def _parts(data: bytes) -> Mapping[str, msgspec.Raw]:
    try:
        return _decode_parts(data)
    except (msgspec.DecodeError, RecursionError):
        raise Refused(Reason.BAD_ENVELOPE, "The data of the event is no JSON object.", "value") from None


def _plain(field: str, value: object) -> object:
    """A field of `source` out of an attribute, which is text where the field is a number."""
    if type(value) is str and field in _NUMBERS and _WHOLE.fullmatch(value):
        return int(value)
    if value is None or type(value) in (str, int, bool):
        return value
    raise Refused(Reason.BAD_ENVELOPE, f"The attribute of {field} is no text, number or boolean.", "value")


def _event(record: Record, limits: Limits) -> tuple[Attributes, bool] | None:
    """The attributes of an event, with its data if it is structured, and whether it is; None for a null record."""
    content_type = _content_type(record)
    if content_type.startswith(_STRUCTURED):
        if content_type not in (_STRUCTURED, f"{_STRUCTURED}+json"):
            raise Refused(Reason.BAD_ENVELOPE, "Structured events are read as JSON, one in each record.", "header")
        return None if record.value is None else (_structured(record.value, limits), True)
    attributes: dict[str, object] = {}
    for header, value in record.headers:
        if not header.startswith(_PREFIX):
            continue
        name = header.removeprefix(_PREFIX)
        try:
            text = None if value is None else value.decode()
        except UnicodeDecodeError:
            raise Refused(Reason.BAD_ENCODING, f"The header {header[:60]} is refused: not UTF-8.", "header") from None
        if name in attributes and attributes[name] != text:
            raise Refused(Reason.BAD_ENVELOPE, f"The header {header[:60]} is there twice, with two values.", "header")
        attributes[name] = text
    if attributes:
        return attributes, False
    return None if record.value is None else (_structured(record.value, limits), True)


def _structured(value: bytes, limits: Limits) -> Attributes:
    check_text(value, limits)
    event = _bare(parse(value, limits))
    if type(event) is not dict:
        raise Refused(Reason.BAD_ENVELOPE, "The record value is no CloudEvent: it is no JSON object.", "value")
    return event


def _bare(document: object) -> object:
    """A document out of its schema, if it has one."""
    if type(document) is dict and document.keys() == {"schema", "payload"} and type(document["schema"]) is dict:
        return document["payload"]
    return document


def _content_type(record: Record) -> str:
    """The media type of the header `content-type`, without its parameters, in lower case; empty if there is none."""
    for header, value in record.headers:
        if header.lower() == "content-type" and value is not None:
            return value.decode("latin-1").partition(";")[0].strip().lower()
    return ""


def _binary_data(record: Record, limits: Limits) -> object:
    content_type = _content_type(record)
    if content_type and not _JSON.fullmatch(content_type):
        raise Refused(Reason.BAD_ENVELOPE, "The data of the event is no JSON: its content-type is another.", "header")
    if record.value is None:
        return None
    check_text(record.value, limits)
    return _bare(parse(record.value, limits))


def _type(attributes: Attributes) -> str:
    """The type of an event, which is one of this version of CloudEvents."""
    version, type_ = attributes.get("specversion"), attributes.get("type")
    if type(version) is not str or type(type_) is not str or not type_:
        message = "The record is no CloudEvent: it has no specversion, or no type."
        raise Refused(Reason.BAD_ENVELOPE, message, "value")
    if not version.startswith("1."):
        raise Refused(Reason.BAD_ENVELOPE, "The event is of another version of CloudEvents than 1.", "value")
    return type_


def _traced(record: Record, attributes: Attributes) -> Record:
    """The record with the event's own trace, if it has one."""
    trace = attributes.get("traceparent")
    if type(trace) is not str or not trace.isascii():
        return record
    return record._replace(headers=[*record.headers, ("traceparent", trace.encode())])


def _milliseconds(time: object) -> int | None:
    """An attribute `time` in milliseconds since the epoch; None where it is no moment."""
    try:
        moment = datetime.fromisoformat(time) if type(time) is str else None
        if moment is None or moment.tzinfo is None:
            return None
        return int((moment - _EPOCH) / _MILLISECOND)
    except (ValueError, OverflowError):
        return None
