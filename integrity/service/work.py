"""Decoded records that wait to be enforced, and how they are cut into batches."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from integrity.core.batch import ANY_DEPENDENT, Discard, NoteWrite, Page, Redrive, Span, TopicPartition
from integrity.core.change import Op, ParentChange, Truncation
from integrity.core.decode.halves import ALONE, pair
from integrity.core.decode.record import Decoder, Half, Ignored, Record, Undecodable, Unread
from integrity.core.truncate import Note
from integrity.errors import Reason
from integrity.kafka.redrives import Ask, read_returned

log = logging.getLogger(__name__)

BUFFER_BYTES_MAX = 16 * 1024 * 1024
"""Records kept for a lane, in bytes of keys and values: beyond it nothing more is fetched."""

TRUNCATE = "t"
"""What a truncate is counted as, whatever the rule says of it."""

_HAPPENED = (Op.DELETED, Op.MOVED)


class Refused(NamedTuple):
    """A record that can't be enforced at all; `redrive` is the dead letter that it comes back from."""

    record: Record
    why: Undecodable
    entity: str
    redrive: Redrive | None = None


@dataclass(slots=True)
class Piece:
    """A part of what was read, in order: `records[i]` is what `changes[i]` was decoded from.

    `redrives` says by index which changes come back from dead letters. `settled` are those that came back and turned
    out to ask for nothing. `notes` are of truncates. As a `page` it is a part of one of them: it has no spans."""

    changes: list[ParentChange] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    redrives: dict[int, Redrive] = field(default_factory=dict)
    settled: list[Redrive] = field(default_factory=list)
    discards: list[Discard] = field(default_factory=list)
    notes: list[NoteWrite] = field(default_factory=list)
    page: Page | None = None
    spans: dict[TopicPartition, Span] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(entity, op) -> records, for the metrics."""
    size: int = 0

    def append(self, other: Piece) -> None:
        """Continue with what was read next."""
        if other.redrives:
            self.redrives |= {len(self.changes) + index: redrive for index, redrive in other.redrives.items()}
        self.settled += other.settled
        self.discards += other.discards
        self.notes += other.notes
        self.changes += other.changes
        self.records += other.records
        self.refused += other.refused
        self.counts += other.counts
        self.size += other.size
        for partition, span in other.spans.items():
            before = self.spans.get(partition)
            self.spans[partition] = span if before is None else before._replace(next=span.next)


class Returning(NamedTuple):
    """Where the dead letters of one store come back, and which dependents the lane has now. Those of the dependents
    `elsewhere` are another lane's; `alone`: so are all but those of the lane's own."""

    topic: str
    store: str
    dependents: Collection[str]
    elsewhere: Collection[str] = ()
    alone: bool = False

    def concerns(self, store: str, dependent: str) -> bool:
        if store != self.store or dependent in self.elsewhere:
            return False
        return dependent in self.dependents or not self.alone


class Reader:
    """Decodes what a poll brought. Remembers per partition whether the last record was a deletion, so that the
    tombstone which repeats it costs nothing; or was refused and may have been one, so that the tombstone does not do
    what nobody could read."""

    def __init__(
        self,
        decoders: Mapping[str, tuple[str, Decoder]],
        returning: Returning | None = None,
        partitions: Callable[[str], int] = lambda topic: 1,
    ) -> None:
        """`decoders` maps a topic to its parent's entity and how its records are read; `partitions` tells how many it
        has."""
        self._decoders = decoders
        self._returning = returning
        self._partitions = partitions
        self._halved: set[str] = set()
        """The topics that have halves of key changes (`core.decode.halves`)."""
        self._deleted: dict[TopicPartition, bytes | None] = {}

    def forget(self) -> None:
        """Reading goes on from another place."""
        self._deleted.clear()

    def originals(self, records: Mapping[TopicPartition, Sequence[Record]]) -> Iterator[Record]:
        """The records that `read` will decode: of dead letters that come back, those that they are about."""
        for partition, found in records.items():
            if self._returning is not None and partition.topic == self._returning.topic:
                yield from (returned.record for each in found if (returned := read_returned(each)) is not None)
            else:
                yield from found

    def read(
        self, partition: TopicPartition, records: Sequence[Record], piece: Piece, *, is_over: bool = False
    ) -> Sequence[Record]:
        """Decode the records of one partition into `piece`, except the last ones that it returns: they wait for what
        follows, and are read again together with it, or when that `is_over`."""
        if self._returning is not None and partition.topic == self._returning.topic:
            self._read_returned(self._returning, partition, records, piece)
            return ()
        entity, decode = self._decoders[partition.topic]
        held: Sequence[Record] = ()
        if partition.topic in self._halved:
            is_apart = self._partitions(partition.topic) != 1
            records, said, held = pair(records, decode, is_over=is_over, is_apart=is_apart)
            by_offset = {record.offset: each for record, each in zip(records, said, strict=True)}
            decode = lambda record: by_offset[record.offset]  # noqa: E731
        deleted = self._deleted.get(partition)
        counts: Counter[str] = Counter()
        tombstones = size = 0
        halved: Sequence[Record] = ()
        add_change, add_record = piece.changes.append, piece.records.append
        for record in records:
            _, _, _, _, key, value, _ = record
            if value is None and deleted is not None and key == deleted:
                deleted = None
                tombstones += 1
                continue
            deleted = None
            decoded = decode(record)
            if isinstance(decoded, ParentChange):
                op = decoded[1]
                # What op.value reads, in a tenth of the time; an enumeration's own hash is a call.
                counts[op._value_] += 1
                if op in _HAPPENED:
                    deleted = key
                add_change(decoded)
                add_record(record)
            elif isinstance(decoded, Ignored):
                counts[decoded.op] += 1
                continue
            elif isinstance(decoded, Truncation):
                counts[TRUNCATE] += 1
                piece.notes.append(Note.of(decoded, record).to_keep())
            elif isinstance(decoded, Half):
                # Once for each topic: from here on its records are put together first.
                self._halved.add(partition.topic)
                halved = [each for each in records if each.offset >= record.offset]
                break
            else:
                counts["undecodable"] += 1
                if decoded.repeated:
                    deleted = key
                piece.refused.append(Refused(record, value.refusal if type(value) is Unread else decoded, entity))
            size += len(key or b"") + len(value or b"")
        piece.size += size
        self._deleted[partition] = deleted
        if tombstones:
            counts["tombstone"] += tombstones
        for what, count in counts.items():
            piece.counts[entity, what] += count
        return self.read(partition, halved, piece, is_over=is_over) if halved else held

    def _read_returned(
        self, returning: Returning, partition: TopicPartition, records: Sequence[Record], piece: Piece
    ) -> None:
        """Decode dead letters that come back, as the topics of their events are read now."""
        for record in records:
            returned = read_returned(record)
            if returned is None:
                log.warning("a record of the topic of redrives is none of ours", extra={"offset": record.offset})
                continue
            if not returning.concerns(returned.store, returned.dependent):
                continue
            ask, letter, entity, dependent, _, retries, original = returned
            piece.counts[entity, "redrive"] += 1
            if ask is Ask.DISCARD:
                event = f"{original.topic}/{original.partition}/{original.offset}"
                piece.discards.append(Discard(letter, dependent, event, self._tenant_of(original)))
                continue
            redrive = Redrive(letter, dependent, partition, record.offset, retries, ask is Ask.APPROVE)
            of_topic = self._decoders.get(original.topic)
            if of_topic is None or (dependent != ANY_DEPENDENT and dependent not in returning.dependents):
                gone = f"topic {original.topic}" if of_topic is None else f"dependent {dependent}"
                why = Undecodable(Reason.SCHEMA_MISMATCH, f"The rules of this store have no {gone} any more.", "store")
                piece.refused.append(Refused(original, why, entity, redrive))
                continue
            decoded = of_topic[1](original)
            if isinstance(decoded, Half):
                # What it was found to be is in its headers, if it was half of a key change, else it was none; but what
                # could not be read was never found to be anything.
                decoded = ALONE if decoded.ends and dependent == ANY_DEPENDENT else decoded.change
            if isinstance(decoded, ParentChange):
                piece.redrives[len(piece.changes)] = redrive
                piece.changes.append(decoded)
                piece.records.append(original)
                piece.size += len(record.key or b"") + len(record.value or b"")
            elif isinstance(decoded, Truncation):
                piece.notes.append(Note.of(decoded, original, redrive).to_keep())
            elif isinstance(decoded, Ignored):
                piece.settled.append(redrive)
            else:
                piece.refused.append(Refused(original, decoded, entity, redrive))

    def _tenant_of(self, record: Record) -> str:
        """Whose an event is, where it was sent with its content."""
        of_topic = self._decoders.get(record.topic)
        found = None if of_topic is None or (record.key is None and record.value is None) else of_topic[1](record)
        found = found.change if isinstance(found, Half) else found
        return found.tenant if isinstance(found, ParentChange) else ""


class Buffer:
    """Pieces in the order they were read. Its caps are those of memory and of a batch."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._pieces: deque[Piece] = deque()
        self._events = 0
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def full(self) -> bool:
        return self._events >= 2 * self._batch_size or self._size >= BUFFER_BYTES_MAX

    @property
    def oldest_ms(self) -> int | None:
        """The record timestamp of the first event that waits, in milliseconds since the epoch."""
        return next((piece.records[0].timestamp_ms for piece in self._pieces if piece.records), None)

    def put(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._events += _weight(piece)
        self._size += piece.size

    def take(self) -> Piece:
        """The next batch: all that waits, up to the batch size; at least one piece."""
        batch = self._pieces.popleft()
        while self._pieces and _weight(batch) + _weight(self._pieces[0]) <= self._batch_size:
            batch.append(self._pieces.popleft())
        self._events -= _weight(batch)
        self._size -= batch.size
        return batch

    def clear(self) -> None:
        self._pieces.clear()
        self._events = self._size = 0


def _weight(piece: Piece) -> int:
    return len(piece.changes) + len(piece.refused) + len(piece.settled) + len(piece.discards) + len(piece.notes)


def halves(piece: Piece) -> tuple[Piece, Piece]:
    """Cut a piece with at least two changes in the middle. Each keeps the order of its partitions; the spans meet at
    the first change of the second half. Refused records were dealt with before: they stay in neither. What dead letters
    ask for beside changes, and notes, go with the first half: it may be done any number of times."""
    middle = len(piece.changes) // 2
    first = Piece(
        piece.changes[:middle],
        piece.records[:middle],
        settled=piece.settled,
        discards=piece.discards,
        notes=piece.notes,
        page=piece.page,
    )
    second = Piece(piece.changes[middle:], piece.records[middle:], page=piece.page)
    for index, redrive in piece.redrives.items():
        if index < middle:
            first.redrives[index] = redrive
        else:
            second.redrives[index - middle] = redrive
    begins: dict[TopicPartition, int] = {}
    for index, change in enumerate(second.changes):
        if back := second.redrives.get(index):
            begins.setdefault(back.at, back.offset)
        else:
            begins.setdefault(TopicPartition(change.origin.topic, change.origin.partition), change.origin.offset)
    for partition, span in piece.spans.items():
        cut = begins.get(partition)
        if cut is None:
            first.spans[partition] = span
        else:
            first.spans[partition] = span._replace(next=cut)
            second.spans[partition] = Span(cut, span.next, again=span.again)
    return first, second
