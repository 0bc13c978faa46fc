"""Logging: what a line looks like, what never gets into it, and how floods are held back."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from integrity.core.outcome import Outcome
from integrity.errors import UnreachableError
from integrity.logs import VALUE_CHARACTERS_MAX, ConsoleFormatter, JsonFormatter, RepeatFilter, setup_logging
from integrity.settings import LogFormat, LogLevel, LogSettings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Leave the process's loggers as they were."""
    root, own = logging.getLogger(), logging.getLogger("integrity")
    before = (list(root.handlers), root.level, own.level)
    yield
    root.handlers[:], root.level, own.level = before
    own.setLevel(own.level)  # clears what loggers remember of levels
    logging.captureWarnings(False)


def logged(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def json_log(level: LogLevel = LogLevel.INFO) -> io.StringIO:
    stream = io.StringIO()
    setup_logging(LogSettings(format=LogFormat.JSON, level=level), stream=stream)
    return stream


OWN = logging.getLogger("integrity.test_logs")


# --- lines -----------------------------------------------------------------------------------------------------


def test_json_line_has_time_level_logger_message_then_fields() -> None:
    stream = json_log()
    OWN.warning("a store does not answer", extra={"store": "orders_db", "rows": 3, "up": False, "at": "x", "to": None})
    line = logged(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("at")))
    assert list(line.items()) == [
        ("level", "WARNING"),
        ("logger", "integrity.test_logs"),
        ("message", "a store does not answer"),
        ("store", "orders_db"),
        ("rows", 3),
        ("up", False),
        ("at_", "x"),
        ("to", None),
    ]


def test_json_values_that_json_lacks_become_text() -> None:
    stream = json_log()
    extra = {"a": float("nan"), "b": float("inf"), "c": Outcome.APPLIED, "d": (1, 2), "e": 1.5}
    OWN.info("x", extra=extra)
    line = logged(stream)
    assert {name: line[name] for name in extra} == {"a": "nan", "b": "inf", "c": "applied", "d": "(1, 2)", "e": 1.5}


@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.CONSOLE])
def test_control_characters_stay_in_their_line(format: LogFormat) -> None:
    stream = io.StringIO()
    setup_logging(LogSettings(format=format), stream=stream)
    OWN.info("forged", extra={"topic": "a\nb\r\x1b[2J\x7f\x85\u2028\u202e\ud800"})
    text = stream.getvalue()
    assert text.endswith("\n")
    assert all(character.isprintable() for character in text[:-1])


def test_json_gives_back_the_characters_it_escapes() -> None:
    stream = json_log()
    OWN.info("x", extra={"topic": "a\n\x1b\x7f\u2028é"})
    assert logged(stream)["topic"] == "a\n\x1b\x7f\u2028é"


def test_long_values_are_cut() -> None:
    stream = json_log()
    OWN.info("m" * 600, extra={"topic": "t" * 600})
    line = logged(stream)
    assert line["message"] == "m" * (VALUE_CHARACTERS_MAX - 1) + "…"
    assert line["topic"] == "t" * (VALUE_CHARACTERS_MAX - 1) + "…"


def test_console_line_reads_as_a_sentence_and_fields() -> None:
    stream = io.StringIO()
    setup_logging(LogSettings(format=LogFormat.CONSOLE), stream=stream)
    OWN.warning("a store does not answer", extra={"store": "orders_db", "message_": "two words", "n": 2, "e": ""})
    line = stream.getvalue().rstrip("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d", line[:8])
    assert line[9:] == 'WARNING a store does not answer store=orders_db message_="two words" n=2 e=""'


# --- exceptions ------------------------------------------------------------------------------------------------


def fail(error: Exception, level: LogLevel = LogLevel.INFO, logger: logging.Logger = OWN) -> dict[str, object]:
    stream = json_log(level)
    try:
        raise error
    except Exception:
        logger.exception("a batch failed")
    return logged(stream)


def test_message_of_a_foreign_exception_is_not_logged() -> None:
    line = fail(ValueError("Key (email)=(jane@example.org) already exists"))
    assert line["error"] == "ValueError"
    assert re.search(r"test_logs\.py:\d+$", str(line["raised_at"]))
    assert "jane" not in json.dumps(line)


def test_message_of_our_own_exception_is_logged() -> None:
    line = fail(UnreachableError("Kafka does not answer.", hint="Start it."))
    assert line["error"] == "UnreachableError: Kafka does not answer. Start it."


def test_traceback_is_logged_at_debug_only() -> None:
    assert "traceback" not in fail(KeyError("a"))
    assert "Traceback (most recent call last)" in str(fail(KeyError("a"), LogLevel.DEBUG)["traceback"])


def test_traceback_of_another_package_is_never_logged() -> None:
    line = fail(KeyError("jane"), LogLevel.DEBUG, logging.getLogger("asyncpg.pool"))
    assert "traceback" not in line
    assert "jane" not in json.dumps(line)


def test_only_the_first_line_of_another_package_is_logged() -> None:
    stream = json_log()
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task exception=E('jane')>")
    assert logged(stream)["message"] == "Task exception was never retrieved"


# --- levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "own", "others"),
    [
        ({}, logging.INFO, logging.WARNING),
        ({"verbose": True}, logging.DEBUG, logging.INFO),
        ({"quiet": True}, logging.ERROR, logging.ERROR),
    ],
)
def test_other_packages_are_held_above_our_own_level(arguments: dict[str, bool], own: int, others: int) -> None:
    setup_logging(LogSettings(), stream=io.StringIO(), **arguments)
    assert OWN.getEffectiveLevel() == own
    # At DEBUG a driver writes whole commands, with the values in them.
    assert logging.getLogger("pymongo.command").getEffectiveLevel() == others


def test_setting_up_again_does_not_log_twice() -> None:
    first, second = json_log(), json_log()
    OWN.info("once")
    assert (first.getvalue(), len(second.getvalue().splitlines())) == ("", 1)


# --- the format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "kind"), [(Terminal(), ConsoleFormatter), (io.StringIO(), JsonFormatter)])
def test_format_follows_the_terminal(stream: io.StringIO, kind: type[logging.Formatter]) -> None:
    setup_logging(LogSettings(), stream=stream)
    assert any(isinstance(handler.formatter, kind) for handler in logging.getLogger().handlers)


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    stream = Terminal()
    setup_logging(LogSettings(), stream=stream)
    OWN.error("x")
    assert ("\x1b[" in stream.getvalue()) is coloured


def test_no_colour_without_a_terminal() -> None:
    stream = io.StringIO()
    setup_logging(LogSettings(format=LogFormat.CONSOLE), stream=stream)
    OWN.error("x")
    assert "\x1b" not in stream.getvalue()


# --- floods ----------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def record(name: str, message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "f.py", 1, message, arguments, None)


def test_flood_of_one_kind_is_one_line_an_interval_with_the_count() -> None:
    clock = Clock()
    flood = RepeatFilter(interval_s=5.0, clock=clock)
    shown: list[tuple[float, int]] = []
    for tick in range(200):
        clock.now_s = tick / 10
        one = record("aiokafka.conn", "Unable connect to node with id %s", tick)
        if flood.filter(one):
            shown.append((clock.now_s, getattr(one, "suppressed", 0)))
    assert shown == [(0.0, 0), (5.0, 49), (10.0, 49), (15.0, 49)]


def test_numbers_in_a_message_do_not_make_it_another_kind() -> None:
    flood = RepeatFilter(clock=Clock())
    assert flood.filter(record("aiokafka", "Topic a is not available, attempt 1"))
    assert not flood.filter(record("aiokafka", "Topic a is not available, attempt 22"))


def test_other_kinds_and_other_loggers_are_not_held_back() -> None:
    flood = RepeatFilter(clock=Clock())
    assert flood.filter(record("aiokafka", "a"))
    assert flood.filter(record("aiokafka", "b"))
    assert flood.filter(record("aiokafka.conn", "a"))
    for _ in range(3):
        assert flood.filter(record("integrity.service.lane", "a"))
        assert flood.filter(record("aiokafkaesque", "a"))


def test_kinds_that_are_remembered_are_bounded() -> None:
    flood = RepeatFilter(clock=Clock())
    for number in range(1000):
        flood.filter(record("aiokafka", "x" * number))
    assert flood.filter(record("aiokafka", "x"))  # forgotten long ago
    assert not flood.filter(record("aiokafka", "x" * 400 + "x" * 99))


def test_flood_is_held_back_in_the_log_itself() -> None:
    stream = json_log()
    for _ in range(10):
        logging.getLogger("aiokafka.consumer.group_coordinator").error("Group Coordinator Request failed")
    assert len(stream.getvalue().splitlines()) == 1
