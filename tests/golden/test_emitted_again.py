"""A connector that starts again emits old records anew, at higher offsets: an old deletion after a re-creation.

Of each source one life after a death, captured where a file has one; and each kind of record that has no place at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pytest

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.derived import derived_key, derived_value
from integrity.core.decode.halves import pair
from integrity.core.decode.record import Decoded, Decoder, Headers, Record
from integrity.core.fold import settle
from integrity.core.keys import KeySpec, KeyType
from integrity.core.outcome import Outcome
from tests.golden import test_constructed_qlik as qlik
from tests.golden.histories import BIGINT
from tests.golden.messages import decoder as message_decoder
from tests.golden.records import decoder, load, rule
from tests.golden.test_constructed_envelopes import DB2, ORACLE, OTHER, SQLSERVER, record
from tests.golden.test_decode_captured_documents import OBJECTID
from tests.golden.test_decode_captured_documents import decoder as document_decoder
from tests.golden.test_decode_flat_topics import flat
from tests.wire import Converter

LATER_SQLSERVER = SQLSERVER | {"commit_lsn": "00000027:00000758:0006"}
LATER_DB2 = DB2 | {"commit_lsn": "00000000:00000000:0000000000bd1a2d"}
TYPES = "types: {deleted: [Deleted], upserted: [Created]}"
GONE = (Op.DELETED, Op.GONE)


class Lives(NamedTuple):
    """A deletion and the creation after it, of one key, and how they are read. `acts`: nothing tells their place."""

    decode: Decoder
    deletion: Record
    creation: Record
    acts: bool = False


def captured(decode: Decoder, records: Iterable[Record], *, acts: bool = False) -> Lives:
    """The first such two of some records."""
    gone: dict[object, Record] = {}
    for each in records:
        said = decode(each)
        if not isinstance(said, ParentChange):
            continue
        if said.op in GONE and said.to is None:
            gone.setdefault(said.key, each)
        elif said.op is Op.ALIVE and said.key in gone:
            return Lives(decode, gone[said.key], each, acts)
    raise AssertionError("nothing in it lives again")


def topic(file: str, name: str) -> list[Record]:
    return [each for each in load(file) if each.topic == name]


def flattened(source: Mapping[str, object], *, is_null: bool = False, **row: object) -> Record:
    """A row, or a null record, to which the transform has added what tells its place."""
    added = {f"__{name}": value for name, value in source.items() if value is not None and name != "version"} | row
    headers: Headers = [(name, str(value).encode()) for name, value in added.items()] if is_null else ()
    value = None if is_null else json.dumps({"id": 10} | added).encode()
    return Record("server1.customers", 0, 42, 1, b'{"id":10}', value, headers)


def of_flat(source: Mapping[str, object], later: Mapping[str, object], *, is_null: bool = False) -> Lives:
    deletion = flattened(source, is_null=is_null, __op="d", **({} if is_null else {"__deleted": "true"}))
    return Lives(flat(id=KeyType.INT64), deletion, flattened(later, __op="c", __deleted="false"))


def of_avro() -> Lives:
    converter = Converter("AVRO")
    records = [converter.record(each) for each in topic("pg_env_schemas", "pg_env_schemas.public.customers")]
    return captured(decoder_for(rule(**BIGINT), schemas=converter.schemas), records)


def message(value: object, key: bytes = b'{"id":7}', headers: Headers = ()) -> Record:
    return Record("customers", 0, 0, 1, key, None if value is None else json.dumps(value).encode(), headers)


def outbox(type_: str, version: int) -> Record:
    return message({"rev": version}, headers=[("eventType", type_.encode())])


def cloudevent(type_: str, version: int) -> Record:
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": type_, "data": {"rev": version}}
    return message(event, headers=[("content-type", b"application/cloudevents+json")])


def derived(op: Op, version: int) -> Record:
    spec = KeySpec((("id", KeyType.INT64),))
    value = derived_value("customer", op, (7,), None, Version(0, (version,)), "a/0/1/b.c/[7]", "a/0/1", 1)
    return Record("customers", 0, 0, 1, derived_key(spec, (7,)), value, ())


PG_FLAT, PG_CLOUD = "pg_flat_rewrite", "pg_cloudevents"
KT = topic("kt_compacted", "kt.customers")
CASES: Mapping[str, Lives] = {
    "postgresql": captured(decoder(**BIGINT), topic("pg_env", "pg_env.public.customers")),
    "postgresql, avro": of_avro(),
    "mariadb": captured(decoder(**BIGINT), topic("my_env", "my_env.shop.customers")),
    "oracle, constructed": Lives(decoder(**BIGINT), record("d", ORACLE), record("c", ORACLE | {"scn": "2122190"})),
    "db2, constructed": Lives(decoder(**BIGINT), record("d", DB2), record("c", LATER_DB2)),
    "sql server, constructed": Lives(decoder(**BIGINT), record("d", SQLSERVER), record("c", LATER_SQLSERVER)),
    "an envelope of another": Lives(decoder(**BIGINT), record("d", OTHER), record("c", OTHER), acts=True),
    "mongodb": captured(document_decoder("mdb_env", OBJECTID), topic("mdb_env", "mdb_env.shop.customers")),
    "mongodb's own": captured(
        document_decoder("mks_default", OBJECTID), topic("mks_default", "mks_default.shop.customers")
    ),
    "mongodb's own, documents alone": captured(
        document_decoder("mks_fulldoc_tombstone", OBJECTID),
        topic("mks_fulldoc_tombstone", "mks_fulldoc_tombstone.shop.customers"), acts=True,
    ),
    "flat postgresql": captured(flat(id=KeyType.INT64), topic(PG_FLAT, f"{PG_FLAT}.public.customers")),
    "flat postgresql, null records": captured(
        flat(id=KeyType.INT64), topic("pg_flat_tombstone", "pg_flat_tombstone.public.customers"), acts=True
    ),
    "flat mariadb": captured(flat(id=KeyType.INT64), topic("my_flat_rewrite", "my_flat_rewrite.shop.customers")),
    "flat mongodb": captured(
        # None lives again there: its first life, a second time.
        document_decoder("mdb_flat_rewrite", OBJECTID),
        topic("mdb_flat_rewrite", "mdb_flat_rewrite2.shop.customers")[::-1], acts=True,
    ),
    "flat oracle, constructed": of_flat(ORACLE, ORACLE | {"scn": "2122190"}),
    "flat oracle, null records, constructed": of_flat(ORACLE, ORACLE | {"scn": "2122190"}, is_null=True),
    "flat db2, constructed": of_flat(DB2, LATER_DB2),
    "flat sql server, constructed": of_flat(SQLSERVER, LATER_SQLSERVER),
    "flat sql server, null records, constructed": of_flat(SQLSERVER, LATER_SQLSERVER, is_null=True),
    "outbox": Lives(
        message_decoder("format: outbox", "key: {id: int64}", TYPES, "version: rev"),
        outbox("Deleted", 1), outbox("Created", 2),
    ),
    "outbox without a version": Lives(
        message_decoder("format: outbox", "key: {id: int64}", TYPES),
        outbox("Deleted", 1), outbox("Created", 2), acts=True,
    ),
    "cloudevents of postgresql": captured(
        message_decoder("format: cloudevents", "key: {id: int64}"), topic(PG_CLOUD, f"{PG_CLOUD}.public.customers")
    ),
    "cloudevents": Lives(
        message_decoder("format: cloudevents", "key: {id: int64}", TYPES, "version: rev"),
        cloudevent("Deleted", 1), cloudevent("Created", 2),
    ),
    "qlik, constructed": Lives(
        message_decoder(*qlik.QLIK),
        qlik.record(qlik.wrapped(qlik.message("DELETE", {"id": "7"}, sequence=5))),
        qlik.record(qlik.wrapped(qlik.message("INSERT", {"id": "7"}, sequence=6))),
    ),
    "json": Lives(
        message_decoder("format: json", "key: {id: int64}", "version: rev", "deleted_when: after.gone"),
        message({"rev": 1, "gone": True}), message({"rev": 2, "gone": False}),
    ),
    "json, null records": captured(flat("json", id=KeyType.INT64), KT, acts=True),
    "json, events": Lives(
        message_decoder("format: json", "key: {id: int64}", TYPES, "version: rev"),
        message({"type": "Deleted", "rev": 1}), message({"type": "Created", "rev": 2}),
    ),
    "integrity": Lives(
        message_decoder("format: integrity", "key: {id: int64}"), derived(Op.DELETED, 1), derived(Op.ARRIVED, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_old_deletion_that_is_emitted_again_is_stale_where_the_source_tells_its_place(case: str) -> None:
    decode, deletion, creation, acts = CASES[case]
    records = [deletion, creation, deletion]
    placed = [each._replace(offset=offset) for offset, each in enumerate(records)]
    changes = _said(pair(placed, decode, is_over=True, is_apart=False).said)
    assert [change.op in GONE for change in changes] == [True, False, True]
    settled = settle(changes, {}, keep_alive=True)
    assert settled.outcomes == [Outcome.APPLIED, None, Outcome.APPLIED if acts else Outcome.STALE]


def test_deletion_that_is_emitted_a_thousand_times_acts_once() -> None:
    decode, deletion, _, _ = CASES["postgresql"]
    changes = _said(decode(deletion._replace(offset=offset)) for offset in range(1000))
    assert settle(changes, {}, keep_alive=True).outcomes == [Outcome.APPLIED] + [Outcome.DUPLICATE] * 999


def _said(decoded: Iterable[Decoded]) -> list[ParentChange]:
    return [change for change in decoded if isinstance(change, ParentChange)]
