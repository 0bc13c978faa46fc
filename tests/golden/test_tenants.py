"""Whose each captured record is: by Debezium's headers, by its key, and by its row where that is proven whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from integrity.core.change import Op, ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Ignored, Undecodable
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Parent, TenantFrom, TenantIn, Tombstones
from integrity.errors import Reason
from tests.golden.records import load, of_topic, rule

CONNECTOR = "__debezium.context.connectorLogicalName"
ID = {"id": KeyType.INT64}
TENANT_CODE = {"tenant": KeyType.INT32, "code": KeyType.STRING}
CLIENT_ID = {"client_id": KeyType.STRING, "id": KeyType.INT64}


def tenants(place: TenantIn, name: str, form: str = "debezium", **key: KeyType) -> Parent:
    parent = rule(Tombstones.DELETE, **key)
    assert parent.events is not None
    return replace(parent, events=replace(parent.events, format=form, tenant=TenantFrom(place, name)))


def changes(found: list[Decoded]) -> list[ParentChange]:
    return [said for said in found if isinstance(said, ParentChange)]


@pytest.mark.parametrize(
    ("file", "topic", "form", "key"),
    [
        ("pg_env", "public.customers", "debezium", ID),
        ("pg_env_schemas", "public.customers", "debezium", ID),
        ("pg_keychange_jsonheaders", "public.kc_big", "debezium", ID),
        ("my_env", "shop.customers", "debezium", ID),
        ("pg_flat_tombstone", "public.customers", "debezium-flat", ID),
    ],
)
def test_name_of_the_connector_tells_the_tenant_of_every_record_and_changes_nothing_else(
    file: str, topic: str, form: str, key: dict[str, KeyType]
) -> None:
    parent = tenants(TenantIn.HEADER, CONNECTOR, form, **key)
    assert parent.events is not None
    decode, plain = decoder_for(parent), decoder_for(replace(parent, events=replace(parent.events, tenant=None)))
    keyed = KeySpec((("tenant", KeyType.STRING), *key.items()))
    decode_keyed = decoder_for(replace(parent, events=replace(parent.events, key=keyed)))
    records = of_topic(file, topic)
    found = [decode(record) for record in records]
    assert {said.op for said in changes(found)} & {Op.DELETED, Op.GONE, Op.MOVED}
    for record, said in zip(records, found, strict=True):
        bare = plain(record)
        if isinstance(said, ParentChange):
            assert (said._replace(tenant=""), said.tenant) == (bare, file)
            with_it = decode_keyed(record)
            assert isinstance(with_it, ParentChange) and with_it.key == (file, *said.key)
        else:
            assert said == bare


def test_integer_in_the_key_is_the_tenant_of_null_records_too() -> None:
    decode = decoder_for(tenants(TenantIn.KEY, "tenant", **TENANT_CODE))
    found = [decode(record) for record in of_topic("pg_env", "public.composite")]
    assert {said.op for said in changes(found)} >= {Op.ALIVE, Op.DELETED, Op.GONE}
    assert all(said.tenant == str(said.key[0]) for said in changes(found))
    moves = [said for said in found if isinstance(said, Undecodable)]
    assert all(said.reason is Reason.UNKNOWN_TENANT for said in moves)


def test_client_that_a_transform_put_into_the_key_is_the_tenant() -> None:
    topic = "pg_insertfield_key.public.customers"
    records = [record for record in load("pg_insertfield_key") if record.topic == topic]
    found = changes([decoder_for(tenants(TenantIn.KEY, "client_id", **CLIENT_ID))(record) for record in records])
    assert {Op.DELETED, Op.GONE} <= {said.op for said in found}
    assert {said.tenant for said in found} == {"acme"}


@pytest.mark.parametrize(
    ("file", "topic", "deletions"),
    [
        ("pg_env", "public.customers", {Reason.UNKNOWN_TENANT}),
        ("pg_env_schemas", "public.customers", {Reason.UNKNOWN_TENANT}),
        ("pg_env", "public.customers_full", {Reason.UNKNOWN_TENANT}),
        ("my_env_schemas", "shop.customers", {Op.DELETED, Op.MOVED}),
        ("my_env", "shop.customers", {Op.DELETED, Op.MOVED}),
    ],
)
def test_row_before_tells_the_tenant_only_where_it_is_proven_whole(
    file: str, topic: str, deletions: set[object]
) -> None:
    """Under PostgreSQL's default identity every column but the key's is made up; without schemas nothing shows it."""
    plain, decode = (
        decoder_for(parent) for parent in (rule(Tombstones.DELETE, **ID), tenants(TenantIn.FIELD, "tenant", **ID))
    )
    seen: set[object] = set()
    for record in of_topic(file, topic):
        bare, said = plain(record), decode(record)
        if not isinstance(bare, ParentChange):
            assert said == bare
            continue
        if bare.op in (Op.ALIVE, Op.ARRIVED):
            assert isinstance(said, Ignored) or (isinstance(said, ParentChange) and said.tenant in ("acme", "globex"))
        elif bare.op is Op.GONE:
            assert isinstance(said, Undecodable) and said.reason is Reason.UNKNOWN_TENANT
        else:
            seen.add(
                said.op if isinstance(said, ParentChange) else said.reason if isinstance(said, Undecodable) else said
            )
    assert seen == deletions


def test_null_records_of_a_flattened_topic_have_no_field() -> None:
    decode = decoder_for(tenants(TenantIn.FIELD, "client_id", "debezium-flat", **ID))
    found = [decode(record) for record in of_topic("pg_insertfield_flat", "public.customers")]
    assert {said.tenant for said in changes(found)} == {"acme"}
    assert {said.op for said in changes(found)} <= {Op.ALIVE, Op.ARRIVED}
    assert {said.reason for said in found if isinstance(said, Undecodable)} == {Reason.UNKNOWN_TENANT}


@pytest.mark.parametrize(("file", "told"), [("mks_preimage", "rep@x.test"), ("mks_default", None)])
def test_document_before_tells_the_tenant_of_a_deletion_where_the_connector_sends_it(
    file: str, told: str | None
) -> None:
    decode = decoder_for(tenants(TenantIn.FIELD, "email", "mongodb", _id=KeyType.OBJECTID))
    created, *_, deleted = (decode(record) for record in of_topic(file, "shop.customers")[:4])
    assert isinstance(created, ParentChange) and created.tenant == "a@x.test"
    if told is None:
        assert isinstance(deleted, Undecodable) and deleted.reason is Reason.UNKNOWN_TENANT
    else:
        assert isinstance(deleted, ParentChange) and (deleted.op, deleted.tenant) == (Op.DELETED, told)
