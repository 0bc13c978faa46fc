"""What the statements of the captured MongoDB run (run 3 in the events' README) did to each collection, written by hand
from the records' notes, and what each connector makes of that.

The decoder has no part in it. A collection holds ids of many types, a rule names one: what a value of another type
becomes is written down here too, once for each way of writing an `_id`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from integrity.core.change import Op
from integrity.core.keys import Key, KeyType
from integrity.errors import Reason
from tests.golden.histories import BEYOND_DOUBLE, GREETING, Expected


class Id(Enum):
    """The `_id` values of the run."""

    SEED_OID = "65a1b2c3d4e5f60718293a01"
    SEED = "seed"
    OID = "65a1b2c3d4e5f60718293a4b"
    OUTBOX_1, OUTBOX_2 = "65a1b2c3d4e5f60718293a99", "65a1b2c3d4e5f60718293a98"
    EMPTY, NULL_TEXT, ZEROS, UNICODE = "", "null", "007", GREETING
    M0, M1, M2, T1, T2, RACE = "m0", "m1", "m2", "t1", "t2", "race"
    ONE, SEVEN, LONG = 1, 7, BEYOND_DOUBLE
    DOUBLE = 1.5
    DOCUMENT = (1, "A")
    UUID = UUID("6f1c0f8e-2b43-4b9b-9b0a-1f0a3f3f0001")
    DECIMAL = "a Decimal128 of 1.50"
    DATE = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    TRUE = "true, which in Python equals 1"
    NULL = None


OIDS = {Id.SEED_OID, Id.OID, Id.OUTBOX_1, Id.OUTBOX_2}
TEXTS = {
    Id.SEED, Id.EMPTY, Id.NULL_TEXT, Id.ZEROS, Id.UNICODE, Id.M0, Id.M1, Id.M2, Id.T1, Id.T2, Id.RACE,
}  # fmt: skip
INTEGERS = {Id.ONE, Id.SEVEN, Id.LONG}


class Verb(Enum):
    """What a statement did to a document, or (END, SETTINGS) to its collection."""

    SEEDED = "it was there before the connector"
    INSERT = "insert"
    UPDATE = "update or replace"
    DELETE = "delete"
    END = "drop or rename"
    SETTINGS = "createIndexes"


class Step(NamedTuple):
    number: int
    verb: Verb
    id: Id | None = None


S, I, U, D, E, X = Verb  # noqa: E741 - as in a protocol
PLAIN_IDS = (
    Id.EMPTY, Id.NULL_TEXT, Id.ZEROS, Id.UNICODE, Id.SEVEN, Id.LONG, Id.DOUBLE, Id.DOCUMENT, Id.UUID, Id.DECIMAL,
    Id.DATE, Id.TRUE, Id.NULL,
)  # fmt: skip
STEPS: Mapping[str, Sequence[Step]] = {
    "shop.customers": (
        Step(0, S, Id.SEED_OID), Step(0, S, Id.SEED),
        Step(1, I, Id.OID), Step(2, U, Id.OID), Step(4, U, Id.OID), Step(5, D, Id.OID), Step(6, I, Id.OID),
        Step(20, I, Id.DOCUMENT), Step(20, U, Id.DOCUMENT), Step(20, D, Id.DOCUMENT),
        *(Step(21, I, each) for each in (Id.M0, Id.M1, Id.M2)),
        *(Step(22, D, each) for each in (Id.M0, Id.M1, Id.M2)),
        Step(23, I, Id.T1), Step(23, U, Id.T1), Step(23, D, Id.T1),
        Step(25, I, Id.RACE), Step(25, U, Id.RACE), Step(25, D, Id.RACE),
        Step(29, X), Step(30, E),
    ),
    "shop.plain": (
        Step(0, S, Id.SEED_OID), Step(0, S, Id.SEED),
        *(Step(7 + at, verb, each) for at, each in enumerate(PLAIN_IDS) for verb in (I, U, D)),
        Step(23, I, Id.T2), Step(29, E),
    ),
    "shop.outbox": (Step(26, I, Id.OUTBOX_1), Step(27, I, Id.OUTBOX_2)),
    "shop.shortlived": (Step(28, I, Id.ONE), Step(28, E)),
}  # fmt: skip


class Style(Enum):
    """How a connector writes an `_id` into the record key."""

    TYPED = "Extended JSON"
    SIMPLIFIED = "SimplifiedJson: an ObjectId, binary, a decimal, a date are text"
    PRINTED = "output.schema.key: text, a string without quotes"
    FLAT = "plain JSON: as SimplifiedJson, and a date is a number"


class File(NamedTuple):
    """A captured file: how it writes an `_id`, and which verbs make which records."""

    style: Style
    records: Mapping[Verb, Sequence[Op | str]]
    steps: frozenset[int] = frozenset(range(31))
    """Of a subset: the steps that it has."""
    collections: tuple[str, ...] = tuple(STEPS)
    refuses: Reason | None = None
    """Why every record of a document is refused."""
    format: str = "mongodb"
    is_looked_up: bool = False
    """An update is there only if the document was when it was looked up."""


_DEBEZIUM: Mapping[Verb, Sequence[Op | str]] = {
    S: ["r"], I: [Op.ALIVE], U: ["u"], D: [Op.DELETED, Op.GONE], E: [], X: [],
}  # fmt: skip
_CHANGES: Mapping[Verb, Sequence[Op | str]] = {S: [], I: [Op.ALIVE], U: ["u"], D: [Op.DELETED], E: ["t"], X: []}
_DOCUMENTS: Mapping[Verb, Sequence[Op | str]] = {S: [], I: [Op.ALIVE], U: [Op.ALIVE], D: [Op.GONE], E: ["t"], X: []}
_CUSTOMERS_AND_PLAIN = ("shop.customers", "shop.plain")
_SHORT = frozenset({1, 2, 4, 5, 21, 22, 30})

FILES: Mapping[str, File] = {
    "mdb_env": File(Style.TYPED, _DEBEZIUM, collections=_CUSTOMERS_AND_PLAIN, format="debezium"),
    "mdb_env_deltas": File(
        Style.TYPED, {**_DEBEZIUM, D: [Op.DELETED]}, collections=_CUSTOMERS_AND_PLAIN, format="debezium"
    ),
    "mdb_env_schemas": File(
        Style.TYPED, _DEBEZIUM, frozenset({0, 1, 2, 4, 5}), _CUSTOMERS_AND_PLAIN, format="debezium"
    ),
    "mks_default": File(Style.TYPED, _CHANGES),
    "mks_extended": File(Style.TYPED, _CHANGES),
    "mks_preimage": File(Style.SIMPLIFIED, {**_CHANGES, X: ["m"]}),
    "mks_collection_watch": File(Style.SIMPLIFIED, _CHANGES, collections=("shop.shortlived",)),
    "mks_schema_infer": File(Style.TYPED, _CHANGES, _SHORT, ("shop.customers",)),
    # The default schema of keys holds a resume token: which document a record is of stands in its value alone.
    "mks_schema_default": File(Style.TYPED, _CHANGES, _SHORT | {12}, _CUSTOMERS_AND_PLAIN, Reason.MISSING_KEY),
    "mks_fulldoc_tombstone": File(Style.SIMPLIFIED, {**_DOCUMENTS, S: [Op.ALIVE]}, is_looked_up=True),
    "mks_fulldoc_default": File(Style.SIMPLIFIED, {**_DOCUMENTS, D: [], E: []}, is_looked_up=True),
    "mks_fulldoc_dockey": File(Style.SIMPLIFIED, _DOCUMENTS, _SHORT | {15, 28}, is_looked_up=True),
    "mks_fulldoc_dockey_false": File(Style.SIMPLIFIED, _DOCUMENTS, refuses=Reason.MISSING_KEY, is_looked_up=True),
    # The connector died of the first drop.
    "mks_schema_fulldoc_infer": File(Style.PRINTED, {**_DOCUMENTS, E: []}, is_looked_up=True),
}  # fmt: skip
"""All files but mks_bson, of which nothing is read."""

TYPES: tuple[Mapping[str, KeyType], ...] = (
    *({"_id": kind} for kind in KeyType),
    {"tenant": KeyType.INT32, "code": KeyType.STRING},
)
"""The keys of the rules that every file is read with."""

_READABLE = {
    KeyType.STRING: {each: each.value for each in TEXTS},
    KeyType.INT32: {Id.ONE: 1, Id.SEVEN: 7, Id.LONG: Reason.OUT_OF_RANGE},
    KeyType.INT64: {each: each.value for each in INTEGERS},
    KeyType.NUMERIC: {
        **{each: Decimal(str(each.value)) for each in INTEGERS}, Id.DOUBLE: Decimal("1.5"), Id.DECIMAL: Decimal("1.5"),
    },
    KeyType.UUID: {Id.UUID: Id.UUID.value},
    KeyType.BOOL: {Id.TRUE: True},
    KeyType.DATE: {},  # the moment is not midnight
    KeyType.TIMESTAMP: {Id.DATE: Id.DATE.value},
    KeyType.BYTES: {},  # a UUID is binary of another subtype
    KeyType.OBJECTID: {each: each.value for each in OIDS},
}  # fmt: skip
"""What is a key of a type, where types are told; the rest is none."""

_AS_TEXT = {Id.UUID: "bxwPjitDS5ubCh8KPz8AAQ==", Id.DECIMAL: "1.50", Id.DATE: "2026-01-02T03:04:05.678Z"}
"""Fact 17: what SimplifiedJson makes of them."""

_DATE_MS = 1767323045678


def expected_key(style: Style, key: Mapping[str, KeyType], found: Id) -> Key | Reason:
    """What an `_id` is to a rule with this key."""
    if "_id" not in key:
        return (1, "A") if found is Id.DOCUMENT else Reason.TYPE_MISMATCH
    kind = key["_id"]
    if found is Id.NULL:
        return Reason.TYPE_MISMATCH if style is Style.PRINTED else Reason.NULL_KEY
    known = _READABLE[kind]
    match style:
        case Style.TYPED:
            pass
        case Style.SIMPLIFIED if kind is KeyType.STRING:
            known = {**known, **_AS_TEXT, **{each: each.value for each in OIDS}}
        case Style.SIMPLIFIED if kind in (KeyType.UUID, KeyType.NUMERIC):
            known = {each: value for each, value in known.items() if each not in _AS_TEXT}
        case Style.SIMPLIFIED:
            pass
        case Style.FLAT:
            known = {each: value for each, value in known.items() if each not in _AS_TEXT}
            match kind:
                case KeyType.STRING:
                    known |= {each: text for each, text in _AS_TEXT.items() if each is not Id.DATE}
                    known |= {each: each.value for each in OIDS}
                case KeyType.INT32:
                    known |= {Id.DATE: Reason.OUT_OF_RANGE}
                case KeyType.INT64 | KeyType.NUMERIC:
                    known |= {Id.DATE: _DATE_MS if kind is KeyType.INT64 else Decimal(_DATE_MS)}
                case _:
                    pass
        case Style.PRINTED:
            # `7`, `1.5`, `true` and `null` may be strings: only what is an object in the text tells its type.
            unsure = {Id.ONE, Id.SEVEN, Id.DOUBLE, Id.TRUE, Id.NULL_TEXT}
            known = {each: value for each, value in known.items() if each not in unsure}
    value = known.get(found, Reason.TYPE_MISMATCH)
    return value if isinstance(value, Reason) else (value,)


def expected(file: File, collection: str, key: Mapping[str, KeyType]) -> list[Expected]:
    """What each record of a collection's topic is decoded to."""
    found: list[Expected] = []
    for number, verb, each in STEPS[collection]:
        if number not in file.steps:
            continue
        for what in file.records[verb]:
            if isinstance(what, str):
                found.append(Expected(what))
            else:
                assert each is not None
                said = file.refuses or expected_key(file.style, key, each)
                found.append(Expected(said) if isinstance(said, Reason) else Expected(what, said))
    return found


FLAT_IDS = (Id.OID, Id.ZEROS, Id.SEVEN, Id.LONG, Id.DOCUMENT, Id.UUID, Id.DECIMAL, Id.DATE)
"""Of run 2, steps 11 to 18: each was inserted, updated, replaced and deleted, after a seed had been there."""
FLAT_FILES: Mapping[str, Op | None] = {
    "mdb_flat_rewrite": Op.DELETED,
    "mdb_flat_tombstone": Op.GONE,
    "mdb_flat_delete_to_tombstone": Op.GONE,
    "mdb_flat_drop": None,
}
"""What a deletion is in each delete mode; None: it is not told."""


def expected_flat(file: str, key: Mapping[str, KeyType]) -> list[Expected]:
    """What each record of the flattened collection is decoded to."""
    deletion = FLAT_FILES[file]
    said: list[tuple[Op, Id]] = [(Op.ALIVE, Id.SEED)]
    for each in FLAT_IDS:
        said += [(Op.ALIVE, each)] * 3
        said += [] if deletion is None else [(deletion, each)]
    found = [(op, expected_key(Style.FLAT, key, each)) for op, each in said]
    return [Expected(was) if isinstance(was, Reason) else Expected(op, was) for op, was in found]
