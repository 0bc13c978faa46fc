"""What an error of the driver or server means for the batch: the one table.

No message holds a value of a document: MongoDB's own texts do, so only codes and names of this table are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bson.errors import BSONError, InvalidDocument
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    OperationFailure,
    PyMongoError,
)

from integrity.core.outcome import ApplyResult, Broken, Rejected, Retry
from integrity.errors import Reason
from integrity.stores.mongo.ledger import UnreadableLedger
from integrity.stores.mongo.values import Unholdable

UNAUTHORIZED: Final = 13
AUTHENTICATION_FAILED: Final = 18
WRITE_CONFLICT: Final = 112
DUPLICATE_KEY: Final = 11000

_UNREACHABLE: Final = frozenset((6, 7, 89, 91, 189, 9001, 10107, 11600, 11602, 13435, 13436))
"""Host unreachable, not found or timed out, lost its network, shutting down, stepped down, not a primary."""

TRANSIENT: Final = _UNREACHABLE | {24, 43, 50, WRITE_CONFLICT, 134, 225, 237, 239, 246, 251, 262, 290}
"""Also: a lock or a time limit was over, a cursor was gone, a write conflicted, a snapshot or transaction was given
up. MongoDB labels most of them as transient too."""

_REJECTED: Final[Mapping[int, tuple[Reason, str]]] = {
    121: (Reason.CONSTRAINT_VIOLATION, "the collection's validator refuses the document"),
    DUPLICATE_KEY: (Reason.CONSTRAINT_VIOLATION, "a unique index refuses the document"),
    11001: (Reason.CONSTRAINT_VIOLATION, "a unique index refuses the document"),
    2: (Reason.VALUE_REJECTED, "bad value"),
    15: (Reason.VALUE_REJECTED, "the document is nested too deeply"),
    28: (Reason.VALUE_REJECTED, "a step of the field's path is no document"),
    53: (Reason.VALUE_REJECTED, "invalid _id"),
    56: (Reason.VALUE_REJECTED, "empty field name"),
    66: (Reason.VALUE_REJECTED, "the field cannot be changed"),
    10334: (Reason.VALUE_REJECTED, "the document is too large"),
    17280: (Reason.VALUE_REJECTED, "the value is too large for the index"),
    17419: (Reason.VALUE_REJECTED, "the document would become too large"),
    17420: (Reason.VALUE_REJECTED, "the document would become too large"),
    171: (Reason.VALUE_REJECTED, "an index cannot hold the value beside an array"),
    257: (Reason.TOO_MANY_ROWS, "the transaction is too large"),
    391: (Reason.TOO_MANY_ROWS, "the transaction is too large for the server's cache"),
}
_BROKEN: Final[Mapping[int, tuple[Reason, str]]] = {
    UNAUTHORIZED: (Reason.PRIVILEGE, "the user lacks a privilege"),
    AUTHENTICATION_FAILED: (Reason.PRIVILEGE, "the user or password is wrong"),
    8000: (Reason.PRIVILEGE, "the user lacks a privilege"),
    20: (Reason.SCHEMA_MISMATCH, "the server has no transactions"),
    26: (Reason.SCHEMA_MISMATCH, "the collection does not exist"),
    73: (Reason.SCHEMA_MISMATCH, "the collection's name is not allowed"),
    166: (Reason.SCHEMA_MISMATCH, "the collection is a view"),
    263: (Reason.SCHEMA_MISMATCH, "the collection cannot be written in a transaction"),
}


class CountMismatch(Exception):
    """A statement found other documents than those chosen in the same snapshot by their `_id`."""


class NoLookAhead(Exception):
    """The server refused a query for many levels of the graph at once; it is not asked for that again."""


CAUSES: Final = (PyMongoError, BSONError, OverflowError, Unholdable, UnreadableLedger, CountMismatch, NoLookAhead)
"""Whatever an event, a document or a server can cause; anything else is a fault of this program."""


def verdict_of(exc: BaseException, dependent: str | None) -> ApplyResult:
    """What came of the batch. `dependent` is whose operation raised, None for the ledger's and the commit.

    Raises `exc` again when it is none of `CAUSES`.
    """
    match exc:
        case Unholdable():
            assert dependent is not None
            return Rejected(dependent, Reason.VALUE_REJECTED, exc.message)
        case UnreadableLedger():
            text = "The ledger holds keys of another type than the rule gives now."
            return Broken(None, Reason.SCHEMA_MISMATCH, text)
        case CountMismatch():
            assert dependent is not None
            return Rejected(dependent, Reason.STORE_REJECTED, "MongoDB did not find a chosen document by its _id.")
        case NoLookAhead():
            return Retry("MongoDB refused a query for many levels of the graph: it is asked for one after the other.")
        case ConnectionFailure():
            return Retry(f"MongoDB does not answer ({type(exc).__name__}).{_unknown(exc)}", unreachable=True)
        case OperationFailure():
            return _of_server(exc, code_of(exc), dependent)
        case DocumentTooLarge() if dependent is not None:
            return Rejected(dependent, Reason.VALUE_REJECTED, "The document is too large for MongoDB.")
        case InvalidDocument() | BSONError() | OverflowError() if dependent is not None:
            return Rejected(dependent, Reason.VALUE_REJECTED, f"A value is none of BSON ({type(exc).__name__}).")
        case ConfigurationError():
            return Broken(None, Reason.STORE_REJECTED, "The driver and the server do not fit each other.")
        case PyMongoError() if exc.timeout:
            return Retry(f"MongoDB did not finish in time ({type(exc).__name__}).")
        case PyMongoError() | BSONError() | OverflowError():
            return _unclassified(type(exc).__name__, dependent)
        case _:
            raise exc


def _of_server(exc: OperationFailure, code: int, dependent: str | None) -> ApplyResult:
    if exc.has_error_label("TransientTransactionError") or code in TRANSIENT:
        unreachable = code in _UNREACHABLE
        return Retry(f"MongoDB gave the transaction up ({_name(exc, code)}).{_unknown(exc)}", unreachable=unreachable)
    if exc.has_error_label("UnknownTransactionCommitResult"):
        return Retry(f"MongoDB does not say whether it committed ({_name(exc, code)}).")
    if code == DUPLICATE_KEY and dependent is None:
        # Another process wrote the same row of the ledger after this transaction's snapshot.
        return Retry("Another process changed the ledger at the same time.")
    if found := _BROKEN.get(code):
        reason, text = found
        return Broken(dependent, reason, f"MongoDB refused: {text} (code {code}).")
    if (found := _REJECTED.get(code)) and dependent is not None:
        reason, text = found
        return Rejected(dependent, reason, f"MongoDB refused: {text} (code {code}).")
    return _unclassified(_name(exc, code), dependent)


def code_of(exc: OperationFailure) -> int:
    """The server's code; of a bulk write, that of its first refused write. 0 when there is none."""
    if isinstance(exc, BulkWriteError):
        details = exc.details or {}
        refused = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
        return int(refused[0].get("code") or 0)
    return exc.code or 0


def _unclassified(name: str, dependent: str | None) -> ApplyResult:
    message = f"MongoDB refused with an error that this program does not know ({name})."
    if dependent is None:
        return Broken(None, Reason.UNCLASSIFIED, message)
    return Rejected(dependent, Reason.UNCLASSIFIED, message)


def _name(exc: OperationFailure, code: int) -> str:
    name = (exc.details or {}).get("codeName")
    return f"code {code}, {name}" if name else f"code {code}"


def _unknown(exc: PyMongoError) -> str:
    unknown = exc.has_error_label("UnknownTransactionCommitResult")
    return " It is unknown whether the batch was committed." if unknown else ""
