"""Spans and metrics really leave by OTLP, and a collector that hangs holds nothing up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from integrity.core.batch import TopicPartition
from integrity.ports import Deadline
from integrity.telemetry import Metrics, open_telemetry

HANGS_S = 30.0
"""Only against hanging: how long a thing takes is no matter of these tests."""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP collector of a few lines; `hang` makes it take requests and never answer."""

    def __init__(self) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.hang = threading.Event()
        self.released = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.hang.is_set():
                    collector.released.wait(30)
                    return
                collector.received.append((self.path, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def bodies(self, path: str) -> list[bytes]:
        return [body for at, body in self.received if at == path]

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    opened = Collector()
    # The SDK reads the environment itself.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", opened.url)
    yield opened
    opened.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_spans_arrive_with_their_links_and_children(collector: Collector) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_METRICS_EXPORTER": "none"}
    telemetry = open_telemetry(environment, Metrics(version="1.2.3", rules="r"), version="1.2.3")
    partitions = [TopicPartition("customers", 0)]
    with (
        telemetry.tracing.batch_span("orders_db", "integrity.orders_db", partitions, 1, [PARENT]) as batch,
        batch.store_span("postgresql", "apply", "orders"),
    ):
        trace_id = batch.trace_id
    await telemetry.close(Deadline.after(10))
    await until(lambda: collector.bodies("/v1/traces"))
    request = ExportTraceServiceRequest.FromString(collector.bodies("/v1/traces")[0])
    resource = {a.key: a.value.string_value for a in request.resource_spans[0].resource.attributes}
    assert (resource["service.name"], resource["service.version"]) == ("integrity", "1.2.3")
    spans = {span.name: span for span in request.resource_spans[0].scope_spans[0].spans}
    assert set(spans) == {"process customers", "apply orders"}
    process = spans["process customers"]
    assert process.trace_id.hex() == trace_id
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in process.links] == [tuple(PARENT.split("-")[1:3])]
    assert spans["apply orders"].parent_span_id == process.span_id


async def test_metrics_arrive_while_running_and_once_more_at_the_end(collector: Collector) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
    }
    metrics = Metrics(version="1.2.3", rules="r")
    telemetry = open_telemetry(environment, metrics, version="1.2.3")
    await until(lambda: len(collector.bodies("/v1/metrics")) >= 2)
    metrics.observe_enforcement("orders_db", [0.03, 0.04])
    metrics.count_events("customer", "debezium", "d", 5)
    await telemetry.close(Deadline.after(10))
    request = ExportMetricsServiceRequest.FromString(collector.bodies("/v1/metrics")[-1])
    found = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert found["integrity_events_total"].sum.data_points[0].as_double == 5
    assert found["integrity_events_total"].sum.is_monotonic
    point = found["integrity_enforcement_seconds"].histogram.data_points[0]
    assert (point.count, sum(point.bucket_counts)) == (2, 2)
    assert found["integrity_build_info"].gauge.data_points[0].as_double == 1


async def test_a_hung_collector_holds_up_neither_the_work_nor_the_end(collector: Collector) -> None:
    collector.hang.set()
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_METRIC_EXPORT_INTERVAL": "50"}
    telemetry = open_telemetry(environment, Metrics(version="1", rules="r"), version="1")
    for _ in range(5000):
        with telemetry.tracing.batch_span("s", "g.s", [TopicPartition("t", 0)], 1, [PARENT]):
            pass
        await asyncio.sleep(0)
    async with asyncio.timeout(HANGS_S):
        await telemetry.close(Deadline.after(0.5))


async def test_a_collector_that_is_gone_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from integrity.demo.servers.process import free_port

    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    telemetry = open_telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": url}, Metrics(version="1", rules="r"), version="1")
    with telemetry.tracing.batch_span("s", "g.s", [TopicPartition("t", 0)], 1, [PARENT]):
        pass
    async with asyncio.timeout(HANGS_S):
        await telemetry.close(Deadline.after(0.5))
