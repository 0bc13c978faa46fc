"""`integrity init --from-topic`: which `events` block fits the records of a topic, judged from the records alone.

A guess, and told as one: the format is what most values look like, the key what most record keys hold. Then the records
are decoded by it, and what would become dead letters, or what the source can't tell, is said beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.cloudevents import change_event
from integrity.core.decode.connectors import connector_in
from integrity.core.decode.debezium_documents import MONGODB
from integrity.core.decode.document_key import DEBEZIUM_ID, ID
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.qlik import message_of
from integrity.core.decode.record import Decoded, Decoder, Half, Limits, Record
from integrity.core.decode.schema import WHOLE, hints_of
from integrity.core.doctor import TopicLook, event_of, of_topics
from integrity.core.keys import FieldHint, KeySpec, KeyType
from integrity.core.rules.model import (
    DEFAULT_PREFIX,
    TENANT,
    Events,
    KeyFormat,
    Parent,
    Place,
    TenantFrom,
    TenantIn,
    Tombstones,
    Types,
)
from integrity.core.rules.vocabulary import FORMATS

ENTITY = "parent"
"""What the parent is called as long as nobody has named it."""
REGISTRY = "a schema registry"
NOT_JSON = "no JSON object"
"""What values may look like besides a format."""
_LIMITS = Limits()
_CHANGES = ("debezium", "cloudevents", "qlik")
"""The formats of change events that tell an operation."""
_CONNECTOR = "__debezium.context.connectorLogicalName"
"""The header in which Debezium says which connector an event comes from."""
_ROUTING = "__dbz__"
"""What the fields begin with that routing transforms add to a record key: they are none of the row's."""
_OUTBOX_TYPE = "eventType"
_ADDED = ("lsn", "scn", "commit_lsn", "source_lsn", "source_scn", "source_commit_lsn", "source_file", "source_ts_ms")
"""What flattening adds beside the operation, of one source or another."""
_UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DELETED = re.compile("delet|remov|eras|purg", re.IGNORECASE)
_UPSERTED = re.compile("creat|regist|insert|add|updat|chang|upsert", re.IGNORECASE)
_EVENT = re.compile("[A-Za-z][A-Za-z0-9._-]*(ed|Deleted|Created|Updated)", re.IGNORECASE)
_TYPES: Mapping[str, KeyType] = {
    "int8": KeyType.INT32,
    "int16": KeyType.INT32,
    "int32": KeyType.INT32,
    "int64": KeyType.INT64,
    "string": KeyType.STRING,
    "boolean": KeyType.BOOL,
    "bytes": KeyType.BYTES,
}
_EXTENDED: Mapping[object, KeyType] = {
    "$oid": KeyType.OBJECTID,
    "$numberInt": KeyType.INT64,
    "$numberLong": KeyType.INT64,
    "$numberDouble": KeyType.NUMERIC,
    "$numberDecimal": KeyType.NUMERIC,
    "$date": KeyType.TIMESTAMP,
    "$uuid": KeyType.UUID,
}
"""The Extended JSON of MongoDB."""
_WIDER = ({KeyType.INT32, KeyType.INT64}, KeyType.INT64), ({KeyType.UUID, KeyType.STRING}, KeyType.STRING)


@dataclass(frozen=True, slots=True)
class Remark:
    """What a reader of the proposal has to know. `hint` says what mends it."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What fits. `events` is the block as a mapping of plain values; None: nothing does, and the remarks say why."""

    topic: str
    events: Mapping[str, object] | None
    remarks: Sequence[Remark]
    records: int


def propose(look: TopicLook, now_ms: int) -> Proposal:
    """The block that fits the last records of a topic, of which there is at least one."""
    form, why = _format(look.last)
    if form is None:
        return Proposal(look.name, None, [why], len(look.last))
    remarks: list[Remark] = []
    key, key_format = _key(look.last, form in _CHANGES and _of_documents(look.last), remarks)
    if key is None:
        return Proposal(look.name, None, remarks, len(look.last))
    if form == "debezium-flat" and any(connector_in(each.headers) == MONGODB for each in look.last):
        # A rule names a document's `_id` so, whatever stands in the record key.
        key = KeySpec(tuple((ID if name == DEBEZIUM_ID else name, kind) for name, kind in key.fields))
    types = _types(look.last, form, remarks)
    if form == "outbox" and types is None:
        return Proposal(look.name, None, remarks, len(look.last))
    tenant = None if TENANT in key.names else _tenant(look.last, remarks)
    prefix = (_prefix(look.last) if form == "debezium-flat" else None) or DEFAULT_PREFIX
    events = Events(
        (look.name,),
        form,
        key,
        Tombstones.DELETE,
        types=types,
        key_format=key_format,
        tenant=tenant,
        prefix=prefix,
    )
    parent = Parent(ENTITY, events, (), Place("", 0, 0))
    found = of_topics(parent, {look.name: look}, decoder_for(parent), now_ms)
    remarks += [Remark(each.code, each.message, each.hint) for each in found]
    if types is None:
        remarks += _of_changes(look.last, form) if form in _CHANGES else _of_ends(look.last, decoder_for(parent), form)
    return Proposal(look.name, _block(events), remarks, len(look.last))


def as_yaml(proposal: Proposal) -> str:
    """The block as it stands in a rule file, with the remarks as comments before it."""
    lines = [f"# From the last {proposal.records} records of {proposal.topic}."]
    for remark in proposal.remarks:
        lines.append(f"# {remark.code}: {remark.message}" + (f"; {remark.hint}" if remark.hint else ""))
    if proposal.events is not None:
        lines.append("events:")
        lines += [f"  {name}: {_flow(value)}" for name, value in proposal.events.items()]
    return "\n".join(lines)


def _block(events: Events) -> dict[str, object]:
    block: dict[str, object] = {
        "topic": events.topics[0],
        "format": events.format,
        "key": {name: kind.value for name, kind in events.key.fields},
    }
    if events.key_format is not KeyFormat.JSON:
        block["key_format"] = events.key_format.value
    if events.tenant is not None:
        block["tenant"] = {events.tenant.place.value: events.tenant.name}
    if events.prefix != DEFAULT_PREFIX:
        block["prefix"] = events.prefix
    if events.types is not None:
        said = {"deleted": events.types.deleted, "upserted": events.types.upserted}
        block["types"] = {name: list(names) for name, names in said.items() if names}
        if events.types.payload is not None:
            block["type_from"] = {"field": events.types.field}
    return block


def _flow(value: object) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{_flow(name)}: {_flow(part)}" for name, part in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case _:
            text = str(value)
            is_plain = re.fullmatch("[A-Za-z_][A-Za-z0-9_.-]*", text) and text.lower() not in _OTHERWISE
            return text if is_plain else "'" + text.replace("'", "''") + "'"


_OTHERWISE = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))
"""Words that YAML reads as something else than text."""


# --- the format ---------------------------------------------------------------------------------------------------


def _format(records: Sequence[Record]) -> tuple[str | None, Remark]:
    """What most values look like; None with the reason where that can't be read."""
    votes: Counter[str] = Counter()
    for record in records:
        if vote := _vote(record):
            votes[vote] += 1
    if not votes:
        message = "no value tells a format: there are null records, heartbeats or markers of transactions only"
        return None, Remark("no_values", message)
    [(form, _)] = votes.most_common(1)
    if form == "json" and any(_is_null_text(record.value) for record in records):
        form = "debezium-flat"  # no serializer of tables writes a null as text
    if form == REGISTRY:
        message = "the values are not JSON: they begin with a zero byte, as the serializers of a schema registry write"
        hint = "set INTEGRITY_SCHEMA_REGISTRY__URL to the one that knows them; for Protobuf: "
        return None, Remark("schema_registry", message, f"{hint}pip install 'integrity[protobuf]'")
    if form == NOT_JSON:
        return None, Remark("not_json", "most values are no JSON objects", "see docs/rules.md for what is read")
    if form not in FORMATS:
        return None, Remark("not_supported_yet", f"the records look like the format {form}, which is not read yet")
    return form, Remark("", "")


def _is_null_text(value: bytes | None) -> bool:
    """Whether it is what a flattened deletion is by default: a null that the converter has written."""
    if value is None or value == b"null":
        return value is not None
    found = _parsed(value) if value.startswith(b'{"schema"') else None
    return isinstance(found, dict) and found.keys() == {"schema", "payload"} and found["payload"] is None


def _vote(record: Record) -> str:
    """The format that a value looks like; empty where it tells nothing."""
    value, names = record.value, {name for name, _ in record.headers}
    if value is None or _is_null_text(value):
        return ""
    if value[:1] == b"\0":
        return REGISTRY
    if "ce_specversion" in names:
        return "cloudevents"
    found = _parsed(value)
    if isinstance(found, str):
        found = _parsed(found.encode())
    if isinstance(found, dict) and found.keys() == {"schema", "payload"}:
        found = found["payload"]
    if not isinstance(found, dict):
        return "outbox" if _OUTBOX_TYPE in names else NOT_JSON
    fields = found.keys()
    if "op" in found and isinstance(found.get("source"), dict):
        return "debezium"
    if {"entity", "op", "key", "to", "version", "cause"} <= fields:
        return "integrity"
    if "operationType" in found and ("ns" in found or "documentKey" in found):
        return "mongodb"
    if {"specversion", "id", "source", "type"} <= fields:
        return "cloudevents"
    if found.get("magic") == "atMSG" or message_of(record, _LIMITS) is not None:
        return "qlik"
    if {"status", "event_count"} <= fields or fields <= {"ts_ms", "ts_us", "ts_ns"}:
        return ""  # a marker of a transaction, a heartbeat
    if _OUTBOX_TYPE in names:
        return "outbox"
    is_flat = any(name.startswith("__debezium.") for name in names) and "id" not in names
    if is_flat or "__deleted" in found or "__op" in found or any(name.startswith("__source_") for name in fields):
        return "debezium-flat"
    if _prefix([record]) is not None:
        return "debezium-flat"
    if "_id" in found and isinstance(key := _unwrapped(record.key), dict) and "_id" in key:
        return "mongodb"  # whole documents: what has to be set for them, its decoder says
    return "outbox" if "id" in names and any(name.startswith("__debezium.") for name in names) else "json"


def _prefix(records: Iterable[Record]) -> str | None:
    """What most names of added fields and headers begin with, if the operation is among them, and the source's place
    or time."""
    found: Counter[str] = Counter()
    for record in records:
        row = _value(record)
        told = {name: text.decode(errors="replace").strip('"') for name, text in record.headers if text is not None}
        told |= row if isinstance(row, dict) else {}
        for name, op in told.items():
            prefix = name.removesuffix("op")
            if (
                prefix
                and prefix != name
                and op in ("c", "r", "u", "d")
                and any(prefix + each in told for each in _ADDED)
            ):
                found[prefix] += 1
    return found.most_common(1)[0][0] if found else None


def _parsed(text: bytes) -> object:
    try:
        return parse(text, _LIMITS)
    except JsonFault:
        return None


# --- the key ------------------------------------------------------------------------------------------------------


def _of_documents(records: Iterable[Record]) -> bool:
    """Whether the envelopes are those of MongoDB, whose keys hold Extended JSON as text."""
    return any((event := event_of(each)) is not None and event.connector == "mongodb" for each in records)


def _key(records: Sequence[Record], is_document: bool, remarks: list[Remark]) -> tuple[KeySpec | None, KeyFormat]:
    """The fields that most record keys have, with their types; a bare key is called `id`, a document's `_id`."""
    forms: Counter[KeyFormat] = Counter()
    shapes: Counter[tuple[str, ...]] = Counter()
    kinds: dict[tuple[tuple[str, ...], str], Counter[KeyType]] = {}
    is_guessed = False
    for record in records:
        if record.key is None or _is_aside(record):
            continue
        form, fields, has_schema = _key_of(record.key, is_document)
        if not fields:
            continue
        is_guessed |= not has_schema
        names = tuple(fields)
        forms[form] += 1
        shapes[names] += 1
        for name, kind in fields.items():
            if kind is not None:
                kinds.setdefault((names, name), Counter())[kind] += 1
    if not shapes:
        message = "no record has a key that can be read"
        hint = "does the table have a primary key, or message.key.columns?"
        if any(_is_token(_unwrapped(record.key)) for record in records):
            hint = "they are resume tokens: set change.stream.document.key.as.key=true at the connector"
        remarks.append(Remark("no_keys", message, hint))
        return None, KeyFormat.JSON
    [(names, count)] = shapes.most_common(1)
    if count < shapes.total():
        others = shapes.total() - count
        remarks.append(Remark("keys_differ", f"{others} of {shapes.total()} record keys have other fields"))
    spec = tuple((name, _one(kinds.get((names, name), Counter()))) for name in names)
    if is_guessed:
        message = "the types of the key are a guess from values: compare them with the column's"
        remarks.append(Remark("types_guessed", message, "schemas.enable=true at the key converter tells them"))
    [(form, _)] = forms.most_common(1)
    return KeySpec(spec), form


def _is_aside(record: Record) -> bool:
    """Whether the record is a logical message or the like, whose key is none of a row."""
    event = event_of(record)
    return event is not None and event.op in ("m", "t")


def _key_of(text: bytes, is_document: bool) -> tuple[KeyFormat, Mapping[str, KeyType | None], bool]:
    """How a record key is written, the types of its fields, and whether a schema tells them. No fields: unreadable."""
    found, hints, has_schema = _parsed(text), MappingProxyType[str, FieldHint]({}), False
    if found is None:
        if (len(text) == 8 and not text.isascii()) or text[:1] == b"\0":
            return KeyFormat.LONG, {"id": KeyType.INT64} if len(text) == 8 else {}, True
        try:
            bare = text.decode()
        except UnicodeDecodeError:
            return KeyFormat.JSON, {}, False
        if not bare or bare.startswith("Struct{"):
            return KeyFormat.STRING, {}, False
        return KeyFormat.STRING, {"id": _of_value(bare)}, False
    if isinstance(found, dict) and found.keys() == {"schema", "payload"}:
        has_schema = isinstance(found["schema"], dict)
        hints = MappingProxyType(dict(hints_of(found["schema"])))
        found = found["payload"]
    if not isinstance(found, dict):
        hint = hints.get(WHOLE)
        return KeyFormat.JSON, {"id": _of_hint(hint) or _of_value(found)}, has_schema
    if is_document and isinstance(found.get("id"), str):
        return KeyFormat.JSON, {"_id": _of_value(_parsed(found["id"].encode()))}, True
    if _is_token(found):
        return KeyFormat.JSON, {}, False
    fields = {name: part for name, part in found.items() if not name.startswith(_ROUTING)}
    return KeyFormat.JSON, {n: _of_hint(hints.get(n)) or _of_value(v) for n, v in fields.items()}, has_schema


def _is_token(key: object) -> bool:
    """Whether it is a resume token of MongoDB, which names no document."""
    return isinstance(key, dict) and isinstance(token := key.get("_id"), dict) and "_data" in token


def _of_hint(hint: FieldHint | None) -> KeyType | None:
    if hint is None:
        return None
    name = hint.name or ""
    if name.endswith((".Decimal", ".VariableScaleDecimal")):
        return KeyType.NUMERIC
    if name.endswith(".Uuid"):
        return KeyType.UUID
    if name.endswith(".Date"):
        return KeyType.DATE
    if name.endswith("Timestamp"):
        return KeyType.TIMESTAMP
    return _TYPES.get(hint.type)


def _of_value(value: object) -> KeyType | None:
    match value:
        case bool():
            return KeyType.BOOL
        case int():
            return KeyType.INT64
        case Decimal():
            return KeyType.NUMERIC
        case str():
            return KeyType.UUID if _UUID.fullmatch(value) else KeyType.STRING
        case dict() if value.keys() == {"scale", "value"}:
            return KeyType.NUMERIC
        case dict() if len(value) == 1:
            return _EXTENDED.get(next(iter(value)))
        case _:
            return None


def _one(kinds: Counter[KeyType]) -> KeyType:
    """One type for all values, or for most of them; text where none tells."""
    for narrow, wide in _WIDER:
        if kinds.keys() == narrow:
            return wide
    return kinds.most_common(1)[0][0] if kinds else KeyType.STRING


def _tenant(records: Iterable[Record], remarks: list[Remark]) -> TenantFrom | None:
    """What tells whose an event is, where several connectors write to the topic: each has a source of its own, and
    their equal keys are keys of different parents."""
    connectors = {text for record in records for name, text in record.headers if name == _CONNECTOR and text}
    if len(connectors) < 2:
        return None
    message = f"the records come from {len(connectors)} connectors: each counts as a tenant"
    hint = "write tenant: string in key too, or {tenant} in the store's URL; leave tenant out if all read one source"
    remarks.append(Remark("several_connectors", message, hint))
    return TenantFrom(TenantIn.HEADER, _CONNECTOR)


# --- domain events ------------------------------------------------------------------------------------------------


def _types(records: Iterable[Record], form: str, remarks: list[Remark]) -> Types | None:
    """The types of domain events, by what their names say; None where the records are none."""
    if form not in ("outbox", "json", "cloudevents"):
        return None
    payload = "payload" if form == "outbox" and all(map(_in_envelope, records)) else None
    header, field = (None, _OUTBOX_TYPE) if payload else (_OUTBOX_TYPE, None) if form == "outbox" else (None, "type")
    if form == "cloudevents":
        header = field = None  # the format itself says where the type is
    seen: Counter[str] = Counter()
    values = 0
    for record in records:
        if record.value is None:
            continue
        values += 1
        if header is not None:
            seen.update(text.decode(errors="replace") for name, text in record.headers if name == header and text)
        elif field is not None and isinstance(found := _value(record), dict) and isinstance(found.get(field), str):
            seen[found[field]] += 1
        elif form == "cloudevents" and (type_ := _cloudevent_type(record)) is not None:
            seen[type_] += 1
    if form == "cloudevents" and not seen:
        return None
    if form == "json" and (2 * seen.total() < values or not all(map(_EVENT.fullmatch, seen))):
        return None
    if not seen:
        message = "the records look like those of an outbox, and nothing in them tells the type of an event"
        hint = "set table.fields.additional.placement=type:header:eventType at the router"
        remarks.append(Remark("no_type", message, hint))
        return None
    deleted = tuple(sorted(filter(_DELETED.search, seen)))
    upserted = tuple(sorted(name for name in seen if name not in deleted and _UPSERTED.search(name)))
    others = sorted(seen.keys() - {*deleted, *upserted})
    if not deleted:
        message = "no type is called as a deletion is: the rule says nothing until types.deleted names one"
        remarks.append(Remark("no_deletions", message))
    if others:
        message = f"these types say nothing unless types names them: {', '.join(others)}"
        remarks.append(Remark("types_unnamed", message))
    if not deleted and not upserted:
        return None
    return Types(deleted, (), upserted, header, field, payload, MappingProxyType({}))


def _cloudevent_type(record: Record) -> str | None:
    """The type of a domain event; None for a change event of Debezium."""
    headers = {name: text.decode(errors="replace") for name, text in record.headers if text is not None}
    found = _parsed(record.value) if record.value is not None and "ce_type" not in headers else None
    attributes = found if isinstance(found, dict) else {}
    type_ = headers.get("ce_type", attributes.get("type"))
    return type_ if isinstance(type_, str) and type_ and change_event(record, _LIMITS) is None else None


def _in_envelope(record: Record) -> bool:
    """Whether the router has put the payload beside other columns."""
    found = _value(record)
    return record.value is None or (isinstance(found, dict) and {"payload", _OUTBOX_TYPE} <= found.keys())


def _value(record: Record) -> object:
    """The value, out of its schema if it has one."""
    return _unwrapped(record.value)


def _unwrapped(text: bytes | None) -> object:
    found = None if text is None else _parsed(text)
    is_wrapped = isinstance(found, dict) and found.keys() == {"schema", "payload"} and isinstance(found["schema"], dict)
    return found["payload"] if isinstance(found, dict) and is_wrapped else found


_ENDS: Mapping[str, str] = {
    "debezium-flat": "delete.tombstone.handling.mode=drop at the transform would leave them out",
    "mongodb": "publish.full.document.only=true at the connector leaves them out, without its tombstone.on.delete",
    "json": "a deletion is a null record, or what deleted_when says",
}
"""Where a deletion may not be told at all, and why not."""


def _of_ends(records: Sequence[Record], decoder: Decoder, form: str) -> list[Remark]:
    """Whether rows and documents are seen to end."""
    if form not in _ENDS or any(_is_end(decoder(record)) for record in records):
        return []
    message = "no deletion is among the records: whether they are sent could not be seen"
    return [Remark("no_deletions", message, _ENDS[form])]


def _is_end(said: Decoded) -> bool:
    change = said.change if isinstance(said, Half) else said
    return isinstance(change, ParentChange) and change.op in (Op.DELETED, Op.MOVED, Op.GONE)


# --- change events ----------------------------------------------------------------------------------------------------


def _of_changes(records: Sequence[Record], form: str) -> list[Remark]:
    """What change events leave out."""
    is_qlik = form == "qlik"
    ops: Counter[object] = Counter()
    bare_updates: Counter[object] = Counter()
    tombstones = 0
    for record in records:
        tombstones += record.value is None
        if is_qlik:
            told = message_of(record, _LIMITS)
            ops["d"] += told is not None and told.operation == "DELETE"
        elif (event := event_of(record)) is not None:
            ops[event.op] += 1
            bare_updates[event.connector] += event.op == "u" and not event.has_before
    remarks: list[Remark] = []
    if not ops["d"]:
        message = "no deletion is among the records: whether they are sent could not be seen"
        remarks.append(Remark("no_deletions", message, "" if is_qlik else "see skipped.operations at the connector"))
    elif not tombstones:
        message = "no null record follows the deletions: a compacted topic keeps every deleted key"
        remarks.append(
            Remark("no_tombstones", message, "" if is_qlik else "tombstones.on.delete=true at the connector")
        )
    if is_qlik:
        return remarks
    is_document = MONGODB in bare_updates
    if not ops["t"] and not is_document:
        message = "no truncate is among the records: Debezium leaves them out unless it is told otherwise"
        remarks.append(Remark("no_truncates", message, "skipped.operations=none at the connector"))
    if bare_updates.total():
        message = "updates do not hold the row before: deleted_when can't ask for it"
        pre_image = "capture.mode=change_streams_update_full_with_pre_image, and pre-images of the collection"
        hint = pre_image if is_document else "ALTER TABLE ... REPLICA IDENTITY FULL;"
        remarks.append(Remark("replica_identity", message, hint))
    return remarks
