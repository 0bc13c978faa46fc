"""What a store applies in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from integrity.core.change import ParentChange
from integrity.core.outcome import Outcome
from integrity.errors import Reason

ANY_DEPENDENT: Final = "*"
"""The dependent of a dead letter that stands for all dependents of a store: it could not even be decoded."""


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Span(NamedTuple):
    """The offsets of one partition that a batch covers: from `start` up to, not including, `next`.

    The store's progress must not be behind `start`; what lies below the progress is done already and is left out.
    `reset` makes the batch overwrite a progress that no longer means anything (the topic was made anew). `again` says
    that nobody knows whether it does: what lies below it is not left out for that alone, but where the ledger has heard
    as much of its key.
    """

    start: int
    next: int
    reset: bool = False
    again: bool = False


class DeadLetterMark(NamedTuple):
    """Why an event is not enforced on a dependent, the id of its dead letter, and what came of it thereby."""

    reason: Reason
    id: str
    outcome: Outcome = Outcome.DEAD_LETTERED


class Redrive(NamedTuple):
    """A change that comes back from a dead letter, to act on that letter's dependent alone (`*`: on all).

    The change keeps its own origin; `at` and `offset` are where it was read this time. `retries` counts redrives, this
    one included. `approved`: it was held for its size, and somebody has allowed it.
    """

    letter: str
    dependent: str
    at: TopicPartition
    offset: int
    retries: int = 1
    approved: bool = False


class Discard(NamedTuple):
    """A dead letter that somebody has given up: the effect that it stands for is never to happen. `tenant` is whose the
    event is, where that is known."""

    letter: str
    dependent: str
    event: str
    tenant: str = ""


class NoteWrite(NamedTuple):
    """A note of a truncate to keep: `data`, or None to forget it. `fresh`: only if there is none of this id yet."""

    id: str
    data: bytes | None
    fresh: bool = False


class Page(NamedTuple):
    """What makes the changes of a batch a page of an event that is of many keys (`core.truncate`). It comes back from a
    dead letter of the dependent `only`, unless that is ""; `approved` and `retries` are as those of a Redrive."""

    only: str = ""
    approved: bool = False
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes in the order of arrival (per partition: by offset), and how far they take each partition.

    `exceptions` maps (index of the change, dependent id) to the dead letter that stands for the effect: the store
    leaves that effect out and records it beside the ledger row. `redrives` maps the index of a change to the dead
    letter that it comes back from; of the `discards` the store forgets that they were left out. `at_ms` is the wall
    clock, in milliseconds since the epoch: for `$now` and the ledger's times, never for a decision. `trace_id` is 32
    hex digits, or "". `only`, unless it is "", is the one dependent that all changes are about. `notes` are kept with
    the progress. A `page` has no spans.
    """

    changes: tuple[ParentChange, ...]
    spans: Mapping[TopicPartition, Span]
    at_ms: int
    trace_id: str = ""
    exceptions: Mapping[tuple[int, str], DeadLetterMark] = field(default_factory=dict)
    redrives: Mapping[int, Redrive] = field(default_factory=dict)
    discards: tuple[Discard, ...] = ()
    only: str = ""
    notes: tuple[NoteWrite, ...] = ()
    page: Page | None = None

    @property
    def is_bound(self) -> bool:
        """It may have no more rows than one transaction is to have: it can be cut, or worked off in parts."""
        return self.page is None or len(self.changes) > 1


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a batch that concerns one entity. `indexes[i]` is the index in the batch of `changes[i]`; `done`,
    `exceptions` and `redrives` count within the share."""

    entity: str
    indexes: Sequence[int]
    changes: tuple[ParentChange, ...]
    done: frozenset[int]
    exceptions: Mapping[tuple[int, str], DeadLetterMark]
    redrives: Mapping[int, Redrive] = field(default_factory=dict)
    only: str = ""
    page: Page | None = None
    again: frozenset[int] = frozenset()
    """The changes below a progress that may be of a former life of their topic."""

    @property
    def approved(self) -> frozenset[int]:
        """The changes that may have any number of rows."""
        if self.page is not None and self.page.approved:
            return frozenset(range(len(self.changes)))
        return frozenset(index for index, redrive in self.redrives.items() if redrive.approved)

    def left_out(self, dependent: str) -> Callable[[int], Outcome | None] | None:
        """Tells of a change what it is, when it is left out for this dependent; None when none of the share is."""
        if self.only not in ("", dependent):
            return lambda change: Outcome.SKIPPED
        exceptions = self.exceptions
        if not exceptions:
            return None

        def what(change: int) -> Outcome | None:
            mark = exceptions.get((change, dependent))
            return None if mark is None else mark.outcome

        return what


def shares(batch: Batch, progress: Mapping[TopicPartition, int], entities: Collection[str]) -> list[Share]:
    """The batch by entity (only those named), with the changes that lie below the progress marked as done,
    or as `again`."""
    # Nearly always nothing is done yet: the batch begins where the store is.
    repeats = any(next > batch.spans[partition].start for partition, next in progress.items())
    found: list[Share] = []
    of_batch = dict.fromkeys([change[0] for change in batch.changes])
    for entity in of_batch:
        if entity not in entities:
            continue
        chosen: Sequence[int] = range(len(batch.changes))
        if len(of_batch) > 1:
            chosen = [index for index in chosen if batch.changes[index].entity == entity]
        done: set[int] = set()
        again: set[int] = set()
        if repeats:
            for local, index in enumerate(chosen):
                origin = batch.changes[index].origin
                redrive = batch.redrives.get(index) if batch.redrives else None
                if redrive is not None:
                    at, offset = redrive.at, redrive.offset
                else:
                    at, offset = TopicPartition(origin.topic, origin.partition), origin.offset
                if offset < progress.get(at, 0):
                    if not batch.spans[at].again:
                        done.add(local)
                    elif redrive is None:  # a redrive acts once by itself
                        again.add(local)
        local_of = {index: local for local, index in enumerate(chosen)} if batch.exceptions or batch.redrives else {}
        found.append(
            Share(
                entity,
                chosen,
                batch.changes if len(of_batch) == 1 else tuple([batch.changes[index] for index in chosen]),
                frozenset(done),
                {(local_of[i], d): mark for (i, d), mark in batch.exceptions.items() if i in local_of},
                {local_of[i]: redrive for i, redrive in batch.redrives.items() if i in local_of},
                batch.only,
                batch.page,
                frozenset(again),
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
