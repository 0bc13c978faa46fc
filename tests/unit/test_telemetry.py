"""Metrics and spans as values; what leaves the process is tested in tests/integration/test_otlp.py."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics.export import Histogram, Sum
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from integrity.core.batch import TopicPartition
from integrity.core.outcome import Effect, Outcome
from integrity.errors import Reason
from integrity.ports import Deadline
from integrity.telemetry import Metrics, Tracing, open_telemetry
from integrity.telemetry.otlp import interval_s, metrics_data, resource
from integrity.telemetry.spans import Attribute, SpanMaker
from integrity.telemetry.tracing import LINKS_MAX, distinct_parents, parse_traceparent

DOCUMENT = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def used_metrics() -> Metrics:
    metrics = Metrics(version="1.2.3", rules="abc")
    metrics.count_events("customer", "debezium", "d", 3)
    metrics.count_effects(
        [
            Effect(0, "customer.orders", "cascade", Outcome.APPLIED, 10),
            Effect(1, "customer.orders", "cascade", Outcome.STALE, 0),
            Effect(2, "customer.orders", "cascade", Outcome.APPLIED, 5),
            Effect(2, "customer.reviews", "nullify", Outcome.SKIPPED, 0),
        ]
    )
    metrics.count_dead_letter(Reason.BAD_JSON, "*")
    metrics.set_waiting({("bad_json", "*"): 2}, {"customer.orders": 1}, None)
    metrics.count_audit_dropped(7)
    metrics.set_lag("orders_db", "customers", 0, 12)
    metrics.set_oldest_unenforced("orders_db", 1.5)
    metrics.set_store_up("orders_db", up=True)
    metrics.set_tenants_parked("shop_db", 3)
    metrics.set_registry_up(up=True)
    metrics.set_dependent_halted("customer.orders", halted=True)
    metrics.set_orphans("customer.orders", 3)
    metrics.observe_enforcement("orders_db", [0.005, 0.03, 1e9])
    metrics.observe_batch("orders_db", 2000)
    return metrics


def test_every_value_is_shown_under_the_names_of_the_contract() -> None:
    lines = used_metrics().render()[0].decode().splitlines()
    assert {line for line in lines if not line.startswith("#") and "_bucket" not in line} == {
        'integrity_events_total{entity="customer",format="debezium",op="d"} 3.0',
        'integrity_effects_total{action="cascade",dependent="customer.orders",outcome="applied"} 2.0',
        'integrity_effects_total{action="cascade",dependent="customer.orders",outcome="stale"} 1.0',
        'integrity_effects_total{action="nullify",dependent="customer.reviews",outcome="skipped"} 1.0',
        'integrity_rows_total{action="cascade",dependent="customer.orders"} 15.0',
        'integrity_dead_letters_total{dependent="*",reason="bad_json"} 1.0',
        'integrity_dead_letters_open{dependent="*",reason="bad_json"} 2.0',
        'integrity_held{dependent="customer.orders"} 1.0',
        "integrity_dead_letter_oldest_seconds 0.0",
        "integrity_audit_dropped_total 7.0",
        'integrity_lag{partition="0",store="orders_db",topic="customers"} 12.0',
        'integrity_oldest_unenforced_seconds{store="orders_db"} 1.5',
        'integrity_store_up{store="orders_db"} 1.0',
        'integrity_tenants_parked{store="shop_db"} 3.0',
        "integrity_schema_registry_up 1.0",
        'integrity_dependent_halted{dependent="customer.orders"} 1.0',
        'integrity_orphans{dependent="customer.orders"} 3.0',
        'integrity_enforcement_seconds_count{store="orders_db"} 3.0',
        'integrity_enforcement_seconds_sum{store="orders_db"} 1.000000000035e+09',
        'integrity_batch_size_count{store="orders_db"} 1.0',
        'integrity_batch_size_sum{store="orders_db"} 2000.0',
        'integrity_build_info{rules="abc",version="1.2.3"} 1.0',
    }


def test_a_value_on_a_bound_is_in_its_bucket_and_one_beyond_all_in_the_last() -> None:
    text = used_metrics().render()[0].decode()
    counts = dict(re.findall(r'integrity_enforcement_seconds_bucket\{le="([^"]+)",store="orders_db"\} ([0-9.]+)', text))
    assert (counts["0.005"], counts["0.025"], counts["0.05"], counts["86400.0"], counts["+Inf"]) == (
        "1.0", "1.0", "2.0", "2.0", "3.0",
    )  # fmt: skip


def test_a_partition_that_another_process_has_is_not_shown() -> None:
    metrics = used_metrics()
    metrics.forget_partition("orders_db", "customers", 0)
    assert "integrity_lag{" not in metrics.render()[0].decode()
    # Of one that was never shown too: a rebalance may take what was given a moment ago.
    metrics.forget_partition("orders_db", "customers", 0)


def test_every_metric_and_label_is_documented() -> None:
    for family in used_metrics().collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        rows = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` | {family.type} |")]
        assert len(rows) == 1, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(re.findall("`([a-z_]+)`", rows[0].split("|")[3])), name


def test_every_documented_metric_exists() -> None:
    documented = set(re.findall(r"^\| `(integrity_[a-z_]+)` \|", DOCUMENT, re.MULTILINE))
    assert documented == {f.name + ("_total" if f.type == "counter" else "") for f in used_metrics().collect()}


def test_every_span_attribute_is_documented() -> None:
    for attribute in Attribute:
        assert f"`{attribute}`" in DOCUMENT, attribute


def test_no_label_can_hold_a_key_a_tenant_or_an_offset() -> None:
    labels = {label for family in used_metrics().collect() for sample in family.samples for label in sample.labels}
    assert not labels & {"key", "tenant", "offset"}


def test_metrics_are_pushed_as_they_are_shown() -> None:
    data = metrics_data(used_metrics(), Resource.create(), 1, 2)
    pushed = {metric.name: metric.data for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    rows = pushed["integrity_rows_total"]
    assert isinstance(rows, Sum)
    assert rows.is_monotonic
    assert [(dict(p.attributes or {}), p.value) for p in rows.data_points] == [
        ({"dependent": "customer.orders", "action": "cascade"}, 15.0)
    ]
    enforcement = pushed["integrity_enforcement_seconds"]
    assert isinstance(enforcement, Histogram)
    point = enforcement.data_points[0]
    assert (point.count, sum(point.bucket_counts), point.bucket_counts[0], point.bucket_counts[-1]) == (3, 3, 1, 1)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert not any(math.isinf(bound) for bound in point.explicit_bounds)


@pytest.mark.parametrize(
    "text",
    [
        PARENT,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings",
    ],
)
def test_valid_traceparents_are_read(text: str) -> None:
    parsed = parse_traceparent(text)
    assert parsed is not None
    assert (parsed.trace_id, parsed.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        PARENT + "-more",
        PARENT + "\n",
        PARENT.replace("00-", "ff-", 1),
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "00-\u0660af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
)
def test_invalid_traceparents_are_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


def test_links_are_distinct_and_capped() -> None:
    assert len(distinct_parents([PARENT, None, "nonsense", PARENT])) == 1
    many = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 1000)]
    assert [parent.trace_id for parent in distinct_parents(many)] == list(range(1, LINKS_MAX + 1))


@pytest.fixture
def exported() -> Iterator[tuple[Tracing, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Tracing(SpanMaker(provider.get_tracer("test"))), exporter
    provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_a_batch_is_one_consumer_span_with_links_and_the_stores_call_its_child(
    exported: tuple[Tracing, InMemorySpanExporter],
) -> None:
    tracing, exporter = exported
    partitions = [TopicPartition("customers", 3)]
    with tracing.batch_span("orders_db", "integrity.orders_db", partitions, 2, [PARENT, "nonsense", PARENT]) as span:
        with span.store_span("postgresql", "apply", "orders", 2):
            pass
        with span.store_span("postgresql", "apply"):
            pass
        with span.store_span("kafka", "send", "carts", 5):
            pass
        trace_id, traceparent = span.trace_id, span.traceparent
    orders, several, carts, batch = exporter.get_finished_spans()
    assert (batch.name, batch.kind, batch.parent) == ("process customers", SpanKind.CONSUMER, None)
    assert attributes(batch) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "customers",
        "messaging.destination.partition.id": "3",
        "messaging.consumer.group.name": "integrity.orders_db",
        "messaging.batch.message_count": 2,
        "integrity.store": "orders_db",
    }
    assert [link.context.trace_id for link in batch.links] == [0x0AF7651916CD43DD8448EB211C80319C]
    assert (orders.name, orders.kind) == ("apply orders", SpanKind.CLIENT)
    assert attributes(orders) == {
        "db.system.name": "postgresql",
        "db.operation.name": "apply",
        "db.collection.name": "orders",
        "db.operation.batch.size": 2,
    }
    assert several.name == "apply"
    assert "db.operation.batch.size" not in attributes(several)
    assert (carts.name, carts.kind) == ("send carts", SpanKind.PRODUCER)
    assert attributes(carts)["messaging.destination.name"] == "carts"
    for child in (orders, several, carts):
        assert child.parent == batch.context
    assert batch.context is not None
    assert trace_id == f"{batch.context.trace_id:032x}"
    sampled_and_random = 0x03
    assert traceparent == f"00-{trace_id}-{batch.context.span_id:016x}-{sampled_and_random:02x}"


def test_a_batch_of_several_topics_names_none(exported: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = exported
    with tracing.batch_span("s", "g.s", [TopicPartition("a", 0), TopicPartition("b", 0)], 1, []):
        pass
    span = exporter.get_finished_spans()[0]
    assert span.name == "process"
    assert not {"messaging.destination.name", "messaging.destination.partition.id"} & set(attributes(span))


def test_several_partitions_of_one_topic_name_the_topic_alone(exported: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = exported
    with tracing.batch_span("s", "g.s", [TopicPartition("a", 0), TopicPartition("a", 1)], 1, []):
        pass
    span = exporter.get_finished_spans()[0]
    assert span.name == "process a"
    assert "messaging.destination.partition.id" not in attributes(span)


def test_an_exception_is_marked_by_its_type_alone_and_goes_on(exported: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = exported
    with (
        pytest.raises(ValueError, match="jane@example"),
        tracing.batch_span("s", "g.s", [TopicPartition("a", 0)], 1, []) as span,
        span.store_span("postgresql", "apply", "orders"),
    ):
        raise ValueError("duplicate key (email)=(jane@example.com)")
    for finished in exporter.get_finished_spans():
        assert finished.status.status_code is StatusCode.ERROR
        assert attributes(finished)["error.type"] == "ValueError"
        assert "jane" not in finished.to_json()


def test_a_batch_that_was_not_applied_has_the_given_error_type(exported: tuple[Tracing, InMemorySpanExporter]) -> None:
    tracing, exporter = exported
    with tracing.batch_span("s", "g.s", [TopicPartition("a", 0)], 1, []) as span:
        span.failed("constraint_violation")
    finished = exporter.get_finished_spans()[0]
    assert attributes(finished)["error.type"] == "constraint_violation"
    assert finished.status.status_code is StatusCode.ERROR


def test_without_an_exporter_every_batch_still_has_a_valid_trace_id_of_its_own() -> None:
    tracing = Tracing()
    seen = set()
    for _ in range(1000):
        with tracing.batch_span("s", "g.s", [], 1, []) as span, span.store_span("postgresql", "apply"):
            parsed = parse_traceparent(span.traceparent)
            assert parsed is not None
            assert f"{parsed.trace_id:032x}" == span.trace_id
            seen.add(span.trace_id)
            span.failed("anything")
    assert len(seen) == 1000


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:1", "OTEL_SDK_DISABLED": "true"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:1",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
        },
    ],
)
async def test_nothing_is_exported_unless_asked_for(environment: dict[str, str]) -> None:
    telemetry = open_telemetry(environment, Metrics(version="1", rules="r"), version="1")
    with telemetry.tracing.batch_span("s", "g.s", [], 1, []) as span:
        assert span.traceparent.endswith("-00")
    await telemetry.close(Deadline.after(0))


def test_the_service_is_named_integrity_unless_its_environment_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resource({}, "1.2.3").attributes["service.name"] == "integrity"
    assert resource({}, "1.2.3").attributes["service.version"] == "1.2.3"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-integrity")
    assert resource({"OTEL_SERVICE_NAME": "shop-integrity"}, "1").attributes["service.name"] == "shop-integrity"


@pytest.mark.parametrize(("text", "seconds"), [(None, 60.0), ("500", 0.5), ("0", 60.0), ("soon", 60.0)])
def test_the_interval_of_metrics_is_in_milliseconds(text: str | None, seconds: float) -> None:
    assert interval_s({} if text is None else {"OTEL_METRIC_EXPORT_INTERVAL": text}) == seconds
