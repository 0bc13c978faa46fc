"""Which keys a topic holds: a view in SQLite of what each record names, sorted as every store sorts keys.

A topic cannot be asked for its keys in order. The view is read from the beginning of the topic, lies on disk, and is
gone when it is closed; SQLite is what the store's own view is made of.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from integrity.core.keys import Key, KeySpec, canonical, parse_canonical
from integrity.core.scan import Referenced, place_of

_PRAGMAS: Final = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=OFF",
    "PRAGMA synchronous=OFF",
    "PRAGMA temp_store=FILE",
    "PRAGMA cache_size=-16384",
)
_SCHEMA: Final = """
CREATE TABLE held (name BLOB PRIMARY KEY, place BLOB, key TEXT) WITHOUT ROWID;
CREATE INDEX held_place ON held (place, key);
"""


class Held(NamedTuple):
    """What a record says: under this name, this key; None: nothing any more. UNREADABLE: no key of the type."""

    name: bytes
    key: Key | None
    is_readable: bool = True


class KeyView:
    """Synchronous; used from one thread at a time."""

    def __init__(self, file: Path, spec: KeySpec) -> None:
        self._file = file
        self._spec = spec
        self._place = place_of(spec)
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for pragma in _PRAGMAS:
            self._db.execute(pragma)
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()
        self._file.unlink(missing_ok=True)

    def take(self, found: Iterable[Held]) -> None:
        """Bring the view up to these, in their order."""
        self._db.execute("BEGIN")
        for name, key, is_readable in found:
            if key is None and is_readable:
                self._db.execute("DELETE FROM held WHERE name = ?", (name,))
            else:
                row = (name, None, None) if key is None else (name, self._place(key), canonical(key))
                self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", row)
        self._db.execute("COMMIT")

    def clear(self) -> None:
        self._db.execute("DELETE FROM held")

    def pages(self, keys_max: int) -> Iterator[list[Referenced]]:
        """All keys in order, each with how many names hold it. Nothing may be taken meanwhile."""
        after = b""
        sql = "SELECT place, key, count(*) FROM held WHERE place > ? GROUP BY place, key ORDER BY place, key LIMIT ?"
        while rows := self._db.execute(sql, (after, keys_max)).fetchall():
            after = rows[-1][0]
            yield [Referenced(parse_canonical(key, self._spec), count) for _, key, count in rows]

    def unreadable(self) -> int:
        """How many names hold what is no key."""
        return int(self._db.execute("SELECT count(*) FROM held WHERE place IS NULL").fetchone()[0])

    def counts(self, keys: Sequence[Key]) -> list[int]:
        """How many names hold each of these keys."""
        sql = "SELECT count(*) FROM held WHERE place = ?"
        return [int(self._db.execute(sql, (self._place(key),)).fetchone()[0]) for key in keys]
