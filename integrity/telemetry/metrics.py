"""The metrics of contract 8, one object a process. No key, tenant or offset is ever a label.

All methods may be called on the event loop at any rate that a lane has: what is counted per event is counted in bulk.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from integrity.core.outcome import Effect, Outcome
from integrity.errors import Reason

ENFORCEMENT_BOUNDS_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86400.0,
)  # fmt: skip
"""From the 5 ms of an idle lane to the day of an outage that was slept through."""

BATCH_BOUNDS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 50000.0)
"""A batch is what has arrived: 1 when idle, the store's `BATCH_SIZE` (2,000) when backlogged."""


class Metrics:
    """Every metric of this process, with its own registry. A value that was never set is not there at all."""

    def __init__(self, *, version: str, rules: str) -> None:
        """`rules` is the hash of the rule set."""
        registry = CollectorRegistry()
        self._registry = registry
        self._events = Counter(
            "integrity_events_total", "Events read, by what they say.", ["entity", "format", "op"], registry=registry
        )
        self._effects = Counter(
            "integrity_effects_total",
            "Events times dependents, by what came of them.",
            ["dependent", "action", "outcome"],
            registry=registry,
        )
        self._rows = Counter(
            "integrity_rows_total", "Rows, documents or records changed.", ["dependent", "action"], registry=registry
        )
        self._dead_letters = Counter(
            "integrity_dead_letters_total", "Dead letters published.", ["reason", "dependent"], registry=registry
        )
        self._open = Gauge(
            "integrity_dead_letters_open", "Dead letters that are open.", ["reason", "dependent"], registry=registry
        )
        self._held = Gauge(
            "integrity_held", "Events held for more rows than max_rows.", ["dependent"], registry=registry
        )
        self._orphans = Gauge(
            "integrity_orphans", "Rows without a parent, by the last scan.", ["dependent"], registry=registry
        )
        # Not shown before it is known: without a label it would be 0 from the start.
        self._oldest_letter = Gauge(
            "integrity_dead_letter_oldest_seconds", "Age of the oldest open dead letter.", registry=None
        )
        self._oldest_letter_shown = False
        self._audit_dropped = Counter(
            "integrity_audit_dropped_total", "Audit records dropped because Kafka did not take them.", registry=registry
        )
        self._lag = Gauge(
            "integrity_lag", "Records not enforced yet.", ["store", "topic", "partition"], registry=registry
        )
        self._oldest = Gauge(
            "integrity_oldest_unenforced_seconds", "Age of the oldest event not enforced.", ["store"], registry=registry
        )
        self._store_up = Gauge("integrity_store_up", "1 when the store answers.", ["store"], registry=registry)
        self._parked = Gauge(
            "integrity_tenants_parked",
            "Tenants whose database can't be used: their events become dead letters that come back.",
            ["store"],
            registry=registry,
        )
        # Of one registry, and shown once it has been asked.
        self._registry_up = Gauge("integrity_schema_registry_up", "1 when the schema registry answers.", registry=None)
        self._registry_up_shown = False
        self._halted = Gauge(
            "integrity_dependent_halted",
            "1 when the dependent's rule does not fit its store: its events become dead letters.",
            ["dependent"],
            registry=registry,
        )
        self._enforcement = _Distribution(
            "integrity_enforcement_seconds", "From the source's commit to the effect's.", ENFORCEMENT_BOUNDS_S
        )
        self._batches = _Distribution("integrity_batch_size", "Events applied in one transaction.", BATCH_BOUNDS)
        registry.register(self._enforcement)
        registry.register(self._batches)
        build = Gauge("integrity_build_info", "1; says what runs.", ["version", "rules"], registry=registry)
        build.labels(version, rules).set(1)

    def count_events(self, entity: str, format: str, op: str, events: int = 1) -> None:
        """`op` is a word of the decoder, never text of a record."""
        self._events.labels(entity, format, op).inc(events)

    def count_effects(self, effects: Sequence[Effect]) -> dict[Outcome, int]:
        """Count what a store reported of a batch, rows included. Returns how many effects had each outcome."""
        totals: dict[tuple[str, str, Outcome], list[int]] = {}
        for _, dependent, action, outcome, rows in effects:
            total = totals.get((dependent, action, outcome))
            if total is None:
                total = totals[dependent, action, outcome] = [0, 0]
            total[0] += 1
            total[1] += rows
        outcomes = dict.fromkeys(Outcome, 0)
        for (dependent, action, outcome), (count, acted_on) in totals.items():
            outcomes[outcome] += count
            self._effects.labels(dependent, action, outcome.value).inc(count)
            if outcome in (Outcome.APPLIED, Outcome.REPAIRED):
                self._rows.labels(dependent, action).inc(acted_on)
        return outcomes

    def count_dead_letter(self, reason: Reason, dependent: str) -> None:
        """`dependent` is `*` when the record could not be decoded."""
        self._dead_letters.labels(reason.value, dependent).inc()

    def set_waiting(
        self, open_now: Mapping[tuple[str, str], int], held: Mapping[str, int], oldest_ms: int | None
    ) -> None:
        """The dead letters that are open, by reason and dependent, and held, by dependent; and when the oldest open one
        failed, in milliseconds since the epoch."""
        for (reason, dependent), count in open_now.items():
            self._open.labels(reason, dependent).set(count)
        for dependent, count in held.items():
            self._held.labels(dependent).set(count)
        if not self._oldest_letter_shown:
            self._oldest_letter_shown = True
            self._registry.register(self._oldest_letter)
        self._oldest_letter.set_function(lambda: 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000))

    def set_orphans(self, dependent: str, rows: int) -> None:
        """What the last scan of the dependent found, whoever ran it."""
        self._orphans.labels(dependent).set(rows)

    def count_audit_dropped(self, records: int) -> None:
        """What `AuditTrail` calls."""
        self._audit_dropped.inc(records)

    def set_lag(self, store: str, topic: str, partition: int, records: int) -> None:
        """End of the partition less what is enforced, in offsets."""
        self._lag.labels(store, topic, str(partition)).set(records)

    def forget_partition(self, store: str, topic: str, partition: int) -> None:
        """Another process has the partition now, and tells its lag."""
        self._lag.remove(store, topic, str(partition))

    def set_oldest_unenforced(self, store: str, seconds: float) -> None:
        """0 when nothing waits."""
        self._oldest.labels(store).set(seconds)

    def set_store_up(self, store: str, *, up: bool) -> None:
        """Whether the store answered the last time it was asked."""
        self._store_up.labels(store).set(up)

    def set_tenants_parked(self, store: str, tenants: int) -> None:
        """Of a store with a database for each tenant, and of this process."""
        self._parked.labels(store).set(tenants)

    def set_registry_up(self, *, up: bool) -> None:
        """Whether the schema registry answered the last time it was asked."""
        self._registry_up.set(up)
        if not self._registry_up_shown:
            self._registry.register(self._registry_up)
            self._registry_up_shown = True

    def set_dependent_halted(self, dependent: str, *, halted: bool) -> None:
        """Whether the dependent's rule does not fit its store any more. `*`: the ledger does not, and the whole lane of
        that store waits."""
        self._halted.labels(dependent).set(halted)

    def observe_enforcement(self, store: str, seconds: Iterable[float]) -> None:
        """One value an event."""
        self._enforcement.observe(store, seconds)

    def observe_batch(self, store: str, events: int) -> None:
        """One batch."""
        self._batches.observe(store, (events,))

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """What `GET /metrics` answers and its content type, for the request's Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreated(self._registry)), content_type

    def collect(self) -> Iterator[Metric]:
        """The metrics as prometheus_client's families. May be called from another thread."""
        return _WithoutCreated(self._registry).collect()


class _Distribution(Collector):
    """A histogram by store. prometheus_client's own takes 0.8 µs a value, which at a lane's rate is a twentieth of a
    processor; this one a fifth of that."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, store: str, values: Iterable[float]) -> None:
        bounds = self._bounds
        with self._lock:
            counts = self._counts.setdefault(store, [0] * (len(bounds) + 1))
            total = 0.0
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                total += value
            self._sums[store] = self._sums.get(store, 0.0) + total

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=["store"])
        names = [str(bound) for bound in self._bounds] + ["+Inf"]
        with self._lock:
            for store, counts in self._counts.items():
                buckets = [(name, float(count)) for name, count in zip(names, accumulate(counts), strict=True)]
                family.add_metric([store], buckets, self._sums[store])
        yield family

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=["store"])


class _WithoutCreated(Collector):
    """A registry without the `_created` series, which double the counters and say nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
