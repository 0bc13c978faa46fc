"""The seam between the contract suite and a store.

A store joins the suite with one module, `tests/contract/harness_<name>.py`, which defines `HARNESS`, a callable that
takes pytest's request and returns a `Harness` (use `request.getfixturevalue` for servers), and `FEATURES`, what the
store can do. `conftest.py` finds it; nothing else is to be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Protocol

from integrity.core.keys import Key, KeyType
from integrity.core.ledger import Head
from integrity.core.rules.model import TargetKind, Tombstone
from integrity.ports import Scannable, Store
from integrity.stores.memory import Row
from integrity.stores.rule import StoreRule

Rules = Mapping[str, Sequence[StoreRule]]


class Feature(Enum):
    """What not every store can do. A test that needs a feature runs only over the stores that have it."""

    MARKS = "marks"
    """Tombstone sets columns of a row that stays (a topic writes a null record instead)."""
    ARRAYS = "arrays"
    """A reference may be a list of keys."""
    OUTBOX = "outbox"
    """Derived events wait in the store (a topic store publishes them with its effects)."""
    NAMED = "named"
    """`id` is what identifies a row (a document has an `_id` beside it)."""
    SHARED = "shared"
    """Two processes may apply at once (not an exclusive store)."""


COLUMNS: Mapping[str, KeyType] = {
    "id": KeyType.INT64,
    "deleted_at": KeyType.TIMESTAMP,
    "deleted_by": KeyType.STRING,
    "region": KeyType.STRING,
    "kind": KeyType.STRING,
    "priority": KeyType.INT64,
    "archived_at": KeyType.TIMESTAMP,
    "active": KeyType.BOOL,
    "born_at": KeyType.TIMESTAMP,
}
"""The columns of the suite's targets besides those of references; `id` is the row's own key."""


class Harness(Protocol):
    """Makes stores of one kind over one fresh set of targets, and looks into them from outside."""

    async def open(self, rules: Rules, rows: Mapping[str, Sequence[Row]], *, rows_max: int | None = None) -> Store:
        """A store with these rules, migrated and checked without an error, over targets with these rows.

        Called once a test; `rows_max` is how many rows of a dependent one transaction acts on (None: as in service). A
        target is made for every rule, with rows or without; `columns_of` tells its columns."""
        ...

    async def another(self) -> Store:
        """A second store over the same rules, targets and ledger, as another process would have it: one that takes
        over where the store is exclusive."""
        ...

    def scanner(self) -> Scannable:
        """What looks through the same targets, and is closed with them."""
        ...

    async def write(self, target: str, *rows: Row) -> None:
        """Write rows as their owner does, whose others they leave as they are."""
        ...

    async def rows(self, target: str) -> list[Row]:
        """All rows, each with all its columns, by `id`; times are aware and in UTC."""
        ...

    async def head(self, entity: str, key: Key) -> Head | None:
        """What the ledger knows of a key, all its fates included, `change` of each being -1."""
        ...

    async def arrivals(self) -> int:
        """How many rows count as arrivals."""
        ...

    async def exceptions(self, entity: str, key: Key) -> set[str]:
        """The dependents that an event of this key was dead-lettered for, as the ledger has it."""
        ...

    async def close(self) -> None:
        """Close every store and release the targets."""
        ...


def columns_of(rule: StoreRule) -> dict[str, KeyType]:
    """Every column of a rule's target: `id`, the reference's, and the rest of `COLUMNS`."""
    dependent = rule.dependent
    spec = dict(rule.spec.fields)
    own = {} if rule.rows is None else dict(rule.rows.spec.fields)
    return COLUMNS | own | {column: spec[field] for column, field in dependent.references.items()}


def targets_of(rules: Rules) -> dict[str, dict[str, KeyType]]:
    """Target name -> its columns. Rules that share a target add up."""
    targets: dict[str, dict[str, KeyType]] = {}
    for each in (rule for of_entity in rules.values() for rule in of_entity):
        name = each.dependent.target.name
        targets[name] = targets.get(name, {}) | columns_of(each)
    return targets


def retarget(rules: Rules, kind: TargetKind) -> dict[str, tuple[StoreRule, ...]]:
    """The rules with targets of the store's kind; on a topic, tombstone sets nothing."""

    def turned(rule: StoreRule) -> StoreRule:
        dependent = replace(rule.dependent, target=replace(rule.dependent.target, kind=kind))
        if kind is TargetKind.TOPIC and isinstance(dependent.on_delete, Tombstone):
            dependent = replace(dependent, on_delete=Tombstone({}))
        return replace(rule, dependent=dependent)

    return {entity: tuple(turned(rule) for rule in of_entity) for entity, of_entity in rules.items()}


def whole(row: Row, columns: Mapping[str, KeyType]) -> Row:
    """The row with a None for every column it does not name."""
    return {column: row.get(column) for column in columns}
