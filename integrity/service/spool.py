"""Keys in a file that is gone with its last use: of a wrong rule there may be as many orphans as there are rows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator

from integrity.core.keys import KeySpec, canonical, parse_canonical
from integrity.core.scan import Referenced


class Spool:
    """Write first, then read as often as wanted."""

    def __init__(self, spec: KeySpec) -> None:
        self._spec = spec
        self._file = tempfile.TemporaryFile(prefix="integrity-scan-")  # noqa: SIM115 - closed by `close`
        self.keys = 0
        self.rows = 0

    def extend(self, found: Iterable[Referenced]) -> None:
        for key, rows in found:
            self._file.write(b"%d %b\n" % (rows, canonical(key).encode()))
            self.keys += 1
            self.rows += rows

    def pages(self, keys_max: int, rows_max: int) -> Iterator[list[Referenced]]:
        """Everything, in pages of so many keys, and so many rows unless a single key has more."""
        self._file.flush()
        self._file.seek(0)
        page: list[Referenced] = []
        total = 0
        # A text in a key is escaped: a line is a line.
        for line in self._file:
            count, _, text = line.partition(b" ")
            rows = int(count)
            if page and (len(page) == keys_max or total + rows > rows_max):
                yield page
                page, total = [], 0
            page.append(Referenced(parse_canonical(text.decode().removesuffix("\n"), self._spec), rows))
            total += rows
        if page:
            yield page

    def close(self) -> None:
        self._file.close()
