"""The captured records as they came, and the rules they are decoded with."""

from __future__ import annotations

import json
from base64 import b64decode
from functools import cache
from pathlib import Path

from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Decoder, Limits, Record
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones

EVENTS = Path(__file__).parent / "events"
FILES = (
    "pg_env",
    "pg_env_double",
    "pg_env_schemas",
    "pg_env_strings",
    "pg_keychange",
    "pg_keychange_jsonheaders",
    "pg_keychange_schemas",
    "pg_keycolumns",
    "pg_strict",
)


@cache
def load(file: str, folder: Path = EVENTS) -> tuple[Record, ...]:
    """All records of a file, in its order: that of offsets within a topic."""
    with (folder / f"{file}.jsonl").open(encoding="utf-8") as lines:
        return tuple(_record(json.loads(line)) for line in lines)


def _record(line: dict[str, object]) -> Record:
    def raw(text: object) -> bytes | None:
        return None if text is None else b64decode(str(text))

    headers = line["headers"]
    assert isinstance(headers, list)
    return Record(
        topic=str(line["topic"]),
        partition=int(str(line["partition"])),
        offset=int(str(line["offset"])),
        timestamp_ms=int(str(line["timestamp_ms"])),
        key=raw(line["key_b64"]),
        value=raw(line["value_b64"]),
        headers=tuple((name, raw(value)) for name, value in headers),
    )


def of_topic(file: str, topic: str) -> list[Record]:
    """The records of the topic `<file>.<topic>`."""
    return [record for record in load(file) if record.topic == f"{file}.{topic}"]


def at(file: str, topic: str, offset: int) -> Record:
    (found,) = [record for record in of_topic(file, topic) if record.offset == offset]
    return found


def rule(tombstones: Tombstones = Tombstones.DELETE, **key: KeyType) -> Parent:
    """A rule on a parent with this key."""
    events = Events(("customers",), "debezium", KeySpec(tuple(key.items())), tombstones)
    return Parent("customer", events, (), Place("customer.yaml", 1, 1))


def decoder(limits: Limits | None = None, **key: KeyType) -> Decoder:
    return decoder_for(rule(**key), limits)


def decode(record: Record, **key: KeyType) -> Decoded:
    return decoder(**key)(record)
