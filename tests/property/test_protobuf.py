"""Protobuf is read as Google's own reader reads it, or refused, and no bytes make it raise anything else."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.change import Op, ParentChange
from integrity.core.decode.avro import AvroFault, SchemaFault
from integrity.core.decode.protobuf import ProtobufSchema
from integrity.core.decode.record import Ignored, Undecodable
from integrity.core.keys import UNTOLD
from tests.protobuf import message_of
from tests.unit.core.test_decode_protobuf import EVENTS, descriptors, key, message, said, value

_F = FieldDescriptorProto
INT32S, INT64S = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
UINT32S, UINT64S = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    _F.TYPE_INT32: INT32S, _F.TYPE_SINT32: INT32S, _F.TYPE_SFIXED32: INT32S, _F.TYPE_UINT32: UINT32S,
    _F.TYPE_FIXED32: UINT32S, _F.TYPE_INT64: INT64S, _F.TYPE_SINT64: INT64S, _F.TYPE_SFIXED64: INT64S,
    _F.TYPE_UINT64: UINT64S, _F.TYPE_FIXED64: UINT64S, _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    _F.TYPE_FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False),
    _F.TYPE_STRING: st.text(max_size=20), _F.TYPE_BYTES: st.binary(max_size=20),
}  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A message with fields of any type, some of them such messages again."""
    file = FileDescriptorProto(name="f.proto", syntax="proto3")
    for index in range(draw(st.integers(1, 3))):
        made = file.message_type.add(name=f"M{index}")
        for number in draw(st.lists(st.integers(1, 2000), unique=True, max_size=5)):
            field = made.field.add(name=f"f{number}", number=number, label=_F.LABEL_OPTIONAL)
            field.type = draw(st.sampled_from([*SCALARS, _F.TYPE_MESSAGE]))
            if field.type == _F.TYPE_MESSAGE:
                field.type_name = f".M{draw(st.integers(0, index))}"
            match draw(st.sampled_from(["plain", "optional", "repeated"])):
                case "optional":
                    field.proto3_optional, field.oneof_index = True, len(made.oneof_decl)
                    made.oneof_decl.add(name=f"_{field.name}")
                case "repeated":
                    field.label = _F.LABEL_REPEATED
    return FileDescriptorSet(file=[file]).SerializeToString()


def fill(draw: st.DrawFn, made: Any, depth: int = 3) -> Any:
    for field in made.DESCRIPTOR.fields:
        for _ in range(draw(st.integers(0, 3 if field.is_repeated else 1))):
            if field.message_type is None:
                item = draw(SCALARS[field.type])
                if field.is_repeated:
                    getattr(made, field.name).append(item)
                else:
                    setattr(made, field.name, item)
            elif depth:
                inner = getattr(made, field.name)
                if field.is_repeated:
                    inner = inner.add()
                else:
                    inner.SetInParent()
                fill(draw, inner, depth - 1)
    return made


def expected(made: Any) -> Any:
    """What the fields of one of Google's messages are in JSON."""
    scalars = [each for each in made.DESCRIPTOR.fields if each.message_type is None and not each.is_repeated]
    tells = {each.has_presence for each in scalars} == {True, False}
    found: dict[str, Any] = {}
    for field in made.DESCRIPTOR.fields:
        item = getattr(made, field.name)
        if field.is_repeated:
            found[field.name] = [plain(field, each) for each in item] or UNTOLD
        elif field.has_presence:
            found[field.name] = plain(field, item) if made.HasField(field.name) else None
        else:
            # Minus zero is no zero to Protobuf, and on the wire.
            is_there = any(each is field for each, _ in made.ListFields())
            found[field.name] = plain(field, item) if is_there or tells else UNTOLD
    return found


def plain(field: Any, item: Any) -> Any:
    if field.message_type is not None:
        return expected(item)
    if field.type == _F.TYPE_BYTES:
        return b64encode(item).decode()
    if field.type in (_F.TYPE_FLOAT, _F.TYPE_DOUBLE):
        if item != item or item in (float("inf"), float("-inf")):
            return "NaN" if item != item else "Infinity" if item > 0 else "-Infinity"
        # The shortest text of a float is another double than the float.
        return struct.pack("<f" if field.type == _F.TYPE_FLOAT else "<d", item).hex()
    return item


def with_floats_as_bytes(descriptor: Any, found: Any) -> Any:
    for field in descriptor.fields:
        item = found[field.name]
        items = item if field.is_repeated and item != UNTOLD else [item]
        if field.message_type is not None:
            items = [with_floats_as_bytes(field.message_type, each) if each not in (None, UNTOLD) else each
                     for each in items]  # fmt: skip
        elif field.type in (_F.TYPE_FLOAT, _F.TYPE_DOUBLE):
            form = "<f" if field.type == _F.TYPE_FLOAT else "<d"
            items = [struct.pack(form, each).hex() if isinstance(each, float) else each for each in items]
        found[field.name] = items if field.is_repeated and item != UNTOLD else items[0]
    return found


def mutated(data: st.DataObject, text: bytes, *, begin: int = 0) -> bytes:
    bent = bytearray(text)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(begin, len(bent)))
        bent[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    return bytes(bent)


@given(st.data())
def test_what_google_s_writer_wrote_is_what_is_read(data: st.DataObject) -> None:
    described = data.draw(files())
    made = fill(data.draw, message_of(described, "M0")())
    found = json.loads(ProtobufSchema(described).json(b"??\0" + made.SerializeToString(), 2))["payload"]
    assert with_floats_as_bytes(made.DESCRIPTOR, found) == expected(made)


@given(st.data())
def test_other_bytes_are_read_as_google_s_reader_reads_them_or_refused(data: st.DataObject) -> None:
    described = data.draw(files())
    made = fill(data.draw, message_of(described, "M0")())
    text = mutated(data, made.SerializeToString())
    try:
        found = json.loads(ProtobufSchema(described).json(b"\0" + text, 0))["payload"]
    except AvroFault:
        return
    other = type(made).FromString(text)
    read = with_floats_as_bytes(made.DESCRIPTOR, found)
    if other.SerializeToString() == text:
        assert read == expected(other)
    else:
        # A zero that is written out is told; Google's reader does not tell it from one that is not.
        assert _less(read, expected(other)) == expected(other)


def _less(read: Any, wanted: Any) -> Any:
    """What is read, where it is a zero that is not told by another reader."""
    if isinstance(wanted, dict) and isinstance(read, dict):
        return {name: _less(read[name], part) for name, part in wanted.items()}
    if isinstance(wanted, list) and isinstance(read, list) and len(wanted) == len(read):
        return [_less(each, part) for each, part in zip(read, wanted, strict=True)]
    is_zero = read in (0, "", False, []) or (isinstance(read, str) and not read.strip("0"))
    return wanted if wanted == UNTOLD and is_zero else read


class Slow(ProtobufSchema):
    """A schema without what a shortcut reads."""

    def told(self, data: bytes, at: int) -> None:
        return None


WITHOUT_SHORTCUT = {1: Slow(descriptors(EVENTS))}


@given(st.data())
def test_no_bytes_make_the_decoder_raise_or_tell_a_change_that_they_do_not_prove(data: st.DataObject) -> None:
    op = data.draw(st.sampled_from("cdru"))
    parts: list[bytes | None] = [key(7, 9), data.draw(st.sampled_from([value(op, lsn=7, after=True), None]))]
    at = data.draw(st.integers(0, 1))
    if (part := parts[at]) is not None:
        parts[at] = mutated(data, part, begin=5)
    found, slow = said(parts[0], parts[1]), said(parts[0], parts[1], schemas=WITHOUT_SHORTCUT)
    assert isinstance(found, ParentChange | Ignored | Undecodable)
    if found != slow:
        # The row, which nobody reads, may be broken; or more than that, which the one tells first and the other last.
        assert isinstance(slow, Undecodable)
        assert not isinstance(found, ParentChange) or found.op is Op.DELETED
    if not isinstance(found, ParentChange) or found != slow:
        return
    assert parts[0] is not None
    of_key = _google("Key", parts[0][5:])
    assert found.key == (of_key.tenant, of_key.id)
    if parts[1] is None:
        assert found.op is Op.GONE
    else:
        envelope = _google("Envelope", parts[1][5:])
        assert {"d": Op.DELETED, "c": Op.ALIVE, "r": Op.ALIVE}[envelope.op] is found.op
        assert envelope.source.connector != "postgresql" or found.version is not None


def _google(name: str, text: bytes) -> Any:
    """Another reader's message of a value behind its indexes, of which these tests write two."""
    if text[:1] == b"\0" or text[:2] == b"\2\0":
        name, text = "Key", text[1 if text[:1] == b"\0" else 2 :]
    elif text[:2] == b"\2\2":
        name, text = "Envelope", text[2:]
    return type(message(EVENTS, f"pg.{name}")).FromString(text)


@given(data=st.binary(max_size=60), in_key=st.booleans())
def test_any_bytes_behind_an_id_are_a_value_or_a_dead_letter(data: bytes, in_key: bool) -> None:
    prefix = b"\0\0\0\0\1"
    found = said(prefix + data, None) if in_key else said(key(), prefix + data)
    assert isinstance(found, ParentChange | Ignored | Undecodable)


@given(st.data())
def test_descriptors_of_any_bytes_make_a_schema_or_are_refused(data: st.DataObject) -> None:
    try:
        schema = ProtobufSchema(mutated(data, descriptors(EVENTS)))
        schema.json(b"\0", 0)
    except (SchemaFault, AvroFault):
        return
