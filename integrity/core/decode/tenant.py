"""The tenant of an event: from the name of its topic, a header, a field of its value, or a field of its key.

What destroys is a dead letter where the tenant is not beyond doubt. What says that a parent lives is passed over there:
it changes nothing, but for copies, which would miss it, and for which it is a dead letter too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from integrity.core.change import Op, ParentChange
from integrity.core.decode.domain import type_in_header
from integrity.core.decode.json import JsonFault
from integrity.core.decode.record import Decoded, Decoder, Half, Ignored, Limits, Record, Refused
from integrity.core.decode.tenant_field import TenantField, unknown_tenant
from integrity.core.keys import GATES, Bounds, KeyRefused, KeySpec, KeyType, Scalar
from integrity.core.rules.model import TENANT, Events, Parent, TenantIn
from integrity.core.rules.patterns import compiled

_KNOWN_MAX = 10_000
"""Names of topics, or values of headers, that are remembered with the tenant they tell."""
_NOBODYS = Ignored("tenant", "An event that tells no tenant, and changes nothing.")
_STAGES = {None: "key", TenantIn.HEADER: "header", TenantIn.FIELD: "value", TenantIn.KEY: "key"}
_tuple = tuple.__new__  # measured: twice as fast as the named tuple's own constructor

_Told = Callable[[Record, ParentChange], object]
"""Where the tenant stands: its value there, whatever it is. Raises Refused and JsonFault."""
_Mark = Callable[[Record], str | bytes | None]
"""What is the same in many records, and tells one tenant in all of them; None where it is in doubt."""


def tenant_decoder(parent: Parent, limits: Limits, decoder_of: Callable[[Parent], Decoder]) -> Decoder:
    """The decoder of a parent whose events give the tenant; `decoder_of` makes one for what the record key tells."""
    events = parent.events
    assert events is not None and events.gives_tenant
    place = None if events.tenant is None else events.tenant.place
    at = None if events.tenant_field is None else events.key.names.index(events.tenant_field)
    put_at = None if place is TenantIn.KEY else at
    if put_at is not None:
        rest = KeySpec(events.key.fields[:put_at] + events.key.fields[put_at + 1 :])
        parent = replace(parent, events=replace(events, key=rest))
    decode_rest = decoder_of(parent)
    told, mark_of = _told(events, at, limits)
    gated = _gate(None if place is TenantIn.KEY or at is None else events.key.types[at], place, limits)
    known: dict[str | bytes, Scalar] = {}
    # Debezium writes null records after deletions only: the next one repeats what could not be read.
    repeated = events.format == "debezium"

    def tenant_of(record: Record, said: ParentChange) -> Scalar:
        mark = None if mark_of is None else mark_of(record)
        tenant = None if mark is None else known.get(mark)
        if tenant is None:
            tenant = gated(lambda: told(record, said))
            if mark is not None:
                if len(known) >= _KNOWN_MAX:
                    known.clear()
                known[mark] = tenant
        return tenant

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
        entity, op, key, to, version, origin, occurred_ms, trace, row, _ = said
        if put_at is not None:
            key = (*key[:put_at], tenant, *key[put_at:])
            if to is not None:
                to = (*to[:put_at], tenant, *to[put_at:])
        said = _tuple(ParentChange, (entity, op, key, to, version, origin, occurred_ms, trace, row, str(tenant)))
        return found._replace(change=said) if isinstance(found, Half) else said

    return decode


def _gate(kind: KeyType | None, place: TenantIn | None, limits: Limits) -> Callable[[Callable[[], object]], Scalar]:
    """Makes a tenant of what is told, of the type of its key field; None: as text, as which whole numbers are as good.
    Raises Refused where whose it is, is not beyond doubt."""
    gate, bounds = GATES[kind or KeyType.STRING], Bounds(limits.key_text_max, limits.digits_max)
    stage = _STAGES[place]

    def gated(told: Callable[[], object]) -> Scalar:
        try:
            value = told()
            if kind is None and type(value) in (int, UUID):
                value = str(value)
            tenant = gate(value, None, bounds)
        except KeyRefused as refused:
            raise unknown_tenant(f"What tells the tenant is refused: {refused.message}.", stage) from None
        except JsonFault as fault:
            raise unknown_tenant(f"The tenant can't be read: {fault.message}.", stage) from None
        except Refused as refused:
            raise unknown_tenant(refused.undecodable.message, stage) from None
        if type(tenant) is str and not (tenant and tenant.isprintable()):
            raise unknown_tenant("What tells the tenant is empty, or holds what can't be printed.", stage)
        return tenant

    return gated


def _told(events: Events, at: int | None, limits: Limits) -> tuple[_Told, _Mark | None]:
    """What tells the tenant, and by which mark it may be remembered."""
    if events.tenant is None:
        assert events.pattern is not None
        return _of_topic(events.pattern), lambda record: record.topic
    name = events.tenant.name
    match events.tenant.place:
        case TenantIn.HEADER:
            return _of_header(name, limits), _mark_in_header(name)
        case TenantIn.FIELD:
            field = TenantField(name, events, limits)
            return lambda record, said: field.of(record, said.op), None
        case TenantIn.KEY:
            assert at is not None, "it names a field of the key"
            return _of_key(at), None


def _of_topic(pattern: str) -> _Told:
    fulfils = compiled(pattern).fullmatch

    def told(record: Record, said: ParentChange) -> object:
        found = fulfils(record.topic)
        return None if found is None else found[TENANT]

    return told


def _of_header(name: str, limits: Limits) -> _Told:
    def told(record: Record, said: ParentChange) -> object:
        tenant = type_in_header(record.headers, name, limits)
        if tenant is None:
            raise unknown_tenant(f"There is no header {name[:60]}, which tells the tenant.", "header")
        return tenant

    return told


def _mark_in_header(name: str) -> _Mark:
    def mark(record: Record) -> bytes | None:
        found, count = None, 0
        for header, value in record.headers:
            if header == name:
                found, count = value, count + 1
        return found if count == 1 else None

    return mark


def _of_key(at: int) -> _Told:
    def told(record: Record, said: ParentChange) -> object:
        if said.to is not None and said.to[at] != said.key[at]:
            raise unknown_tenant("The key change leads to the key of another tenant.", "key")
        return said.key[at]

    return told
