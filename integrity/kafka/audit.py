"""The audit topic: what came of every event on every dependent, as JSON (contract 8).

Writing never waits and never fails: what was done goes into a bounded queue, and a task of its own encodes and sends
it, a little at a time. When Kafka does not take it, the newest is dropped and counted. The record that counts is the
ledger, which is in the store's own transaction; this is its copy for others to read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
from binascii import hexlify
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple, assert_never

import msgspec
from msgspec import UNSET, UnsetType

from integrity.core.batch import Batch
from integrity.core.change import Op, Version
from integrity.core.keys import Key
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import RuleSet
from integrity.errors import OperationError, RecordRefusedError
from integrity.kafka.dead_letters import DeadLetter, begun_id, rfc3339
from integrity.kafka.producer import (
    BATCH_BYTES_MAX,
    OutgoingRecord,
    Producer,
    WantedTopic,
    ensure_topics,
)
from integrity.ports import Deadline

log = logging.getLogger(__name__)

QUEUE_RECORDS_MAX: Final = 30_000
"""What may wait, in audit records. One takes about 0.7 kB of memory while it waits."""

_SEND_RECORDS_MAX: Final = 2_000
"""Some more go with them: a slice is sent whole."""
_SLICE_RECORDS: Final = 200
_SEND_TIMEOUT_S: Final = 15.0
_RETRY_FIRST_S: Final = 0.5
_RETRY_LAST_S: Final = 30.0
_PARTITIONS: Final = 3
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_CONFIG: Final[Mapping[str, str]] = {"cleanup.policy": "delete"}


class AuditRecord(msgspec.Struct, frozen=True, gc=False):
    """One event on one dependent. With hashed keys `key_hmac` stands in place of `key`. A `version` is text,
    `epoch:position` such as `0:25165824`, since a position may be beyond 64 bits. What is UNSET is not written."""

    id: str | UnsetType
    at: str
    entity: str
    op: str | None
    key: msgspec.Raw | UnsetType | None
    key_hmac: str | UnsetType | None
    version: str | UnsetType | None
    topic: str
    partition: int
    offset: int | UnsetType
    dependent: str
    store: str
    action: str | None
    outcome: str
    rows: int | UnsetType
    took_ms: float
    trace_id: str
    rules: str
    actor: str | UnsetType = UNSET
    note: str | UnsetType = UNSET


class ByHand(NamedTuple):
    """What a person did to a dead letter (`retried` or `discarded`), or to what an event had changed (`undone`). Of a
    dead letter the key and version are not known."""

    id: str
    entity: str
    dependent: str
    store: str
    topic: str
    partition: int
    offset: int
    outcome: str
    at_ms: int
    actor: str
    note: str
    key: Key | None = None
    version: Version | None = None
    action: str | None = None
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Enforced:
    batch: Batch
    effects: Sequence[Effect]
    took_ms: float
    actor: str = ""


@dataclass(frozen=True, slots=True)
class _Undecoded:
    letters: Sequence[DeadLetter]
    trace_id: str


@dataclass(frozen=True, slots=True)
class _ByHand:
    done: Sequence[ByHand]


class AuditTrail:
    """The audit topic's only writer in this process. `start` it on the loop; then write from anywhere on the loop."""

    def __init__(
        self,
        client: Mapping[str, Any],
        rules: RuleSet,
        *,
        topic: str,
        on_dropped: Callable[[int], None],
        hmac_key: bytes | None = None,
        queue_records_max: int = QUEUE_RECORDS_MAX,
    ) -> None:
        """`client` are aiokafka's keyword arguments to connect. `on_dropped` is told how many audit records were
        dropped. With `hmac_key` no key is written, only its HMAC-SHA-256."""
        self._client = client
        self._topic = topic
        self._on_dropped = on_dropped
        self._encoder = AuditEncoder(rules, topic, hmac_key)
        self._queue_records_max = queue_records_max
        self._queue: deque[_Enforced | _Undecoded | _ByHand] = deque()
        self._waiting = 0
        self._wakeup = asyncio.Event()
        self._closing = asyncio.Event()
        self._away = False
        self._task: asyncio.Task[None] | None = None
        self._producer: Producer | None = None
        self._partitions = 0

    def start(self) -> None:
        """Begin to send, in a task of the running loop."""
        self._task = asyncio.create_task(self._run(), name="audit")
        self._task.add_done_callback(self._ended)

    def write(self, batch: Batch, effects: Sequence[Effect], took_ms: float, actor: str = "") -> None:
        """Take note of a batch that a store has applied. Neither may be changed afterwards. `actor` is the person who
        asked for it."""
        self._take(_Enforced(batch, effects, took_ms, actor), len(effects))

    def write_dead_letters(self, letters: Sequence[DeadLetter], trace_id: str = "") -> None:
        """Take note of records that could not be decoded; a dead letter of an effect is among the effects."""
        self._take(_Undecoded(letters, trace_id), len(letters))

    def write_by_hand(self, done: Sequence[ByHand]) -> None:
        """Take note of what a person did."""
        self._take(_ByHand(done), len(done))

    async def close(self, deadline: Deadline) -> None:
        """Send what waits, as far as the deadline allows; drop and count the rest."""
        self._closing.set()
        self._wakeup.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=deadline.remaining_s())
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task})
        if self._waiting:
            self._on_dropped(self._waiting)
            self._waiting = 0
        if self._producer is not None:
            await self._producer.close(deadline)

    def _take(self, entry: _Enforced | _Undecoded | _ByHand, records: int) -> None:
        if not records:
            return
        # A batch larger than the queue is taken by an empty one: else it never could be.
        if self._closing.is_set() or (self._waiting and self._waiting + records > self._queue_records_max):
            self._on_dropped(records)
            return
        self._queue.append(entry)
        self._waiting += records
        self._wakeup.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of this program. The work goes on without an audit, and says so.
            self._closing.set()
            log.critical("The audit has ended unexpectedly; audit records are dropped", exc_info=error)

    async def _run(self) -> None:
        outgoing: list[OutgoingRecord] = []
        while True:
            if self._queue and not await self._connected():
                return
            for records in self._encoded():
                while part := list(islice(records, _SLICE_RECORDS)):
                    outgoing += part
                    await asyncio.sleep(0)
                    if len(outgoing) >= _SEND_RECORDS_MAX:
                        await self._send(outgoing)
                        outgoing = []
            if outgoing:
                await self._send(outgoing)
                outgoing = []
            elif self._closing.is_set():
                return
            else:
                self._wakeup.clear()
                await self._wakeup.wait()

    def _encoded(self) -> Iterator[Iterator[OutgoingRecord]]:
        """The records of each entry that waits, made as they are asked for."""
        while self._queue:
            entry = self._queue.popleft()
            match entry:
                case _Enforced(batch, effects, took_ms, actor):
                    yield self._encoder.enforced(batch, effects, took_ms, self._partitions, actor)
                case _Undecoded(letters, trace_id):
                    yield self._encoder.undecoded(letters, trace_id, self._partitions)
                case _ByHand(done):
                    yield self._encoder.by_hand(done, self._partitions)
                case _:
                    assert_never(entry)

    async def _connected(self) -> bool:
        return self._producer is not None or await self._persist(self._connect)

    async def _connect(self) -> None:
        wanted = WantedTopic(self._topic, _PARTITIONS, _CONFIG)
        facts = (await ensure_topics(self._client, [wanted], Deadline.after(_SEND_TIMEOUT_S)))[self._topic]
        self._partitions = facts.partitions
        self._producer = Producer(
            self._client,
            client_id="integrity-audit",
            batch_bytes_max=min(BATCH_BYTES_MAX, facts.bytes_max),
        )

    async def _send(self, records: Sequence[OutgoingRecord]) -> None:
        producer = self._producer
        assert producer is not None, "nothing is encoded before the topic is known"
        if not await self._persist(lambda: producer.send_all(records, Deadline.after(_SEND_TIMEOUT_S))):
            self._on_dropped(len(records))
        self._waiting -= len(records)

    async def _persist(self, call: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Call until it succeeds; False when a record is at fault, or it failed while the trail is being closed."""
        wait_s = _RETRY_FIRST_S
        while True:
            try:
                await call()
            except RecordRefusedError as exc:
                log.error("Kafka refused audit records; they are dropped", extra={"error": str(exc)})
                return False
            except OperationError as exc:
                if self._closing.is_set():
                    return False
                if not self._away:
                    self._away = True
                    log.warning("The audit topic takes nothing; audit records wait", extra={"error": str(exc)})
                await self._pause(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _RETRY_LAST_S)
            else:
                if self._away:
                    self._away = False
                    log.info("The audit topic takes records again")
                return True

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)


_Kind = tuple[str, Op, str, int, str, str, Outcome]
"""Entity, op, topic, partition, dependent, action and outcome: what many records of a batch have in common."""


class AuditEncoder:
    """Makes audit records of what happened. A parent key always goes to the same partition.

    At a lane's full rate this is a good part of the process's work, so what records share is computed once.
    """

    def __init__(self, rules: RuleSet, topic: str, hmac_key: bytes | None) -> None:
        names = {parent.entity: parent.key.names for parent in rules.parents}
        self._encode = msgspec.json.Encoder().encode
        self._names = names
        self._opening = {entity: f"{{{self._encode(of[0]).decode()}:" for entity, of in names.items()}
        """How the text of a key begins that has one field."""
        self._begun = {entity: hashlib.blake2b(f"{entity} ".encode(), digest_size=16) for entity in names}
        self._stores = rules.store_of
        self._rules = rules.hash
        self._topic = topic
        self._hmac_key = hmac_key

    def enforced(
        self, batch: Batch, effects: Sequence[Effect], took_ms: float, partitions: int, actor: str = ""
    ) -> Iterator[OutgoingRecord]:
        """One record for each effect, in their order."""
        at, took_ms, by = rfc3339(batch.at_ms), round(took_ms, 3), actor or UNSET
        to_topic, at_ms, new_tuple, changes = self._topic, batch.at_ms, tuple.__new__, batch.changes
        hashed = self._hmac_key is not None
        shared: dict[_Kind, tuple[hashlib.blake2b, str, str]] = {}
        known: tuple[hashlib.blake2b, str, str] | None = None
        last: _Kind = ("", Op.ALIVE, "", -1, "", "", Outcome.APPLIED)
        # What a change has in common on all dependents is made once, where there is more than one.
        of_changes: dict[int, tuple[str, bytes, int]] | None = None
        if effects and effects[0][1] != effects[-1][1]:
            of_changes = {}
        for index, dependent, action, outcome, rows in effects:
            entity, op, key, _, version, origin, _, _, _, _ = changes[index]
            topic, partition, offset, _ = origin
            # Nearly always it is the very same as of the effect before; a hash of so much costs more than a look.
            at_entity, at_op, at_topic, at_partition, at_dependent, at_action, at_outcome = last
            if (
                partition != at_partition
                or outcome is not at_outcome
                or op is not at_op
                or action is not at_action
                or dependent is not at_dependent
                or topic is not at_topic
                or entity is not at_entity
                or known is None
            ):
                last = entity, op, topic, partition, dependent, action, outcome
                known = shared.get(last)
                if known is None:
                    store = self._stores[dependent]
                    record = AuditRecord(
                        UNSET, at, entity, op.value, UNSET, UNSET, UNSET, topic, partition, UNSET, dependent, store,
                        action, outcome, UNSET, took_ms, batch.trace_id, self._rules, by,
                    )  # fmt: skip
                    # Without its opening brace: it follows what is the record's own.
                    said = self._encode(record).decode()[1:]
                    known = shared[last] = begun_id(topic, partition), f"\n{dependent}\n{store}", said
            begun, id_ends, text = known
            of_change = None if of_changes is None else of_changes.get(index)
            if of_change is None:
                key_text, digest = self._keyed(entity, key)
                named = f'"key_hmac":"{digest.hex()}"' if hashed else f'"key":{key_text}'
                told = "null" if version is None else f'"{version.text}"'
                own = f'{named},"version":{told},"offset":{offset},'
                of_change = own, hexlify(digest), int.from_bytes(digest[:4]) % partitions
                if of_changes is not None:
                    of_changes[index] = of_change
            own, name, to_partition = of_change
            # As `continued_id` has it.
            id = begun.copy()
            id.update(f"{offset}{id_ends}".encode())
            value = f'{{"id":"{id.hexdigest()}",{own}"rows":{rows},{text}'.encode()
            yield new_tuple(OutgoingRecord, (to_topic, name, value, at_ms, (), to_partition))

    def undecoded(self, letters: Sequence[DeadLetter], trace_id: str, partitions: int) -> Iterator[OutgoingRecord]:
        """One record for each letter; what could not be decoded (op, key, version) is null."""
        for letter in letters:
            record = letter.record
            value = AuditRecord(
                letter.id,
                rfc3339(letter.failed_at_ms),
                letter.entity,
                None,
                None if self._hmac_key is None else UNSET,
                UNSET if self._hmac_key is None else None,
                None,
                record.topic,
                record.partition,
                record.offset,
                letter.dependent,
                letter.store,
                None,
                Outcome.DEAD_LETTERED,
                0,
                0.0,
                trace_id,
                letter.rules,
            )
            digest = self._digest(record.key or b"")
            yield self._outgoing(digest, self._encode(value), letter.failed_at_ms, partitions)

    def by_hand(self, done: Sequence[ByHand], partitions: int) -> Iterator[OutgoingRecord]:
        """One record for each."""
        for each in done:
            key_text: msgspec.Raw | None = None
            key_hmac: str | None = None
            if each.key is None:
                digest = self._digest(each.id.encode())
            else:
                text, digest = self._keyed(each.entity, each.key)
                key_text, key_hmac = msgspec.Raw(text.encode()), digest.hex()
            value = AuditRecord(
                each.id,
                rfc3339(each.at_ms),
                each.entity,
                None,
                key_text if self._hmac_key is None else UNSET,
                UNSET if self._hmac_key is None else key_hmac,
                None if each.version is None else each.version.text,
                each.topic,
                each.partition,
                each.offset,
                each.dependent,
                each.store,
                each.action,
                each.outcome,
                each.rows,
                0.0,
                "",
                self._rules,
                each.actor,
                each.note or UNSET,
            )
            yield self._outgoing(digest, self._encode(value), each.at_ms, partitions)

    def _keyed(self, entity: str, key: Key) -> tuple[str, bytes]:
        """A key as JSON, and its hash."""
        part = key[0]
        if type(part) is int and len(key) == 1 and _INT64_MIN <= part <= _INT64_MAX:
            text = f"{self._opening[entity]}{part}}}"
        else:
            text = self._key_text(self._names[entity], key)
        if self._hmac_key is not None:
            return text, self._digest(f"{entity} {text}".encode())
        hashing = self._begun[entity].copy()
        hashing.update(text.encode())
        return text, hashing.digest()

    def _key_text(self, names: Sequence[str], key: Key) -> str:
        try:
            return self._encode(dict(zip(names, key, strict=True))).decode()
        except (UnicodeEncodeError, OverflowError):
            # A lone surrogate, or an integer beyond 64 bits: JSON has them, the encoder does not.
            parts = [str(part).encode("utf-8", "backslashreplace").decode() for part in key]
            return self._encode(dict(zip(names, parts, strict=True))).decode()

    def _digest(self, key: bytes) -> bytes:
        # Also the record's key: where keys are to be hidden, a plain hash of few possible keys would give them away.
        if self._hmac_key is not None:
            return hmac.digest(self._hmac_key, key, "sha256")
        return hashlib.blake2b(key, digest_size=16).digest()

    def _outgoing(self, digest: bytes, value: bytes, at_ms: int, partitions: int) -> OutgoingRecord:
        return OutgoingRecord(self._topic, digest.hex().encode(), value, at_ms, (), _partition(digest, partitions))


def _partition(digest: bytes, partitions: int) -> int:
    return int.from_bytes(digest[:4], "big") % partitions
