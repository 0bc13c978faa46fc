"""Whatever the bytes, a record of MongoDB's connectors is decoded to a value; only one that says so ends a key."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.document_key import DocumentKeys
from integrity.core.decode.record import Decoder, Ignored, Limits, Record, Refused, Undecodable
from integrity.core.keys import Key, KeySpec, KeyType, canonical
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from tests.golden.document_histories import FILES, FLAT_FILES, TYPES
from tests.golden.records import load
from tests.property.test_decode_never_raises import broken, integers, names, scalars, some_bytes, some_headers

DOCUMENTS = [record for file in (*FILES, *FLAT_FILES, "mks_bson") for record in load(file)]
DOCUMENT_DECODERS: list[tuple[bool, Decoder]] = [
    (
        deleted_when is not None,
        decoder_for(
            Parent(
                "customer",
                Events(("t",), kind, KeySpec(tuple(key.items())), Tombstones.DELETE, deleted_when),
                (),
                Place("customer.yaml", 1, 1),
            ),
            copied=copied,
        ),
    )
    for kind in ("debezium", "debezium-flat", "mongodb")
    for key in TYPES
    for deleted_when, copied in ((None, None), ("after.email != null", ("email", "nested", "dec", "uid")))
]
extended = st.recursive(
    scalars
    | st.sampled_from(
        [
            {"$oid": "65a1b2c3d4e5f60718293a4b"}, {"$numberLong": "5"}, {"$numberDecimal": "1E5"}, {"$date": 5},
            {"$binary": "AQ==", "$type": "00"}, {"_data": "826B04B6D6000000012B022C0100296E5A10"}, {"$gt": ""},
        ]
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(names | st.sampled_from(["_id", "$oid", "$date", "$binary", "$numberDouble"]), inner, max_size=4),
)  # fmt: skip
document_values = st.none() | st.fixed_dictionaries(
    {"_id": extended, "operationType": st.sampled_from(["insert", "update", "delete", "drop"])},
    optional={"fullDocument": extended, "clusterTime": extended, "ns": extended, "txnNumber": extended},
).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))
document_keys = st.fixed_dictionaries({}, optional={"_id": extended, "id": scalars, "documentKey._id": scalars}).map(
    lambda document: json.dumps(document).encode("utf-8", "surrogatepass")
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    broken(DOCUMENTS)
    | st.builds(
        Record, st.just("t"), st.just(0), integers, integers, document_keys | some_bytes, document_values, some_headers
    ),
    st.sampled_from(DOCUMENT_DECODERS),
)
def test_records_of_documents_with_broken_bytes_are_decoded_to_a_value(
    record: Record, reader: tuple[bool, Decoder]
) -> None:
    """And only what says so ends a key: a null record, a delete, or what the rule's condition is asked of."""
    is_judged, decode = reader
    match decode(record):
        case ParentChange(op=op, key=key, to=to):
            assert op in (Op.ALIVE, Op.DELETED, Op.GONE)
            value = record.value or b"null"
            assert op is Op.GONE if record.value is None else op is not Op.GONE or b"null" in value
            assert to is None
            assert op is not Op.DELETED or is_judged or b"delete" in value or b'"d"' in value
            assert canonical(key).startswith("[")
        case Ignored():
            pass
        case Undecodable(stage=stage, message=message):
            assert stage in ("key", "value", "header")
            assert len(message) < 400


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([each for each in DOCUMENTS if each.value]),
    st.integers(0, 0xFFFF),
    st.sampled_from(DOCUMENT_DECODERS),
)
def test_a_record_of_a_document_cut_short_says_nothing(record: Record, at: int, reader: tuple[bool, Decoder]) -> None:
    assert record.value
    cut = record._replace(value=record.value[: at % len(record.value)])
    assert isinstance(reader[1](cut), Undecodable)


def test_keys_of_documents_that_are_told_at_sight_are_read_alike() -> None:
    """Each byte of each captured key is left out, doubled, or is another: both ways say the same of it."""
    taken = 0
    for kind in (KeyType.OBJECTID, KeyType.INT64):
        quick = DocumentKeys(KeySpec((("_id", kind),)), Limits())
        careful = DocumentKeys(KeySpec((("_id", kind),)), Limits())
        careful._debezium_plain = careful._connector_plain = None
        for key in sorted({record.key for record in DOCUMENTS if record.key and len(record.key) < 80}):
            for at in range(len(key)):
                for piece in (b"", b"0", b"F", key[at : at + 1] * 2):
                    record = DOCUMENTS[0]._replace(key=key[:at] + piece + key[at + 1 :])
                    for read in (DocumentKeys.of_debezium, DocumentKeys.of_connector):
                        says = said(read, quick, record)
                        assert says == said(read, careful, record)
                        taken += isinstance(says, tuple)
    assert taken > 500


def said(
    read: Callable[[DocumentKeys, Record], Key | str], keys: DocumentKeys, record: Record
) -> Key | str | Undecodable:
    try:
        return read(keys, record)
    except Refused as refused:
        return refused.undecodable
