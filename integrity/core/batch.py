"""What a store applies in one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from integrity.core.change import ParentChange
from integrity.errors import Reason


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Span(NamedTuple):
    """The offsets of one partition that a batch covers: from `start` up to, not including, `next`.

    The store's progress must not be behind `start`; what lies below the progress is done already and is left out.
    `reset` makes the batch overwrite a progress that no longer means anything (the topic was made anew).
    """

    start: int
    next: int
    reset: bool = False


class DeadLetterMark(NamedTuple):
    """Why an event is not enforced on a dependent, and the id of its dead letter."""

    reason: Reason
    id: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in the order of arrival (per partition: by offset), and how far they take each partition.

    `exceptions` maps (index of the change, dependent id) to the dead letter that stands for the effect: the store
    leaves that effect out and records it beside the ledger row. `at_ms` is the wall clock, in milliseconds since the
    epoch: for `$now` and the ledger's times, never for a decision. `trace_id` is 32 hex digits, or "".
    """

    changes: tuple[ParentChange, ...]
    spans: Mapping[TopicPartition, Span]
    at_ms: int
    trace_id: str = ""
    exceptions: Mapping[tuple[int, str], DeadLetterMark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a batch that concerns one entity. `indexes[i]` is the index in the batch of `changes[i]`; `done`
    and `exceptions` count within the share."""

    entity: str
    indexes: tuple[int, ...]
    changes: tuple[ParentChange, ...]
    done: frozenset[int]
    exceptions: Mapping[tuple[int, str], DeadLetterMark]


def shares(batch: Batch, progress: Mapping[TopicPartition, int], entities: Collection[str]) -> list[Share]:
    """The batch by entity (only those named), with the changes that lie below the progress marked as done."""
    indexes: dict[str, list[int]] = {}
    for index, change in enumerate(batch.changes):
        if change.entity in entities:
            indexes.setdefault(change.entity, []).append(index)
    found: list[Share] = []
    for entity, chosen in indexes.items():
        done: set[int] = set()
        if progress:
            for local, index in enumerate(chosen):
                origin = batch.changes[index].origin
                if origin.offset < progress.get(TopicPartition(origin.topic, origin.partition), 0):
                    done.add(local)
        local_of = {index: local for local, index in enumerate(chosen)} if batch.exceptions else {}
        found.append(
            Share(
                entity,
                tuple(chosen),
                tuple([batch.changes[index] for index in chosen]),
                frozenset(done),
                {(local_of[i], d): mark for (i, d), mark in batch.exceptions.items() if i in local_of},
            )
        )
    return found


def standing(batch: Batch, progress: Mapping[TopicPartition, int]) -> dict[TopicPartition, int] | str:
    """The progress that counts for this batch: that of the store without the partitions that the batch resets; or a
    sentence that says where the store is behind the batch's start."""
    counts: dict[TopicPartition, int] = {}
    for partition, span in batch.spans.items():
        at = progress.get(partition)
        if at is None or span.reset:
            continue
        if at < span.start:
            return f"{partition.topic}/{partition.partition} is enforced up to {at}, the batch begins at {span.start}"
        counts[partition] = at
    return counts
