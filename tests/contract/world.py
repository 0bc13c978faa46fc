"""What the contract tests are written in: rules from actions, and events as records of partitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from integrity.core.batch import Batch, DeadLetterMark, NoteWrite, Redrive, Span, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Truncation, Version
from integrity.core.change import Row as Fields
from integrity.core.decode.record import Record
from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.outcome import Applied, Effect
from integrity.core.policy import policy_of
from integrity.core.rules.model import (
    Action,
    Cascade,
    Dependent,
    EventValue,
    Literal,
    Match,
    Place,
    Target,
    TargetKind,
    Tombstone,
)
from integrity.core.truncate import Note
from integrity.ports import Deadline, Store
from integrity.stores.memory import Row
from integrity.stores.rule import StoreRule
from integrity.stores.rule import rows as rows_with
from tests.contract.harness import Rules

ENTITY = "customer"
TOPIC = "shop.public.customers"
SINGLE = KeySpec((("id", KeyType.INT64),))
COMPOSITE = KeySpec((("tenant", KeyType.STRING), ("code", KeyType.INT64)))
MARK = Tombstone({"deleted_at": EventValue.TIME, "deleted_by": EventValue.ID})
AT_MS = 1_700_000_000_000


def rule(
    on_delete: Action,
    on_update: Action | None = None,
    *,
    name: str = "orders",
    target: str = "",
    spec: KeySpec = SINGLE,
    columns: tuple[str, ...] = (),
    where: Mapping[str, Literal | tuple[Literal, ...]] | None = None,
    entity: str = ENTITY,
    max_rows: int | None = None,
    array: bool = False,
    rows: str | None = None,
    own: KeySpec = SINGLE,
    recorded: bool = True,
    published: bool = False,
    match: Match = Match.SIMPLE,
    as_of: str | None = None,
    keeps_alive: bool = False,
    undo_ms: int | None = None,
) -> StoreRule:
    """A dependent of a table; its reference columns are `customer_<key field>` unless `columns` names them.

    Its rows are the entity `rows`, with the key `own`; `recorded`: without events of their own."""
    dependent = Dependent(
        id=f"{entity}.{name}",
        name=name,
        store="store",
        target=Target(TargetKind.TABLE, target or name),
        references=dict(zip(columns or [f"customer_{field}" for field in spec.names], spec.names, strict=True)),
        on_delete=on_delete,
        on_update=on_update or Cascade(),
        where=where or {},
        place=Place("test.yaml", 1, 1),
        max_rows=max_rows,
        array=array,
        entity=rows,
        key=None if rows is None else own,
        match=match,
        as_of=as_of,
        undo_ms=undo_ms,
    )
    found = None if rows is None else rows_with(rows, own, dependent.columns, recorded=recorded, published=published)
    return StoreRule(entity, dependent, spec, policy_of(dependent, spec), found, keeps_alive)


def rules_of(*rules: StoreRule) -> Rules:
    found: dict[str, tuple[StoreRule, ...]] = {}
    for each in rules:
        found[each.entity] = (*found.get(each.entity, ()), each)
    return found


class Events:
    """Records of partitions. Each call appends one at the next offset of its partition; `batch` takes what was
    appended since the last one. `at` is the place in the source's order, and the time unless `occurred` gives it."""

    def __init__(self, entity: str = ENTITY, topic: str = TOPIC) -> None:
        self._entity = entity
        self._topic = topic
        self._next: dict[int, int] = {}
        self._start: dict[int, int] = {}
        self._open: list[ParentChange] = []
        self._notes: list[NoteWrite] = []

    def deleted(self, key: Key, at: int, partition: int = 0, *, occurred: int | None = None) -> ParentChange:
        return self._append(Op.DELETED, key, None, at, partition, occurred)

    def moved(self, key: Key, to: Key, at: int, partition: int = 0) -> ParentChange:
        return self._append(Op.MOVED, key, to, at, partition)

    def alive(self, key: Key, at: int, partition: int = 0, *, row: Fields | None = None) -> ParentChange:
        return self._append(Op.ALIVE, key, None, at, partition, row=row)

    def read(self, key: Key, partition: int = 0, *, row: Fields) -> ParentChange:
        """A row that an incremental snapshot reads, without a place in the order of the source."""
        return self._append(Op.ALIVE, key, None, None, partition, row=row)

    def arrived(self, key: Key, at: int, partition: int = 0, *, row: Fields | None = None) -> ParentChange:
        return self._append(Op.ARRIVED, key, None, at, partition, row=row)

    def gone(self, key: Key, to: Key | None = None, partition: int = 0) -> ParentChange:
        return self._append(Op.GONE, key, to, None, partition)

    def truncated(self, at: int, partition: int = 0) -> Note:
        """A truncate of all parents, as the lane notes it."""
        change = self._append(Op.DELETED, (), None, at, partition)
        self._open.pop()
        return self.noted(Truncation(self._entity, Version(0, (at,)), change.origin, change.occurred_ms))

    def noted(self, truncation: Truncation, redrive: Redrive | None = None) -> Note:
        """The same, also of one that comes back from a dead letter."""
        note = Note.of(truncation, Record(*truncation.origin, None, b"truncated", ()), redrive)
        self._notes.append(note.to_keep())
        return note

    def batch(
        self, *, exceptions: Mapping[tuple[int, str], DeadLetterMark] | None = None, reset: bool = False
    ) -> Batch:
        spans = {
            TopicPartition(self._topic, partition): Span(self._start.get(partition, 0), end, reset)
            for partition, end in self._next.items()
            if end > self._start.get(partition, 0)
        }
        changes, self._open = tuple(self._open), []
        notes, self._notes = tuple(self._notes), []
        self._start |= self._next
        return Batch(changes, spans, at_ms=AT_MS, trace_id="0" * 31 + "1", exceptions=exceptions or {}, notes=notes)

    def _append(
        self,
        op: Op,
        key: Key,
        to: Key | None,
        at: int | None,
        partition: int,
        occurred: int | None = None,
        row: Fields | None = None,
    ) -> ParentChange:
        offset = self._next.get(partition, 0)
        self._next[partition] = offset + 1
        occurred_ms = AT_MS + (occurred if occurred is not None else at or 0)
        change = ParentChange(
            self._entity,
            op,
            key,
            to,
            None if at is None else Version(0, (at,)),
            Origin(self._topic, partition, offset, occurred_ms),
            occurred_ms,
            row=row,
        )
        self._open.append(change)
        return change


async def apply(store: Store, batch: Batch) -> list[Effect]:
    """The effects of a batch that has to be applied."""
    result = await store.apply(batch, Deadline.after(30))
    assert isinstance(result, Applied), result
    return result.effects


def orders(*references: Any, first: int = 1) -> dict[str, list[Row]]:
    """Rows of `orders` with ids from `first` on; each reference is a value, or a tuple of a composite reference."""
    columns = (
        ("customer_tenant", "customer_code") if any(isinstance(r, tuple) for r in references) else ("customer_id",)
    )
    return {
        "orders": [
            {"id": first + i, **dict(zip(columns, r if isinstance(r, tuple) else (r,), strict=True))}
            for i, r in enumerate(references)
        ]
    }
