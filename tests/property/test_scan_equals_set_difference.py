"""The merge finds the set difference, page by page, for keys of every type; and bytes sort as keys do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.keys import Key, KeySpec, KeyType
from integrity.core.scan import Difference, OutOfOrder, Referenced, order_of, place_of

_PARTS: dict[KeyType, st.SearchStrategy[Any]] = {
    KeyType.INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3),
    KeyType.INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
    KeyType.NUMERIC: st.decimals(allow_nan=False, allow_infinity=False).map(
        lambda number: Decimal(format(Decimal(number).normalize(), "f")) if number else Decimal(0)
    ),
    KeyType.STRING: st.text("\0\1 aAb\u00e9\uffff\U0001f600", max_size=4),
    KeyType.UUID: st.uuids(),
    KeyType.BOOL: st.booleans(),
    KeyType.DATE: st.dates(),
    KeyType.TIMESTAMP: st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),
    KeyType.BYTES: st.binary(max_size=3),
    KeyType.OBJECTID: st.text("0189af", min_size=24, max_size=24),
}


@st.composite
def sides(draw: st.DrawFn) -> tuple[KeySpec, list[Key], list[Key]]:
    """A key's type, keys that rows refer to, and keys of parents: both sorted, each key once."""
    kinds = draw(st.lists(st.sampled_from(list(KeyType)), min_size=1, max_size=3))
    spec = KeySpec(tuple((f"k{n}", kind) for n, kind in enumerate(kinds)))
    keys = draw(st.lists(st.tuples(*(_PARTS[kind] for kind in kinds)), max_size=40, unique=True))
    sorted_keys = sorted(keys, key=order_of(spec))
    held, there = (draw(st.lists(st.booleans(), min_size=len(keys), max_size=len(keys))) for _ in range(2))
    return (
        spec,
        [key for key, is_in in zip(sorted_keys, held, strict=True) if is_in],
        [key for key, is_in in zip(sorted_keys, there, strict=True) if is_in],
    )


def pages(keys: Sequence[Key], size: int) -> list[Sequence[Key]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


@given(sides(), st.integers(1, 7), st.integers(1, 7))
def test_orphans_are_the_keys_that_no_parent_has(
    drawn: tuple[KeySpec, list[Key], list[Key]], references_size: int, parents_size: int
) -> None:
    spec, held, there = drawn
    difference = Difference(spec)
    parents = iter(pages(there, parents_size))
    found: list[Referenced] = []

    def know_parents() -> None:
        while difference.wants_parents:
            page = next(parents, None)
            found.extend(difference.no_more_parents() if page is None else difference.parents(page))

    for page in pages(held, references_size):
        know_parents()
        found.extend(difference.references([Referenced(key, 1) for key in page]))
    know_parents()
    assert [key for key, _ in found] == [key for key in held if key not in set(there)]


@given(sides())
def test_places_sort_as_keys_do_and_are_as_different(drawn: tuple[KeySpec, list[Key], list[Key]]) -> None:
    spec, held, there = drawn
    keys = sorted({*held, *there}, key=order_of(spec))
    places = [place_of(spec)(key) for key in keys]
    assert places == sorted(set(places))


@pytest.mark.parametrize("keys", [[(2,), (1,)], [(1,), (1,)]])
def test_stream_that_does_not_ascend_is_refused(keys: list[Key]) -> None:
    spec = KeySpec((("id", KeyType.INT64),))
    with pytest.raises(OutOfOrder):
        Difference(spec).parents(keys)
    difference = Difference(spec)
    difference.parents(keys[:1])
    with pytest.raises(OutOfOrder):
        difference.parents(keys[1:])


def test_dates_before_every_other_have_a_place() -> None:
    spec = KeySpec((("day", KeyType.DATE),))
    place = place_of(spec)
    assert place((date.min,)) < place((date(1970, 1, 1),)) < place((date.max,))
