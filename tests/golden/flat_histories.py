"""What the SQL statements of the captured runs did to flattened topics and compacted tables, by hand from the notes.

A statement makes the records that its delete mode makes of it, by the events' README (facts 1 to 3); the decoder has no
part in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from integrity.core.change import Op
from integrity.core.keys import Key, KeyType, Scalar
from integrity.core.rules.model import KeyFormat
from integrity.errors import Reason
from tests.golden.histories import (
    ALIVE,
    BEYOND_DOUBLE,
    BIGINT,
    DELETED,
    GREETING,
    QUOTED,
    TENANT_CODE,
    TEXT,
    Expected,
    Fate,
    refused,
)


class Mode(NamedTuple):
    """What a delete mode makes of a deletion, in order."""

    ends: tuple[Op, ...]

    def alive(self, *keys: Scalar | Key) -> list[Expected]:
        """Read by the snapshot, inserted, or updated."""
        return [Expected(Op.ALIVE, _key(key)) for key in keys]

    def deleted(self, *keys: Scalar | Key) -> list[Expected]:
        return [Expected(op, _key(key)) for key in keys for op in self.ends]

    def moved(self, *path: Scalar | Key) -> list[Expected]:
        return list(self._moves([_key(step) for step in path]))

    def _moves(self, path: list[Key]) -> Iterator[Expected]:
        for old, new in pairwise(path):
            for op in self.ends:
                yield Expected(Op.MOVED if op is Op.DELETED else op, old, new)
            yield Expected(Op.ARRIVED, new)


def _key(parts: Scalar | Key) -> Key:
    return parts if isinstance(parts, tuple) else (parts,)


DROP, NULL, ROWS, ROWS_AND_NULL, TWO_NULLS = (
    Mode(()), Mode((Op.GONE,)), Mode((Op.DELETED,)), Mode((Op.DELETED, Op.GONE)), Mode((Op.GONE, Op.GONE)),
)  # fmt: skip


class Topic(NamedTuple):
    """A topic, how a rule reads it, what its records are, and how its keys end."""

    file: str
    name: str
    key: Mapping[str, KeyType]
    records: list[Expected]
    fates: Mapping[Key, Fate]
    form: str = "debezium-flat"
    key_format: KeyFormat = KeyFormat.JSON
    deleted_when: str | None = None


BIG = BEYOND_DOUBLE
_IN_SHORT: Mapping[Key, Fate] = {
    (1,): ALIVE, (2,): ALIVE, (BIG,): DELETED, (10,): (11,), (11,): (12,), (12,): ALIVE,
}  # fmt: skip
_CUSTOMERS = {**_IN_SHORT, (30,): (31,), (31,): DELETED, (20,): ALIVE}
_FULL: Mapping[Key, Fate] = {
    (1,): ALIVE, (2,): ALIVE, (BIG,): ALIVE, (30,): (31,), (31,): DELETED, (40,): (41,), (41,): DELETED,
}  # fmt: skip
_COMPOSITE: Mapping[Key, Fate] = {(1, "A"): ALIVE, (2, "A"): ALIVE, (1, "B"): (1, "C"), (1, "C"): DELETED}
_TEXTS: Mapping[Key, Fate] = {
    ("",): DELETED, ("x",): DELETED, ("null",): DELETED, ("007",): DELETED, (GREETING,): DELETED, (QUOTED,): DELETED,
    (" 7 ",): DELETED,
}  # fmt: skip


def _customers_in_short(m: Mode) -> list[Expected]:
    return [
        *m.alive(1, 2, BIG), *m.alive(10), *m.alive(10), *m.moved(10, 11, 12), *m.deleted(12), *m.alive(12),
    ]  # fmt: skip


def _customers(m: Mode) -> list[Expected]:
    return [
        *_customers_in_short(m),
        *m.deleted(12), *m.alive(12),  # in one transaction
        *m.alive(30), *m.alive(30), *m.moved(30, 31), *m.deleted(31),
        *m.alive(20),  # marked as deleted in a column, which is an update
        *m.deleted(BIG),
    ]  # fmt: skip


def _full(m: Mode) -> list[Expected]:
    return [
        *m.alive(1, 2, BIG), *m.alive(30), *m.alive(30), *m.moved(30, 31), *m.deleted(31),
        *m.alive(40), *m.alive(40), *m.moved(40, 41), *m.deleted(41),
    ]  # fmt: skip


def _composite(m: Mode) -> list[Expected]:
    return [
        *m.alive((1, "A"), (2, "A"), (1, "B")), *m.moved((1, "B"), (1, "C")), *m.deleted((1, "C")),
    ]  # fmt: skip


def _textkeys(m: Mode) -> list[Expected]:
    return [
        *m.alive("", "null", "007", GREETING, QUOTED, " 7 "), *m.moved("", "x"),
        *m.deleted("x", "null", "007", GREETING, QUOTED), *m.alive(""), *m.deleted(" 7 ", ""),
    ]  # fmt: skip


def _parents(m: Mode) -> list[Expected]:
    return [
        *m.alive(1, 2), *m.moved(1, 3), *m.alive(3), *m.deleted(3), *m.alive(*range(100, 106)),
        *m.deleted(*range(100, 106)),
    ]  # fmt: skip


def _old(m: Mode) -> list[Expected]:
    return [*m.alive(1), *m.alive(2), *m.alive(2), *m.moved(2, 3), *m.deleted(3)]


_PARENTS: Mapping[Key, Fate] = {
    (1,): (3,), (2,): ALIVE, (3,): DELETED, **{(key,): DELETED for key in range(100, 106)},
}  # fmt: skip
_OLD: Mapping[Key, Fate] = {(1,): ALIVE, (2,): (3,), (3,): DELETED}


def _left_alive(records: list[Expected]) -> Mapping[Key, Fate]:
    """How keys end where nobody tells of deletions."""
    return {record.key: ALIVE for record in records if record.key is not None}


def _mode_files() -> Iterator[Topic]:
    modes = {
        "pg_flat_drop": DROP,
        "pg_flat_tombstone": NULL,
        "pg_flat_delete_to_tombstone": NULL,
        "pg_flat_rewrite": ROWS,
        "pg_flat_rewrite_with_tombstone": ROWS_AND_NULL,
    }
    for file, mode in modes.items():
        for name, key, records, fates in (
            ("customers", BIGINT, _customers(mode), _CUSTOMERS),
            ("customers_full", BIGINT, _full(mode), _FULL),
            ("composite", TENANT_CODE, _composite(mode), _COMPOSITE),
            ("textkeys", TEXT, _textkeys(mode), _TEXTS),
        ):
            yield Topic(file, f"{file}.public.{name}", key, records, _left_alive(records) if mode is DROP else fates)
    for file in ("pg_flat_legacy", "pg_flat_plain_default", "pg_flat_replacenull"):
        yield Topic(file, f"{file}.public.parents", BIGINT, _parents(NULL), _PARENTS)
    old = {
        "pg27_flat_default": DROP,
        "pg27_flat_legacy_keep": ROWS_AND_NULL,
        "pg27_flat_legacy_none": TWO_NULLS,
        "pg27_flat_rewrite": ROWS,
        "pg27_flat_tombstone": NULL,
    }
    for file, mode in old.items():
        fates = _left_alive(_old(mode)) if mode is DROP else _OLD
        yield Topic(file, f"{file}.public.old_customers", BIGINT, _old(mode), fates)


_A, _B = "pg_route_flat.tenant_a.customers", "pg_route_flat.tenant_b.customers"
_U1, _U2, _U3 = (UUID(f"6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f000{n}") for n in (1, 2, 3))
_R = ROWS_AND_NULL

TOPICS: list[Topic] = [
    *_mode_files(),
    Topic(
        "pg_flat_default_schemas", "pg_flat_default_schemas.public.customers", BIGINT,
        [*_customers_in_short(NULL), *NULL.deleted(BIG)], _IN_SHORT,
    ),
    Topic(
        "pg_flat_default_schemas", "pg_flat_default_schemas.public.composite", TENANT_CODE, _composite(NULL), _COMPOSITE
    ),
    # The StringConverter writes rows as Struct{...}, which can't be read: only the nulls, and their keys, can.
    Topic(
        "pg_flat_tombstone_stringconv", "pg_flat_tombstone_stringconv.public.parents", BIGINT,
        [each if each.what is Op.GONE else Expected(Reason.BAD_JSON) for each in _parents(NULL)],
        {key: fate for key, fate in _PARENTS.items() if fate != ALIVE},
    ),
    # The headers of ExtractChangedRecordState (Changed, Unchanged) tell nothing that is read.
    Topic(
        "pg_changed_headers", "pg_changed_headers.public.parents", BIGINT,
        [
            *_R.alive(1, 2), *_R.moved(1, 3), *_R.alive(3), *_R.deleted(3),
            *_R.alive(*range(100, 106)), *_R.deleted(*range(100, 106)),
        ],
        {(1,): (3,), (2,): ALIVE, (3,): DELETED, **{(n,): DELETED for n in range(100, 106)}},
    ),
    Topic(
        "pg_changed_headers", "pg_changed_headers.public.keyed_full", BIGINT,
        [*_R.alive(1, 2, 2), *_R.moved(2, 3), *_R.deleted(3)],
        {(1,): ALIVE, (2,): (3,), (3,): DELETED},
    ),
    # The router's field is one of the key; the headers of a key change lack it, and it keeps its value.
    Topic(
        "pg_route_flat", "pg_route_flat.customers_all",
        {"__dbz__physicalTableIdentifier": KeyType.STRING, "id": KeyType.INT64},
        [
            *_R.alive((_A, 1), (_B, 1), (_A, 2), (_B, 2), (_A, 2)), *_R.moved((_B, 2), (_B, 3)),
            *_R.deleted((_A, 2), (_B, 1)),
        ],
        {(_A, 1): ALIVE, (_B, 1): DELETED, (_A, 2): DELETED, (_B, 2): (_B, 3), (_B, 3): ALIVE},
    ),
    Topic(
        "pg_insertfield_flat", "pg_insertfield_flat.public.customers", BIGINT,
        [*_customers_in_short(_R), *_R.deleted(BIG)], _IN_SHORT,
    ),
    Topic(
        "pg_key_bare_string", "pg_key_bare_string.public.customers", BIGINT,
        [*_customers_in_short(NULL), *NULL.deleted(BIG)], _IN_SHORT, key_format=KeyFormat.STRING,
    ),
    Topic(
        "pg_key_bare_string", "pg_key_bare_string.public.textkeys", TEXT, _textkeys(NULL), _TEXTS,
        key_format=KeyFormat.STRING,
    ),
    Topic(
        "pg_key_bare_string", "pg_key_bare_string.public.uuids", {"id": KeyType.UUID},
        [*NULL.alive(_U1, _U2), *NULL.moved(_U2, _U3), *NULL.deleted(_U1, _U3)],
        {(_U1,): DELETED, (_U2,): (_U3,), (_U3,): DELETED}, key_format=KeyFormat.STRING,
    ),
    Topic(
        "my_flat_rewrite", "my_flat_rewrite.shop.customers", BIGINT,
        # Step 6 (11 to 12) is left out of the file.
        [
            *ROWS.alive(1, 2, BIG, 10, 10), *ROWS.moved(10, 11), *ROWS.deleted(12), *ROWS.alive(12), *ROWS.deleted(12),
            *ROWS.alive(12), *ROWS.moved(1, -1), *ROWS.moved(2, 1), *ROWS.moved(-1, 2),
        ],
        {
            (1,): ALIVE, (2,): ALIVE, (BIG,): ALIVE, (10,): (11,), (11,): ALIVE, (12,): ALIVE, (-1,): (2,),
        },
    ),
    Topic(
        "my_flat_rewrite", "my_flat_rewrite.shop.parents", BIGINT,
        # Fact 23: REPLACE is a deletion and an insert of one key. Fact 22: of its children nobody tells.
        [*ROWS.alive(1, 2, 3, 4, 5), *ROWS.deleted(1, 3), *ROWS.alive(3)],
        {(1,): DELETED, (2,): ALIVE, (3,): ALIVE, (4,): ALIVE, (5,): ALIVE},
    ),
    Topic(
        "my_flat_rewrite", "my_flat_rewrite.shop.composite", TENANT_CODE,
        [*ROWS.alive((1, "B")), *ROWS.moved((1, "B"), (1, "C")), *ROWS.deleted((1, "C"))],
        {(1, "B"): (1, "C"), (1, "C"): DELETED},
    ),
    Topic(
        "my_flat_rewrite", "my_flat_rewrite.shop.textkeys", TEXT,
        ROWS.moved("null", "NULL"), {("null",): ("NULL",), ("NULL",): ALIVE},  # fact 26: by case alone
    ),
    Topic(
        "my_flat_rewrite", "my_flat_rewrite.shop.upsert2", BIGINT,
        [
            *ROWS.deleted(1), *ROWS.alive(1), *ROWS.moved(2, 3), *ROWS.deleted(1), *ROWS.moved(3, 1), *ROWS.moved(1, 7),
        ],
        {(1,): (7,), (2,): (3,), (3,): (1,), (7,): ALIVE},
    ),
    Topic(
        "kt_compacted", "kt.customers", BIGINT,
        [
            *NULL.alive(1, 2, 3, 4, 5, 1), *NULL.deleted(2, 2, 3), *NULL.alive(3), *NULL.deleted(99),
            Expected(Op.DELETED, (4,)),
        ],
        {(1,): ALIVE, (2,): DELETED, (3,): ALIVE, (4,): DELETED, (5,): ALIVE, (99,): DELETED},
        "json", deleted_when="has(after.deleted) && after.deleted",
    ),
    Topic(
        "kt_compacted", "kt.customers-store-changelog", BIGINT,
        [*NULL.alive(1, BIG), *NULL.deleted(1), *NULL.alive(-1)],
        {(1,): DELETED, (BIG,): ALIVE, (-1,): ALIVE}, "json", KeyFormat.LONG,
    ),
    Topic(
        "kt_after_compaction", "kt.customers", BIGINT,
        # Fact 20: the deletion of 2 is gone for good. `roll` is no whole number.
        [*NULL.alive(5, 1, 3), *NULL.deleted(99), *NULL.alive(4), *refused(Reason.BAD_JSON, 3)],
        {(1,): ALIVE, (3,): ALIVE, (4,): ALIVE, (5,): ALIVE, (99,): DELETED}, "json",
    ),
]  # fmt: skip
