"""The wire format of Confluent's schema registry: an id, then a value in Avro, Protobuf, or JSON with a JSON Schema.

A record in it is read as the JSON that Connect's JsonConverter would have written of the same value, its schema beside
it: so every event format takes it, and says the same of it. The id stands before the value (a zero byte and 4 bytes;
or a byte 1 and the 16 bytes of a GUID) or in a header, and each part of a record may be in the format or not.

What ids mean is looked up elsewhere, before: here nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from struct import Struct
from typing import Protocol
from uuid import UUID

import msgspec

from integrity.core.decode.avro import AvroFault, AvroSchema, SchemaFault
from integrity.core.decode.avro import connect_schema as connect_schema_of_avro
from integrity.core.decode.json import JsonFault, check_text, parse
from integrity.core.decode.json_schema import connect_schema as connect_schema_of_json
from integrity.core.decode.positions import PLACING
from integrity.core.decode.record import Decoded, Decoder, Headers, Limits, Record, Undecodable
from integrity.errors import Reason

SchemaRef = int | str
"""What a record calls its schema: the id of the registry, or a GUID as text."""

KEY_ID, VALUE_ID = "__key_schema_id", "__value_schema_id"
"""The headers in which newer serializers put the ids."""
_IDS = frozenset((KEY_ID, VALUE_ID))
_DEBEZIUM = "__debezium."
"""Debezium's headers may be in the wire format too, when the connector has a header converter for it."""

_ID_BYTES, _GUID_BYTES = 5, 17
_tuple = tuple.__new__  # measured: twice as fast as the named tuple's own constructor
_id = Struct(">xI").unpack_from
_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(msgspec.Raw).decode


class WireSchema(Protocol):
    """What an id means."""

    def told(self, data: bytes, at: int) -> Mapping[str, object] | None:
        """What a shortcut reads of the value that begins at this place; None where it is nothing for one. Raises
        AvroFault."""
        ...

    def json(self, data: bytes, at: int) -> bytes:
        """The value that begins at this place, as JSON with its schema. Raises AvroFault or JsonFault."""
        ...

    def before(self, behind: bytes) -> bytes:
        """What stands before a value when its id does not, but is in a header where `behind` follows it: the message
        indexes of Protobuf. Raises AvroFault."""
        ...


_TOLD: Mapping[str, Collection[str]] = {"op": (), "source": frozenset(("connector", "ts_ms")) | PLACING}
"""What shortcuts read: of an envelope the operation, and what its source says of connector, time and place."""


class Avro:
    """Values in Avro's binary encoding."""

    def __init__(self, text: str, references: Iterable[str], limits: Limits) -> None:
        self._schema = AvroSchema(text, references, limits, told=_TOLD)
        self._prefix = _prefix(connect_schema_of_avro(self._schema.type))
        self.told = self._schema.tell

    def json(self, data: bytes, at: int) -> bytes:
        try:
            return self._prefix + _encode(self._schema.read(data, at)) + b"}"
        except RecursionError:
            raise AvroFault("nested too deep", Reason.TOO_DEEP) from None

    def before(self, behind: bytes) -> bytes:
        return _nothing(behind)


class Json:
    """Values in JSON, whose schema is a JSON Schema."""

    def __init__(self, text: str, limits: Limits) -> None:
        self._limits = limits
        try:
            document = parse(text.encode("utf-8", "surrogatepass"), limits)
        except JsonFault as fault:
            raise SchemaFault(f"it is no sound JSON: {fault.message}") from None
        described = connect_schema_of_json(document) if type(document) is dict else None
        self._prefix = _prefix(described)

    def told(self, data: bytes, at: int) -> Mapping[str, object] | None:
        return None

    def json(self, data: bytes, at: int) -> bytes:
        text = data[at:]
        if text == b"null":
            return text
        # One whole value and nothing else: in the frame a text of half a value could pass for another.
        check_text(text, self._limits)
        try:
            _check(text)
        except (msgspec.DecodeError, RecursionError):
            parse(text, self._limits)
            raise JsonFault(Reason.BAD_JSON, "not JSON") from None
        return self._prefix + text + b"}"

    def before(self, behind: bytes) -> bytes:
        return _nothing(behind)


def _nothing(behind: bytes) -> bytes:
    if behind:
        raise AvroFault("the header with its schema id can't be read")
    return b""


def _prefix(schema: object) -> bytes:
    return b'{"schema":' + _encode(schema) + b',"payload":'


def wire_schema(kind: str, text: str, references: Sequence[str], limits: Limits | None = None) -> WireSchema:
    """What reads values of a schema that a registry has as text: of the kind AVRO or JSON (for PROTOBUF, see
    `protobuf.ProtobufSchema`). Raises SchemaFault."""
    match kind:
        case "AVRO":
            return Avro(text, references, limits or Limits())
        case "JSON":
            return Json(text, limits or Limits())
        case _:
            raise SchemaFault("it is of a kind that is not supported; use Avro, JSON Schema or Protobuf")


Schemas = Mapping[SchemaRef, WireSchema | SchemaFault]
"""What is known of ids; a fault is why values of a schema can't be read."""


def located(part: bytes, header: bytes | None) -> tuple[SchemaRef, int] | None:
    """The id of a key or value, and where in it the value begins; None when it has no id. `header`: the id and what
    follows it, if they are in a header; then the place is in that."""
    if header is not None:
        found = _located(header)
        if found is None:
            raise AvroFault("the header with its schema id can't be read")
        return found
    if len(part) >= _ID_BYTES and not part[0]:  # nearly every one, without a call
        return _id(part)[0], _ID_BYTES
    return _located(part)


def _located(data: bytes) -> tuple[SchemaRef, int] | None:
    if data.startswith(b"\0"):
        if len(data) < _ID_BYTES:
            raise AvroFault("it is too short for a schema id")
        return _id(data)[0], _ID_BYTES
    if data.startswith(b"\1") and len(data) >= _GUID_BYTES:
        return str(UUID(bytes=data[1:_GUID_BYTES])), _GUID_BYTES
    return None


def references(records: Iterable[Record], bare_keys: Collection[str] = ()) -> set[SchemaRef]:
    """The ids that these records name, to be known before they are decoded. `bare_keys` are topics whose keys are in
    another form."""
    found: set[SchemaRef] = set()
    # Of a topic nearly all are the same: each is looked at once.
    begins: set[bytes] = set()
    for topic, _, _, _, key, value, headers in records:
        if key is not None and topic not in bare_keys:
            begins.add(_begin(key))
        if value is not None:
            begins.add(_begin(value))
        for name, text in headers:
            if text is not None and (name in _IDS or name.startswith(_DEBEZIUM)):
                begins.add(_begin(text))
    for begin in begins:
        try:
            if at := _located(begin):
                found.add(at[0])
        except AvroFault:
            continue  # decoding says so
    return found


def _begin(data: bytes) -> bytes:
    return data[:_GUID_BYTES] if data[:1] == b"\1" else data[:_ID_BYTES]


Shortcut = Callable[[Record, Mapping[str, object]], Decoded | None]
"""What a record says, from what is `told` of its value; its key is JSON. None leaves it to the decoder."""


def wire_decoder(
    decode: Decoder,
    schemas: Schemas,
    shortcut: Shortcut | None = None,
    *,
    repeated: bool = False,
    bare_key: bool = False,
) -> Decoder:
    """Reads records in the wire format as the decoder reads their JSON, and all others as it does.

    `schemas` knows the ids of a record before it is decoded: KeyError otherwise. `repeated`: what can't be read may
    have been a deletion, which a null record of its key repeats (see `Undecodable`). `bare_key`: by the rule keys are
    in another form, where a zero byte is part of a number."""

    def read(record: Record) -> Decoded:
        found = _unwrapped(record, schemas, shortcut, bare_key)
        if isinstance(found, Record):
            return decode(found)
        if repeated and isinstance(found, Undecodable) and record.value is not None:
            return found._replace(repeated=True)
        return found

    return read


def unwrapped(record: Record, schemas: Schemas, bare_keys: Collection[str] = ()) -> Record:
    """The record in JSON; as it is when it can't be read, so that a decoder says why."""
    found = _unwrapped(record, schemas, None, record.topic in bare_keys)
    return found if isinstance(found, Record) else record


def _unwrapped(record: Record, schemas: Schemas, shortcut: Shortcut | None, bare_key: bool) -> Record | Decoded:
    topic, partition, offset, timestamp_ms, key, value, headers = record
    stage = "header"
    try:
        key_id = value_id = None
        if headers:
            key_id, value_id, headers = _headers(headers, schemas)
        stage = "key"
        if key is not None and not bare_key and (at := located(key, key_id)) is not None:
            schema = _known(schemas, at[0])
            key = schema.json(key, at[1]) if key_id is None else schema.json(schema.before(key_id[at[1] :]) + key, 0)
        stage = "value"
        if value is not None and (at := located(value, value_id)) is not None:
            schema = _known(schemas, at[0])
            if value_id is not None:
                value, at = schema.before(value_id[at[1] :]) + value, (at[0], 0)
            if shortcut is not None and (told := schema.told(value, at[1])) is not None:
                keyed = _tuple(Record, (topic, partition, offset, timestamp_ms, key, value, headers))
                if (found := shortcut(keyed, told)) is not None:
                    return found
            value = schema.json(value, at[1])
    except (AvroFault, JsonFault) as fault:
        return Undecodable(fault.reason, f"The record {stage} is refused: {fault.message}.", stage)
    return _tuple(Record, (topic, partition, offset, timestamp_ms, key, value, headers))


def _known(schemas: Schemas, ref: SchemaRef) -> WireSchema:
    schema = schemas[ref]
    if isinstance(schema, SchemaFault):
        raise AvroFault(f"its schema {ref} can't be used: {schema.message}")
    return schema


def _headers(headers: Headers, schemas: Schemas) -> tuple[bytes | None, bytes | None, Headers]:
    """The headers with the ids of key and value, and all others, those of Debezium as JSON."""
    for name, text in headers:
        if name in _IDS or (text and not text[0]):
            break
    else:
        return None, None, headers  # nearly always
    ids: dict[str, bytes] = {}
    written: list[tuple[str, bytes | None]] | None = None
    for index, (name, text) in enumerate(headers):
        if text is None:
            continue
        if name in (KEY_ID, VALUE_ID):
            if name in ids and ids[name] != text:
                raise AvroFault(f"the header {name} is there twice")
            ids[name] = text
        elif text[:1] == b"\0" and name.startswith(_DEBEZIUM) and (at := _located(text)) is not None:
            written = written or list(headers)
            written[index] = (name, _known(schemas, at[0]).json(text, at[1]))
    if ids:
        written = [each for each in written or headers if each[0] not in ids]
    return ids.get(KEY_ID), ids.get(VALUE_ID), headers if written is None else written
