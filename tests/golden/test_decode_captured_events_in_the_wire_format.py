"""Captured events, as the registry's converters would have written them, say what they say as JSON."""

from __future__ import annotations

import pytest

from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoder
from integrity.core.keys import KeyType
from tests.golden.histories import HISTORIES
from tests.golden.records import load, rule
from tests.wire import Converter

FILES = ("pg_env_schemas", "pg_keychange_schemas", "my_env_schemas")
FIELDS = ("id", "code", "name", "email", "amount", "num", "created_at", "updated_at", "d", "ts", "raw", "flag", "note")


def keys_of(file: str, topic: str) -> dict[str, KeyType]:
    table = HISTORIES[file].get(topic.split(".")[-1]) if file in HISTORIES else None
    return {"id": KeyType.INT64} if table is None else dict(table.key)


@pytest.mark.parametrize("kind", ["AVRO", "JSON"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("copied", [None, FIELDS], ids=["events", "copies"])
def test_a_record_says_the_same_in_either_form(file: str, kind: str, copied: tuple[str, ...] | None) -> None:
    converter, told = Converter(kind), 0
    decoders: dict[str, tuple[Decoder, Decoder]] = {}
    for record in load(file):
        if record.topic not in decoders:
            parent = rule(**keys_of(file, record.topic))
            as_json = decoder_for(parent, copied=copied)
            decoders[record.topic] = as_json, decoder_for(parent, copied=copied, schemas=converter.schemas)
        as_json, decode = decoders[record.topic]
        in_wire = converter.record(record)
        assert (in_wire.value is None) is (record.value is None)
        assert decode(in_wire) == as_json(record), record
        told += in_wire.value != record.value
    assert told >= 10
