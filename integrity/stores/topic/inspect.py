"""What the ledger tells of a key, and what an event would do to the children: read only.

Reads the topics into a view of its own: it takes nothing over from the process that works, in this one or another.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import msgspec

from integrity.core.batch import TopicPartition
from integrity.core.history import SAMPLE_ROWS_MAX, CameFrom, Enforced, Impact, KeyHistory, LeftOut, Question, Repair
from integrity.core.keys import Key, canonical, key_hash
from integrity.core.undo import Undone
from integrity.errors import LedgerError, OperationError, UnreachableError
from integrity.ports import Deadline
from integrity.stores.rule import StoreRule, with_rows
from integrity.stores.topic import records
from integrity.stores.topic.clients import Closer
from integrity.stores.topic.faults import CLIENT_ERRORS
from integrity.stores.topic.fitness import unreachable
from integrity.stores.topic.reader import Reader, TopicGone, TopicMadeAnew
from integrity.stores.topic.records import ReadRecord
from integrity.stores.topic.scratch import Scratch
from integrity.stores.topic.state import State
from integrity.stores.topic.values import RowRule, read_row

_T = TypeVar("_T")

_VIEW_AGE_MAX_S: Final = 300.0
"""A view that was last read longer ago is read anew: compaction may have removed null records unseen."""
_TELL_EVERY_S: Final = 10.0

log = logging.getLogger(__name__)


class Inspector:
    """Answers from a view that is read when it is first asked for, and read on with each question."""

    def __init__(
        self,
        name: str,
        client: Mapping[str, object],
        rules: Mapping[str, Sequence[StoreRule]],
        ledger: TopicPartition,
        *,
        lane: str,
    ) -> None:
        self._name = name
        self._client = client
        self._rules = rules
        self._row_rules = [RowRule(with_rows(rule)) for of_entity in rules.values() for rule in of_entity]
        self._ledger = ledger
        self._lane = lane
        self._closer = Closer()
        self._reader = Reader(client, self._take, self._closer)
        self._state: State | None = None
        self._scratch: Scratch | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"look-{name}")
        self._lock = asyncio.Lock()
        self._read_at_s: float | None = None
        self._told_at_s = 0.0

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        return await self.ask([self._ledger.topic], lambda state: self._history(state, entity, key), deadline)

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        rules = self._rules[question.entity]
        topics = sorted({rule.dependent.target.name for rule in rules})
        return await self.ask(topics, lambda state: [_impact(state, rule, question) for rule in rules], deadline)

    async def close(self) -> None:
        self._reader.close()
        await self._closer.wait()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._state is not None:
            self._state.close()
        if self._scratch is not None:
            self._scratch.close()

    async def ask(self, topics: Sequence[str], question: Callable[[State], _T], deadline: Deadline) -> _T:
        """Put a question to a view that has read these topics to their end."""
        taken = self._reader.taken
        try:
            async with asyncio.timeout(deadline.remaining_s()), self._lock:
                state = self._opened()
                await self._read(state, topics)
                return await self._in_thread(lambda: question(state))
        except TopicGone as exc:
            if exc.topic == self._ledger.topic:
                raise LedgerError(
                    f"The ledger topic {exc.topic} does not exist.", hint="Run integrity migrate."
                ) from exc
            raise OperationError(f"Topic {exc.topic} does not exist.", hint="Create it, or mend the rule.") from exc
        except CLIENT_ERRORS as exc:
            if isinstance(exc, TimeoutError) and self._reader.taken > taken:
                raise UnreachableError(
                    f"The topics of {self._name} are still being read.", hint="Ask again: it goes on from there."
                ) from exc
            raise unreachable(self._client) from exc
        except sqlite3.Error as exc:
            raise OperationError(f"The file of a view of {self._name} can't be used ({type(exc).__name__}).") from exc
        except (msgspec.DecodeError, ValueError) as exc:
            raise LedgerError(
                f"A record of topic {self._ledger.topic} is none that this program can read with these rules.",
                hint="Was the type of the key changed? Does something else write there?",
            ) from exc

    async def _read(self, state: State, topics: Sequence[str]) -> None:
        began_s = self._told_at_s = time.monotonic()
        if self._read_at_s is not None and began_s - self._read_at_s > _VIEW_AGE_MAX_S:
            await self._forget(state)
        if self._read_at_s is None:
            self._read_at_s = began_s
        try:
            await self._reader.read_to_end(topics)
        except TopicMadeAnew:
            await self._forget(state)
            await self._reader.read_to_end(topics)
        await self._in_thread(state.at_end)
        state.overtaken.clear()  # to be mended by the process that works
        self._read_at_s = began_s

    async def _forget(self, state: State) -> None:
        self._reader.forget()
        await self._in_thread(state.clear)
        self._read_at_s = None

    async def _take(self, read: list[ReadRecord]) -> None:
        state = self._opened()
        await self._in_thread(lambda: state.take(read, self._ledger.topic))
        if time.monotonic() - self._told_at_s >= _TELL_EVERY_S:
            self._told_at_s = time.monotonic()
            log.info("topics are being read", extra={"store": self._name, "records": self._reader.taken + len(read)})

    def _opened(self) -> State:
        if self._state is None:
            self._scratch = Scratch()
            file = self._scratch.path / f"look-{self._name}-{uuid.uuid4().hex}.sqlite"
            self._state = State(file, self._row_rules, lane=self._lane)
        return self._state

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        # Shielded: the thread goes on with what was given up, and its file must not be closed under it.
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(call)))

    def _history(self, state: State, entity: str, key: Key) -> KeyHistory | None:
        digest, spec = key_hash(entity, key), self._rules[entity][0].spec
        head = state.head(digest, spec)
        if head is None:
            return None
        came_from = [
            CameFrom(source.key, fate.version, fate.event, fate.at_ms)
            for source, fate in state.fates_to(canonical(key))
            if source.entity == entity
        ]
        left_out = [
            LeftOut(each.dependent, each.event, each.version, each.reason, each.id, each.at_ms)
            for each in state.exceptions(digest)
        ]
        repaired = [
            Repair(each.dependent, each.action, each.rows, each.event, each.at_ms) for each in state.repairs(digest)
        ]
        undone = [
            Undone(each.dependent, each.event, each.rows, each.at_ms, each.actor, each.note)
            for each in state.undone(digest)
        ]
        return KeyHistory(
            head.seen,
            head.last,
            tuple(
                sorted(
                    (Enforced(each.fate(spec), each.rows, each.at_ms, each.trace) for each in state.fates(digest)),
                    key=lambda each: each.fate.version,
                )
            ),
            tuple(sorted(came_from, key=lambda each: each.version)),
            tuple(sorted(left_out, key=lambda each: (each.at_ms, each.dependent))),
            tuple(sorted(repaired, key=lambda each: (each.at_ms, each.dependent))),
            tuple(sorted(undone, key=lambda each: (each.at_ms, each.dependent))),
        )


def _impact(state: State, rule: StoreRule, question: Question) -> Impact:
    action = rule.policy.on_delete_action if question.deleted else rule.policy.on_update_action
    number = state.number(rule.id)
    assert number is not None, "the view knows every rule of the store"
    row_rule = state.row_rule(number)
    counts: list[int] = []
    sample: list[Mapping[str, object]] = []
    own: list[tuple[int, Key]] = []
    for place, key in enumerate(question.keys):
        own_max = question.own_max - len(own) if rule.id in question.follow else 0
        sampled = SAMPLE_ROWS_MAX - len(sample) if question.sample else 0
        rows, children = state.referencing(number, key_hash(rule.entity, key), max(own_max, sampled))
        counts.append(rows)
        for index, (child, value) in enumerate(children):
            if index < sampled:
                sample.append({"partition": child.partition, "key": records.shown(child.key)})
            if index < own_max and (row_key := row_rule.own(read_row(value))) is not None:
                own.append((place, row_key))
    return Impact(rule.id, action, tuple(counts), tuple(sample), own=tuple(own))
