"""Protobuf: descriptors become what reads the values of a schema as Connect's ProtobufConverter does.

The descriptors are linked by Google's library; the bytes are read here, since every reader of Protobuf takes what no
writer writes: fields that the schema lacks, numbers cut to their type, the last of a field that is there twice. All of
these are refused, as are texts that are not UTF-8 and bytes left over: they are signs of another schema.

Fields are called as in the schema; those of a oneof are fields of their message. What has presence and is not there is
null. A plain field of proto3 leaves no bytes when it is zero, empty or false, and when what wrote it had a null: such a
field is `UNTOLD`, unless it is certain that it can't be null. That is so where its message says of others that they may
be (`optional`, or a wrapper such as google.protobuf.Int64Value), or, in an envelope, where any message does. What
Debezium says of an event itself is null where it is not there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from integrity.core.decode.avro import AvroFault, SchemaFault
from integrity.core.decode.positions import PLACING
from integrity.core.decode.protobuf_values import (
    ANY_SCALE,
    LENGTH,
    NESTED_MAX,
    VALUES,
    WRAPPERS,
    Budget,
    Meta,
    Read,
    described_logical,
    is_logical,
    is_of_any_scale,
    scalar_of,
    stop_of,
    unzigzag,
    varint,
)
from integrity.core.keys import UNTOLD
from integrity.errors import Reason

DESCRIPTORS_BYTES_MAX = 8 * 1024 * 1024
"""Longer descriptors, those of all files that a schema needs, are refused."""
_FIELDS_MAX = 10_000
"""More fields, in all messages that a value may have, are refused."""
_INDEXES_MAX = 32
_STRUCTS_MAX = 3
"""How deep messages are described: an envelope, its row, the row's fields."""

_F = FieldDescriptor


class ProtobufSchema:
    """The messages of a schema, by the indexes that stand before a value."""

    def __init__(self, descriptors: bytes) -> None:
        """`descriptors` is a FileDescriptorSet, that of the schema itself behind those of what it needs. Raises
        SchemaFault."""
        if len(descriptors) > DESCRIPTORS_BYTES_MAX:
            raise SchemaFault(f"its descriptors are larger than {DESCRIPTORS_BYTES_MAX} bytes")
        pool = descriptor_pool.DescriptorPool()
        try:
            files = descriptor_pb2.FileDescriptorSet.FromString(descriptors).file
            for each in files:
                pool.AddSerializedFile(each.SerializeToString())
            own = pool.FindFileByName(files[-1].name)
        except (DecodeError, TypeError, KeyError, IndexError, RecursionError):
            raise SchemaFault("its descriptors are unsound") from None
        # In the order of the file, by which indexes count: the pool knows them by name only.
        self._roots: list[Descriptor] = [own.message_types_by_name[each.name] for each in files[-1].message_type]
        self._metas = _Metas(pool)
        self._known: dict[tuple[int, ...], _Root | SchemaFault] = {}

    def told(self, data: bytes, at: int) -> Mapping[str, object] | None:
        """What an envelope says but its rows, which are passed over unread; None of another message. Raises
        AvroFault."""
        root, at = self._root(data, at)
        return None if root.telling is None else _whole(root.telling, data, at)

    def before(self, behind: bytes) -> bytes:
        """What stands before a value whose id is in a header: the indexes behind that. Raises AvroFault."""
        _, end = _indexes(behind, 0)
        if end != len(behind):
            raise AvroFault("the header with its schema id can't be read")
        return behind

    def json(self, data: bytes, at: int) -> bytes:
        """The value behind the message indexes that begin at this place, as JSON with its schema. Raises AvroFault."""
        root, at = self._root(data, at)
        return b"%b%b}" % (root.prefix, _encode(_whole(root.read, data, at)))

    def _root(self, data: bytes, at: int) -> tuple[_Root, int]:
        """The message that the indexes at this place lead to, and the place behind them."""
        indexes, at = (_FIRST, at + 1) if data[at : at + 1] == b"\0" else _indexes(data, at)
        root = self._known.get(indexes) or self._learn(indexes)
        if isinstance(root, SchemaFault):
            raise AvroFault(root.message)
        return root, at

    def _learn(self, indexes: tuple[int, ...]) -> _Root | SchemaFault:
        found, other = _at(indexes, self._roots), _at(indexes, self._roots, with_entries=True)
        # Some serializers count the entries that maps are made of, and others do not.
        if found is None or other is None or found.full_name != other.full_name:
            raise AvroFault("its message indexes lead to no message of its schema, or not to one alone")
        root: _Root | SchemaFault
        try:
            # As in Connect: a wrapper that is the whole value is the scalar in it.
            types = _Types(self._metas, found)
            described, read = types.described(found, {}, _STRUCTS_MAX), types.reader_of_message(found, {})
            root = _Root(read, b'{"schema":%b,"payload":' % _encode(described), types.telling(found))
        except SchemaFault as fault:
            root = fault
        except RecursionError:
            root = SchemaFault("its messages are nested too deep")
        self._known[indexes] = root
        return root


class _Root(NamedTuple):
    """A message that a value may be: what reads it, what stands before it in JSON, and what reads all but its rows."""

    read: Read
    prefix: bytes
    telling: Read | None


def _whole(read: Read, data: bytes, at: int) -> Any:
    """The value that begins at a place and ends with the bytes."""
    try:
        return read(data, at, len(data), Budget())[0]
    except (IndexError, struct.error):
        raise AvroFault("it ends too early") from None
    except UnicodeDecodeError:
        raise AvroFault("a text is not UTF-8", Reason.BAD_ENCODING) from None
    except RecursionError:
        raise AvroFault("nested too deep", Reason.TOO_DEEP) from None


_encode = msgspec.json.Encoder().encode
_FIRST = (0,)


def _at(indexes: tuple[int, ...], among: Sequence[Descriptor], *, with_entries: bool = False) -> Descriptor | None:
    """The message that indexes lead to, each among those inside the one before; None where there is none."""
    found = None
    for index in indexes:
        if not 0 <= index < len(among):
            return None
        found = among[index]
        among = [each for each in found.nested_types if with_entries or not each.GetOptions().map_entry]
    return found


def _indexes(data: bytes, at: int) -> tuple[tuple[int, ...], int]:
    """The message indexes that begin at a place, and the place behind them; a zero alone is the first message."""
    try:
        count, at = varint(data, at)
        count = unzigzag(count)
        if not count:
            return _FIRST, at
        if not 0 < count <= _INDEXES_MAX:
            raise AvroFault("its message indexes can't be read")
        indexes: list[int] = []
        for _ in range(count):
            index, at = varint(data, at)
            indexes.append(unzigzag(index))
    except IndexError:
        raise AvroFault("it has no message indexes, which stand before Protobuf") from None
    return tuple(indexes), at


class _Metas:
    """Reads what Confluent's converter and registry say of a field beside its type."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._extension: Any = None
        try:
            extension = pool.FindExtensionByName("confluent.field_meta")
        except KeyError:
            return
        options = extension.containing_type
        if options is not None and options.full_name == "google.protobuf.FieldOptions":
            self._extension, self._options = extension, message_factory.GetMessageClass(options)

    def of(self, field_: FieldDescriptor) -> Meta:
        if self._extension is None or not field_.has_options:
            return {}
        try:
            options: Any = self._options.FromString(field_.GetOptions().SerializeToString())
            return {str(key): str(value) for key, value in options.Extensions[self._extension].params.items()}
        except (AttributeError, DecodeError, KeyError, TypeError):  # an extension of that name of somebody else's
            return {}


@dataclass(slots=True, eq=False)
class _Slot:
    """A field, as one of its tags says that it comes. `key`: by which it comes once only; None for one that repeats."""

    name: str
    read: Read
    key: str | None
    is_packed: bool = False
    map_of: type[dict[str, Any]] | type[list[Any]] | None = None
    """What a map becomes: an object, or a list of pairs where its keys are no text."""


@dataclass(slots=True, eq=False)
class _Message:
    """What reads the messages of a type."""

    absent: dict[str, object] = field(default_factory=dict)
    slots: dict[int, _Slot] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    weight: int = 256

    def read(self, data: bytes, at: int, end: int, budget: Budget) -> tuple[dict[str, Any], int]:
        budget.take(self.weight)
        budget.nested -= 1
        if budget.nested < 0:
            raise AvroFault(f"messages are inside one another more than {NESTED_MAX} times", Reason.TOO_DEEP)
        value, slots = self.absent.copy(), self.slots
        seen: set[str] = set()
        while at < end:
            tag = data[at]
            at += 1
            if tag >= 128:
                tag, at = varint(data, at - 1)
            slot = slots.get(tag)
            if slot is None:
                raise AvroFault("it has a field that its schema lacks, or that has another type there")
            item, at = slot.read(data, at, end, budget)
            if slot.key is not None:
                if slot.key in seen:
                    raise AvroFault("a field is there twice, or two fields of which only one may be there")
                seen.add(slot.key)
                value[slot.name] = item
            else:
                _gather(slot, item, value, seen, budget)
        if at != end:
            raise AvroFault("it ends too early")
        if self.required and not seen >= self.required:
            raise AvroFault("a field is missing that its schema requires")
        budget.nested += 1
        return value, at


def _gather(slot: _Slot, item: Any, value: dict[str, Any], seen: set[str], budget: Budget) -> None:
    """Put an item of a list or map, or several, to those before."""
    items = item if slot.is_packed else (item,)
    budget.take(64 * len(items))
    name, map_of = slot.name, slot.map_of
    if name not in seen:
        seen.add(name)
        value[name] = [] if map_of is None else map_of()
    if map_of is None:
        value[name].extend(items)
        return
    key = f"{name}.{item['key']}"
    if key in seen:
        raise AvroFault("a map has a key twice")
    seen.add(key)
    if isinstance(value[name], dict):
        value[name][item["key"]] = item["value"]
    else:
        value[name].append([item["key"], item["value"]])


def _packed(read: Read) -> Read:
    def read_all(data: bytes, at: int, end: int, budget: Budget) -> tuple[list[object], int]:
        stop, at = stop_of(data, at, end)
        budget.take(8 * (stop - at))
        found: list[object] = []
        while at < stop:
            item, at = read(data, at, stop, budget)
            found.append(item)
        if at != stop:
            raise AvroFault("it ends too early")
        return found, at

    return read_all


class _Plain(Enum):
    """What plain fields that are not there are."""

    ZERO = "zero, empty or false"
    NULL = "null"
    UNTOLD = "either"


_ROWS = frozenset({"before", "after"})
_ENVELOPE = _ROWS | {"source", "op"}
"""The fields of Debezium's envelope: what has written it says of all columns alike whether they may be null."""
_ADDED = re.compile(f"__(?:source_)?(?:connector|op|ts_ms|ord|txnNumber|{'|'.join(sorted(PLACING))})")
"""What Debezium adds to flattened rows of an event's source."""
_DELETED = "__deleted"


def _never_null(names: Iterable[str]) -> set[str]:
    """Fields that Debezium never makes null: the row within an event of MySQL's and MariaDB's binary log, which is
    mostly 0, and the place of that, beside the file; in flattened rows they have a prefix. And the mark of a flattened
    deletion."""
    known = set(names)
    places = [(f"{name[:-4]}pos", f"{name[:-4]}row") for name in known if name.endswith("file")]
    return {_DELETED}.union(*[place for place in places if known.issuperset(place)])


class _Types:
    """Makes what reads values of a type of message, and of all that may be in them."""

    def __init__(self, metas: _Metas, root: Descriptor) -> None:
        self._metas = metas
        self._made: dict[str, _Message] = {}
        self._fields = 0
        self._is_certain, self._of_source = False, frozenset[str]()
        self._is_envelope = {each.name for each in root.fields} >= _ENVELOPE
        if self._is_envelope:
            rows = _reached([each for each in root.fields if each.name in _ROWS])
            others = {root.full_name: root} | _reached([each for each in root.fields if each.name not in _ROWS])
            self._is_certain = any(map(_tells_nulls, (others | rows).values()))
            # Of what Debezium says of an event itself, no number or text that may be null is ever zero or empty.
            self._of_source = frozenset(others.keys() - rows.keys())

    def reader_of_message(self, type_: Descriptor, meta: Meta) -> Read:
        if not is_logical(type_):
            return self._message(type_).read
        read, value_of = self._message(type_, _Plain.ZERO).read, VALUES[type_.full_name]

        def read_logical(data: bytes, at: int, end: int, budget: Budget) -> tuple[object, int]:
            parts, at = read(data, at, end, budget)
            return value_of(parts, meta), at

        return read_logical

    def telling(self, root: Descriptor) -> Read | None:
        """What reads an envelope but its rows, whose bytes are not looked at."""
        if not self._is_envelope:
            return None
        whole = self._message(root)
        slots = {
            tag: replace(slot, read=_passed_over)
            if slot.name in _ROWS and slot.key is not None and tag & 7 == LENGTH
            else slot
            for tag, slot in whole.slots.items()
        }
        return replace(whole, slots=slots).read

    def described(self, type_: Descriptor, meta: Meta, structs: int) -> dict[str, object]:
        """What Connect's JsonConverter would write beside a message, as far as anybody reads it. No field is called
        `optional`: which columns have a default, that Debezium makes up rows of, is not told."""
        if is_logical(type_):
            return described_logical(type_.full_name, meta)
        made: dict[str, object] = {"type": "struct", "name": ANY_SCALE if is_of_any_scale(type_) else type_.full_name}
        if structs:
            made["fields"] = [{**self._described_field(each, structs - 1), "field": each.name} for each in type_.fields]
        return made

    def _described_field(self, field_: FieldDescriptor, structs: int) -> dict[str, object]:
        if field_.is_repeated:
            return {"type": "map" if _is_map(field_) else "array"}
        meta = self._metas.of(field_)
        if field_.message_type is not None:
            return self.described(field_.message_type, meta, structs)
        own = meta.get("connect.type")
        connect = scalar_of(field_).connect
        return {"type": own if connect == "int32" and own in ("int8", "int16") else connect}

    def _message(self, type_: Descriptor, plain: _Plain | None = None) -> _Message:
        """What reads a type; `plain` is what its fields that are not there are, where it is known of the type."""
        made = self._made.get(type_.full_name)
        if made is not None:
            return made
        made = self._made[type_.full_name] = _Message()
        self._fields += len(type_.fields)
        if self._fields > _FIELDS_MAX:
            raise SchemaFault(f"it has more than {_FIELDS_MAX} fields")
        certain = _never_null(each.name for each in type_.fields)
        plain = plain or self._plain_in(type_)
        for each in type_.fields:
            made.absent[each.name] = _absent(each, _Plain.ZERO if each.name in certain else plain)
            made.weight += 64 + len(each.name)
            if each.is_required:
                made.required.add(each.name)
            self._put(made, each)
        return made

    def _plain_in(self, type_: Descriptor) -> _Plain:
        if self._is_certain or _tells_nulls(type_) or is_of_any_scale(type_):
            return _Plain.ZERO
        return _Plain.NULL if type_.full_name in self._of_source else _Plain.UNTOLD

    def _put(self, made: _Message, field_: FieldDescriptor) -> None:
        if field_.type == _F.TYPE_GROUP:
            return  # nobody writes them: one that comes is refused
        tag = field_.number << 3
        inner = field_.message_type
        if inner is not None and _is_map(field_):
            is_object = inner.fields_by_name["key"].type == _F.TYPE_STRING
            made.slots[tag | LENGTH] = _Slot(
                field_.name, self._entry(inner), None, map_of=dict[str, Any] if is_object else list[Any]
            )
            return
        if inner is not None:
            wire, read = LENGTH, _inside(self.reader_of_message(inner, self._metas.of(field_)))
        else:
            scalar = scalar_of(field_)
            wire, read = scalar.wire, scalar.read
        if not field_.is_repeated:
            oneof = field_.containing_oneof
            # No field has a name with a point.
            made.slots[tag | wire] = _Slot(field_.name, read, field_.name if oneof is None else f".{oneof.name}")
            return
        made.slots[tag | wire] = _Slot(field_.name, read, None)
        if wire != LENGTH:
            made.slots[tag | LENGTH] = _Slot(field_.name, _packed(read), None, is_packed=True)

    def _entry(self, type_: Descriptor) -> Read:
        """What reads an entry of a map: what is not there is zero in it."""
        entry = self._message(type_, _Plain.ZERO)
        inner = type_.fields_by_name["value"].message_type
        empty = None if inner is None else self.reader_of_message(inner, {})

        def read(data: bytes, at: int, end: int, budget: Budget) -> tuple[dict[str, Any], int]:
            found, at = entry.read(data, at, end, budget)
            if empty is not None and found["value"] is None:
                found["value"], _ = empty(b"", 0, 0, budget)
            return found, at

        return _inside(read)


def _passed_over(data: bytes, at: int, end: int, budget: Budget) -> tuple[None, int]:
    stop, _ = stop_of(data, at, end)
    return None, stop


def _inside(read: Read) -> Read:
    """What reads a message that has its length before it."""

    def read_inside(data: bytes, at: int, end: int, budget: Budget) -> tuple[Any, int]:
        stop, at = stop_of(data, at, end)
        return read(data, at, stop, budget)

    return read_inside


def _is_map(field_: FieldDescriptor) -> bool:
    inner = field_.message_type
    return inner is not None and field_.is_repeated and bool(inner.GetOptions().map_entry)


def _tells_nulls(type_: Descriptor) -> bool:
    """Whether a message says of a scalar that it may be null, as it does not of others: then they can't be."""
    singular = [each for each in type_.fields if not each.is_repeated]
    scalars = [each for each in singular if each.message_type is None]
    return any(each.message_type is not None and each.message_type.full_name in WRAPPERS for each in singular) or (
        any(each.has_presence for each in scalars) and not all(each.has_presence for each in scalars)
    )


def _reached(fields: Iterable[FieldDescriptor]) -> dict[str, Descriptor]:
    """The messages that are in some fields, at any depth, but for those that stand for a scalar and maps."""
    found: dict[str, Descriptor] = {}
    waiting = list(fields)
    while waiting:
        each = waiting.pop()
        inner = each.message_type
        if inner is not None and not _is_map(each) and not is_logical(inner) and inner.full_name not in found:
            found[inner.full_name] = inner
            waiting += inner.fields
    return found


def _absent(field_: FieldDescriptor, plain: _Plain) -> object:
    """What a field is that is not there."""
    if field_.has_presence:
        return None
    if plain is _Plain.NULL or (_ADDED.fullmatch(field_.name) and plain is _Plain.UNTOLD):
        return None
    # Of a list, null and an empty one are never told apart.
    return UNTOLD if plain is _Plain.UNTOLD or field_.is_repeated else scalar_of(field_).default
