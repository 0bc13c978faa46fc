"""What lanes tell the outside: metrics, traces and the audit trail. Never blocks, never raises."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from integrity.core.batch import ANY_DEPENDENT, Batch, TopicPartition
from integrity.core.change import Op, Origin, ParentChange
from integrity.core.copies import UPSERT
from integrity.core.ledger import Fate
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.model import RuleSet
from integrity.core.sweep import Repaired
from integrity.kafka.audit import AuditTrail
from integrity.kafka.dead_letters import DeadLetter, Stage
from integrity.service.stale_alarm import StaleAlarm
from integrity.service.work import TRUNCATE, Piece
from integrity.telemetry import BatchSpan, Metrics, Tracing

log = logging.getLogger(__name__)

_HAPPENED = (Op.DELETED, Op.MOVED, Op.GONE)


class Groups(Protocol):
    def lane(self, store: str) -> str:
        """The consumer group of a store."""
        ...


class Report:
    """One for all lanes of a process. `audit` is None when the audit topic is switched off."""

    def __init__(
        self, metrics: Metrics, tracing: Tracing, audit: AuditTrail | None, rules: RuleSet, groups: Groups
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._audit = audit
        self._groups = groups
        self._rules = rules
        self._stale_alarm = StaleAlarm()
        self._formats = {
            parent.entity: "integrity" if parent.events is None else parent.events.format for parent in rules.parents
        }

    def batch(self, store: str, batch: Batch) -> AbstractContextManager[BatchSpan]:
        return self._tracing.batch_span(
            store,
            self._groups.lane(store),
            batch.spans.keys(),
            len(batch.changes),
            (change.traceparent for change in batch.changes),
        )

    def applied(
        self,
        store: str,
        batch: Batch,
        effects: Sequence[Effect],
        took_s: float,
        audited: Sequence[Effect] | None = None,
    ) -> None:
        """`audited` are the effects that the audit is told; None: all."""
        self._metrics.observe_batch(store, len(batch.changes))
        outcomes = self._metrics.count_effects(effects)
        self._stale_alarm.take(store, outcomes)
        now_ms = time.time() * 1000
        # By place: to take each change apart, or to ask by name, would cost three times as much. 6: when it occurred.
        happened_ms = [change[6] for change in batch.changes if change[1] in _HAPPENED]
        ages_s = [(now_ms - at_ms) / 1000 if at_ms < now_ms else 0.0 for at_ms in happened_ms]
        self._metrics.observe_enforcement(store, ages_s)
        audited = effects if audited is None else audited
        if self._audit is not None and audited:
            self._audit.write(batch, audited, took_s * 1000)
        if outcomes[Outcome.RESTRICTED]:
            _warn_of_violations(store, effects)

    def repaired(self, store: str, at_ms: int, repaired: Sequence[Repaired], took_s: float) -> None:
        """As `applied`, of events that were enforced before."""
        changes: list[ParentChange] = []
        effects: list[Effect] = []
        for index, (entity, key, fate, dependent, action, rows) in enumerate(repaired):
            origin = _origin_of(fate)
            op = Op.DELETED if fate.to is None else Op.MOVED
            changes.append(ParentChange(entity, op, key, fate.to, fate.version, origin, fate.occurred_ms))
            effects.append(Effect(index, dependent, action, Outcome.REPAIRED, rows))
        self._metrics.count_effects(effects)
        if self._audit is not None:
            self._audit.write(Batch(tuple(changes), {}, at_ms), effects, took_s * 1000)

    def dead_lettered(self, store: str, letter: DeadLetter) -> None:
        self._metrics.count_dead_letter(letter.reason, letter.dependent)
        # That of an effect is audited with its batch. A record that can't be read has none yet, hence no trace.
        unread = letter.dependent == ANY_DEPENDENT or letter.stage is not Stage.STORE or letter.parked
        if self._audit is not None and unread:
            self._audit.write_dead_letters([letter])

    def store_up(self, store: str, up: bool) -> None:
        self._metrics.set_store_up(store, up=up)

    def halted(self, dependent: str, halted: bool) -> None:
        self._metrics.set_dependent_halted(dependent, halted=halted)

    def parked(self, store: str, tenants: int) -> None:
        self._metrics.set_tenants_parked(store, tenants)

    def registry_up(self, up: bool) -> None:
        self._metrics.set_registry_up(up=up)

    def read(self, store: str, piece: Piece) -> None:
        for (entity, op), count in piece.counts.items():
            self._metrics.count_events(entity, self._formats[entity], op, count)
            if op == TRUNCATE:
                deletes = self._rules.by_entity[entity].truncates
                log.warning(
                    "truncate_seen: all parents were removed at once",
                    extra={"store": store, "entity": entity, "truncates": count, "deletes": deletes},
                )

    def position(self, store: str, lag: Mapping[TopicPartition, int], oldest_ms: int | None) -> None:
        for partition, records in lag.items():
            self._metrics.set_lag(store, partition.topic, partition.partition, records)
        age_s = 0.0 if oldest_ms is None or oldest_ms < 0 else max(0.0, time.time() - oldest_ms / 1000)
        self._metrics.set_oldest_unenforced(store, age_s)

    def forget(self, store: str, partitions: Sequence[TopicPartition]) -> None:
        for partition in partitions:
            self._metrics.forget_partition(store, partition.topic, partition.partition)


class CopyReport:
    """What the lane of a copy tells: as `Report`, under a name of its own beside its store's.

    The audit has its deletions, and what was not applied. Rows that it was given are counted only: they are as many as
    the changes of the parent."""

    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name

    def batch(self, store: str, batch: Batch) -> AbstractContextManager[BatchSpan]:
        return self._report.batch(self._name, batch)

    def applied(self, store: str, batch: Batch, effects: Sequence[Effect], took_s: float) -> None:
        audited = [e for e in effects if e.action != UPSERT or e.outcome is not Outcome.APPLIED]
        self._report.applied(self._name, batch, effects, took_s, audited)

    def dead_lettered(self, store: str, letter: DeadLetter) -> None:
        self._report.dead_lettered(self._name, letter)

    def store_up(self, store: str, up: bool) -> None:
        self._report.store_up(self._name, up)

    def halted(self, dependent: str, halted: bool) -> None:
        self._report.halted(dependent, halted)

    def registry_up(self, up: bool) -> None:
        self._report.registry_up(up)

    def read(self, store: str, piece: Piece) -> None:
        self._report.read(self._name, piece)

    def position(self, store: str, lag: Mapping[TopicPartition, int], oldest_ms: int | None) -> None:
        self._report.position(self._name, lag, oldest_ms)

    def forget(self, store: str, partitions: Sequence[TopicPartition]) -> None:
        self._report.forget(self._name, partitions)


def _origin_of(fate: Fate) -> Origin:
    """Where the event of a fate stands, by the name that the ledger keeps; one that was derived stands nowhere."""
    topic, _, place = fate.event_id.rpartition("/")
    topic, _, partition = topic.rpartition("/")
    if not (topic and partition.isdecimal() and place.isdecimal()):
        return Origin(fate.event_id, 0, 0, fate.occurred_ms)
    return Origin(topic, int(partition), int(place), fate.occurred_ms)


def _warn_of_violations(store: str, effects: Sequence[Effect]) -> None:
    """One line a dependent and batch; the audit has every event, with its key."""
    violations: dict[str, list[int]] = {}
    for effect in effects:
        if effect.outcome is Outcome.RESTRICTED:
            violations.setdefault(effect.dependent, []).append(effect.rows)
    for dependent, rows in violations.items():
        log.warning(
            "dependents still refer to parents that were deleted or changed their key; their rule says restrict",
            extra={"store": store, "dependent": dependent, "events": len(rows), "rows": sum(rows)},
        )
