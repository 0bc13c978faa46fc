"""Export by OTLP over HTTP, in threads of its own: a collector that is slow, hung or gone costs the work nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as OtelMetric
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from integrity.telemetry.metrics import Metrics
from integrity.telemetry.spans import SpanMaker

_SCOPE: Final = "integrity"
_INTERVAL_MS_DEFAULT: Final = "60000"
_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


def resource(environment: Mapping[str, str], version: str) -> Resource:
    """Who we are: `integrity`, unless OpenTelemetry's variables name the service otherwise."""
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({SERVICE_VERSION: version} | ({} if named else {SERVICE_NAME: "integrity"}))


def interval_s(environment: Mapping[str, str]) -> float:
    """How often metrics are pushed, in seconds: `OTEL_METRIC_EXPORT_INTERVAL`, which is in milliseconds."""
    text = environment.get("OTEL_METRIC_EXPORT_INTERVAL", _INTERVAL_MS_DEFAULT)
    return int(text if text.isdecimal() and int(text) else _INTERVAL_MS_DEFAULT) / 1000


def exporting_spans(resource: Resource, version: str) -> tuple[SpanMaker, Callable[[], None]]:
    """What makes spans that are exported, and what exports the last ones (it may wait for half a minute)."""
    # No shutdown at exit: it would hold up the end of the process for as long as the collector hangs.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return SpanMaker(provider.get_tracer(_SCOPE, version)), provider.shutdown


class MetricsPusher:
    """Pushes the same metrics as `/metrics` shows, under the same names, from a thread of its own."""

    def __init__(self, metrics: Metrics, resource: Resource, interval_s: float) -> None:
        self._metrics = metrics
        self._resource = resource
        self._interval_s = interval_s
        self._start_ns = time.time_ns()
        self._exporter = OTLPMetricExporter()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Push once more and end. Waits for as long as the collector takes."""
        self._closing.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._closing.wait(self._interval_s)
            # The exporter logs what goes wrong, and raises nothing.
            self._exporter.export(metrics_data(self._metrics, self._resource, self._start_ns, time.time_ns()))


def metrics_data(metrics: Metrics, resource: Resource, start_ns: int, now_ns: int) -> MetricsData:
    """The metrics as OpenTelemetry's values, cumulative since `start_ns`."""
    scope = ScopeMetrics(
        scope=InstrumentationScope(_SCOPE),
        metrics=[metric for family in metrics.collect() for metric in _converted(family, start_ns, now_ns)],
        schema_url="",
    )
    return MetricsData([ResourceMetrics(resource=resource, scope_metrics=[scope], schema_url=resource.schema_url)])


def _converted(family: Metric, start_ns: int, now_ns: int) -> Iterator[OtelMetric]:
    if not family.samples:
        return
    data: Sum | Gauge | Histogram
    match family.type:
        case "counter":
            data = Sum([_number(s, start_ns, now_ns) for s in family.samples], _CUMULATIVE, is_monotonic=True)
            name = family.samples[0].name
        case "histogram":
            data = Histogram(list(_histograms(family.samples, start_ns, now_ns)), _CUMULATIVE)
            name = family.name
        case "gauge":
            data = Gauge([_number(s, start_ns, now_ns) for s in family.samples])
            name = family.name
        case kind:
            raise AssertionError(f"no metric of this program is a {kind}")
    unit = "s" if family.name.endswith("_seconds") else ""
    yield OtelMetric(name=name, description=family.documentation, unit=unit, data=data)


def _number(sample: Sample, start_ns: int, now_ns: int) -> NumberDataPoint:
    return NumberDataPoint(sample.labels, start_ns, now_ns, sample.value)


def _histograms(samples: list[Sample], start_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    series: dict[str, list[Sample]] = {}
    for sample in samples:
        series.setdefault(sample.labels["store"], []).append(sample)
    for store, parts in series.items():
        buckets = [(float(s.labels["le"]), int(s.value)) for s in parts if s.name.endswith("_bucket")]
        counts = [count for _, count in buckets]
        yield HistogramDataPoint(
            attributes={"store": store},
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=counts[-1],
            sum=next(s.value for s in parts if s.name.endswith("_sum")),
            bucket_counts=[after - before for before, after in zip([0, *counts], counts, strict=False)],
            explicit_bounds=[bound for bound, _ in buckets[:-1]],
            # Not kept: Prometheus has no such values.
            min=float("inf"),
            max=float("-inf"),
        )
