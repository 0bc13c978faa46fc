"""Metrics and traces: what they are named, and how they leave the process. They never block or change the work."""

from integrity.telemetry.metrics import Metrics
from integrity.telemetry.tracing import BatchSpan, Telemetry, Tracing, open_telemetry

__all__ = ["BatchSpan", "Metrics", "Telemetry", "Tracing", "open_telemetry"]
