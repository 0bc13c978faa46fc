"""DECODE: bytes and headers of a record become a change of one parent key, or a reason why not.

Nothing past this border raises, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Collection

from integrity.core.decode.cloudevents import cloudevents_decoder
from integrity.core.decode.debezium import debezium_decoder, debezium_wire_decoder
from integrity.core.decode.debezium_rows import debezium_rows_decoder
from integrity.core.decode.derived import derived_decoder
from integrity.core.decode.flat import flat_decoder
from integrity.core.decode.json_events import json_events_decoder
from integrity.core.decode.json_table import json_table_decoder
from integrity.core.decode.mongodb import mongodb_decoder
from integrity.core.decode.outbox import outbox_decoder
from integrity.core.decode.qlik import qlik_decoder
from integrity.core.decode.record import Decoder, Limits
from integrity.core.decode.tenant import tenant_decoder
from integrity.core.decode.wire import Schemas, wire_decoder
from integrity.core.rules.model import KeyFormat, KeyFrom, Parent
from integrity.errors import UsageError

__all__ = ["decoder_for"]


def decoder_for(
    parent: Parent,
    limits: Limits | None = None,
    *,
    copied: Collection[str] | None = None,
    schemas: Schemas | None = None,
) -> Decoder:
    """The decoder of a parent's topics. It keeps what it has read of key schemas: one decoder a lane.

    `copied` are the fields of the parent's row that a copy wants; None: nobody wants the row, which stays unread.

    `schemas` are those of records in the wire format of a schema registry; None: there is no registry.

    UsageError when the rule's format is none that this program reads.
    """
    limits = limits or Limits()
    if schemas is None or parent.events is None:
        return _decoder_of_json(parent, limits, copied)
    events = parent.events
    is_debezium = events.format == "debezium"
    if is_debezium and events.key_from is not KeyFrom.BEFORE and not events.gives_tenant:
        return debezium_wire_decoder(parent, limits, copied, schemas)
    decoder = _decoder_of_json(parent, limits, copied)
    bare_key = events.key_format is not KeyFormat.JSON
    return wire_decoder(decoder, schemas, repeated=is_debezium, bare_key=bare_key)


def _decoder_of_json(parent: Parent, limits: Limits, copied: Collection[str] | None) -> Decoder:
    if parent.events is None:
        return derived_decoder(parent.entity, parent.key, limits)
    if parent.events.gives_tenant:
        return tenant_decoder(parent, limits, lambda rest: _of_format(rest, limits, copied))
    return _of_format(parent, limits, copied)


def _of_format(parent: Parent, limits: Limits, copied: Collection[str] | None) -> Decoder:
    assert parent.events is not None
    match parent.events.format:
        case "debezium" if parent.events.key_from is KeyFrom.BEFORE:
            assert copied is None, "the loader takes no copies of such a parent"
            return debezium_rows_decoder(parent, limits)
        case "debezium":
            return debezium_decoder(parent, limits, copied)
        case "debezium-flat":
            return flat_decoder(parent, limits, copied)
        case "outbox":
            return outbox_decoder(parent, limits, copied)
        case "cloudevents":
            return cloudevents_decoder(parent, limits, copied)
        case "json" if parent.events.types is None:
            return json_table_decoder(parent, limits, copied)
        case "json":
            return json_events_decoder(parent, limits, copied)
        case "qlik":
            return qlik_decoder(parent, limits, copied)
        case "integrity":
            return derived_decoder(parent.entity, parent.key, limits, parent.events.epoch)
        case "mongodb":
            return mongodb_decoder(parent, limits, copied)
        case other:
            raise UsageError(f"The event format {other} is not supported yet.", hint="Mend events.format.")
