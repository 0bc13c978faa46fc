"""The one table from what the driver and the server say to what the store answers (facts: SQLSTATE classes).

Messages hold SQLSTATE, condition and names of constraints, columns and tables; never DETAIL or other row values.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

import asyncpg

from integrity.core.outcome import ApplyResult, Broken, Rejected, Retry
from integrity.errors import Reason

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""Everything a call of the driver raises for what a server, network or value did (TimeoutError is an OSError)."""


class Kind(Enum):
    """What a fault asks for."""

    AGAIN = "again"
    """Try the transaction again."""
    CONTENDED = "contended"
    """The same; rows are locked by others."""
    SERVER = "server"
    """The same; the server is the cause."""
    EVENT = "event"
    """Some event of the batch can never be applied."""
    RULE = "rule"
    """The rule, the ledger or the configuration does not fit the server."""
    UNKNOWN = "unknown"
    """Not in the table."""


class Fault(NamedTuple):
    """What went wrong, as one sentence without row values. `unknown`: there is no database of that name."""

    kind: Kind
    reason: Reason
    message: str
    unknown: bool = False


_STATES: dict[str, tuple[Kind, Reason]] = {
    "40001": (Kind.CONTENDED, Reason.UNCLASSIFIED),
    "40P01": (Kind.CONTENDED, Reason.UNCLASSIFIED),
    "55P03": (Kind.CONTENDED, Reason.UNCLASSIFIED),
    "55006": (Kind.CONTENDED, Reason.UNCLASSIFIED),
    # The statement timeout: waiting for locks one after the other, or more rows than it allows for.
    "57014": (Kind.CONTENDED, Reason.UNCLASSIFIED),
    "40003": (Kind.AGAIN, Reason.UNCLASSIFIED),
    "25P03": (Kind.AGAIN, Reason.UNCLASSIFIED),
    "25P04": (Kind.AGAIN, Reason.UNCLASSIFIED),
    "72000": (Kind.AGAIN, Reason.UNCLASSIFIED),
    "25006": (Kind.SERVER, Reason.UNCLASSIFIED),
    "57P01": (Kind.SERVER, Reason.UNCLASSIFIED),
    "57P02": (Kind.SERVER, Reason.UNCLASSIFIED),
    "57P03": (Kind.SERVER, Reason.UNCLASSIFIED),
    "57P05": (Kind.SERVER, Reason.UNCLASSIFIED),
    "58030": (Kind.SERVER, Reason.UNCLASSIFIED),
    "42501": (Kind.RULE, Reason.PRIVILEGE),
}
_CLASSES: dict[str, tuple[Kind, Reason]] = {
    "08": (Kind.SERVER, Reason.UNCLASSIFIED),
    "53": (Kind.SERVER, Reason.UNCLASSIFIED),
    "22": (Kind.EVENT, Reason.VALUE_REJECTED),
    "23": (Kind.EVENT, Reason.CONSTRAINT_VIOLATION),
    "44": (Kind.EVENT, Reason.CONSTRAINT_VIOLATION),
    # What triggers and functions raise, and limits that one row exceeds.
    "09": (Kind.EVENT, Reason.STORE_REJECTED),
    "21": (Kind.EVENT, Reason.STORE_REJECTED),
    "27": (Kind.EVENT, Reason.STORE_REJECTED),
    "38": (Kind.EVENT, Reason.STORE_REJECTED),
    "39": (Kind.EVENT, Reason.STORE_REJECTED),
    "54": (Kind.EVENT, Reason.STORE_REJECTED),
    "P0": (Kind.EVENT, Reason.STORE_REJECTED),
    "28": (Kind.RULE, Reason.PRIVILEGE),
    "0A": (Kind.RULE, Reason.SCHEMA_MISMATCH),
    "3D": (Kind.RULE, Reason.SCHEMA_MISMATCH),
    "3F": (Kind.RULE, Reason.SCHEMA_MISMATCH),
    "42": (Kind.RULE, Reason.SCHEMA_MISMATCH),
    # Corruption: no event is to blame, and nothing gets better by going on.
    "XX": (Kind.RULE, Reason.STORE_REJECTED),
}
_RAISE = "exec_stmt_raise"
"""The server's routine behind RAISE: a trigger refuses a row, with whatever code it likes, in its own words."""
_IDENTITY = "CheckCmdReplicaIdentity"
"""The one that refuses every statement on a published table without a replica identity."""
_NO_DATABASE = "3D000"
_NAMES_ONLY = frozenset({"28", "3D", "3F", "42"})
"""Classes whose own message names objects, never values."""


def fault_of(exc: BaseException, *, closed: bool = False) -> Fault:
    """Place an exception of DRIVER_ERRORS. `closed`: the connection was closed when it was raised."""
    match exc:
        case asyncpg.exceptions.InvalidCachedStatementError() | asyncpg.exceptions.OutdatedSchemaCacheError():
            return Fault(Kind.AGAIN, Reason.UNCLASSIFIED, "A table was changed under a prepared statement.")
        case asyncpg.PostgresError():
            state = str(exc.sqlstate or "")
            kind, reason = _STATES.get(state) or _CLASSES.get(state[:2]) or (Kind.UNKNOWN, Reason.UNCLASSIFIED)
            routine = getattr(exc, "server_source_function", None)
            if routine == _RAISE and kind in (Kind.RULE, Kind.SERVER, Kind.UNKNOWN):
                kind, reason = Kind.EVENT, Reason.STORE_REJECTED
            elif routine == _IDENTITY:
                kind, reason = Kind.RULE, Reason.SCHEMA_MISMATCH
            told = routine == _IDENTITY or (routine != _RAISE and state[:2] in _NAMES_ONLY)
            return Fault(kind, reason, _sentence(exc, state, told=told), state == _NO_DATABASE)
        case asyncpg.exceptions.TargetServerAttributeNotMatched():
            return Fault(Kind.SERVER, Reason.UNCLASSIFIED, "No server of the address is of the kind it asks for.")
        case TimeoutError():
            return Fault(Kind.SERVER, Reason.UNCLASSIFIED, "The server did not answer in time.")
        case OSError() | EOFError():
            return Fault(Kind.SERVER, Reason.UNCLASSIFIED, f"The connection failed ({_words(exc)}).")
        case asyncpg.InterfaceError() | asyncpg.InternalClientError() if closed:
            return Fault(Kind.SERVER, Reason.UNCLASSIFIED, "The connection was closed.")
        case _:
            return Fault(Kind.UNKNOWN, Reason.UNCLASSIFIED, f"The driver refused a statement ({_words(exc)}).")


def result_of(fault: Fault, dependent: str | None) -> ApplyResult:
    """What `apply` answers. `dependent` is the one whose statement failed, None for the ledger's own statements, which
    no event is to blame for."""
    match fault.kind:
        case Kind.AGAIN:
            return Retry(fault.message)
        case Kind.CONTENDED:
            return Retry(fault.message, contended=True, dependent=dependent)
        case Kind.SERVER:
            return Retry(fault.message, unreachable=True)
        case Kind.RULE:
            return Broken(dependent, fault.reason, fault.message)
        case Kind.EVENT | Kind.UNKNOWN:
            if dependent is None:
                return Broken(None, fault.reason, fault.message)
            return Rejected(dependent, fault.reason, fault.message)


def _sentence(exc: asyncpg.PostgresError, state: str, *, told: bool) -> str:
    """`told`: with the server's own words, which hold no values."""
    named = [
        f"{word} {name}"
        for word, attribute in (("constraint", "constraint_name"), ("column", "column_name"), ("table", "table_name"))
        if (name := getattr(exc, attribute, None))
    ]
    said = f": {exc.args[0]}" if told and exc.args else ""
    return f"PostgreSQL refused with {state or 'no code'} ({', '.join([_words(exc), *named])}){said}."


def _words(exc: BaseException) -> str:
    """The class of an exception as words: ForeignKeyViolationError is "foreign key violation"."""
    name = type(exc).__name__.removesuffix("Error").removesuffix("Exception") or type(exc).__name__
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
