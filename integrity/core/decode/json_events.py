"""The format `json` with `types`: domain events as JSON objects.

The type is in a field of the value (`type`, unless the rule names another one) or in a header; the payload is the
value, or a field of it. A null record without a type is what it is in a compacted topic: a deletion, unless the rule
says that it is nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.decode.domain import DomainEvents, never_raising, payload_of, type_of
from integrity.core.decode.record import Decoded, Decoder, Limits, Record, Refused
from integrity.core.rules.model import Parent
from integrity.errors import Reason


def json_events_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the payload that are wanted, None: none is."""
    assert parent.events is not None
    assert parent.events.types is not None
    types = parent.events.types
    events = DomainEvents(parent, limits, copied)

    def says(record: Record) -> Decoded:
        type_ = type_of(record, types, limits)
        if type_ is not None:
            return events.says(record, type_, lambda: payload_of(record, types, limits))
        if record.value is None:
            return events.gone(record)
        message = (
            f"The record has no header {str(types.header)[:60]}, which holds the type; type_from says where it is."
        )
        raise Refused(Reason.BAD_ENVELOPE, message, "header")

    return never_raising(says, limits)
