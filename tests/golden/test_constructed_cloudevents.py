"""CONSTRUCTED CloudEvents: captured change events of every connector, wrapped as Debezium's CloudEventsConverter wraps
those of PostgreSQL, of which there are captured ones; and such that hold a whole envelope, or a change document.

What they prove is that a wrapped event says what the bare one says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode.record import Record, Undecodable
from tests.golden.messages import decoder
from tests.golden.records import of_topic
from tests.golden.test_constructed_envelopes import DB2, ORACLE, SQLSERVER, record

Wrap = Callable[[Record], Record]
Event = dict[str, object]


def attributes_of(envelope: Mapping[str, Any]) -> Event:
    """As the converter makes them: fields without their underscores, numbers as text."""
    source = envelope["source"]
    event: Event = {
        "id": f"name:{source.get('name')};lsn:{source.get('lsn')}",
        "source": f"/debezium/{source['connector']}/x",
        "specversion": "1.0",
        "type": f"io.debezium.connector.{source['connector']}.DataChangeEvent",
        "iodebeziumop": envelope["op"],
    }
    for name, value in source.items():
        event["iodebezium" + name.replace("_", "")] = str(value) if type(value) is int else value
    transaction = envelope.get("transaction") or dict.fromkeys(("id", "total_order", "data_collection_order"))
    for name, value in transaction.items():
        event["iodebeziumtx" + name.replace("_", "")] = None if value is None else str(value)
    return event


def data_of(envelope: Mapping[str, Any]) -> Event:
    return {name: envelope.get(name) for name in ("before", "after", "updateDescription")}


def structured(bare: Record) -> Record:
    if bare.value is None:
        return bare
    envelope = json.loads(bare.value)
    return bare._replace(value=json.dumps(attributes_of(envelope) | {"data": data_of(envelope)}).encode())


def binary(bare: Record) -> Record:
    if bare.value is None:
        return bare
    envelope = json.loads(bare.value)
    return in_headers(bare, attributes_of(envelope), data_of(envelope))


def whole(bare: Record) -> Record:
    """As a bridge does that knows nothing of Debezium: what it read is the data."""
    if bare.value is None:
        return bare
    event = {"id": "1", "source": "/bridge", "specversion": "1.0", "type": "kafka.event"}
    return bare._replace(value=json.dumps(event | {"data": json.loads(bare.value)}).encode())


def whole_binary(bare: Record) -> Record:
    if bare.value is None:
        return bare
    event: Event = {"id": "1", "source": "/bridge", "specversion": "1.0", "type": "kafka.event"}
    return in_headers(bare, event, json.loads(bare.value))


def in_headers(bare: Record, attributes: Mapping[str, object], data: object) -> Record:
    told = [(f"ce_{name}", str(value).encode()) for name, value in attributes.items() if value is not None]
    headers = [*bare.headers, *told, ("content-type", b"application/json")]
    return bare._replace(value=json.dumps(data).encode(), headers=headers)


TABLES = {
    "postgresql": (of_topic("pg_env", "public.customers"), ("id", "int64")),
    "mariadb": (of_topic("my_env", "shop.customers"), ("id", "int64")),
    "mongodb": (of_topic("mdb_env", "shop.customers"), ("_id", "objectid")),
    "mongodb-deltas": (of_topic("mdb_env_deltas", "shop.customers"), ("_id", "objectid")),
    "oracle": ([record(op, ORACLE) for op in ("c", "u", "d", None)], ("id", "int64")),
    "db2": ([record(op, DB2) for op in ("r", "c", "d", None)], ("id", "int64")),
    "sqlserver": ([record(op, SQLSERVER) for op in ("c", "d", None)], ("id", "int64")),
}
WRAPS: tuple[Wrap, ...] = (structured, binary, whole, whole_binary)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("source", TABLES)
def test_constructed_wrapped_event_says_what_the_bare_one_says(source: str, wrap: Wrap) -> None:
    records, (name, kind) = TABLES[source]
    assert records
    key = "key: {%s: %s}" % (name, kind)  # noqa: UP031 - braces
    for copied in (None, ("email",)):
        bare = decoder("format: debezium", key, fields=(name,), copied=copied)
        wrapped = decoder("format: cloudevents", key, fields=(name,), copied=copied)
        for each in records:
            said, expected = wrapped(wrap(each)), bare(each)
            if isinstance(expected, Undecodable):
                assert isinstance(said, Undecodable) and said.reason is expected.reason
            else:
                assert said == expected


@pytest.mark.parametrize("wrap", [whole, whole_binary])
def test_constructed_wrapped_change_document_says_what_the_bare_one_says(wrap: Wrap) -> None:
    key = "key: {_id: objectid}"
    bare = decoder("format: mongodb", key, fields=("_id",))
    wrapped = decoder("format: cloudevents", key, fields=("_id",))
    records = [each for each in of_topic("mks_default", "shop.customers") if each.value is not None]
    said = [wrapped(wrap(each)) for each in records]
    assert said == [bare(each) for each in records]
    assert any(isinstance(each, ParentChange) and each.op is Op.DELETED for each in said)


@pytest.mark.parametrize("source", ["postgresql", "mariadb"])
def test_fact_8_wrapped_halves_of_a_key_change_have_one_id_and_both_count(source: str) -> None:
    records, (name, kind) = TABLES[source]
    read = decoder("format: cloudevents", "key: {%s: %s}" % (name, kind))  # noqa: UP031 - braces
    said = [(json.loads(structured(each).value or b"{}").get("id"), read(structured(each))) for each in records]
    left = {id_: change.to for id_, change in said if isinstance(change, ParentChange) and change.op is Op.MOVED}
    come = {id_: change.key for id_, change in said if isinstance(change, ParentChange) and change.op is Op.ARRIVED}
    assert left and come and set(left.values()) == set(come.values())
