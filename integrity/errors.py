"""Every exception of this package, and every reason code of a dead letter.

    IntegrityError                 the root; `hint` says how to mend it
    ├── UsageError                 exit 2: wrong usage, settings or rules; nothing has started
    │   ├── SettingsError
    │   └── RulesError             carries all findings at once, each with file, line and column
    └── OperationError             exit 3: a fault while running
        ├── UnreachableError       a server does not answer: `run` retries, one-shot commands stop
        ├── PublishError           Kafka refuses to take records (privilege, topic): somebody must change something
        │   └── RecordRefusedError one record of those that were sent is at fault (size, time stamp, key)
        ├── LedgerError            the ledger of a store is missing, older or newer than this program (exit 2)
        └── UnfitStoreError        a rule does not fit the live store: missing table, column, index … (exit 2)

What happens to a single event is not an exception but a value: see `core.outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record, or its effect on one dependent, became a dead letter (contract 7)."""

    # decode: the record could not be read
    EMPTY_VALUE = "empty_value"
    NULL_KEY = "null_key"
    BAD_ENCODING = "bad_encoding"
    BAD_JSON = "bad_json"
    BAD_NUMBER = "bad_number"
    TOO_DEEP = "too_deep"
    TOO_LARGE = "too_large"
    DUPLICATE_FIELD = "duplicate_field"
    BAD_ENVELOPE = "bad_envelope"
    UNKNOWN_OP = "unknown_op"
    SCHEMA_REGISTRY_PAYLOAD = "schema_registry_payload"
    # key: the record was read, but does not name one key beyond doubt
    MISSING_KEY = "missing_key"
    TYPE_MISMATCH = "type_mismatch"
    OUT_OF_RANGE = "out_of_range"
    UNAVAILABLE_KEY = "unavailable_key"
    NO_BEFORE = "no_before"
    BAD_VERSION = "bad_version"
    UNKNOWN_TENANT = "unknown_tenant"
    # store: the effect on one dependent was refused
    CONSTRAINT_VIOLATION = "constraint_violation"
    VALUE_REJECTED = "value_rejected"
    TOO_MANY_ROWS = "too_many_rows"
    SCHEMA_MISMATCH = "schema_mismatch"
    PRIVILEGE = "privilege"
    STORE_REJECTED = "store_rejected"
    UNCLASSIFIED = "unclassified"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, where it is, and how to mend it.

    `line` and `column` count from 1; 0 means the finding has no place in a file. `source` is that line of the file,
    printable characters only, so that a caret can be set under it; empty when it is too long to show.
    """

    code: str
    message: str
    hint: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    severity: str = "error"
    source: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.message}" + (f"\n    {self.hint}" if self.hint else "")


class IntegrityError(Exception):
    """The root of every exception that this package raises on purpose."""

    code = "integrity"
    exit_code = 3

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(IntegrityError):
    """Wrong usage: nothing has started."""

    code = "usage"
    exit_code = 2


class SettingsError(UsageError):
    """A setting is missing or wrong; `findings` are all faults at once where several may be."""

    code = "settings"

    def __init__(self, message: str, *, hint: str = "", findings: Sequence[Finding] = ()) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class RulesError(UsageError):
    """The rule files have faults: all of them, in file order."""

    code = "rules"

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = tuple(findings)


class OperationError(IntegrityError):
    """A fault while running."""

    code = "operation"


class UnreachableError(OperationError):
    """A server does not answer. `unknown`: it does, and has no database of that name."""

    code = "unreachable"

    def __init__(self, message: str, *, hint: str = "", unknown: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.unknown = unknown


class PublishError(OperationError):
    """Kafka refuses to take records: a topic is missing or unfit, or a privilege is."""

    code = "publish"


class RecordRefusedError(PublishError):
    """Kafka refuses a record itself (size, time stamp, key): sending it again unchanged fails again."""

    code = "record_refused"


class LedgerError(OperationError):
    """The ledger of a store is missing, or of another version than this program's."""

    code = "ledger"
    exit_code = 2


class UnfitStoreError(OperationError):
    """Rules do not fit the live store: all findings at once."""

    code = "unfit_store"
    exit_code = 2

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = tuple(findings)
