"""The names of all Kafka headers that this program writes, and how headers are put together and read."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from integrity.core.decode.record import Headers


class Header(StrEnum):
    """Headers of a dead letter; their values are UTF-8 text (contract 6)."""

    ID = "integrity.id"
    REASON = "integrity.reason"
    MESSAGE = "integrity.message"
    ENTITY = "integrity.entity"
    DEPENDENT = "integrity.dependent"
    STORE = "integrity.store"
    TOPIC = "integrity.topic"
    PARTITION = "integrity.partition"
    OFFSET = "integrity.offset"
    ATTEMPTS = "integrity.attempts"
    RETRIES = "integrity.retries"
    FAILED_AT = "integrity.failed_at"
    RULES = "integrity.rules"
    PARKED = "integrity.parked"
    """The tenant whose database could not be used: the letter comes back by itself."""
    TRACEPARENT = "traceparent"
    # What tools for Kafka Connect's dead letters read (KIP-298).
    CONNECT_TOPIC = "__connect.errors.topic"
    CONNECT_PARTITION = "__connect.errors.partition"
    CONNECT_OFFSET = "__connect.errors.offset"
    CONNECT_STAGE = "__connect.errors.stage"
    CONNECT_CLASS = "__connect.errors.exception.class.name"
    CONNECT_MESSAGE = "__connect.errors.exception.message"
    CONNECT_CONNECTOR = "__connect.errors.connector.name"


TRUNCATED: Final = "integrity.truncated"
"""`true` on a dead letter whose value describes the record instead of being it."""

REDRIVE: Final = "integrity.redrive"
"""On a record of the topic of redrives: what is asked for (`retry`, `approve` or `discard`)."""

TIMESTAMP: Final = "integrity.timestamp"
"""The record's own time stamp, in milliseconds since the epoch, where the topic of dead letters refuses it."""


def merged(original: Headers, ours: Mapping[str, str]) -> list[tuple[str, bytes | None]]:
    """The headers as they came, without those of our names, then ours."""
    kept = [header for header in original if header[0] not in ours]
    # aiokafka takes no subclass of str. A message may quote a lone surrogate, which UTF-8 does not have.
    return kept + [(str(name), text.encode("utf-8", "backslashreplace")) for name, text in ours.items()]


def without_ours(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers as they came to us, as far as a dead letter keeps them: without those that it added."""
    return [header for header in headers if header[0] not in _OURS]


_OURS: Final = frozenset({*(str(name) for name in Header if name != Header.TRACEPARENT), TRUNCATED, TIMESTAMP, REDRIVE})


def last_text(headers: Headers, name: str) -> str | None:
    """The value of the last header of that name as text; None when there is none, or no text."""
    for found, value in reversed(headers):
        if found == name:
            try:
                return None if value is None else value.decode()
            except UnicodeDecodeError:
                return None
    return None
