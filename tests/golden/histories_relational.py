"""What the SQL statements of the MariaDB runs, and of further PostgreSQL connectors, did to each table.

Written by hand from the records' notes, as in `histories`. Topics are named in full: a file may hold several.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

from integrity.core.change import Op
from integrity.core.keys import Key, KeyType
from integrity.errors import Reason
from tests.golden.histories import (
    ALIVE,
    BEYOND_DOUBLE,
    BIGINT,
    CUSTOMERS_IN_SHORT,
    DELETED,
    GREETING,
    INTEGER,
    NUMERIC,
    PG_ENV,
    QUOTED,
    TENANT_CODE,
    TEXT,
    TRUNCATED,
    TYPED,
    UPDATED,
    Expected,
    Fate,
    Table,
    deleted,
    inserted,
    moved,
    refused,
    seeds,
    table,
)

_U1, _U2, _U3 = (UUID(f"6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f000{n}") for n in (1, 2, 3))
_ZERO_TAIL = UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0000")
_MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
_SECOND = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_NEXT_SECOND = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
_SUMMER = datetime(2026, 7, 1, 7, tzinfo=UTC)
_DAY = date(2026, 1, 2)
_WRAPPED = -9223372036854775808
"""Fact 29: 2^63 of a bigint unsigned; 2^64-1 is -1."""

UUID_KEY, BYTES, BOOL = {"id": KeyType.UUID}, {"id": KeyType.BYTES}, {"id": KeyType.BOOL}
DATE, TIMESTAMP = {"id": KeyType.DATE}, {"id": KeyType.TIMESTAMP}
EMAIL = {"email": KeyType.STRING}
TABLE_ID = {"__dbz__physicalTableIdentifier": KeyType.STRING, "id": KeyType.INT64}
CLIENT_ID = {"client_id": KeyType.STRING, "id": KeyType.INT64}

# bit(1): `true` could as well be a number that a converter made a boolean of (fact 31): its seed, d and null.
_BITS = table(BOOL, seeds(False), refused(Reason.TYPE_MISMATCH, 1), deleted(False), refused(Reason.TYPE_MISMATCH, 2))
# bit(20) 66051: the snapshot writes its bytes in one order, the change in the other.
_BIT20 = table(BYTES, seeds(b"\x01\x02\x03"), deleted(b"\x03\x02\x01"))
_DT6 = table(TIMESTAMP, seeds(_MOMENT), deleted(_MOMENT))

_MY_ENV = {
    "shop.customers": table(
        BIGINT,
        seeds(1, 2, BEYOND_DOUBLE), inserted(10), UPDATED,
        UPDATED, UPDATED,  # letter case only, a trailing space only
        moved(10, 11), moved(12, 13, 12), deleted(12),
        inserted(12), deleted(12), inserted(12),
        deleted(2), moved(12, 2),  # onto the key of a row deleted in the same transaction
        moved(1, -1), moved(2, 1), moved(-1, 2),  # two rows exchange keys
        inserted(20, 21, 22, 23), UPDATED, deleted(22, 23), deleted(21),
        inserted(51, 50),  # interleaved transactions, in order of commit
        inserted(61), deleted(61), inserted(62), UPDATED, deleted(62), inserted(63), inserted(60), deleted(60),
        seeds(1, 2, 20, 50, 51),  # the incremental snapshot, at its closing watermark
        deleted(50),  # fact 24: prepared only, and rolled back later
        deleted(51),
    ),
    "shop.composite": table(
        TENANT_CODE,
        seeds((1, "A"), (2, "A")), inserted((5, "Z")), deleted((5, "Z"), (2, "A")),
        inserted((1, "B")), moved((1, "B"), (1, "C")), deleted((1, "C")),
        refused(Reason.MISSING_KEY, 3),  # fact 34: the primary key has become (code); insert and delete of 'N'
        TRUNCATED,
    ),
    "shop.ukeys": table(BIGINT, seeds(1, _WRAPPED, -1), moved(1, _WRAPPED + 1), deleted(_WRAPPED, -1)),
    "shop.textkeys": table(
        TEXT,
        seeds("", " 7 ", "007", QUOTED, "abc", "null", GREETING),
        moved("null", "NULL"), UPDATED, deleted("abc"), moved("007", "007 "), inserted("e"), moved("e", "é"),
        deleted("é"),
    ),
    "shop.textkids": table(INTEGER, seeds(1), deleted(1)),
    "shop.textkeys_bin": table(TEXT, seeds("ABC", "abc"), deleted("abc")),
    "shop.charkeys": table(TEXT, seeds("abc"), moved("abc", "ABC"), deleted("ABC")),
    # 'U2' in upper case becomes lower case: the same UUID.
    "shop.uuid36": table(
        UUID_KEY, seeds(_U1), inserted(_U2), [Expected("d"), Expected("tombstone"), Expected(Op.ARRIVED, (_U2,))],
        deleted(_U1, _U2),
    ),
    "shop.uuid16": table(
        BYTES, seeds(_ZERO_TAIL.bytes, _U1.bytes), deleted(_U1.bytes), UPDATED, deleted(_ZERO_TAIL.bytes),
    ),
    "shop.uuidn": table(UUID_KEY, seeds(_U1), inserted(_U2), moved(_U2, _U3), deleted(_U1, _U3)),
    "shop.varbinkeys": table(BYTES, seeds(b"\x00\xff\x10"), deleted(b"\x00\xff\x10")),
    # Fact 30: the unscaled bytes, and the scale nowhere.
    "shop.deckeys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 9)),
    "shop.dec20keys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 6)),
    # Fact 28: '0000-00-00', '2026-00-00' and '1970-01-01' are one key; c, c, c, d and null are refused.
    "shop.datekeys": table(DATE, seeds(_DAY), deleted(_DAY), refused(Reason.TYPE_MISMATCH, 5)),
    "shop.dtkeys": table(TIMESTAMP, refused(Reason.TYPE_MISMATCH, 6)),  # milliseconds, which no schema calls so
    "shop.dt6keys": _DT6,
    "shop.tskeys": table(
        TIMESTAMP,
        seeds(_MOMENT, _NEXT_SECOND), deleted(_MOMENT, _NEXT_SECOND), refused(Reason.TYPE_MISMATCH, 1),
        inserted(_SUMMER),
    ),
    "shop.timekeys": table(BIGINT, seeds(-45296789000), deleted(-45296789000)),
    "shop.tinykeys": table(INTEGER, seeds(0, 1, 7), deleted(0, 1, 7)),
    "shop.bitkeys": _BITS,
    "shop.bit20keys": _BIT20,
    "shop.enumkeys": table(TEXT, seeds("sad"), deleted("sad")),
    "shop.floatkeys": table(NUMERIC, seeds(Decimal("1.1")), deleted(Decimal("1.1"))),
    "shop.parents": table(
        BIGINT, seeds(1, 2, 3, 4, 5), moved(2, 200), deleted(1), deleted(4), deleted(3), inserted(3), UPDATED,
    ),
    # Fact 22: what the foreign keys did is not logged. 10, 11, 13, 100 are gone and nobody says so.
    "shop.kids": table(BIGINT, seeds(10, 11, 12, 13, 14), deleted(14)),
    "shop.grandkids": table(BIGINT, seeds(100)),
    "shop.kids_null": table(BIGINT, seeds(20, 21, 23)),
    "shop.kids_trig": table(BIGINT, seeds(30), deleted(30)),
    "shop.upsert1": table(BIGINT, seeds(1), UPDATED, inserted(5)),
    "shop.upsert2": table(
        BIGINT, seeds(1, 2), deleted(1), inserted(1), moved(2, 3), deleted(1), moved(3, 1), moved(1, 7),
    ),
    "shop.uniqonly": table(EMAIL, seeds("q@x.test"), inserted("r@x.test"), UPDATED, moved("r@x.test", "s@x.test"),
                           deleted("s@x.test")),
    "shop.nopk": table({"a": KeyType.INT32}, refused(Reason.NULL_KEY, 2), UPDATED, refused(Reason.NULL_KEY, 2)),
    "shop.myisam": table(INTEGER, seeds(1), inserted(2), deleted(1)),
    "shop.seqs": table(
        INTEGER, seeds(1, 2, 3), moved(3, 4), moved(2, 3), moved(1, 2), deleted(2, 3, 4),
    ),
    "shop.seqs2": table(INTEGER, inserted(9)),
    "shop.ctas": table(BIGINT, inserted(1)),
    "shop.typed": TYPED,
    "shop.dbz_signal": table(
        TEXT,
        inserted(
            "sig-1",  # the rest was written by the connector itself
            "d6f8ca04-a35f-4a8f-b823-4aafea34fce5-open", "d6f8ca04-a35f-4a8f-b823-4aafea34fce5-close",
            "0bb432b4-bdae-4c8e-84e3-c49a96d3843d-open", "0bb432b4-bdae-4c8e-84e3-c49a96d3843d-close",
        ),
    ),
    "tenant_a.customers": table(BIGINT, seeds(1), inserted(2), UPDATED, deleted(2)),
    "tenant_b.customers": table(BIGINT, seeds(1), inserted(2), moved(2, 3), deleted(3)),
}  # fmt: skip

_MY_ENV_SCHEMAS = {
    "shop.customers": table(
        BIGINT, seeds(1, 2, BEYOND_DOUBLE), inserted(10), UPDATED, moved(10, 11), deleted(12),
    ),
    "shop.ukeys": table(BIGINT, moved(1, _WRAPPED + 1), deleted(_WRAPPED, -1)),
    "shop.tskeys": table(TIMESTAMP, seeds(_MOMENT, _NEXT_SECOND), deleted(_MOMENT, _NEXT_SECOND)),
}  # fmt: skip

_MY_ENV_STRINGS = {
    # bigint.unsigned.handling.mode=precise and decimals as text: bytes, numbers and text look alike without a schema.
    "shop.ukeys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 10)),
    "shop.deckeys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 9)),
    "shop.dec20keys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 6)),
    # binary.handling.mode=hex: 32 hexadecimal digits are a UUID.
    "shop.uuid16": table(UUID_KEY, seeds(_ZERO_TAIL, _U1), deleted(_U1), UPDATED, deleted(_ZERO_TAIL)),
    "shop.datekeys": table(DATE, seeds(_DAY), deleted(_DAY), refused(Reason.TYPE_MISMATCH, 5)),
    "shop.dtkeys": table(TIMESTAMP, seeds(_SECOND), deleted(_SECOND), refused(Reason.TYPE_MISMATCH, 3)),
    "shop.dt6keys": _DT6,
    "shop.tskeys": table(
        TIMESTAMP, seeds(_MOMENT, _NEXT_SECOND), deleted(_MOMENT, _NEXT_SECOND), refused(Reason.TYPE_MISMATCH, 1),
    ),
    # TinyIntOneToBooleanConverter: 1 and 7 are both `true`.
    "shop.tinykeys": table(
        BOOL, seeds(False), refused(Reason.TYPE_MISMATCH, 2), deleted(False), refused(Reason.TYPE_MISMATCH, 4),
    ),
    "shop.bitkeys": _BITS,
    "shop.bit20keys": _BIT20,
    "shop.typed": table(INTEGER, seeds(1)),
}  # fmt: skip

_A, _B = "pg_route.tenant_a.customers", "pg_route.tenant_b.customers"


def _full(prefix: str, tables: Mapping[str, Table]) -> Mapping[str, Table]:
    return {f"{prefix}.{name}": found for name, found in tables.items()}


HISTORIES: Mapping[str, Mapping[str, Table]] = {
    "my_env": _full("my_env", _MY_ENV),
    "my_env_minimal": {
        # Fact 35: what came before each connector stopped.
        "my_env_minimal_upd.shop.customers": table(BIGINT, seeds(1, 2, BEYOND_DOUBLE), inserted(10, 11)),
        "my_env_minimal_noi.shop.textkeys": table(TEXT, UPDATED, deleted("null")),
    },
    "my_env_schemas": _full("my_env_schemas", _MY_ENV_SCHEMAS),
    "my_env_strings": _full("my_env_strings", _MY_ENV_STRINGS),
    "pg27_env": _full(
        "pg27_env",
        {"public.old_customers": table(BIGINT, seeds(1), inserted(2), UPDATED, moved(2, 3), deleted(3), TRUNCATED)},
    ),
    "pg_route": {
        # Fact 9: the router's field is in the keys and not in the headers, so a key change keeps it.
        "pg_route.customers_all": table(
            TABLE_ID,
            seeds((_A, 1), (_B, 1)), inserted((_A, 2), (_B, 2)), UPDATED, moved((_B, 2), (_B, 3)),
            deleted((_A, 2), (_B, 1)),
        ),
    },
    "pg_insertfield_key": {
        "pg_insertfield_key.public.customers": table(
            CLIENT_ID,
            seeds(("acme", 1), ("acme", 2), ("acme", BEYOND_DOUBLE)), inserted(("acme", 10)), UPDATED,
            moved(("acme", 10), ("acme", 11), ("acme", 12)), deleted(("acme", 12)), inserted(("acme", 12)),
            deleted(("acme", BEYOND_DOUBLE)),
        ),
    },
    "pg_key_bare_json": _full(
        "pg_key_bare_json",
        {
            "public.customers": table(BIGINT, *CUSTOMERS_IN_SHORT, deleted(BEYOND_DOUBLE)),
            "public.textkeys": PG_ENV["textkeys"],
        },
    ),
    # LongConverter: eight bytes that are no JSON; the update says nothing whatever its key is.
    "pg_key_long": {
        "pg_key_long.public.customers": table(
            BIGINT, refused(Reason.SCHEMA_REGISTRY_PAYLOAD, 4), UPDATED, refused(Reason.SCHEMA_REGISTRY_PAYLOAD, 11),
        ),
    },
    # StringConverter: Struct{id=1}, in which no text can be told from another.
    "pg_key_struct_string": _full(
        "pg_key_struct_string",
        {
            "public.customers": table(BIGINT, refused(Reason.BAD_JSON, 4), UPDATED, refused(Reason.BAD_JSON, 11)),
            "public.composite": table(TENANT_CODE, refused(Reason.BAD_JSON, 8)),
            "public.textkeys": table(TEXT, refused(Reason.BAD_JSON, 24)),
        },
    ),
    # Fact 7: UPDATE parted SET tenant=2 WHERE id=1 moves the row, and the bytes say deleted and inserted.
    "pg_partitioned_table": {
        "pg_partitioned_table.public.parted": table(
            {"tenant": KeyType.INT32, "id": KeyType.INT64}, seeds((1, 1)), deleted((1, 1)), inserted((2, 1)),
            deleted((2, 1)),
        ),
    },
}  # fmt: skip

_TS_FATES: Mapping[Key, Fate] = {(_MOMENT,): DELETED, (_NEXT_SECOND,): DELETED}
_TEXT_FATES: Mapping[Key, Fate] = {
    ("",): DELETED, ("x",): DELETED, ("null",): DELETED, ("007",): DELETED, (GREETING,): DELETED,
    (QUOTED,): DELETED, (" 7 ",): DELETED,
}  # fmt: skip
_BIT20_FATES: Mapping[Key, Fate] = {(b"\x01\x02\x03",): ALIVE, (b"\x03\x02\x01",): DELETED}
_BIT_FATES: Mapping[Key, Fate] = {(False,): DELETED}

FATES: Mapping[str, Mapping[Key, Fate]] = {
    "my_env.shop.customers": {
        (1,): ALIVE, (2,): ALIVE, (-1,): (2,), (10,): (11,), (11,): ALIVE, (12,): (2,), (13,): (12,), (20,): ALIVE,
        (21,): DELETED, (22,): DELETED, (23,): DELETED, (51,): DELETED, (60,): DELETED, (61,): DELETED,
        (62,): DELETED, (63,): ALIVE, (BEYOND_DOUBLE,): ALIVE,
        (50,): DELETED,  # fact 24; in the source it lives
    },
    "my_env.shop.composite": {
        (1, "A"): ALIVE, (2, "A"): DELETED, (5, "Z"): DELETED, (1, "B"): (1, "C"), (1, "C"): DELETED,
    },
    "my_env.shop.ukeys": {(1,): (_WRAPPED + 1,), (_WRAPPED + 1,): ALIVE, (_WRAPPED,): DELETED, (-1,): DELETED},
    "my_env.shop.textkeys": {
        ("",): ALIVE, (" 7 ",): ALIVE, ("007",): ("007 ",), ("007 ",): ALIVE, (QUOTED,): ALIVE, ("abc",): DELETED,
        ("null",): ("NULL",), ("NULL",): ALIVE, (GREETING,): ALIVE, ("e",): ("é",), ("é",): DELETED,
    },
    "my_env.shop.textkids": {(1,): DELETED},
    "my_env.shop.textkeys_bin": {("ABC",): ALIVE, ("abc",): DELETED},
    "my_env.shop.charkeys": {("abc",): ("ABC",), ("ABC",): DELETED},
    "my_env.shop.uuid36": {(_U1,): DELETED, (_U2,): DELETED},
    "my_env.shop.uuid16": {(_ZERO_TAIL.bytes,): DELETED, (_U1.bytes,): DELETED},
    "my_env.shop.uuidn": {(_U1,): DELETED, (_U2,): (_U3,), (_U3,): DELETED},
    "my_env.shop.varbinkeys": {(b"\x00\xff\x10",): DELETED},
    "my_env.shop.deckeys": {},
    "my_env.shop.dec20keys": {},
    "my_env.shop.datekeys": {(_DAY,): DELETED},
    "my_env.shop.dtkeys": {},
    "my_env.shop.dt6keys": {(_MOMENT,): DELETED},
    "my_env.shop.tskeys": {**_TS_FATES, (_SUMMER,): ALIVE},
    "my_env.shop.timekeys": {(-45296789000,): DELETED},
    "my_env.shop.tinykeys": {(0,): DELETED, (1,): DELETED, (7,): DELETED},
    "my_env.shop.bitkeys": _BIT_FATES,
    "my_env.shop.bit20keys": _BIT20_FATES,
    "my_env.shop.enumkeys": {("sad",): DELETED},
    "my_env.shop.floatkeys": {(Decimal("1.1"),): DELETED},
    "my_env.shop.parents": {
        (1,): DELETED, (2,): (200,), (200,): ALIVE, (3,): ALIVE, (4,): DELETED, (5,): ALIVE,
    },
    "my_env.shop.kids": {(10,): ALIVE, (11,): ALIVE, (12,): ALIVE, (13,): ALIVE, (14,): DELETED},
    "my_env.shop.grandkids": {(100,): ALIVE},
    "my_env.shop.kids_null": {(20,): ALIVE, (21,): ALIVE, (23,): ALIVE},
    "my_env.shop.kids_trig": {(30,): DELETED},
    "my_env.shop.upsert1": {(1,): ALIVE, (5,): ALIVE},
    "my_env.shop.upsert2": {(1,): (7,), (2,): (3,), (3,): (1,), (7,): ALIVE},
    "my_env.shop.uniqonly": {("q@x.test",): ALIVE, ("r@x.test",): ("s@x.test",), ("s@x.test",): DELETED},
    "my_env.shop.nopk": {},
    "my_env.shop.myisam": {(1,): DELETED, (2,): ALIVE},
    "my_env.shop.seqs": {(1,): (2,), (2,): DELETED, (3,): DELETED, (4,): DELETED},
    "my_env.shop.seqs2": {(9,): ALIVE},
    "my_env.shop.ctas": {(1,): ALIVE},
    "my_env.shop.typed": {(1,): DELETED},
    "my_env.shop.dbz_signal": {
        ("sig-1",): ALIVE,
        ("d6f8ca04-a35f-4a8f-b823-4aafea34fce5-open",): ALIVE, ("d6f8ca04-a35f-4a8f-b823-4aafea34fce5-close",): ALIVE,
        ("0bb432b4-bdae-4c8e-84e3-c49a96d3843d-open",): ALIVE, ("0bb432b4-bdae-4c8e-84e3-c49a96d3843d-close",): ALIVE,
    },
    "my_env.tenant_a.customers": {(1,): ALIVE, (2,): DELETED},
    "my_env.tenant_b.customers": {(1,): ALIVE, (2,): (3,), (3,): DELETED},
    "my_env_minimal_upd.shop.customers": {
        (1,): ALIVE, (2,): ALIVE, (BEYOND_DOUBLE,): ALIVE, (10,): ALIVE, (11,): ALIVE,
    },
    "my_env_minimal_noi.shop.textkeys": {("null",): DELETED},
    "my_env_schemas.shop.customers": {
        (1,): ALIVE, (2,): ALIVE, (BEYOND_DOUBLE,): ALIVE, (10,): (11,), (11,): ALIVE, (12,): DELETED,
    },
    "my_env_schemas.shop.ukeys": {
        (1,): (_WRAPPED + 1,), (_WRAPPED + 1,): ALIVE, (_WRAPPED,): DELETED, (-1,): DELETED,
    },
    "my_env_schemas.shop.tskeys": _TS_FATES,
    "my_env_strings.shop.ukeys": {},
    "my_env_strings.shop.deckeys": {},
    "my_env_strings.shop.dec20keys": {},
    "my_env_strings.shop.uuid16": {(_ZERO_TAIL,): DELETED, (_U1,): DELETED},
    "my_env_strings.shop.datekeys": {(_DAY,): DELETED},
    "my_env_strings.shop.dtkeys": {(_SECOND,): DELETED},
    "my_env_strings.shop.dt6keys": {(_MOMENT,): DELETED},
    "my_env_strings.shop.tskeys": _TS_FATES,
    "my_env_strings.shop.tinykeys": {(False,): DELETED},
    "my_env_strings.shop.bitkeys": _BIT_FATES,
    "my_env_strings.shop.bit20keys": _BIT20_FATES,
    "my_env_strings.shop.typed": {(1,): ALIVE},
    "pg27_env.public.old_customers": {(1,): ALIVE, (2,): (3,), (3,): DELETED},
    "pg_route.customers_all": {
        (_A, 1): ALIVE, (_A, 2): DELETED, (_B, 1): DELETED, (_B, 2): (_B, 3), (_B, 3): ALIVE,
    },
    "pg_insertfield_key.public.customers": {
        ("acme", 1): ALIVE, ("acme", 2): ALIVE, ("acme", 10): ("acme", 11), ("acme", 11): ("acme", 12),
        ("acme", 12): ALIVE, ("acme", BEYOND_DOUBLE): DELETED,
    },
    "pg_key_bare_json.public.customers": {
        (1,): ALIVE, (2,): ALIVE, (10,): (11,), (11,): (12,), (12,): ALIVE, (BEYOND_DOUBLE,): DELETED,
    },
    "pg_key_bare_json.public.textkeys": _TEXT_FATES,
    "pg_key_long.public.customers": {},
    "pg_key_struct_string.public.customers": {},
    "pg_key_struct_string.public.composite": {},
    "pg_key_struct_string.public.textkeys": {},
    # Fact 7; in the source (1, 1) became (2, 1), which is deleted.
    "pg_partitioned_table.public.parted": {(1, 1): DELETED, (2, 1): DELETED},
}  # fmt: skip
"""How each key ended, by topic."""

OTHER_TOPICS: Mapping[str, Mapping[str, str]] = {
    "my_env": {
        "my_env": "bad_envelope",  # schema changes, with the DROP TABLE of the snapshot itself (fact 34)
        "my_env.transaction": "transaction",
        "__debezium-heartbeat.my_env": "heartbeat",
    },
    "pg27_env": {"pg27_env.transaction": "transaction"},
    "pg_route": {"pg_route.message": "m"},
    "pg_insertfield_key": {"pg_insertfield_key.message": "m"},
    "pg_key_struct_string": {"pg_key_struct_string.message": "m"},
    "pg_partitioned_table": {"pg_partitioned_table.message": "m"},
}
"""What the records of topics that are no table's are decoded to: all of a topic to the same."""
