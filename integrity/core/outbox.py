"""Derived events on their way out: what a store writes beside its effects, for others to be told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from integrity.core.change import Op, Version
from integrity.core.decode.derived import derived_key, derived_value
from integrity.core.derive import Happened, Rows
from integrity.core.keys import Key


class Outgoing(NamedTuple):
    """A record for the topic of an entity's derived events. `version` counts per key: of one key, a lower one was
    written before, and goes first."""

    entity: str
    version: int
    key: bytes
    value: bytes
    traceparent: str | None


def outgoing(rows: Rows, happened: Sequence[Happened], versions: Sequence[Version]) -> list[Outgoing]:
    """The records of what happened to keys of these rows, at the versions that `numbered` gave. A key change has two:
    one under each key."""
    found: list[Outgoing] = []
    for (key, fate, _, cause, traceparent), version in zip(happened, versions, strict=True):
        halves: list[tuple[Op, Key, Key | None]] = [(Op.DELETED, key, None)]
        if fate.to is not None:
            halves = [(Op.MOVED, key, fate.to), (Op.ARRIVED, fate.to, None)]
        [count] = version.position
        for op, of_key, to in halves:
            value = derived_value(rows.entity, op, of_key, to, version, fate.event_id, cause, fate.occurred_ms)
            found.append(Outgoing(rows.entity, count, derived_key(rows.spec, of_key), value, traceparent))
    return found
