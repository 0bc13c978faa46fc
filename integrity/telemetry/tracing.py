"""Traces: one span a batch and store, with links to the events' own traces, and a span for each call of a store.

Spans are made and exported only when OpenTelemetry's `OTEL_EXPORTER_OTLP_ENDPOINT` (or the one for a signal) is set.
Trace ids are always made, since the ledger, the audit and dead letters carry them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from integrity.core.batch import TopicPartition
from integrity.ports import Deadline
from integrity.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from integrity.telemetry.otlp import MetricsPusher
    from integrity.telemetry.spans import SpanMaker

log = logging.getLogger(__name__)

LINKS_MAX: Final = 128
"""OpenTelemetry's own default limit; what exceeds it the SDK would drop."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A valid W3C traceparent."""

    trace_id: int
    span_id: int
    flags: int


def parse_traceparent(text: str) -> TraceParent | None:
    """The value of a `traceparent` header; None when it is not valid."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    # Version 00 ends with its flags, and ff is forbidden; later versions may go on.
    if version == "ff" or (version == "00" and rest is not None):
        return None
    parsed = TraceParent(int(trace_id, 16), int(span_id, 16), int(flags, 16))
    return parsed if parsed.trace_id and parsed.span_id else None


def distinct_parents(traceparents: Iterable[str | None]) -> list[TraceParent]:
    """The first valid ones, each once, at most `LINKS_MAX`."""
    found: dict[TraceParent, None] = {}
    for text in traceparents:
        if text is not None and (parsed := parse_traceparent(text)) is not None:
            found[parsed] = None
            if len(found) == LINKS_MAX:
                break
    return list(found)


class BatchSpan(Protocol):
    """The trace of one batch. `trace_id` is 32 hex digits; `traceparent` is the header for what the batch causes."""

    @property
    def trace_id(self) -> str: ...

    @property
    def traceparent(self) -> str: ...

    def store_span(
        self, system: str, operation: str, collection: str | None = None, batch_size: int = 1
    ) -> AbstractContextManager[None]:
        """A call of a store. `system` is postgresql, mongodb or kafka; `operation` and `collection` (a table,
        collection or topic; None for several) come from rules, never from records."""
        ...

    def failed(self, error_type: str) -> None:
        """The batch was not applied; `error_type` is a word of few, such as a reason code."""
        ...


class Tracing:
    """Makes the spans of batches."""

    def __init__(self, spans: SpanMaker | None = None) -> None:
        """Without `spans` nothing is recorded; trace ids are made all the same."""
        self._spans = spans
        # Ids only have to differ; the operating system's randomness costs a system call each.
        self._random = random.Random()

    def batch_span(
        self,
        store: str,
        group: str,
        partitions: Collection[TopicPartition],
        count: int,
        traceparents: Iterable[str | None],
    ) -> AbstractContextManager[BatchSpan]:
        """The span of one batch of `count` events; `traceparents` are the events' own, as they came. An exception
        that leaves it is marked as its error."""
        if self._spans is None:
            return self._unrecorded()
        return self._spans.batch(store, group, partitions, count, distinct_parents(traceparents))

    @contextmanager
    def _unrecorded(self) -> Iterator[BatchSpan]:
        yield _Unrecorded(f"{self._random.getrandbits(128) or 1:032x}", f"{self._random.getrandbits(64) or 1:016x}")


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-00"

    def store_span(
        self, system: str, operation: str, collection: str | None = None, batch_size: int = 1
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def failed(self, error_type: str) -> None:
        pass


class Telemetry:
    """What was opened, to be closed at the end."""

    def __init__(self, tracing: Tracing, pusher: MetricsPusher | None, shutdown: Callable[[], None] | None) -> None:
        self.tracing = tracing
        self._pusher = pusher
        self._shutdown = shutdown

    async def close(self, deadline: Deadline) -> None:
        """Export what is left as far as the deadline allows."""
        closing = [self._shutdown] if self._shutdown is not None else []
        if self._pusher is not None:
            closing.append(self._pusher.close)
        await asyncio.gather(*(_within(deadline, call) for call in closing))


async def _within(deadline: Deadline, call: Callable[[], None]) -> None:
    # The SDK's shutdown takes no deadline and may wait for half a minute: a daemon thread may be left to it.
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def work() -> None:
        try:
            call()
        finally:
            # The loop may be closed by then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=work, name="telemetry-close", daemon=True).start()
    try:
        await asyncio.wait_for(ended.wait(), deadline.remaining_s())
    except TimeoutError:
        log.warning("The OpenTelemetry collector does not answer; the last spans and metrics are lost")


def open_telemetry(environment: Mapping[str, str], metrics: Metrics, *, version: str) -> Telemetry:
    """Export spans and metrics if OpenTelemetry's variables say where to; the SDK reads the others by itself."""
    spans_wanted = _is_wanted(environment, "TRACES")
    metrics_wanted = _is_wanted(environment, "METRICS")
    if not spans_wanted and not metrics_wanted:
        return Telemetry(Tracing(), None, None)
    # Only here: the SDK takes a third of a second to import, and memory.
    from integrity.telemetry import otlp

    resource = otlp.resource(environment, version)
    pusher = otlp.MetricsPusher(metrics, resource, otlp.interval_s(environment)) if metrics_wanted else None
    if not spans_wanted:
        return Telemetry(Tracing(), pusher, None)
    spans, shutdown = otlp.exporting_spans(resource, version)
    return Telemetry(Tracing(spans), pusher, shutdown)


def _is_wanted(environment: Mapping[str, str], signal: str) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    return any(environment.get(f"OTEL_EXPORTER_OTLP_{infix}ENDPOINT") for infix in ("", f"{signal}_"))
