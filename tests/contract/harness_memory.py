"""The in-memory model in the contract suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from integrity.core.keys import Key, KeyType
from integrity.core.ledger import Head
from integrity.ports import Scannable, Store
from integrity.stores.memory import ROWS_MAX, MemoryScanner, MemoryStore, Row
from tests.contract.harness import Feature, Rules, targets_of, whole

# Not SHARED: two processes never have one memory.
FEATURES = frozenset({Feature.OUTBOX, Feature.MARKS, Feature.ARRAYS, Feature.NAMED})


class MemoryHarness:
    """One store; what another process would have is the store itself."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._store = MemoryStore("memory", {}, {})
        self._columns: dict[str, dict[str, KeyType]] = {}
        self._rules: Rules = {}

    async def open(self, rules: Rules, rows: Mapping[str, Sequence[Row]], *, rows_max: int | None = None) -> Store:
        self._columns, self._rules = targets_of(rules), rules
        targets = {name: [whole(row, columns) for row in rows.get(name, ())] for name, columns in self._columns.items()}
        self._store = MemoryStore("memory", rules, targets, rows_max=rows_max or ROWS_MAX)
        return self._store

    async def another(self) -> Store:
        return self._store

    def scanner(self) -> Scannable:
        return MemoryScanner(self._store, self._rules, page=3)

    async def write(self, target: str, *rows: Row) -> None:
        self._store.targets[target].extend(whole(row, self._columns[target]) for row in rows)

    async def rows(self, target: str) -> list[Row]:
        return sorted((dict(row) for row in self._store.targets[target]), key=lambda row: str(row["id"]).zfill(20))

    async def head(self, entity: str, key: Key) -> Head | None:
        return self._store.head(entity, key)

    async def arrivals(self) -> int:
        return self._store.arrivals()

    async def exceptions(self, entity: str, key: Key) -> set[str]:
        return {d for e, k, d, _ in self._store._state.exceptions if (e, k) == (entity, key)}

    async def close(self) -> None:
        return None


HARNESS = MemoryHarness
