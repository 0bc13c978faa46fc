"""What the SQL statements of the captured runs did to each table, written by hand from the records' notes.

The decoder has no part in it: a statement makes the records that the events' README says it makes (a deletion is `d`
and a null record, a key change `d`, null record and `c`). Where the bytes cannot say what the statement did, the table
says so with the number of the README's fact ("What the bytes say").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from integrity.core.change import Op
from integrity.core.keys import Key, KeyType, Scalar
from integrity.errors import Reason


class Expected(NamedTuple):
    """What one record is decoded to: a change, an ignored record by its op, or the reason of a dead letter."""

    what: Op | str | Reason
    key: Key | None = None
    to: Key | None = None


class Table(NamedTuple):
    """A table's key in the rule, and what its topic's records are, in order."""

    key: Mapping[str, KeyType]
    records: tuple[Expected, ...]


def table(key: Mapping[str, KeyType], *steps: list[Expected]) -> Table:
    return Table(key, tuple(record for step in steps for record in step))


def _key(parts: Scalar | Key) -> Key:
    return parts if isinstance(parts, tuple) else (parts,)


def seeds(*keys: Scalar | Key) -> list[Expected]:
    """Rows that the snapshot read; also: rows inserted, since both say that the parent exists."""
    return [Expected(Op.ALIVE, _key(key)) for key in keys]


inserted = seeds


def deleted(*keys: Scalar | Key) -> list[Expected]:
    return [record for key in keys for record in (Expected(Op.DELETED, _key(key)), Expected(Op.GONE, _key(key)))]


def moved(*path: Scalar | Key) -> list[Expected]:
    """UPDATE ... SET id = b WHERE id = a, then c WHERE b, and so on."""
    return list(_moves([_key(step) for step in path]))


def _moves(path: list[Key]) -> Iterator[Expected]:
    for old, new in pairwise(path):
        yield Expected(Op.MOVED, old, new)
        yield Expected(Op.GONE, old, new)
        yield Expected(Op.ARRIVED, new)


def refused(reason: Reason, count: int) -> list[Expected]:
    return [Expected(reason)] * count


UPDATED = [Expected("u")]
TRUNCATED = [Expected("t")]

BIGINT = {"id": KeyType.INT64}
INTEGER = {"id": KeyType.INT32}
NUMERIC = {"id": KeyType.NUMERIC}
TEXT = {"id": KeyType.STRING}
TENANT_CODE = {"tenant": KeyType.INT32, "code": KeyType.STRING}
TENANT_ID = {"tenant": KeyType.STRING, "id": KeyType.INT64}

BEYOND_DOUBLE = 9007199254740993
GREETING = "ünï-日本-😀"
QUOTED = 'a"b\\c/d'
_U1, _U2, _U3 = (UUID(f"6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f000{n}") for n in (1, 2, 3))
_MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
_N1, _N1_5, _NBIG, _NSMALL = Decimal(1), Decimal("1.5"), Decimal(BEYOND_DOUBLE), Decimal("-0.001")

UUIDS = table({"id": KeyType.UUID}, seeds(_U1), inserted(_U2), moved(_U2, _U3), deleted(_U1, _U3))
# The steps that the smaller files kept of customers' history.
CUSTOMERS_IN_SHORT = (
    seeds(1, 2, BEYOND_DOUBLE), inserted(10), UPDATED, moved(10, 11, 12), deleted(12), inserted(12),
)  # fmt: skip
TYPED = table(INTEGER, seeds(1), UPDATED, deleted(1))
DATEKEYS = table({"id": KeyType.TIMESTAMP}, seeds(_MOMENT), deleted(_MOMENT))
NUM20_WITHOUT_SCALE = table(NUMERIC, refused(Reason.TYPE_MISMATCH, 6))
"""Fact 9, 30: numeric(20,0) is the unscaled bytes, and the scale is in the schema alone."""

PG_ENV = {
    "customers": table(
        BIGINT,
        seeds(1, 2, BEYOND_DOUBLE), inserted(10), UPDATED, UPDATED,
        moved(10, 11, 12), moved(12, 13, 12), deleted(12),
        inserted(12), deleted(12), inserted(12),
        inserted(14), deleted(14),
        deleted(2), moved(12, 2),  # onto the key of a row deleted in the same transaction
        moved(1, -1), moved(2, 1), moved(-1, 2),  # two rows exchange keys
        inserted(20, 21, 22, 23), UPDATED, deleted(21), deleted(22, 23),
        UPDATED,  # the delete of 20 was rolled back to a savepoint
        inserted(30), UPDATED, moved(30, 31), deleted(31),
        UPDATED, deleted(BEYOND_DOUBLE),
        inserted(51, 50),  # interleaved transactions, in order of commit: lsn goes back (fact 11)
        inserted(60), deleted(60),
        [Expected("r")] * 5,  # the incremental snapshot has no lsn
    ),
    "customers_full": table(
        BIGINT,
        seeds(1, 2, BEYOND_DOUBLE), inserted(30), UPDATED, moved(30, 31), deleted(31),
        inserted(40), UPDATED, moved(40, 41), deleted(41), TRUNCATED,
    ),
    "customers_nothing": table(BIGINT, seeds(1, 2, BEYOND_DOUBLE), inserted(40)),
    # Fact 5: REPLICA IDENTITY USING INDEX. The statements were: update the name, update the email (the index's column),
    # change the key 1 to 2, delete 2. The bytes say: the key 0 became 1, and 0 was deleted; 1 and 2 are never gone.
    "customers_idx": table(BIGINT, seeds(1), UPDATED, moved(0, 1), UPDATED, deleted(0), TRUNCATED),
    "composite": table(
        TENANT_CODE,
        seeds((1, "A"), (2, "A")), inserted((5, "Z"), (1, "B")), moved((1, "B"), (1, "C")), deleted((1, "C")),
        TRUNCATED,
    ),
    "uuids": UUIDS,
    "textkeys": table(
        TEXT,
        seeds("", "null", "007", GREETING, QUOTED, " 7 "), moved("", "x"),
        deleted("x", "null", "007", GREETING, QUOTED), inserted(""), deleted(" 7 ", ""),
    ),
    # Fact 12: 1.50 -> 1.5 is an update in precise mode.
    "numkeys": table(NUMERIC, seeds(_N1, _N1_5, _NBIG, _NSMALL), UPDATED, deleted(_N1, _N1_5, _NBIG, _NSMALL)),
    "num20keys": NUM20_WITHOUT_SCALE,
    "datekeys": DATEKEYS,
    "byteakeys": table({"id": KeyType.BYTES}, seeds(b"\x00\xff\x10"), deleted(b"\x00\xff\x10")),
    # Fact 13: no primary key. r, c, (u), d, and a record with neither key nor value.
    "nopk": table(
        {"a": KeyType.INT32}, refused(Reason.NULL_KEY, 2), UPDATED, refused(Reason.NULL_KEY, 2),
    ),
    "typed": TYPED,
    "dbz_signal": table(
        TEXT,
        inserted(
            "sig-1",  # the rest was written by the connector itself
            "2ec1f5d9-82f6-4ad1-8449-d69ac2bacf3c-open", "2ec1f5d9-82f6-4ad1-8449-d69ac2bacf3c-close",
            "043d4573-71ca-47f2-afa6-fd9e86648206-open", "043d4573-71ca-47f2-afa6-fd9e86648206-close",
        ),
    ),
}  # fmt: skip

PG_ENV_DOUBLE = {
    "customers": table(BIGINT, *CUSTOMERS_IN_SHORT, deleted(BEYOND_DOUBLE)),
    # Fact 12: 9007199254740993 is printed 9.007199254740992E15, another row's key: refused at its seed, d and null.
    "numkeys": table(
        NUMERIC,
        seeds(_N1, _N1_5), refused(Reason.TYPE_MISMATCH, 1), seeds(_NSMALL), UPDATED,
        deleted(_N1, _N1_5), refused(Reason.TYPE_MISMATCH, 2), deleted(_NSMALL),
    ),
    "num20keys": table(
        NUMERIC, seeds(_N1), refused(Reason.TYPE_MISMATCH, 1), deleted(_N1), refused(Reason.TYPE_MISMATCH, 2),
    ),
}  # fmt: skip

PG_ENV_SCHEMAS = {
    "customers": table(BIGINT, *CUSTOMERS_IN_SHORT, deleted(12), inserted(12), UPDATED, deleted(BEYOND_DOUBLE)),
    "customers_full": table(BIGINT, seeds(1, 2, BEYOND_DOUBLE), UPDATED, TRUNCATED),
    "composite": table(
        TENANT_CODE,
        seeds((1, "A"), (2, "A")), inserted((1, "B")), moved((1, "B"), (1, "C")), deleted((1, "C")), TRUNCATED,
    ),
    "uuids": UUIDS,
    "numkeys": table(NUMERIC, seeds(_N1, _N1_5, _NBIG, _NSMALL), UPDATED),
}  # fmt: skip

PG_ENV_STRINGS = {
    "customers": table(BIGINT, *CUSTOMERS_IN_SHORT, deleted(BEYOND_DOUBLE)),
    # "1" may be text or base64: without a schema every one of them is refused.
    "numkeys": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 15)),
    "num20keys": NUM20_WITHOUT_SCALE,
    "datekeys": DATEKEYS,
    "typed": TYPED,
}

_TEXTS = (
    "plain", 'with "quotes" and \\ backslash', "tab\tnewline\n", GREETING, "007", "null", "", '{"id":1}', "true",
    "2026-01-02T03:04:05Z",
)  # fmt: skip
_LONG = Decimal("123456789012345678901234567890.5")
_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_AT_LATER = _AT.replace(microsecond=1)
_COMP = table(
    {"tenant": KeyType.STRING, "id": KeyType.INT64, "at": KeyType.TIMESTAMP},
    seeds(("a", 1, _AT)), moved(("a", 1, _AT), ("a", 2, _AT), ("b", 2, _AT_LATER)),
)  # fmt: skip

PG_KEYCHANGE = {
    "kc_text": table(TEXT, seeds(_TEXTS[0]), moved(*_TEXTS)),
    "kc_num": table(NUMERIC, seeds(_N1_5), moved(_N1_5, Decimal("2.25"), _LONG, _NSMALL)),
    # Fact 9: the record key is bytes without a scale (the header would be a plain number): refused, all four.
    "kc_num20": table(NUMERIC, refused(Reason.TYPE_MISMATCH, 4)),
    "kc_bytea": table({"id": KeyType.BYTES}, seeds(b"\x00\xff\x10"), moved(b"\x00\xff\x10", b"\xde\xad\xbe\xef")),
    "kc_tz": table(
        {"id": KeyType.TIMESTAMP},
        seeds(datetime(2026, 1, 2, 1, 4, 5, 678901, UTC)),
        moved(datetime(2026, 1, 2, 1, 4, 5, 678901, UTC), datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)),
    ),
    "kc_date": table(
        {"id": KeyType.DATE}, seeds(date(2026, 1, 2)), moved(date(2026, 1, 2), date(2026, 1, 3)),
    ),
    "kc_big": table(BIGINT, seeds(1), moved(1, BEYOND_DOUBLE, -9223372036854775808)),
    "kc_comp": _COMP,
}  # fmt: skip

PG_KEYCHANGE_SCHEMAS = {
    "kc_num": table(NUMERIC, seeds(_N1_5), moved(_N1_5, Decimal("2.25"), _LONG)),
    "kc_comp": _COMP,
}

PG_KEYCOLUMNS = {
    # Fact 6: identity DEFAULT does not know the tenant, which Debezium makes up as "". The statements were: insert
    # acme/2, change its tenant to globex, its id to 3, delete it.
    "keyed": table(
        TENANT_ID, seeds(("acme", 1)), inserted(("acme", 2)), UPDATED, moved(("", 2), ("globex", 3)), deleted(("", 3)),
    ),
    "keyed_full": table(
        TENANT_ID, seeds(("acme", 1)), inserted(("acme", 2)), moved(("acme", 2), ("globex", 2), ("globex", 3)),
        deleted(("globex", 3)),
    ),
    "uniqparent": table({"email": KeyType.STRING}, inserted("q@x.test")),
}  # fmt: skip

HISTORIES: Mapping[str, Mapping[str, Table]] = {
    "pg_env": PG_ENV,
    "pg_env_double": PG_ENV_DOUBLE,
    "pg_env_schemas": PG_ENV_SCHEMAS,
    "pg_env_strings": PG_ENV_STRINGS,
    "pg_keychange": PG_KEYCHANGE,
    "pg_keychange_jsonheaders": PG_KEYCHANGE,
    "pg_keychange_schemas": PG_KEYCHANGE_SCHEMAS,
    "pg_keycolumns": PG_KEYCOLUMNS,
    "pg_strict": {"strict": table(BIGINT, seeds(1), UPDATED, moved(1, 2), deleted(2))},
}

ALIVE, DELETED = "alive", "deleted"
Fate = str | Key
"""How a key ended: alive, deleted, or the key it became."""

FATES: Mapping[tuple[str, str], Mapping[Key, Fate]] = {
    ("pg_env", "customers"): {
        (1,): ALIVE, (2,): ALIVE, (-1,): (2,), (10,): (11,), (11,): (12,), (12,): (2,), (13,): (12,), (14,): DELETED,
        (20,): ALIVE, (21,): DELETED, (22,): DELETED, (23,): DELETED, (30,): (31,), (31,): DELETED, (50,): ALIVE,
        (51,): ALIVE, (60,): DELETED, (BEYOND_DOUBLE,): DELETED,
    },
    ("pg_env", "customers_full"): {
        (1,): ALIVE, (2,): ALIVE, (BEYOND_DOUBLE,): ALIVE, (30,): (31,), (31,): DELETED, (40,): (41,), (41,): DELETED,
    },
    ("pg_env", "customers_nothing"): {(1,): ALIVE, (2,): ALIVE, (BEYOND_DOUBLE,): ALIVE, (40,): ALIVE},
    ("pg_env", "customers_idx"): {(0,): DELETED, (1,): ALIVE},  # fact 5; in the source 1 became 2, and 2 is deleted
    ("pg_env", "composite"): {
        (1, "A"): ALIVE, (2, "A"): ALIVE, (5, "Z"): ALIVE, (1, "B"): (1, "C"), (1, "C"): DELETED,
    },
    ("pg_env", "uuids"): {(_U1,): DELETED, (_U2,): (_U3,), (_U3,): DELETED},
    ("pg_env", "textkeys"): {
        ("",): DELETED, ("x",): DELETED, ("null",): DELETED, ("007",): DELETED, (GREETING,): DELETED,
        (QUOTED,): DELETED, (" 7 ",): DELETED,
    },
    ("pg_env", "numkeys"): {(_N1,): DELETED, (_N1_5,): DELETED, (_NBIG,): DELETED, (_NSMALL,): DELETED},
    ("pg_env", "num20keys"): {},
    ("pg_env", "datekeys"): {(_MOMENT,): DELETED},
    ("pg_env", "byteakeys"): {(b"\x00\xff\x10",): DELETED},
    ("pg_env", "nopk"): {},
    ("pg_env", "typed"): {(1,): DELETED},
    ("pg_env", "dbz_signal"): {
        ("sig-1",): ALIVE,
        ("2ec1f5d9-82f6-4ad1-8449-d69ac2bacf3c-open",): ALIVE, ("2ec1f5d9-82f6-4ad1-8449-d69ac2bacf3c-close",): ALIVE,
        ("043d4573-71ca-47f2-afa6-fd9e86648206-open",): ALIVE, ("043d4573-71ca-47f2-afa6-fd9e86648206-close",): ALIVE,
    },
    ("pg_env_double", "customers"): {
        (1,): ALIVE, (2,): ALIVE, (10,): (11,), (11,): (12,), (12,): ALIVE, (BEYOND_DOUBLE,): DELETED,
    },
    ("pg_env_double", "numkeys"): {(_N1,): DELETED, (_N1_5,): DELETED, (_NSMALL,): DELETED},
    ("pg_env_double", "num20keys"): {(_N1,): DELETED},
    ("pg_env_schemas", "customers"): {
        (1,): ALIVE, (2,): ALIVE, (10,): (11,), (11,): (12,), (12,): ALIVE, (BEYOND_DOUBLE,): DELETED,
    },
    ("pg_env_schemas", "customers_full"): {(1,): ALIVE, (2,): ALIVE, (BEYOND_DOUBLE,): ALIVE},
    ("pg_env_schemas", "composite"): {
        (1, "A"): ALIVE, (2, "A"): ALIVE, (1, "B"): (1, "C"), (1, "C"): DELETED,
    },
    ("pg_env_schemas", "uuids"): {(_U1,): DELETED, (_U2,): (_U3,), (_U3,): DELETED},
    ("pg_env_schemas", "numkeys"): {(_N1,): ALIVE, (_N1_5,): ALIVE, (_NBIG,): ALIVE, (_NSMALL,): ALIVE},
    ("pg_env_strings", "customers"): {
        (1,): ALIVE, (2,): ALIVE, (10,): (11,), (11,): (12,), (12,): ALIVE, (BEYOND_DOUBLE,): DELETED,
    },
    ("pg_env_strings", "numkeys"): {},
    ("pg_env_strings", "num20keys"): {},
    ("pg_env_strings", "datekeys"): {(_MOMENT,): DELETED},
    ("pg_env_strings", "typed"): {(1,): DELETED},
    ("pg_keychange_schemas", "kc_num"): {
        (_N1_5,): (Decimal("2.25"),), (Decimal("2.25"),): (_LONG,), (_LONG,): ALIVE,
    },
    ("pg_keychange_schemas", "kc_comp"): {
        ("a", 1, _AT): ("a", 2, _AT), ("a", 2, _AT): ("b", 2, _AT_LATER), ("b", 2, _AT_LATER): ALIVE,
    },
    ("pg_keycolumns", "keyed"): {  # fact 6; in the source acme/2 became globex/2, then globex/3, which is deleted
        ("acme", 1): ALIVE, ("acme", 2): ALIVE, ("", 2): ("globex", 3), ("globex", 3): ALIVE, ("", 3): DELETED,
    },
    ("pg_keycolumns", "keyed_full"): {
        ("acme", 1): ALIVE, ("acme", 2): ("globex", 2), ("globex", 2): ("globex", 3), ("globex", 3): DELETED,
    },
    ("pg_keycolumns", "uniqparent"): {("q@x.test",): ALIVE},
    ("pg_strict", "strict"): {(1,): (2,), (2,): DELETED},
} | {
    (file, name): fates
    for file in ("pg_keychange", "pg_keychange_jsonheaders")
    for name, fates in {
        "kc_text": {
            **{(old,): (new,) for old, new in pairwise(_TEXTS)}, (_TEXTS[-1],): ALIVE,
        },
        "kc_num": {
            (_N1_5,): (Decimal("2.25"),), (Decimal("2.25"),): (_LONG,), (_LONG,): (_NSMALL,), (_NSMALL,): ALIVE,
        },
        "kc_num20": {},
        "kc_bytea": {(b"\x00\xff\x10",): (b"\xde\xad\xbe\xef",), (b"\xde\xad\xbe\xef",): ALIVE},
        "kc_tz": {
            (datetime(2026, 1, 2, 1, 4, 5, 678901, UTC),): (datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),),
            (datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),): ALIVE,
        },
        "kc_date": {(date(2026, 1, 2),): (date(2026, 1, 3),), (date(2026, 1, 3),): ALIVE},
        "kc_big": {(1,): (BEYOND_DOUBLE,), (BEYOND_DOUBLE,): (-9223372036854775808,), (-9223372036854775808,): ALIVE},
        "kc_comp": {
            ("a", 1, _AT): ("a", 2, _AT), ("a", 2, _AT): ("b", 2, _AT_LATER), ("b", 2, _AT_LATER): ALIVE,
        },
    }.items()
}  # fmt: skip

COUNTS: Mapping[str, Mapping[str, int]] = {
    "pg_env": {
        "alive": 50, "arrived": 15, "deleted": 30, "moved": 15, "gone": 45, "u": 13, "t": 3, "r": 5,
        "m": 2, "heartbeat": 6, "transaction": 148, "null_key": 4, "type_mismatch": 6,
    },
    "pg_env_double": {
        "alive": 9, "arrived": 2, "deleted": 6, "moved": 2, "gone": 8, "u": 2, "m": 2, "type_mismatch": 6,
    },
    "pg_env_schemas": {
        "alive": 18, "arrived": 4, "deleted": 6, "moved": 4, "gone": 10, "u": 4, "t": 2, "m": 2,
        "heartbeat": 3, "transaction": 40,
    },
    "pg_env_strings": {
        "alive": 7, "arrived": 2, "deleted": 4, "moved": 2, "gone": 6, "u": 2, "m": 2, "type_mismatch": 21,
    },
    "pg_keychange": {"alive": 7, "arrived": 19, "moved": 19, "gone": 19, "type_mismatch": 4},
    "pg_keychange_jsonheaders": {"alive": 7, "arrived": 19, "moved": 19, "gone": 19, "type_mismatch": 4},
    "pg_keychange_schemas": {"alive": 2, "arrived": 4, "moved": 4, "gone": 4},
    "pg_keycolumns": {"alive": 5, "arrived": 3, "deleted": 2, "moved": 3, "gone": 5, "u": 1, "m": 1},
    "pg_strict": {"alive": 1, "arrived": 1, "deleted": 1, "moved": 1, "gone": 2, "u": 1, "m": 1},
}  # fmt: skip
"""Per file, every record by what it is decoded to."""
