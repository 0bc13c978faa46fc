"""Spans with OpenTelemetry's names. All attribute names that this program uses are here.

Messaging conventions are still in development: when a name changes, it changes in this file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from integrity.core.batch import TopicPartition
from integrity.telemetry.tracing import BatchSpan, TraceParent

KAFKA = "kafka"


class Attribute(StrEnum):
    """Attribute names of the semantic conventions, and our own."""

    MESSAGING_SYSTEM = "messaging.system"
    OPERATION_NAME = "messaging.operation.name"
    OPERATION_TYPE = "messaging.operation.type"
    DESTINATION = "messaging.destination.name"
    PARTITION = "messaging.destination.partition.id"
    GROUP = "messaging.consumer.group.name"
    MESSAGE_COUNT = "messaging.batch.message_count"
    DB_SYSTEM = "db.system.name"
    DB_OPERATION = "db.operation.name"
    DB_COLLECTION = "db.collection.name"
    DB_BATCH_SIZE = "db.operation.batch.size"
    ERROR_TYPE = "error.type"
    STORE = "integrity.store"


class SpanMaker:
    """Makes recorded spans with one tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def batch(
        self,
        store: str,
        group: str,
        partitions: Collection[TopicPartition],
        count: int,
        parents: Sequence[TraceParent],
    ) -> Iterator[BatchSpan]:
        """As `Tracing.batch_span`. The events' traces are links: a batch has no one parent."""
        attributes: dict[str, AttributeValue] = {
            Attribute.MESSAGING_SYSTEM: KAFKA,
            Attribute.OPERATION_NAME: "process",
            Attribute.OPERATION_TYPE: "process",
            Attribute.GROUP: group,
            Attribute.MESSAGE_COUNT: count,
            Attribute.STORE: store,
        }
        topics = {partition.topic for partition in partitions}
        name = "process"
        if len(topics) == 1:
            # One name stands for all messages or is left out.
            attributes[Attribute.DESTINATION] = topic = topics.pop()
            name = f"process {topic}"
            if len(partitions) == 1:
                attributes[Attribute.PARTITION] = str(next(iter(partitions)).partition)
        links = [
            Link(SpanContext(p.trace_id, p.span_id, is_remote=True, trace_flags=TraceFlags(p.flags))) for p in parents
        ]
        span = self._tracer.start_span(
            name, context=Context(), kind=SpanKind.CONSUMER, attributes=attributes, links=links
        )
        with _ended(span):
            yield _Recorded(self._tracer, span)


class _Recorded:
    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{self.trace_id}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"

    def store_span(
        self, system: str, operation: str, collection: str | None = None, batch_size: int = 1
    ) -> AbstractContextManager[None]:
        if system == KAFKA:
            kind = SpanKind.PRODUCER
            attributes: dict[str, AttributeValue] = {
                Attribute.MESSAGING_SYSTEM: KAFKA,
                Attribute.OPERATION_NAME: operation,
                Attribute.OPERATION_TYPE: "send",
                Attribute.MESSAGE_COUNT: batch_size,
            }
            target = Attribute.DESTINATION
        else:
            kind = SpanKind.CLIENT
            attributes = {Attribute.DB_SYSTEM: system, Attribute.DB_OPERATION: operation}
            if batch_size != 1:
                # The conventions: one operation is no batch.
                attributes[Attribute.DB_BATCH_SIZE] = batch_size
            target = Attribute.DB_COLLECTION
        if collection is not None:
            attributes[target] = collection
        span = self._tracer.start_span(
            operation if collection is None else f"{operation} {collection}",
            context=set_span_in_context(self._span, Context()),
            kind=kind,
            attributes=attributes,
        )
        return _ended(span)

    def failed(self, error_type: str) -> None:
        _fail(self._span, error_type)


@contextmanager
def _ended(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as exc:
        # The type alone: a message may quote row values.
        _fail(span, type(exc).__qualname__)
        raise
    finally:
        span.end()


def _fail(span: Span, error_type: str) -> None:
    span.set_attribute(Attribute.ERROR_TYPE, error_type)
    span.set_status(Status(StatusCode.ERROR))
