"""What a person does about dead letters: send them back to the lanes, or give them up.

A letter is marked before it is sent, so that the lane's word on what came of it is the later one. What can't be sent
stays as it was, and says why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from integrity.core.batch import ANY_DEPENDENT
from integrity.core.change import Op, ParentChange
from integrity.core.decode.halves import ALONE
from integrity.core.decode.record import Decoder, Half, Record
from integrity.core.keys import Key, key_hash
from integrity.core.rules.graph import derived_topic
from integrity.core.rules.model import RuleSet
from integrity.errors import PublishError, Reason, RecordRefusedError, UnreachableError
from integrity.kafka.audit import ByHand
from integrity.kafka.dead_letters import Status, StatusChange
from integrity.kafka.letters import Filter, Letter, LetterIndex, LetterReader, chunks
from integrity.kafka.producer import OutgoingRecord
from integrity.kafka.redrives import Ask, Returned, outgoing
from integrity.ports import Deadline, Learn

SEND_TIMEOUT_S: Final = 30.0
REFUSALS_KEPT: Final = 1_000
_HAPPENED: Final = (Op.DELETED, Op.MOVED, Op.GONE)


class Marks(Protocol):
    async def mark(self, changes: Sequence[StatusChange], deadline: Deadline) -> None: ...


class Sends(Protocol):
    async def send_all(self, records: Sequence[OutgoingRecord], deadline: Deadline) -> None: ...


class Audits(Protocol):
    def write_by_hand(self, done: Sequence[ByHand]) -> None: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that stays as it was, and why."""

    id: str
    why: str


@dataclass(slots=True)
class Done:
    """What came of it. Of the refusals the first thousand are kept; `refused` counts all."""

    done: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, id_: str, why: str) -> None:
        self.refused += 1
        if len(self.refusals) < REFUSALS_KEPT:
            self.refusals.append(Refusal(id_, why))


@dataclass(frozen=True, slots=True)
class Person:
    """Who does it, and what they say of it."""

    name: str
    note: str = ""


class Redriver:
    """Acts on the dead letters of an index, as it was when it was read."""

    def __init__(
        self,
        reader: LetterReader,
        index: LetterIndex,
        *,
        marks: Marks,
        sends: Sends,
        audit: Audits | None,
        topic: str,
        bytes_max: int,
        rules: RuleSet,
        decoders: Mapping[str, tuple[str, Decoder]],
        person: Person,
        learn: Learn | None = None,
        of_tenants: Collection[str] = (),
    ) -> None:
        """`topic` is that of redrives, `bytes_max` what a record there may have. `decoders` maps a parents' topic to
        its entity and how its records are read now; `learn` finds out what that needs. The stores `of_tenants` have a
        database for each tenant: what is given up there is sent with its record, which tells the tenant."""
        self._reader = reader
        self._index = index
        self._marks = marks
        self._sends = sends
        self._audit = audit
        self._topic = topic
        self._bytes_max = bytes_max
        self._store_of = rules.store_of
        self._stores_of = {
            topic: {of.store for of in parent.followers.values()}
            for parent in rules.parents
            for topic in ((derived_topic(parent.entity),) if parent.events is None else parent.events.topics)
        }
        self._decoders = decoders
        self._looked_at: dict[str, bool] = {}
        self._person = person
        self._learn = learn
        self._of_tenants = of_tenants

    async def retry(self, chosen: Filter, limit: int | None, told: Callable[[int], None] = lambda _: None) -> Done:
        """Send the letters back. Raises OperationError when Kafka fails; what was sent until then stays sent."""
        done = Done()
        letters = self._chosen(chosen, limit, done, lambda letter: self.why_not(letter, chosen))
        for run in chunks(letters):
            records = await self._reader.payloads(run)
            ready: list[tuple[Letter, OutgoingRecord]] = []
            for letter in run:
                record = records.get(letter.id)
                sent = None if record is None else outgoing(self._topic, _returned(letter, record, chosen))
                if sent is None:
                    done.refuse(letter.id, "its record is not in the topic of dead letters any more (retention)")
                elif sent.bytes_max > self._bytes_max:
                    done.refuse(letter.id, f"its record is too large for topic {self._topic}")
                elif letter.dependent == ANY_DEPENDENT and (doubt := await self._doubt(letter, records[letter.id])):
                    done.refuse(letter.id, doubt)
                else:
                    ready.append((letter, sent))
            await self._send(ready, Status.RETRIED, done)
            told(done.done)
        return done

    async def discard(self, chosen: Filter, limit: int | None, told: Callable[[int], None] = lambda _: None) -> Done:
        """Give the letters up: what they stand for is never to happen. Raises as `retry` does."""
        done = Done()
        for run in chunks(self._chosen(chosen, limit, done, _why_not_discard)):
            records = await self._reader.payloads([letter for letter in run if self._tells_tenant(letter)])
            ready: list[tuple[Letter, OutgoingRecord | None]] = []
            for letter in run:
                if self._tells_tenant(letter) and letter.id not in records:
                    done.refuse(letter.id, "its record is not in the topic of dead letters any more (retention)")
                else:
                    ready.append((letter, self._given_up(letter, records.get(letter.id))))
            await self._send(ready, Status.DISCARDED, done)
            told(done.done)
        return done

    def why_not(self, letter: Letter, chosen: Filter) -> str:
        """Why a letter can't be sent back; empty when it can."""
        if letter.status in (Status.RESOLVED, Status.DISCARDED):
            return f"it is {letter.status} already"
        if letter.truncated:
            return (
                "it only describes the record, which was too large: do by hand what the event asked for, and discard it"
            )
        if letter.dependent != ANY_DEPENDENT and self._store_of.get(letter.dependent) != letter.store:
            return f"the rules have no dependent {letter.dependent} in store {letter.store} any more"
        if letter.store not in self._stores_of.get(letter.topic, ()):
            return f"the rules read no topic {letter.topic} for store {letter.store} any more"
        return ""

    async def _doubt(self, letter: Letter, record: Record) -> str:
        """Why what could not be read must not act any more; empty when it may.

        The ledgers may not know its key, and then have no version that protects a parent that was created again since.
        So what came after it in its partition is looked at, once for all letters there: the first is the oldest."""
        entity, decode = self._decoders[letter.topic]
        if self._learn is not None:
            await self._learn([record])
        change = decode(record)
        if isinstance(change, Half):
            if change.ends:
                return ALONE.message
            change = change.change
        if not isinstance(change, ParentChange) or change.op not in _HAPPENED:
            return ""
        place = f"{letter.topic}/{letter.partition}"
        if place not in self._looked_at:
            self._looked_at[place] = await self._reader.read_after(
                letter.topic, letter.partition, letter.offset, lambda later: self._note_all(place, entity, later)
            )
        if not self._looked_at[place]:
            return "its topic has not kept what came after it, so that nobody knows whether its key is in use again"
        names = _names(entity, change.key, record.key)
        if change.tenant:  # what is of nobody may be of this tenant
            names += _names(entity, change.key, record.key, change.tenant)
        if self._index.lives_after(place, names, letter.offset):
            return "its key was in use again after it: mend by hand what it asked for, and discard it"
        return ""

    async def _note_all(self, place: str, entity: str, later: Sequence[Record]) -> None:
        if self._learn is not None:
            await self._learn(later)
        for record in later:
            self._note(place, entity, record)

    def _note(self, place: str, entity: str, later: Record) -> None:
        """Note a later record that does not say that its key is gone."""
        found = self._decoders[later.topic][1](later)
        if isinstance(found, Half):
            found = found.change
        if later.value is None or (isinstance(found, ParentChange) and found.op in _HAPPENED):
            return
        key, tenant = (found.key, found.tenant) if isinstance(found, ParentChange) else (None, "")
        for name in _names(entity, key, later.key, tenant):
            self._index.note_living(place, name, later.offset)

    def _chosen(
        self, chosen: Filter, limit: int | None, done: Done, why_not: Callable[[Letter], str]
    ) -> Iterable[Letter]:
        missing = set(chosen.ids)
        for letter in self._index.find(chosen, limit):
            missing.discard(letter.id)
            if why := why_not(letter):
                done.refuse(letter.id, why)
            else:
                yield letter
        if limit is None:
            for id_ in sorted(missing):
                done.refuse(id_, "there is no such dead letter among those chosen")

    async def _send(self, ready: Sequence[tuple[Letter, OutgoingRecord | None]], status: Status, done: Done) -> None:
        if not ready:
            return
        await self._mark([letter for letter, _ in ready], status)
        sent = list(ready)
        try:
            await self._sends.send_all([record for _, record in ready if record], Deadline.after(SEND_TIMEOUT_S))
        except RecordRefusedError:
            sent = await self._send_singly(ready, done)
        except UnreachableError as exc:
            raise UnreachableError(
                exc.message,
                hint=f"{len(ready)} dead letters are marked {status} and may not have been sent: do it again by --id.",
            ) from exc
        except PublishError:
            for letter, _ in ready:
                await self._mark([letter], letter.status)
            raise
        done.done += len(sent)
        self._write_audit([letter for letter, _ in sent], status)

    async def _send_singly(
        self, ready: Sequence[tuple[Letter, OutgoingRecord | None]], done: Done
    ) -> list[tuple[Letter, OutgoingRecord | None]]:
        """After one of them was refused, which takes others with it. Sent twice, a letter acts once."""
        sent: list[tuple[Letter, OutgoingRecord | None]] = []
        for letter, record in ready:
            try:
                await self._sends.send_all([record] if record else [], Deadline.after(SEND_TIMEOUT_S))
            except RecordRefusedError as exc:
                await self._mark([letter], letter.status)
                done.refuse(letter.id, f"Kafka refuses its record: {exc.message}")
            else:
                sent.append((letter, record))
        return sent

    async def _mark(self, letters: Sequence[Letter], status: Status) -> None:
        now_ms = int(time.time() * 1000)
        await self._marks.mark(
            [
                StatusChange(
                    letter.id,
                    status,
                    now_ms,
                    letter.dependent,
                    letter.store,
                    letter.reason,
                    self._person.name,
                    self._person.note,
                    letter.parked,
                )
                for letter in letters
            ],
            Deadline.after(SEND_TIMEOUT_S),
        )

    def _write_audit(self, letters: Sequence[Letter], status: Status) -> None:
        if self._audit is None:
            return
        now_ms = int(time.time() * 1000)
        self._audit.write_by_hand(
            [
                ByHand(
                    letter.id,
                    letter.entity,
                    letter.dependent,
                    letter.store,
                    letter.topic,
                    letter.partition,
                    letter.offset,
                    status.value,
                    now_ms,
                    self._person.name,
                    self._person.note,
                )
                for letter in letters
            ]
        )

    def _tells_tenant(self, letter: Letter) -> bool:
        return letter.store in self._of_tenants and letter.dependent != ANY_DEPENDENT

    def _given_up(self, letter: Letter, known: Record | None) -> OutgoingRecord | None:
        """What tells the lane that nothing of the key has to wait for this letter any more."""
        if letter.dependent == ANY_DEPENDENT:
            return None
        record = known or Record(letter.topic, letter.partition, letter.offset, 0, None, None, ())
        returned = Returned(
            Ask.DISCARD, letter.id, letter.entity, letter.dependent, letter.store, letter.retries, record
        )
        return outgoing(self._topic, returned)


def _returned(letter: Letter, record: Record, chosen: Filter) -> Returned:
    # Whoever names a held letter by its id allows it; one that is caught by a wider choice is not.
    approved = letter.reason == Reason.TOO_MANY_ROWS and letter.id in chosen.ids
    ask = Ask.APPROVE if approved else Ask.RETRY
    return Returned(ask, letter.id, letter.entity, letter.dependent, letter.store, letter.retries + 1, record)


def _names(entity: str, key: Key | None, raw: bytes | None, tenant: str = "") -> list[bytes]:
    """What a key goes by in a partition: as it was read, and as its bytes are; where its tenant is known, of that."""
    whose = tenant.encode("utf-8", "surrogatepass") + b"\0" if tenant else b""
    return ([] if key is None else [whose + b"=" + key_hash(entity, key)]) + (
        [] if raw is None else [whose + b"~" + raw]
    )


def _why_not_discard(letter: Letter) -> str:
    return f"it is {letter.status} already" if letter.status in (Status.RESOLVED, Status.DISCARDED) else ""


def totals(counts: Mapping[tuple[Status, str, str], int]) -> Counter[Status]:
    """How many letters have each status."""
    found: Counter[Status] = Counter()
    for (status, _, _), count in counts.items():
        found[status] += count
    return found
