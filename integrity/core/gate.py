"""The blast radius: how many rows one event may change of one dependent, before a person has to say yes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from integrity.core.fold import Group
from integrity.core.outcome import Held


def held(
    dependent: str, max_rows: int | None, groups: Sequence[Group], rows: Sequence[int], approved: Collection[int] = ()
) -> Held | None:
    """Held when some event has more rows than `max_rows`; None when all may act.

    `rows[i]` are those of `groups[i]`, exact up to `max_rows` + 1 each: beyond it does not matter. Each event on a
    group's path has its rows, as in `credit`. `approved` are indexes of changes that somebody has allowed."""
    if max_rows is None:
        return None
    counted: dict[int, int] = {}
    for group, count in zip(groups, rows, strict=True):
        for change in group.path:
            counted[change] = counted.get(change, 0) + count
    if all(count <= max_rows or change in approved for change, count in counted.items()):
        return None
    return Held(
        dependent,
        f"The event has more rows of this dependent than max_rows allows ({max_rows}): nothing is changed until it is "
        "approved.",
    )
