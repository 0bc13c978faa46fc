"""Logging to standard error: for people on a terminal, else one JSON object a line.

A line is a constant sentence and fields. Control characters are escaped and long values cut. Of an exception only
its type and place are written, unless the level is DEBUG: a driver's message may quote a row. Other packages' loggers
are held at WARNING, and those that flood while a server is down at one line a few seconds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Final, TextIO

from integrity.errors import IntegrityError
from integrity.settings import LogFormat, LogLevel, LogSettings

VALUE_CHARACTERS_MAX: Final = 500
REPEAT_INTERVAL_S: Final = 5.0
"""A broker that is down makes a client log 70 lines a second."""

_TEMPLATES_MAX: Final = 256
_TRACEBACK_CHARACTERS_MAX: Final = 20_000
_LIMITED: Final = ("aiokafka", "asyncpg", "pymongo", "opentelemetry")
_OWN: Final = "integrity"

# The last is uvicorn's message once more, with colours.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
# Beyond what JSON itself escapes: DEL, C1 controls, line separators, marks that change the direction of text.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[31m",
}
_RESET: Final = "\x1b[0m"

Value = None | bool | int | float | str


class JsonFormatter(logging.Formatter):
    """One JSON object: at, level, logger, message, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Value] = {
            "at": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        for name, value in _fields(record):
            line[name if name not in line else f"{name}_"] = value
        return _escaped(json.dumps(line, ensure_ascii=False, allow_nan=False))


class ConsoleFormatter(logging.Formatter):
    """Local time of day, level, message, then name=value."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        at = _time(record).astimezone().strftime("%H:%M:%S")
        level = f"{record.levelname:<7}"
        if self._colour and record.levelno in _COLOURS:
            level = f"{_COLOURS[record.levelno]}{level}{_RESET}"
        name = "" if _is_own(record) else f"{record.name}: "
        fields = [(field, value) for field, value in _fields(record) if field != "traceback"]
        written = "".join(f" {field}={_bare(value)}" for field, value in fields)
        line = f"{at} {level} {_escaped(name + _message(record))}{_escaped(written)}"
        trace = _traceback(record)
        return f"{line}\n{_escaped(trace, keep_lines=True)}" if trace else line


class RepeatFilter(logging.Filter):
    """Lets one line of a kind through in each interval; the next says in `suppressed` how many were held back.

    A kind is a logger and its message template. Applies to `prefixes` and the loggers below them only. `clock` gives
    monotonic seconds.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...] = _LIMITED,
        interval_s: float = REPEAT_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in self._prefixes:
            return True
        # Templates that were formatted by their caller differ in numbers only.
        kind = (record.name, re.sub(r"\d+", "0", str(record.msg))[:VALUE_CHARACTERS_MAX])
        now = self._clock()
        with self._lock:
            shown_at, held = self._seen.pop(kind, (None, 0))
            if shown_at is not None and now - shown_at < self._interval_s:
                self._seen[kind] = (shown_at, held + 1)
                return False
            self._seen[kind] = (now, 0)
            while len(self._seen) > _TEMPLATES_MAX:
                del self._seen[next(iter(self._seen))]
        if held:
            record.suppressed = held
        return True


def setup_logging(
    settings: LogSettings, *, verbose: bool = False, quiet: bool = False, stream: TextIO | None = None
) -> None:
    """Log to `stream` (standard error), replacing what was set up before.

    `verbose` is the level DEBUG, `quiet` is ERROR; without them the level of the settings.
    """
    stream = stream or sys.stderr
    level = LogLevel.DEBUG if verbose else LogLevel.ERROR if quiet else settings.level
    is_terminal = stream.isatty()
    use_json = settings.format is LogFormat.JSON or (settings.format is LogFormat.AUTO and not is_terminal)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter() if use_json else ConsoleFormatter(colour=is_terminal and not os.environ.get("NO_COLOR"))
    )
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old.formatter, JsonFormatter | ConsoleFormatter):
            root.removeHandler(old)
    root.addHandler(handler)
    # Drivers at DEBUG write whole commands, with the values in them: never below INFO.
    others = {LogLevel.DEBUG: "INFO", LogLevel.ERROR: "ERROR"}.get(level, "WARNING")
    root.setLevel(others)
    logging.getLogger(_OWN).setLevel(level.value)
    logging.captureWarnings(True)


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == _OWN


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if not _is_own(record):
        # asyncio and drivers add reprs of what failed below the first line.
        message = message.partition("\n")[0]
    return _cut(message)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Value]]:
    for name, value in vars(record).items():
        if name not in _STANDARD and not name.startswith("_"):
            yield name, _value(value)
    exc = record.exc_info[1] if record.exc_info else None
    if exc is None:
        return
    if "error" not in vars(record):
        yield "error", _cut(f"{type(exc).__name__}: {exc}" if isinstance(exc, IntegrityError) else _type_name(exc))
    frames = traceback.extract_tb(exc.__traceback__)
    if frames:
        yield "raised_at", f"{frames[-1].filename}:{frames[-1].lineno}"
    if trace := _traceback(record):
        yield "traceback", trace


def _traceback(record: logging.LogRecord) -> str:
    """The traceback, which quotes messages of drivers: of our own records, and only where DEBUG was asked for."""
    if not record.exc_info or not _is_own(record) or not logging.getLogger(_OWN).isEnabledFor(logging.DEBUG):
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()[-_TRACEBACK_CHARACTERS_MAX:]


def _type_name(exc: BaseException) -> str:
    kind = type(exc)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _value(value: object) -> Value:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[: VALUE_CHARACTERS_MAX - 1] + "…"


def _bare(value: Value) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) and re.search(r'[\s"=]|^$', text) else text


def _escaped(text: str, *, keep_lines: bool = False) -> str:
    return _UNSAFE.sub(lambda m: m[0] if keep_lines and m[0] == "\n" else f"\\u{ord(m[0]):04x}", text)
