"""The topic of redrives: dead letters on their way back to the lanes, which read it like any other source.

A record there has the key, the value and the headers of the event as they came, and headers that say which dead letter
it is, and where the event stands. Its own time stamp is in a header, so that no retention by time takes it away early.
The topic has one partition: what is sent back in the order of its source arrives in it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from integrity.core.decode.record import Record
from integrity.kafka.headers import REDRIVE, TIMESTAMP, Header, last_text, merged, without_ours
from integrity.kafka.producer import OutgoingRecord, WantedTopic

_CONFIG: Final = {"cleanup.policy": "delete", "retention.ms": "-1"}


class Ask(StrEnum):
    """What is to be done with the effect that a dead letter stands for."""

    RETRY = "retry"
    APPROVE = "approve"
    """Retry, however many rows it has."""
    DISCARD = "discard"
    """Never do it."""


class Returned(NamedTuple):
    """A dead letter that comes back. `record` is the event's own, as it came; `retries` counts this time."""

    ask: Ask
    letter: str
    entity: str
    dependent: str
    store: str
    retries: int
    record: Record


def redrive_topic(group: str) -> str:
    """The topic of redrives of the lanes of a group: `integrity.redrive`."""
    return f"{group}.redrive"


def wanted(topic: str) -> WantedTopic:
    """The topic as it is made when it is missing."""
    return WantedTopic(topic, 1, _CONFIG)


def outgoing(topic: str, returned: Returned) -> OutgoingRecord:
    """The record to publish."""
    record = returned.record
    ours: dict[str, str] = {
        REDRIVE: returned.ask,
        Header.ID: returned.letter,
        Header.ENTITY: returned.entity,
        Header.DEPENDENT: returned.dependent,
        Header.STORE: returned.store,
        Header.TOPIC: record.topic,
        Header.PARTITION: str(record.partition),
        Header.OFFSET: str(record.offset),
        Header.RETRIES: str(returned.retries),
        TIMESTAMP: str(record.timestamp_ms),
    }
    return OutgoingRecord(topic, record.key, record.value, None, merged(record.headers, ours), 0)


def read_returned(record: Record) -> Returned | None:
    """What a record of the topic of redrives says; None when it is none of ours."""
    headers = record.headers
    texts = {name: last_text(headers, name) for name in (REDRIVE, TIMESTAMP, *_NAMED)}
    try:
        original = Record(
            _text(texts[Header.TOPIC]),
            int(_text(texts[Header.PARTITION])),
            int(_text(texts[Header.OFFSET])),
            int(_text(texts[TIMESTAMP])),
            record.key,
            record.value,
            tuple(without_ours(headers)),
        )
        return Returned(
            Ask(_text(texts[REDRIVE])),
            _text(texts[Header.ID]),
            _text(texts[Header.ENTITY]),
            _text(texts[Header.DEPENDENT]),
            _text(texts[Header.STORE]),
            int(_text(texts[Header.RETRIES])),
            original,
        )
    except ValueError:
        return None


_NAMED: Final = (
    Header.ID,
    Header.ENTITY,
    Header.DEPENDENT,
    Header.STORE,
    Header.TOPIC,
    Header.PARTITION,
    Header.OFFSET,
    Header.RETRIES,
)


def _text(found: str | None) -> str:
    if not found:
        raise ValueError
    return found
