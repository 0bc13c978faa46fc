"""What the rule of a parent says to the reader of its records, whatever their format."""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.condition import Condition
from integrity.core.decode.record import Limits
from integrity.core.rules.model import Parent, Tombstones


class ParentReader:
    """Reads the records of one parent; `copied` are the fields of the row that a copy wants, None: nobody wants it."""

    __slots__ = ("_condition", "_copied", "_entity", "_epoch", "_ignores_tombstones", "_limits")

    def __init__(self, parent: Parent, limits: Limits, copied: Collection[str] | None) -> None:
        events = parent.events
        assert events is not None
        self._entity = parent.entity
        self._epoch = events.epoch
        self._condition = None if events.deleted_when is None else Condition(events.deleted_when)
        self._ignores_tombstones = events.tombstones is Tombstones.IGNORE
        self._limits = limits
        self._copied = None if copied is None else tuple(copied)
