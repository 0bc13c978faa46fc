"""Which elements of a list of keys a group acts on: one element is one reference, as a row of a link table would be.

Equal elements are alike, so only their number counts: as many as arrived at a key are its arrivals, the rest are plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from integrity.core.change import Version
from integrity.core.fold import Group
from integrity.core.keys import Key

Places = Mapping[Key, Mapping[Version | None, int]]
"""Key -> since when -> the group's number."""


def places_of(groups: Sequence[Group]) -> Places:
    found: dict[Key, dict[Version | None, int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group.key, {})[group.since] = number
    return found


def parts_of(
    elements: Sequence[Key | None], places: Places, arrived: Mapping[Key, Sequence[Version]]
) -> list[int | None]:
    """The number of the group that each element belongs to; None where no group acts on it.

    `elements` are the keys in the list, None for what is no key. `arrived`: since when arrivals at a key are in this
    list. Where its owner has taken some out, those that came last are taken to be left: no older event touches them.
    """
    positions: dict[Key, list[int]] = {}
    for position, element in enumerate(elements):
        if element is not None and element in places:
            positions.setdefault(element, []).append(position)
    parts: list[int | None] = [None] * len(elements)
    for key, at in positions.items():
        came = sorted(arrived.get(key, ()))[-len(at) :]
        sinces: list[Version | None] = [None] * (len(at) - len(came)) + [*came]
        for position, since in zip(at, sinces, strict=True):
            parts[position] = places[key].get(since)
    return parts
