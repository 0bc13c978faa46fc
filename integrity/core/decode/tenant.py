"""The tenant of an event: from the name of its topic, a header, a field of its value, or a field of its key.

What destroys is a dead letter where the tenant is not beyond doubt. What says that a parent lives is passed over there:
it changes nothing, but for copies, which would miss it, and for which it is a dead letter too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from integrity.core.change import Op, ParentChange
from integrity.core.decode.domain import type_in_header
from integrity.core.decode.json import JsonFault
from integrity.core.decode.record import Decoded, Decoder, Half, Ignored, Limits, Record, Refused
from integrity.core.decode.tenant_field import TenantField, unknown_tenant
from integrity.core.keys import GATES, Bounds, Key, KeyRefused, KeySpec, KeyType, Scalar
from integrity.core.rules.model import TENANT, Events, Parent, TenantIn
from integrity.core.rules.patterns import compiled

_TOPICS_MAX = 10_000
"""Names that are remembered; a cluster has fewer."""
_NOBODYS = Ignored("tenant", "An event that tells no tenant, and changes nothing.")

_STAGES = {None: "key", TenantIn.HEADER: "header", TenantIn.FIELD: "value", TenantIn.KEY: "key"}

_Told = Callable[[Record, ParentChange], object]
"""Where the tenant stands: its value there, whatever it is. Raises Refused and JsonFault."""


def tenant_decoder(parent: Parent, limits: Limits, decoder_of: Callable[[Parent], Decoder]) -> Decoder:
    """The decoder of a parent whose events give the tenant; `decoder_of` makes one for what the record key tells."""
    events = parent.events
    assert events is not None and events.gives_tenant
    in_key = events.tenant is not None and events.tenant.place is TenantIn.KEY
    at = None if events.tenant_field is None else events.key.names.index(events.tenant_field)
    kind = KeyType.STRING if at is None else events.key.types[at]
    gate, bounds = GATES[kind], Bounds(limits.key_text_max, limits.digits_max)
    if at is None or in_key:
        decode_rest = decoder_of(parent)
    else:
        rest = KeySpec(events.key.fields[:at] + events.key.fields[at + 1 :])
        decode_rest = decoder_of(replace(parent, events=replace(events, key=rest)))
    told = _of_key(at) if in_key and at is not None else _told_beside(events, limits)
    # Debezium writes null records after deletions only: the next one repeats what could not be read.
    repeated = events.format == "debezium"
    stage = _STAGES[None if events.tenant is None else events.tenant.place]

    def tenant_of(record: Record, said: ParentChange) -> Scalar:
        try:
            value = told(record, said)
            if at is None and type(value) is int:
                value = str(value)
            # A field of the key has passed the gate of its type.
            tenant: Scalar = said.key[at] if in_key and at is not None else gate(value, None, bounds)
        except KeyRefused as refused:
            raise unknown_tenant(f"What tells the tenant is refused: {refused.message}.", stage) from None
        except JsonFault as fault:
            raise unknown_tenant(f"The tenant can't be read: {fault.message}.", stage) from None
        except Refused as refused:
            raise unknown_tenant(refused.undecodable.message, stage) from None
        if tenant == "":
            raise unknown_tenant("What tells the tenant is empty.", stage)
        return tenant

    def with_tenant(tenant: Scalar, key: Key) -> Key:
        return (*key[:at], tenant, *key[at:])

    def decode(record: Record) -> Decoded:
        found = decode_rest(record)
        said = found.change if isinstance(found, Half) else found
        if not isinstance(said, ParentChange):
            return found
        try:
            tenant = tenant_of(record, said)
        except Refused as refused:
            # Half of a key change is never passed over: the deletion before it would be one.
            if said.op in (Op.ALIVE, Op.ARRIVED) and said.row is None and said is found:
                return _NOBODYS
            return refused.undecodable._replace(repeated=repeated and record.value is not None)
        if at is None or in_key:
            said = said._replace(tenant=str(tenant))
        else:
            to = None if said.to is None else with_tenant(tenant, said.to)
            said = said._replace(key=with_tenant(tenant, said.key), to=to, tenant=str(tenant))
        return found._replace(change=said) if isinstance(found, Half) else said

    return decode


def _told_beside(events: Events, limits: Limits) -> _Told:
    """What tells the tenant, where the key does not."""
    if events.tenant is None:
        assert events.pattern is not None
        return _of_topic(events.pattern)
    name = events.tenant.name
    if events.tenant.place is TenantIn.HEADER:
        return _of_header(name, limits)
    field = TenantField(name, events, limits)
    return lambda record, said: field.of(record, said.op)


def _of_header(name: str, limits: Limits) -> _Told:
    def told(record: Record, said: ParentChange) -> object:
        tenant = type_in_header(record.headers, name, limits)
        if tenant is None:
            raise unknown_tenant(f"There is no header {name[:60]}, which tells the tenant.", "header")
        return tenant

    return told


def _of_topic(pattern: str) -> _Told:
    fulfils = compiled(pattern).fullmatch
    tenants: dict[str, str | None] = {}

    def told(record: Record, said: ParentChange) -> object:
        topic = record.topic
        if topic not in tenants:
            if len(tenants) >= _TOPICS_MAX:
                tenants.clear()
            found = fulfils(topic)
            tenants[topic] = None if found is None else found[TENANT]
        return tenants[topic]

    return told


def _of_key(at: int) -> _Told:
    def told(record: Record, said: ParentChange) -> object:
        if said.to is not None and said.to[at] != said.key[at]:
            raise unknown_tenant("The key change leads to the key of another tenant.", "key")
        return said.key[at]

    return told
