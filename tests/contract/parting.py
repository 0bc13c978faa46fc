"""Batches that are cut and worked off in parts, as a lane does it."""

from __future__ import annotations

from collections.abc import Sequence

from integrity.core.batch import Batch
from integrity.core.outcome import Applied, Effect, TooLarge, Unfinished
from integrity.ports import Deadline, Store


async def in_parts(store: Store, batch: Batch) -> tuple[list[Effect], int]:
    """The effects of a batch, and how many tries it took."""
    for tries in range(1, 1000):
        result = await store.apply(batch, Deadline.after(30))
        if isinstance(result, Applied):
            return result.effects, tries
        assert isinstance(result, Unfinished), result
    raise AssertionError("it never ends")


async def pieces(store: Store, batch: Batch) -> list[tuple[Batch, list[Effect]]]:
    """As a lane does it: a batch that is too large is cut, down to single events, which are applied in parts."""
    result = await store.apply(batch, Deadline.after(30))
    if isinstance(result, TooLarge):
        assert len(batch.changes) > 1
        return [each for half in batch_halves(batch) for each in await pieces(store, half)]
    if isinstance(result, Unfinished):
        return [(batch, (await in_parts(store, batch))[0])]
    assert isinstance(result, Applied), result
    return [(batch, result.effects)]


def batch_halves(batch: Batch) -> Sequence[Batch]:
    middle = len(batch.changes) // 2
    first, second = {}, {}
    for at, span in batch.spans.items():
        offsets = [c.origin.offset for c in batch.changes[middle:] if c.origin.partition == at.partition]
        if not offsets:
            first[at] = span
        else:
            first[at], second[at] = span._replace(next=offsets[0]), span._replace(start=offsets[0])
    return (
        Batch(batch.changes[:middle], first, batch.at_ms),
        Batch(batch.changes[middle:], second, batch.at_ms),
    )
