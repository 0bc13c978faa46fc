"""Every captured record of MongoDB's two connectors, decoded as the statements say (`document_histories`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby

import pytest

from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Decoder, Ignored, Undecodable
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.rules.model import Events, Parent, Place, Tombstones
from integrity.errors import Reason
from tests.golden.document_histories import FILES, FLAT_FILES, STEPS, TYPES, expected, expected_flat
from tests.golden.histories import ALIVE, BEYOND_DOUBLE, DELETED
from tests.golden.records import at, load, of_topic
from tests.golden.test_decode_captured_events import seen

OBJECTID, STRING = {"_id": KeyType.OBJECTID}, {"_id": KeyType.STRING}
TOPICS = [(file, collection) for file, known in FILES.items() for collection in known.collections]


def decoder(
    file: str, key: Mapping[str, KeyType], *, deleted_when: str | None = None, copied: tuple[str, ...] | None = None
) -> Decoder:
    kind = "debezium-flat" if file in FLAT_FILES else "debezium" if file.startswith("mdb") else "mongodb"
    events = Events(("customers",), kind, KeySpec(tuple(key.items())), Tombstones.DELETE, deleted_when)
    return decoder_for(Parent("customer", events, (), Place("customer.yaml", 1, 1)), copied=copied)


def change_of(decoded: Decoded) -> ParentChange:
    assert isinstance(decoded, ParentChange), decoded
    return decoded


def refused(decoded: Decoded) -> Undecodable:
    assert isinstance(decoded, Undecodable), decoded
    return decoded


@pytest.mark.parametrize(("file", "collection"), TOPICS)
def test_each_record_of_a_collection_says_what_its_statement_did(file: str, collection: str) -> None:
    for key in TYPES:
        said = [seen(decoded) for decoded in map(decoder(file, key), of_topic(file, collection))]
        wanted = expected(FILES[file], collection, key)
        if FILES[file].is_looked_up:
            said, wanted = [each for each, _ in groupby(said)], [each for each, _ in groupby(wanted)]
        assert said == wanted, key


def test_no_record_of_the_files_is_left_out() -> None:
    """Beside the collections there are heartbeats and transaction markers."""
    for file in FILES:
        decode = decoder(file, OBJECTID)
        others = [record for record in load(file) if record.topic.removeprefix(f"{file}.") not in STEPS]
        assert {
            label for each in map(decode, others) for label in [each.op if isinstance(each, Ignored) else each]
        } <= {
            "heartbeat",
            "transaction",
        }
        topics = {record.topic.removeprefix(f"{file}.") for record in load(file)} & STEPS.keys()
        assert topics == {topic for topic in FILES[file].collections if of_topic(file, topic)}


@pytest.mark.parametrize("file", [file for file, known in FILES.items() if known.refuses is None])
def test_every_document_ends_as_the_statements_left_it(file: str) -> None:
    """Fact 17: without tombstones the deletions of publish.full.document.only vanish."""
    for collection in FILES[file].collections:
        for key in TYPES:
            ended: dict[Key, str] = {}
            for change in map(decoder(file, key), of_topic(file, collection)):
                if isinstance(change, ParentChange):
                    ended[change.key] = ALIVE if change.op is Op.ALIVE else DELETED
            wanted: dict[Key, str] = {}
            for step in expected(FILES[file], collection, key):
                if isinstance(step.what, Op) and step.key is not None:
                    wanted[step.key] = ALIVE if step.what is Op.ALIVE else DELETED
            assert ended == wanted
            if file == "mks_fulldoc_default":
                assert set(ended.values()) <= {ALIVE}


@pytest.mark.parametrize(("file", "collection"), TOPICS)
def test_a_key_never_goes_back_in_version(file: str, collection: str) -> None:
    """But for the insertion of a transaction that does not tell the places within it, which comes last there."""
    for key in TYPES:
        latest: dict[Key, Version] = {}
        for change in map(decoder(file, key), of_topic(file, collection)):
            if isinstance(change, ParentChange) and change.version is not None:
                if file == "mdb_env_deltas" and change.key == ("t1",) and change.op is Op.DELETED:
                    assert change.version < latest[change.key]
                else:
                    assert change.version > latest.get(change.key, Version(-1, ()))
                latest[change.key] = change.version


def test_fact_16_text_in_a_key_is_a_string_and_a_number_is_a_number() -> None:
    record = at("mdb_env", "shop.plain", 10)
    assert record.key == b'{"id":"\\"007\\""}'
    assert change_of(decoder("mdb_env", STRING)(record)).key == ("007",)
    number = record._replace(key=b'{"id":"7"}')
    assert change_of(decoder("mdb_env", {"_id": KeyType.INT32})(number)).key == (7,)
    assert refused(decoder("mdb_env", STRING)(number)).reason is Reason.TYPE_MISMATCH
    text = record._replace(key=b'{"id":"\\"7\\""}')
    assert refused(decoder("mdb_env", {"_id": KeyType.INT32})(text)).reason is Reason.TYPE_MISMATCH
    assert change_of(decoder("mdb_env", STRING)(at("mdb_env", "shop.plain", 6))).key == ("null",)
    assert refused(decoder("mdb_env", STRING)(at("mdb_env", "shop.plain", 50))).reason is Reason.NULL_KEY


def test_fact_16_the_key_and_the_documents_are_written_in_two_dialects() -> None:
    """The copy of the same `_id` out of `after` is the key."""
    decode = decoder("mdb_env", {"_id": KeyType.UUID}, copied=("_id", "email"))
    change = change_of(decode(at("mdb_env", "shop.plain", 34)))
    assert change.row is not None
    assert change.row["_id"] is not None
    assert change.row["_id"].value == str(change.key[0])


def test_fact_16_a_deletion_without_pre_image_has_its_key() -> None:
    change = change_of(decoder("mdb_env", {"_id": KeyType.INT64})(at("mdb_env", "shop.plain", 24)))
    assert (change.op, change.key) == (Op.DELETED, (BEYOND_DOUBLE,))
    assert json.loads(at("mdb_env", "shop.plain", 24).value or b"")["before"] is None


@pytest.mark.parametrize("file", ["mks_fulldoc_tombstone", "mks_fulldoc_dockey"])
def test_fact_17_the_null_record_of_a_dropped_collection_deletes_nothing(file: str) -> None:
    dropped = of_topic(file, "shop.customers")[-1]
    assert dropped.value is None
    assert b'"_data"' in (dropped.key or b"")
    decoded = decoder(file, OBJECTID)(dropped)
    assert isinstance(decoded, Ignored)
    assert decoded.op == "t"


def test_fact_17_a_null_record_keyed_by_the_token_of_a_deletion_is_refused() -> None:
    """change.stream.document.key.as.key=false: the same form of key, but a document was deleted, and none is named."""
    deleted = [record for record in of_topic("mks_fulldoc_dockey_false", "shop.plain") if record.value is None]
    decoded = refused(decoder("mks_fulldoc_dockey_false", STRING)(deleted[0]))
    assert decoded.reason is Reason.MISSING_KEY
    assert "change.stream.document.key.as.key=true" in decoded.message


def test_fact_17_types_that_simplified_json_has_lost_are_not_guessed() -> None:
    decode = decoder("mks_fulldoc_tombstone", {"_id": KeyType.UUID})
    assert refused(decode(at("mks_fulldoc_tombstone", "shop.plain", 22))).reason is Reason.TYPE_MISMATCH
    decode = decoder("mks_fulldoc_tombstone", {"_id": KeyType.NUMERIC})
    assert refused(decode(at("mks_fulldoc_tombstone", "shop.plain", 24))).reason is Reason.TYPE_MISMATCH


def test_fact_17_an_update_without_its_document_is_refused_where_the_document_is_wanted() -> None:
    looked_up_late = at("mks_extended", "shop.plain", 1)
    assert b'"fullDocument": null' in (looked_up_late.value or b"")
    decoded = refused(decoder("mks_extended", STRING, copied=("email",))(looked_up_late))
    assert "change.stream.full.document" in decoded.message
    without_it = at("mdb_env_deltas", "shop.plain", 3)
    decoded = refused(decoder("mdb_env_deltas", STRING, deleted_when="after.gone != null")(without_it))
    assert "capture.mode" in decoded.message


def test_fact_18_an_array_of_mixed_types_is_read_where_the_connector_can_send_it() -> None:
    """Flattened it stops the connector, so that no such record exists."""
    decode = decoder("mdb_env", OBJECTID, copied=("nested",))
    mixed = b'{\\"a\\": [1,{\\"b\\": null}]}'
    created = next(each for each in of_topic("mdb_env", "shop.customers") if mixed in (each.value or b""))
    row = change_of(decode(created)).row
    assert row is not None and row["nested"].value == {"a": [1, {"b": None}]}
    assert not any(b"[1,{" in (each.value or b"") for file in FLAT_FILES for each in load(file))


def test_bson_is_refused_with_the_option_that_mends_it() -> None:
    for record in load("mks_bson"):
        decoded = refused(decoder("mks_bson", OBJECTID)(record))
        assert decoded.reason is Reason.BAD_ENCODING
        assert "output.format.value=json" in decoded.message


def test_changes_of_one_transaction_are_in_order() -> None:
    """They have one cluster time: mongo-kafka's resume token and Debezium's total_order tell them apart."""
    for file, offsets in (("mks_default", (14, 16)), ("mdb_env", (21, 23))):
        decode = decoder(file, STRING)
        inserted, deleted = (change_of(decode(at(file, "shop.customers", offset))) for offset in offsets)
        assert inserted.version is not None
        assert deleted.version is not None
        assert inserted.version.position[:2] == deleted.version.position[:2]
        assert inserted.version < deleted.version


def test_a_transaction_that_does_not_tell_its_order_can_not_bring_a_deletion_again() -> None:
    """A document that one transaction deletes and inserts again lives; its deletion sent once more is older."""
    decode = decoder("mdb_env_deltas", STRING)
    inserted, deleted = (change_of(decode(at("mdb_env_deltas", "shop.customers", offset))) for offset in (16, 18))
    again = change_of(decode(at("mdb_env_deltas", "shop.customers", 18)._replace(offset=1000)))
    assert deleted.version == again.version
    assert again.version is not None
    assert inserted.version is not None
    assert again.version < inserted.version


def test_copies_need_the_order_within_a_transaction() -> None:
    """Dependents do not: what the transaction inserted lives for them, and no copy takes it."""
    decode = decoder("mdb_env_deltas", STRING, copied=("email",))
    inserted, updated, deleted = (at("mdb_env_deltas", "shop.customers", offset) for offset in (16, 17, 18))
    said = change_of(decode(inserted))
    assert (said.op, said.row) == (Op.ALIVE, {})
    value = (updated.value or b"").replace(b'"after":null', b'"after":"{\\"_id\\": \\"t1\\"}"')
    decoded = refused(decode(updated._replace(value=value)))
    assert decoded.reason is Reason.BAD_VERSION
    assert "provide.transaction.metadata" in decoded.message
    assert change_of(decode(deleted)).op is Op.DELETED


@pytest.mark.parametrize("file", ["mks_default", "mks_extended", "mks_preimage"])
def test_places_of_the_resume_tokens_are_the_cluster_times(file: str) -> None:
    decode = decoder(file, STRING)
    found = 0
    for record in of_topic(file, "shop.plain"):
        change = decode(record)
        if isinstance(change, ParentChange):
            at_time = json.loads(record.value or b"")["clusterTime"]["$timestamp"]
            assert change.version is not None
            assert change.version.position[:2] == (at_time["t"], at_time["i"])
            found += 1
    assert found > 8


def test_what_was_deleted_before_a_re_creation_stays_older_when_it_is_sent_again() -> None:
    """Guarantee 4: the place is the source's, wherever Kafka has the record."""
    for file, deleted_at, created_at in (("mks_default", 3, 4), ("mdb_env", 5, 7)):
        decode = decoder(file, OBJECTID)
        created = change_of(decode(at(file, "shop.customers", created_at)))
        again = change_of(decode(at(file, "shop.customers", deleted_at)._replace(offset=10**6)))
        assert again.key == created.key
        assert again.version is not None
        assert created.version is not None
        assert again.version < created.version


@pytest.mark.parametrize("file", FLAT_FILES)
def test_fact_2_flattened_documents_are_told_by_their_record_keys(file: str) -> None:
    """A rewritten deletion has no _id in its value, and a boolean __deleted."""
    records = [record for record in load(file) if record.topic.endswith(".shop.customers")]
    for key in TYPES:
        assert [seen(decoded) for decoded in map(decoder(file, key), records)] == expected_flat(file, key), key
    others = {record.topic for record in load(file)} - {records[0].topic}
    assert others <= {f"{file}2.shop.plain"}


def test_a_flattened_key_of_another_connector_is_no_document_s() -> None:
    record = next(record for record in load("mdb_flat_tombstone") if record.key == b'{"id":7}')
    headers = tuple(
        ("__debezium.context.connectorName", b"postgresql") if value == b"mongodb" else (name, value)
        for name, value in record.headers
    )
    decode = decoder("mdb_flat_tombstone", {"_id": KeyType.INT64})
    assert refused(decode(record._replace(headers=headers))).reason is Reason.MISSING_KEY
    assert change_of(decode(record._replace(headers=()))).key == (7,)
