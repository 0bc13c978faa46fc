"""Kafka as the way in and out: what reads events, and what publishes dead letters and the audit."""
