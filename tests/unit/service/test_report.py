"""What a lane tells the outside of a batch."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from integrity.core.batch import Batch
from integrity.core.change import Op, Origin, ParentChange
from integrity.core.outcome import Effect, Outcome
from integrity.core.rules.parse import parse_rules
from integrity.service.report import Report
from integrity.service.work import Piece
from integrity.settings import Settings
from integrity.telemetry import Metrics, Tracing


def test_violations_are_counted_and_warned_of_once_a_dependent_without_keys(caplog: pytest.LogCaptureFixture) -> None:
    rules = parse_rules({"customer.yaml": Path("rules/customer.yaml").read_text()})
    metrics = Metrics(version="1.2.3", rules=rules.hash)
    report = Report(metrics, Tracing(), None, rules, Settings())
    effects = [
        Effect(0, "customer.orders", "restrict", Outcome.RESTRICTED, 2),
        Effect(1, "customer.orders", "restrict", Outcome.RESTRICTED, 3),
        Effect(2, "customer.orders", "restrict", Outcome.APPLIED, 0),
        Effect(2, "customer.reviews", "cascade", Outcome.APPLIED, 4),
    ]
    with caplog.at_level(logging.WARNING):
        report.applied("orders_db", Batch((), {}, at_ms=0), effects, 0.1)
    lines = metrics.render()[0].decode().splitlines()
    counted = 'integrity_effects_total{action="restrict",dependent="customer.orders",outcome="restricted"} 2.0'
    assert counted in lines
    assert 'integrity_rows_total{action="restrict",dependent="customer.orders"} 0.0' in lines
    [line] = caplog.records
    assert (line.levelname, line.args) == ("WARNING", ())
    fields = {name: getattr(line, name) for name in ("store", "dependent", "events", "rows")}
    assert fields == {"store": "orders_db", "dependent": "customer.orders", "events": 2, "rows": 5}


def test_time_of_an_event_that_lies_ahead_is_no_time_below_zero_in_the_metric() -> None:
    rules = parse_rules({"customer.yaml": Path("rules/customer.yaml").read_text()})
    metrics = Metrics(version="1.2.3", rules=rules.hash)
    report = Report(metrics, Tracing(), None, rules, Settings())
    changes = tuple(
        ParentChange("customer", Op.DELETED, (1,), None, None, Origin("t", 0, 0, at_ms), at_ms)
        for at_ms in (253_402_300_799_999, 9_000_000_000_000)
    )
    report.applied("orders_db", Batch(changes, {}, at_ms=0), [], 0.1)
    lines = metrics.render()[0].decode().splitlines()
    assert 'integrity_enforcement_seconds_count{store="orders_db"} 2.0' in lines
    assert 'integrity_enforcement_seconds_sum{store="orders_db"} 0.0' in lines


@pytest.mark.parametrize("deletes", [True, False])
def test_truncate_is_counted_and_logged_whatever_it_does(deletes: bool, caplog: pytest.LogCaptureFixture) -> None:
    text = Path("rules/customer.yaml").read_text()
    says = "  truncate: delete_all\n" if deletes else ""
    rules = parse_rules({"customer.yaml": text.replace("  format:", f"{says}  format:", 1)})
    metrics = Metrics(version="1.2.3", rules=rules.hash)
    report = Report(metrics, Tracing(), None, rules, Settings())
    with caplog.at_level(logging.WARNING):
        report.read("orders_db", Piece(counts=Counter({("customer", "t"): 2, ("customer", "alive"): 3})))
    counted = 'integrity_events_total{entity="customer",format="debezium",op="t"} 2.0'
    assert counted in metrics.render()[0].decode().splitlines()
    [line] = caplog.records
    assert line.message.startswith("truncate_seen")
    assert (line.truncates, line.deletes) == (2, deletes)  # type: ignore[attr-defined]
