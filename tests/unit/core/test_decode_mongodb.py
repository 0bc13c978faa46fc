"""The formats of MongoDB's connectors, where no captured record shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Headers, Ignored, Record, Undecodable
from integrity.core.decode.resume_token import Place, Token, read_token
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Tombstones
from integrity.core.rules.model import Place as FilePlace
from integrity.errors import Reason

OF_DOCUMENT = "826B04B6C6000000012B022C01002B066E5A1004B7FAE6ABD0D640F39AA995A6C7161CBF463C5F6964003C7431000004"
OF_COLLECTION = "826B04B6D6000000012B022C0100296E5A1004B7FAE6ABD0D640F39AA995A6C7161CBF04"
KEY = {"_id": KeyType.STRING}


def decode(
    value: object,
    *,
    key: object = {"_id": "a"},
    kind: str = "mongodb",
    fields: dict[str, KeyType] = KEY,
    headers: Headers = (),
    tombstones: Tombstones = Tombstones.DELETE,
    deleted_when: str | None = None,
    copied: tuple[str, ...] | None = None,
) -> Decoded:
    events = Events(("t",), kind, KeySpec(tuple(fields.items())), tombstones, deleted_when)
    parent = Parent("customer", events, (), FilePlace("customer.yaml", 1, 1))
    raw = [
        None if each is None else each if type(each) is bytes else json.dumps(each).encode() for each in (key, value)
    ]
    return decoder_for(parent, copied=copied)(Record("t", 0, 7, 1000, raw[0], raw[1], headers))  # type: ignore[arg-type]


def event(op: str = "delete", **more: Any) -> dict[str, Any]:
    return {
        "_id": {"_data": OF_DOCUMENT},
        "operationType": op,
        "ns": {"db": "shop", "coll": "customers"},
        "documentKey": {"_id": "a"},
    } | more


def reason_of(decoded: Decoded) -> Reason:
    assert isinstance(decoded, Undecodable), decoded
    return decoded.reason


def changed(decoded: Decoded) -> ParentChange:
    assert isinstance(decoded, ParentChange), decoded
    return decoded


def test_a_resume_token_tells_the_place_in_the_stream() -> None:
    assert read_token(OF_DOCUMENT) == Token(Place(1795471046, 1, 3), is_of_document=True)
    assert read_token(OF_COLLECTION) == Token(Place(1795471062, 1, 0), is_of_document=False)
    assert read_token(OF_DOCUMENT.lower()) == read_token(OF_DOCUMENT)


@pytest.mark.parametrize("length", range(len(OF_DOCUMENT)))
def test_a_resume_token_cut_short_tells_nothing(length: int) -> None:
    token = read_token(OF_DOCUMENT[:length])
    assert token is None


def test_places_compare_as_their_tokens_do() -> None:
    """KeyStrings are made so that their bytes compare as what they stand for."""
    orders = [0, 1, 2, 63, 64, 127, 128, 255, 256, 2**15, 2**31]

    def mark(order: int) -> bytes:
        raw = (order * 2).to_bytes(((order * 2).bit_length() + 7) // 8 or 1, "big")
        return b"\x29" if order == 0 else bytes([0x2A + len(raw)]) + raw

    head, tail = OF_COLLECTION[:28], OF_COLLECTION[30:]
    tokens = [f"{head}{mark(order).hex().upper()}{tail}" for order in orders]
    assert tokens == sorted(tokens)
    found = [read_token(token) for token in tokens]
    assert [each and each.place.order for each in found] == orders


@pytest.mark.parametrize("op", ["drop", "rename", "dropDatabase", "invalidate"])
def test_what_happens_to_a_collection_deletes_nothing_and_counts_as_a_truncate(op: str) -> None:
    said = decode(event(op), key={"_id": {"_data": OF_COLLECTION}})
    assert isinstance(said, Ignored)
    assert said.op == "t"


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (b"", {"_id": "a"}, Reason.EMPTY_VALUE),
        (b"null", {"_id": "a"}, Reason.BAD_ENVELOPE),
        ([], {"_id": "a"}, Reason.BAD_ENVELOPE),
        ({"id": 5}, {"_id": "a"}, Reason.BAD_ENVELOPE),
        ('"', {"_id": "a"}, Reason.BAD_JSON),
        (b'{"_id":1,"_id":2}', {"_id": "a"}, Reason.DUPLICATE_FIELD),
        (event("explode"), {"_id": "a"}, Reason.UNKNOWN_OP),
        (event(5), {"_id": "a"}, Reason.BAD_ENVELOPE),  # type: ignore[arg-type]
        (event(), None, Reason.NULL_KEY),
        (None, None, Reason.NULL_KEY),
        (event(), {"id": "a"}, Reason.MISSING_KEY),
        (event(), "a", Reason.BAD_JSON),
        (event(), {"_id": {"_data": OF_DOCUMENT}}, Reason.MISSING_KEY),
        (event(), {"_id": json.dumps({"_data": OF_DOCUMENT})}, Reason.MISSING_KEY),
        ({"_id": "a"}, {"_id": {"_data": OF_DOCUMENT}}, Reason.MISSING_KEY),
        (None, {"_id": {"_data": "of an unknown make"}}, Reason.MISSING_KEY),
        (event(_id={"_data": "of an unknown make"}), {"_id": "a"}, Reason.BAD_VERSION),
        (event(clusterTime={"$timestamp": {"t": 1, "i": 1}}), {"_id": "a"}, Reason.BAD_VERSION),
        ({"operationType": "delete", "ns": {}, "_id": "a"}, {"_id": "a"}, Reason.BAD_ENVELOPE),
        ({"_id": {"_data": OF_DOCUMENT}}, {"_id": "a"}, Reason.BAD_ENVELOPE),
    ],
)
def test_what_is_in_doubt_is_a_dead_letter(value: object, key: object, reason: Reason) -> None:
    assert reason_of(decode(value, key=key)) is reason


def test_a_document_that_looks_like_an_event_deletes_nothing() -> None:
    """Anybody may write one into a topic of documents alone. An event has a resume token as _id, a document its own."""
    alone = decode({"_id": "a", "operationType": "delete"})
    assert changed(alone).op is Op.ALIVE
    forged = event()
    assert reason_of(decode(forged, key={"_id": forged["_id"]})) is Reason.MISSING_KEY


def test_a_token_of_an_unknown_make_leaves_the_place_to_the_cluster_time() -> None:
    at = {"_id": {"_data": "00"}, "clusterTime": {"$timestamp": {"t": 5, "i": 6}}}
    version = changed(decode(event(**at))).version
    assert version is not None
    assert version.position == (5, 6, 0)
    assert reason_of(decode(event(**at, txnNumber=1))) is Reason.BAD_VERSION


def test_values_and_keys_inside_of_json_strings_are_read_the_same() -> None:
    plain = decode(event())
    assert decode(json.dumps(event()), key=json.dumps({"_id": "a"})) == plain
    schema = {"type": "string", "optional": False}
    wrapped = decode(
        {"schema": schema, "payload": json.dumps(event())},
        key={"schema": schema, "payload": json.dumps({"_id": "a"})},
    )
    assert wrapped == plain


def test_fields_of_a_shard_key_are_key_fields_by_name_or_left_alone() -> None:
    key = {"region": "eu", "_id": {"$oid": "65a1b2c3d4e5f60718293a4b"}}
    alone = decode(event(), key=key, fields={"_id": KeyType.OBJECTID})
    assert changed(alone).key == ("65a1b2c3d4e5f60718293a4b",)
    both = decode(event(), key=key, fields={"region": KeyType.STRING, "_id": KeyType.OBJECTID})
    assert changed(both).key == ("eu", "65a1b2c3d4e5f60718293a4b")


@pytest.mark.parametrize("found", [{"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2.5}, 1, "a", None])
def test_an_id_that_is_a_document_is_a_key_by_all_its_fields_or_none(found: object) -> None:
    fields = {"a": KeyType.INT64, "b": KeyType.INT64}
    assert reason_of(decode(event(), key={"_id": found}, fields=fields)) is Reason.TYPE_MISMATCH
    assert changed(decode(event(), key={"_id": {"b": 2, "a": 1}}, fields=fields)).key == (1, 2)


def test_documents_that_were_there_before_the_stream_have_no_place() -> None:
    copied = {
        "_id": {"_id": "a", "copyingData": True}, "operationType": "insert", "ns": {"db": "s", "coll": "c"},
        "documentKey": {"_id": "a"}, "fullDocument": {"_id": "a", "n": {"$numberLong": "5"}},
    }  # fmt: skip
    ignored = decode(copied)
    assert isinstance(ignored, Ignored)
    assert ignored.op == "r"
    change = changed(decode(copied, copied=("n", "other")))
    assert change.version is None
    assert change.row is not None
    assert [cell and cell.value for cell in change.row.values()] == [5, None]


def test_a_condition_is_asked_of_documents() -> None:
    said = [
        changed(decode(event("update", fullDocument={"_id": "a", "gone": gone}), deleted_when="after.gone == 1")).op
        for gone in ({"$numberInt": "1"}, 0)
    ]
    assert said == [Op.DELETED, Op.ALIVE]
    missing = decode(event("update", fullDocument={"_id": "a"}), deleted_when="after.gone == 1")
    assert reason_of(missing) is Reason.BAD_ENVELOPE
    alone = decode({"_id": "a", "gone": True}, deleted_when="after.gone")
    assert changed(alone).op is Op.DELETED


def test_a_value_that_no_copy_takes_is_left_out_and_the_parent_lives() -> None:
    document = {"_id": "a", "tags": [{"$oid": "65a1b2c3d4e5f60718293a4b"}], "n": 1}
    change = changed(decode(event("insert", fullDocument=document), copied=("tags", "n")))
    assert change.op is Op.ALIVE
    assert change.row is not None
    assert list(change.row) == ["n"]


def test_null_records_are_ignored_where_the_rule_says_so() -> None:
    said = decode(None, tombstones=Tombstones.IGNORE)
    assert isinstance(said, Ignored)
    assert said.op == "tombstone"


MONGODB = (("__debezium.context.connectorName", b"mongodb"),)
POSTGRESQL = (("__debezium.context.connectorName", b"postgresql"),)


@pytest.mark.parametrize(
    ("key", "fields", "headers", "found"),
    [
        ({"id": '"7"'}, {"_id": KeyType.STRING}, MONGODB, ("7",)),
        ({"id": '"7"'}, {"_id": KeyType.STRING}, (), ("7",)),
        ({"id": "7"}, {"_id": KeyType.INT64}, (), (7,)),
        ({"id": '{"a": 1, "b": 2}'}, {"a": KeyType.INT64, "b": KeyType.INT64}, (), (1, 2)),
        ({"id": '"7"'}, {"id": KeyType.STRING}, (), ('"7"',)),  # a column's text
        ({"id": '"7"'}, {"id": KeyType.STRING}, POSTGRESQL, ('"7"',)),
        ({"id": "7"}, {"_id": KeyType.INT64}, POSTGRESQL, Reason.MISSING_KEY),
        ({"id": "7"}, {"id": KeyType.INT64}, MONGODB, Reason.TYPE_MISMATCH),
        ({"id": "7"}, {"id": KeyType.INT64}, (), Reason.TYPE_MISMATCH),
        ({"id": "seed"}, {"_id": KeyType.STRING}, MONGODB, Reason.BAD_JSON),
        ({"_id": "7"}, {"_id": KeyType.STRING}, (), ("7",)),  # a column of that name
    ],
)
def test_debezium_s_null_record_is_a_document_s_only_where_that_is_told(
    key: object, fields: dict[str, KeyType], headers: Headers, found: object
) -> None:
    said = decode(None, key=key, kind="debezium", fields=fields, headers=headers)
    if isinstance(found, Reason):
        assert reason_of(said) is found
    else:
        assert (changed(said).op, changed(said).key) == (Op.GONE, found)


def envelope(op: str, source: dict[str, object], **more: object) -> dict[str, object]:
    return {"op": op, "before": None, "after": None, "source": {"connector": "mongodb"} | source} | more


@pytest.mark.parametrize(
    "source", [{}, {"ts_ms": 5}, {"ts_ms": "5", "ord": 1}, {"ts_ms": 5, "ord": -1}, {"ts_ms": True, "ord": 1}]
)
def test_debezium_s_document_without_a_place_is_a_dead_letter(source: dict[str, object]) -> None:
    said = decode(envelope("d", source), key={"id": '"a"'}, kind="debezium")
    assert reason_of(said) is Reason.BAD_VERSION


def test_total_order_places_a_change_within_its_transaction() -> None:
    source = {"ts_ms": 5, "ord": 1, "txnNumber": 52}
    said = decode(envelope("d", source, transaction={"id": "x", "total_order": 4}), key={"id": '"a"'}, kind="debezium")
    version = changed(said).version
    assert version is not None
    assert version.position == (5, 1, 4)


def test_who_wants_no_field_needs_no_document() -> None:
    """A scan asks so: an update says that its parent lives, with its document or without."""
    looked_up_late = changed(decode(event("update", fullDocument=None), copied=()))
    assert (looked_up_late.op, looked_up_late.row) == (Op.ALIVE, {})
    source = {"ts_ms": 5, "ord": 1}
    delta = changed(decode(envelope("u", source), key={"id": '"a"'}, kind="debezium", copied=()))
    assert (delta.op, delta.row) == (Op.ALIVE, {})
    read = changed(decode(envelope("r", source), key={"id": '"a"'}, kind="debezium", copied=()))
    assert (read.op, read.version) == (Op.ALIVE, None)
