"""The tenant of an event, as the name of its topic says: a field of the parent's key beside those of the record key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from integrity.core.change import ParentChange
from integrity.core.decode.record import Decoded, Decoder, Limits, Record, Undecodable
from integrity.core.keys import GATES, Bounds, Key, KeyRefused, KeySpec, Scalar
from integrity.core.rules.model import TENANT, Parent
from integrity.core.rules.patterns import compiled
from integrity.errors import Reason

_TOPICS_MAX = 10_000
"""Names that are remembered; a cluster has fewer."""


def tenant_decoder(parent: Parent, limits: Limits, decoder_of: Callable[[Parent], Decoder]) -> Decoder:
    """The decoder of a parent whose topics' pattern gives the tenant; `decoder_of` makes one for the other fields."""
    events = parent.events
    assert events is not None and events.pattern is not None
    at = events.key.names.index(TENANT)
    gate, bounds = GATES[events.key.fields[at][1]], Bounds(limits.key_text_max, limits.digits_max)
    rest = KeySpec(events.key.fields[:at] + events.key.fields[at + 1 :])
    decode_rest = decoder_of(replace(parent, events=replace(events, key=rest)))
    fulfils = compiled(events.pattern).fullmatch
    tenants: dict[str, Scalar | Undecodable] = {}

    def tenant_of(topic: str) -> Scalar | Undecodable:
        found = fulfils(topic)
        try:
            return gate(None if found is None else found[TENANT], None, bounds)
        except KeyRefused as refused:
            message = f"The name of the topic does not give the tenant: {refused.message}."
            return Undecodable(Reason.UNKNOWN_TENANT, message, "key")

    def with_tenant(tenant: Scalar, key: Key) -> Key:
        return (*key[:at], tenant, *key[at:])

    def decode(record: Record) -> Decoded:
        said = decode_rest(record)
        if not isinstance(said, ParentChange):
            return said
        tenant = tenants.get(record.topic)
        if tenant is None:
            if len(tenants) >= _TOPICS_MAX:
                tenants.clear()
            tenant = tenants[record.topic] = tenant_of(record.topic)
        if isinstance(tenant, Undecodable):
            return tenant
        to = None if said.to is None else with_tenant(tenant, said.to)
        return said._replace(key=with_tenant(tenant, said.key), to=to, tenant=str(tenant))

    return decode
