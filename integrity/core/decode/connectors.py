"""What tells the connector behind a record, and the keys that some connectors make of several rows'."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Final

from integrity.core.decode.positions import PLACES
from integrity.core.decode.record import Headers, Refused
from integrity.core.keys import Key, KeySpec, KeyType, Scalar
from integrity.errors import Reason

CONNECTOR: Final = "__debezium.context.connectorName"
"""The header that tells the connector, from Debezium 3.5 on: all that a null record has of its source."""
POSTGRESQL, SQLSERVER, MYSQL = "postgresql", "sqlserver", "mysql"

_FOLDS: Mapping[KeyType, Scalar] = {
    KeyType.DATE: date(1970, 1, 1),
    KeyType.TIMESTAMP: datetime(1970, 1, 1, tzinfo=UTC),
    KeyType.BOOL: True,
}
"""What several keys of MySQL and MariaDB become: zero dates and 1970-01-01, all numbers but 0 of a boolean."""
_KEEPS_APART = frozenset(PLACES) - {MYSQL, "mariadb"}
"""The connectors that do not."""

Folds = tuple[tuple[int, str, Scalar], ...]
"""The fields of a key that may be of several keys: where, their name, and with which value."""


def connector_in(headers: Headers) -> str | None:
    """The connector that the headers tell; None where they do not."""
    for name, value in headers:
        if name == CONNECTOR and value is not None:
            return value.decode("ascii", "replace")
    return None


def folds_of(spec: KeySpec) -> Folds:
    return tuple([(i, name, _FOLDS[kind]) for i, (name, kind) in enumerate(spec.fields) if kind in _FOLDS])


def refuse_folded(folds: Folds, connector: object, *keys: Key | None) -> None:
    """Refuse a key that MySQL or MariaDB, or a connector that nobody names, may have made of several rows' keys."""
    if connector in _KEEPS_APART:
        return
    for key in keys:
        if key is None:
            continue
        for index, name, folded in folds:
            if key[index] == folded:
                message = (
                    f"The key field {name} may stand for several rows: MySQL and MariaDB send zero dates as "
                    "1970-01-01, and a boolean is true for every number but 0."
                )
                raise Refused(Reason.TYPE_MISMATCH, message, "key")
