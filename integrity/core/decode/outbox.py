"""The format `outbox`: rows of an outbox table, as Debezium's EventRouter and MongoEventRouter write them.

The record key is the event key (by default the column `aggregateid`), the value the payload: an object, or, unless the
router expands it, text that holds one. The type is not there unless the router is told to place it
(`table.fields.additional.placement`): in a header, or in the value, with the payload in a field beside it. A record
whose type can't be found is a dead letter; a null record too, since an empty payload may be one of every type.
"""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.decode.domain import DomainEvents, never_raising, payload_of, type_of
from integrity.core.decode.record import TOMBSTONE, Decoded, Decoder, Limits, Record, Refused
from integrity.core.rules.model import Parent, Tombstones
from integrity.errors import Reason


def outbox_decoder(parent: Parent, limits: Limits, copied: Collection[str] | None = None) -> Decoder:
    """The decoder of one parent's topics; `copied` are the fields of the payload that are wanted, None: none is."""
    assert parent.events is not None
    assert parent.events.types is not None
    types = parent.events.types
    ignores_tombstones = parent.events.tombstones is Tombstones.IGNORE
    events = DomainEvents(parent, limits, copied)

    def says(record: Record) -> Decoded:
        type_ = type_of(record, types, limits)
        if type_ is not None:
            return events.says(record, type_, lambda: payload_of(record, types, limits))
        if record.value is None and ignores_tombstones:
            return TOMBSTONE
        raise _without_type(types.header)

    return never_raising(says, limits)


def _without_type(header: str | None) -> Refused:
    option = "table.fields.additional.placement=type:header"
    if header is None:
        message = f"A null record has no type: let the EventRouter place it in a header ({option}:eventType)."
        return Refused(Reason.BAD_ENVELOPE, message, "value")
    return Refused(
        Reason.BAD_ENVELOPE,
        f"The record has no header {header[:60]}, which holds the type: set {option}:{header[:60]} at the EventRouter "
        "(collection.fields... for MongoDB), or name another place by type_from.",
        "header",
    )
