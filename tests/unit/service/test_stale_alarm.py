"""The alarm is given once, when most is stale, and again only after things were well."""

from __future__ import annotations

import pytest

from integrity.core.outcome import Outcome
from integrity.service.stale_alarm import WINDOW_EVENTS, StaleAlarm


def errors(caplog: pytest.LogCaptureFixture) -> int:
    return sum(record.levelname == "ERROR" for record in caplog.records)


def test_a_window_of_mostly_stale_events_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    alarm = StaleAlarm()
    for _ in range(2 * WINDOW_EVENTS):
        alarm.take("orders_db", {Outcome.STALE: 1})
    assert errors(caplog) == 1
    assert "events.epoch" in caplog.text


def test_few_stale_events_among_many_are_not(caplog: pytest.LogCaptureFixture) -> None:
    alarm = StaleAlarm()
    alarm.take("orders_db", {Outcome.STALE: WINDOW_EVENTS // 2, Outcome.APPLIED: WINDOW_EVENTS // 2})
    alarm.take("orders_db", {Outcome.DUPLICATE: WINDOW_EVENTS})
    assert errors(caplog) == 0


def test_stores_are_told_apart_and_a_well_window_arms_it_again(caplog: pytest.LogCaptureFixture) -> None:
    alarm = StaleAlarm()
    for store in ("orders_db", "reviews_db"):
        alarm.take(store, {Outcome.STALE: WINDOW_EVENTS})
    assert errors(caplog) == 2
    alarm.take("orders_db", {Outcome.APPLIED: WINDOW_EVENTS})
    alarm.take("orders_db", {Outcome.STALE: WINDOW_EVENTS})
    assert errors(caplog) == 3
