"""A truncate of a parent's table, where its rule says `truncate: delete_all`: the deletion of every parent that lives.

It names no key, and comes to one partition; what happened before it to some keys may be in others that are not read
yet. So it is *noted* with the batch that read it, and carried out later, when everything that was in the topics when it
was found is enforced: page by page over what the ledger knows of keys, each page as deletions at the version of the
truncate. A key goes if the newest that was heard of it says that it lives, in the truncate's own topic, and is older
than the truncate. Of a key that was created again, or was never heard of, nothing tells whose rows they are: they stay.

What it does not do to a dependent, one dead letter stands for. When that comes back, the keys whose newest fate is the
truncate act once more on this dependent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from integrity.core.batch import ANY_DEPENDENT, NoteWrite, Page, Redrive, TopicPartition
from integrity.core.change import Op, Origin, ParentChange, Truncation, Version
from integrity.core.decode.record import Record
from integrity.core.keys import Key
from integrity.core.ledger import Head
from integrity.core.rules.model import RuleSet
from integrity.core.sweep import is_gone


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A truncate that is to be carried out. `record` told of it. `redrive`: it comes back from a dead letter. `held`
    are the dependents that it is not done to, each with its dead letter; None: their rows are still to be counted."""

    entity: str
    version: Version
    occurred_ms: int
    record: Record
    traceparent: str | None = None
    redrive: Redrive | None = None
    held: dict[str, str] | None = None

    @classmethod
    def of(cls, truncation: Truncation, record: Record, redrive: Redrive | None = None) -> Note:
        """The note of a truncate that was just read."""
        entity, version, _, occurred_ms, traceparent = truncation
        return cls(
            entity=entity,
            version=version,
            occurred_ms=occurred_ms,
            record=record,
            traceparent=traceparent,
            redrive=redrive,
        )

    @property
    def event(self) -> str:
        """The stable name of the event."""
        return f"{self.record.topic}/{self.record.partition}/{self.record.offset}"

    @property
    def id(self) -> str:
        """What the note goes by in a ledger."""
        return self.event if self.redrive is None else f"{self.event}#{self.redrive.letter}"

    @property
    def at(self) -> TopicPartition:
        """The partition that it was read from: whoever has that carries it out."""
        return TopicPartition(self.record.topic, self.record.partition) if self.redrive is None else self.redrive.at

    @property
    def only(self) -> str:
        """The one dependent that it is done to; "": to all."""
        if self.redrive is None or self.redrive.dependent == ANY_DEPENDENT:
            return ""
        return self.redrive.dependent

    @property
    def of_all(self) -> Note:
        """The same for all that it would be done to at first: a copy keeps itself what was left out of it."""
        if self.redrive is None:
            return self
        return msgspec.structs.replace(self, redrive=self.redrive._replace(dependent=ANY_DEPENDENT))

    @property
    def page(self) -> Page:
        """What its changes are a page of."""
        redrive = self.redrive
        return Page() if redrive is None else Page(self.only, redrive.approved, redrive.retries)

    def concerns(self, head: Head) -> bool:
        """Whether the truncate is the deletion of a key, or, for one dependent, was it and acts once more."""
        if self.only:
            return is_gone(head) and head.fates[-1].event_id == self.event
        return (
            head.seen is not None
            and head.seen < self.version
            and not is_gone(head)
            and head.last is not None
            and head.last.topic == self.record.topic
        )

    def changes(self, keys: Iterable[Key]) -> list[ParentChange]:
        """The truncate as what happened to these keys. One that acts once more has its version, so that it does nothing
        to a key that is heard of meanwhile."""
        origin = Origin(*self.record[:4])
        op = Op.MISSING if self.only else Op.DELETED
        told = self.version, origin, self.occurred_ms, self.traceparent
        return [ParentChange(self.entity, op, key, None, *told) for key in keys]

    def to_keep(self) -> NoteWrite:
        """To keep it, when it is new."""
        return NoteWrite(self.id, _encode(self), fresh=True)

    def to_replace(self) -> NoteWrite:
        """To keep it in place of what is known of it."""
        return NoteWrite(self.id, _encode(self))

    def to_forget(self) -> NoteWrite:
        """It is carried out."""
        return NoteWrite(self.id, None)


class KnownKeys(NamedTuple):
    """A page of what a ledger knows of keys of one entity: heads with their newest fate at least. `after` is where the
    next page begins, None when there is none. `unreadable` keys are only known by their hashes."""

    found: Sequence[tuple[Key, Head]]
    after: bytes | None
    unreadable: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Note).decode


def read_note(data: bytes) -> Note:
    """A note as `Note.to_keep` wrote it."""
    note = _decode(data)
    return msgspec.structs.replace(note, record=note.record._replace(headers=tuple(note.record.headers)))


def limits(rules: RuleSet, entity: str, store: str) -> Mapping[str, Mapping[str, int]]:
    """The dependents of an entity in a store, each with what is limited among it and all that goes along with it:
    dependent -> the most rows that one event may have."""
    found: dict[str, dict[str, int]] = {}
    for dependent in rules.of_store(store).get(entity, ()):
        bounded = {each.id: each.max_rows for each in rules.branch(dependent) if each.max_rows is not None}
        if bounded:
            found[dependent.id] = bounded
    return found
