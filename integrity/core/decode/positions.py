"""Where each relational connector of Debezium says that a change stands in its source's order.

Per key these places grow, since a row lock or a unique index orders the writers; over the keys of a topic they need
not. Never a time: it repeats, and it goes back. A place that is missing or malformed is None: nobody guesses it.

- PostgreSQL: (lsn).
- MySQL, MariaDB: (number of the binary log file, pos, row). Transactions are written there when they commit. A row's
  `pos` is that of the whole row event, whose rows `row` counts. `gtid` counts per server or domain, so two of them
  need not compare.
- SQL Server: (commit_lsn, change_lsn, event_serial_no), Db2: (commit_lsn, change_lsn); an LSN is hexadecimal text, cut
  into numbers of 32 bits. A snapshot has seen all that was committed up to its commit_lsn: it is the last thing there.
- Oracle: (scn), that of the change itself, then what orders the changes of one SCN: rs_id and ssn (LogMiner),
  lcr_position (XStream) or scn_idx (OpenLogReplicator). `commit_scn` is told per redo thread and may be an earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

Position = tuple[int, ...]
Source = Mapping[str, object]
"""The fields of `source`."""

_MAX = 0x7FFF_FFFF_FFFF_FFFF
"""Ledgers keep each part of a position in 64 bits."""
_LAST = 0x1_0000_0000
"""After every number of 32 bits."""
_WHOLE = re.compile("[0-9]{1,19}")
_BINLOG_DIGITS_MAX = 18
_LSN = re.compile("[0-9a-f]{8}:[0-9a-f]{8}:(?:[0-9a-f]{4}|[0-9a-f]{16})", re.IGNORECASE)
_RS_ID = re.compile(r" *(?:0x)?([0-9a-f]{1,8})\.([0-9a-f]{1,8})\.([0-9a-f]{1,8}) *", re.IGNORECASE)
_LCR = re.compile("[0-9a-f]{1,128}", re.IGNORECASE)


class Places(NamedTuple):
    """How one connector tells the position of a change, and that of a row that a snapshot has read."""

    of_change: Callable[[Source], Position | None]
    of_read: Callable[[Source], Position | None]
    fault: str
    """What is wrong when there is none."""
    fields: tuple[str, ...]
    """All fields of the source that the two ask for."""


def _whole(value: object) -> int | None:
    if type(value) is str and _WHOLE.fullmatch(value):
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MAX else None


def _postgresql(source: Source) -> Position | None:
    lsn = source.get("lsn")
    if type(lsn) is int and 0 <= lsn <= _MAX:
        return (lsn,)
    lsn = _whole(lsn)
    return None if lsn is None else (lsn,)


def _mysql(source: Source) -> Position | None:
    try:
        file, pos, row = source["file"], source["pos"], source["row"]
    except KeyError:
        return None
    if type(file) is not str or type(pos) is not int or type(row) is not int:
        return None
    number = _binlog_number(file)
    return (number, pos, row) if number is not None and 0 <= pos <= _MAX and 0 <= row <= _MAX else None


@lru_cache(maxsize=64)  # a server writes many thousand changes into one file
def _binlog_number(file: str) -> int | None:
    """The number of a binary log file: what stands after the last point of its name; None when that is no number."""
    _, point, number = file.rpartition(".")
    if not point or len(number) > _BINLOG_DIGITS_MAX or not (number.isascii() and number.isdigit()):
        return None
    return int(number)


def _lsn(value: object) -> Position | None:
    if type(value) is not str or not _LSN.fullmatch(value):
        return None
    return _chunks(value.replace(":", ""))


def _chunks(digits: str) -> Position:
    """Hexadecimal digits as numbers of 32 bits: those of one length compare as the digits do."""
    return tuple([int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)])


def _committed(source: Source) -> Position | None:
    commit, change = _lsn(source.get("commit_lsn")), _lsn(source.get("change_lsn"))
    return None if commit is None or change is None else (*commit, *change)


def _committed_read(source: Source) -> Position | None:
    commit = _lsn(source.get("commit_lsn"))
    return None if commit is None else (*commit, _LAST)


def _sqlserver(source: Source) -> Position | None:
    at, serial = _committed(source), _whole(source.get("event_serial_no"))
    return None if at is None or serial is None else (*at, serial)


def _oracle(source: Source) -> Position | None:
    scn, within = _whole(source.get("scn")), _within_scn(source)
    return None if scn is None or within is None else (scn, *within)


def _oracle_read(source: Source) -> Position | None:
    scn = _whole(source.get("scn"))
    return None if scn is None else (scn,)


def _within_scn(source: Source) -> Position | None:
    """What orders the changes of one SCN: nothing when the source has none of it, None when it is malformed."""
    if (rs_id := source.get("rs_id")) is not None:
        found = _RS_ID.fullmatch(rs_id) if type(rs_id) is str else None
        ssn = 0 if source.get("ssn") is None else _whole(source["ssn"])
        return None if found is None or ssn is None else (*[int(part, 16) for part in found.groups()], ssn)
    if (lcr := source.get("lcr_position")) is not None:
        return _chunks(lcr) if type(lcr) is str and _LCR.fullmatch(lcr) else None
    if (index := source.get("scn_idx")) is not None:
        at = _whole(index)
        return None if at is None else (at,)
    return ()


_BINLOG_FAULT = "source.file, source.pos and source.row are no place in a binary log"
_MYSQL = Places(_mysql, _mysql, _BINLOG_FAULT, ("file", "pos", "row"))

PLACES: Mapping[str, Places] = {
    "postgresql": Places(_postgresql, _postgresql, "source.lsn is no whole number from 0 to 2^63-1", ("lsn",)),
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "sqlserver": Places(
        _sqlserver,
        _committed_read,
        "source.commit_lsn, change_lsn and event_serial_no are no place in a log",
        ("commit_lsn", "change_lsn", "event_serial_no"),
    ),
    "oracle": Places(
        _oracle,
        _oracle_read,
        "source.scn and what orders the changes of one SCN are no place in a log",
        ("scn", "rs_id", "ssn", "lcr_position", "scn_idx"),
    ),
    "db2": Places(
        _committed,
        _committed_read,
        "source.commit_lsn and source.change_lsn are no place in a log",
        ("commit_lsn", "change_lsn"),
    ),
}
"""By connector. Changes of any other are placed by the Kafka offset."""

PLACING = frozenset(
    {"lsn", "file", "pos", "row", "commit_lsn", "change_lsn", "event_serial_no"}
    | {"scn", "rs_id", "ssn", "lcr_position", "scn_idx"}
)
"""All fields of a source that these read."""
