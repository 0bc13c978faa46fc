"""Avro read by the generated functions is what another reader reads, and no bytes make them raise anything else."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.avro import AvroFault, AvroSchema, SchemaFault
from integrity.core.decode.record import Ignored, Record, Undecodable
from integrity.core.decode.wire import wire_schema
from integrity.core.keys import KeyType
from tests.golden.records import rule
from tests.unit.core.test_decode_wire import FIVE, KEY, SCHEMAS, VALUE, envelope, prefixed
from tests.wire import written

PRIMITIVES = ["null", "boolean", "int", "long", "double", "string", "bytes"]
INTS, LONGS = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)


@st.composite
def types(draw: st.DrawFn, depth: int = 3) -> Any:
    kind = draw(
        st.sampled_from([*PRIMITIVES, *(["record", "array", "map", "optional", "enum", "fixed"] if depth else [])])
    )
    name = f"N{draw(st.integers(0, 10**12))}"
    match kind:
        case "record":
            inner = draw(st.lists(types(depth - 1), max_size=4))
            return {
                "type": "record",
                "name": name,
                "fields": [{"name": f"f{i}", "type": t} for i, t in enumerate(inner)],
            }
        case "array":
            return {"type": "array", "items": draw(types(depth - 1))}
        case "map":
            return {"type": "map", "values": draw(types(depth - 1))}
        case "optional":
            inner = draw(types(depth - 1).filter(lambda t: t != "null" and not isinstance(t, list)))
            return draw(st.sampled_from([["null", inner], [inner, "null"]]))
        case "enum":
            return {"type": "enum", "name": name, "symbols": ["A", "B", "C"]}
        case "fixed":
            return {"type": "fixed", "name": name, "size": draw(st.integers(0, 5))}
        case _:
            return kind


def values(type_: Any) -> st.SearchStrategy[Any]:
    if isinstance(type_, list):
        return st.one_of([values(branch) for branch in type_])
    if isinstance(type_, dict):
        match type_["type"]:
            case "record":
                return st.fixed_dictionaries({each["name"]: values(each["type"]) for each in type_["fields"]})
            case "array":
                return st.lists(values(type_["items"]), max_size=3)
            case "map":
                return st.dictionaries(st.text(max_size=5), values(type_["values"]), max_size=3)
            case "enum":
                return st.sampled_from(type_["symbols"])
            case _:
                return st.binary(min_size=type_["size"], max_size=type_["size"])
    return {
        "null": st.none(), "boolean": st.booleans(), "int": INTS, "long": LONGS, "string": st.text(max_size=80),
        "double": st.floats(allow_nan=False, allow_infinity=False), "bytes": st.binary(max_size=80),
    }[type_]  # fmt: skip


@given(st.data())
def test_what_another_writer_wrote_is_what_is_read(data: st.DataObject) -> None:
    type_ = data.draw(types())
    value = data.draw(values(type_))
    try:
        text = written(type_, value)
    except fastavro.schema.SchemaParseException:
        return  # two types of one name
    assert AvroSchema(json.dumps(type_)).read(b"??" + text, 2) == value


@given(st.data())
def test_other_bytes_are_read_as_another_reader_reads_them_or_refused(data: st.DataObject) -> None:
    type_ = data.draw(types())
    value = data.draw(values(type_))
    try:
        schema, text = AvroSchema(json.dumps(type_)), bytearray(written(type_, value))
    except (SchemaFault, fastavro.schema.SchemaParseException):
        return
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        found = schema.read(bytes(text), 0)
    except AvroFault:
        return
    if "NaN" not in repr(found) and "Infinity" not in repr(found):
        stream = io.BytesIO(bytes(text))
        assert fastavro.schemaless_reader(stream, fastavro.parse_schema(type_), None) == found
        assert stream.tell() == len(text)


DECODE = decoder_for(rule(id=KeyType.INT64), schemas=SCHEMAS)


class Slow:
    """A schema without what a shortcut reads."""

    def __init__(self, definition: Any) -> None:
        self._schema = wire_schema("AVRO", json.dumps(definition), ())
        self.json = self._schema.json

    def told(self, data: bytes, at: int) -> None:
        return None


WITHOUT_SHORTCUT = decoder_for(rule(id=KeyType.INT64), schemas={**SCHEMAS, 1: Slow(KEY), 2: Slow(VALUE)})


@given(st.data())
def test_no_bytes_make_the_decoder_raise_and_the_shortcut_says_what_the_long_way_says(data: st.DataObject) -> None:
    parts = [bytearray(prefixed(1, FIVE)), bytearray(prefixed(2, envelope(data.draw(st.sampled_from("cdru")))))]
    for part in parts:
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(5, len(part)))
            part[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    record = Record("customers", 0, 3, 1000, bytes(parts[0]), bytes(parts[1]), ())
    said, slow = DECODE(record), WITHOUT_SHORTCUT(record)
    assert isinstance(said, ParentChange | Ignored | Undecodable)
    if isinstance(slow, ParentChange | Ignored):
        assert said == slow
    elif not isinstance(said, Undecodable):
        # The row, which nobody reads, may be broken: the text in it is not looked at.
        assert not isinstance(said, ParentChange) or said.op in (Op.DELETED, Op.ALIVE)


@given(key=st.none() | st.binary(max_size=12), value=st.binary(max_size=60), id_=st.integers(0, 5))
def test_any_bytes_behind_an_id_are_a_value_or_a_dead_letter(key: bytes | None, value: bytes, id_: int) -> None:
    schemas = {**SCHEMAS, 0: SCHEMAS[1], 5: SCHEMAS[3]}
    decode = decoder_for(rule(id=KeyType.INT64), schemas=schemas)
    found = decode(Record("customers", 0, 3, 1000, None if key is None else prefixed(1, key), prefixed(id_, value), ()))
    assert isinstance(found, ParentChange | Ignored | Undecodable)
