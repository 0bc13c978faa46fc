"""`events.tenant`, and the tenant that a pattern's group gives: whose an event is, and what goes with that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from integrity.core.keys import KeyType
from integrity.core.rules import names, patterns
from integrity.core.rules.findings import FindingCode, Located, Report, bare, listed, nearest, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import TENANT, TenantFrom, TenantIn, Truncates
from integrity.core.rules.vocabulary import TENANT_FIELDS
from integrity.core.rules.walk import Fields, Text, fields_of, mapping_of, text_of

_TEXTS: Final = (KeyType.STRING, KeyType.UUID)
_WORDS: Final = (*_TEXTS, KeyType.INT32, KeyType.INT64)
"""The types whose values are one text each."""


def read_tenant(report: Report, fields: Fields) -> TenantFrom | None:
    """What tells the tenant by `events.tenant`; None when nothing is said there, or it was reported."""
    if "tenant" not in fields:
        return None
    _, node = fields["tenant"]
    mapping = mapping_of(report, "tenant", node, "tenant: {header: client_id}")
    if mapping is None:
        return None
    found = fields_of(report, "tenant", mapping, TENANT_FIELDS)
    if len(found) != 1:
        if len(mapping.entries) != 1:
            report.add(FindingCode.ONE_OF_FIELDS, f"tenant has one of {listed(TENANT_FIELDS)}", mapping)
        return None
    [(word, (_, value))] = found.items()
    text = text_of(report, word, value)
    if text is None:
        return None
    if fault := names.key_field_fault(text.value):
        report.add(FindingCode.BAD_NAME, f"{word} {shown(text.value)} {fault}", text)
        return None
    return TenantFrom(TenantIn(word), text.value)


def rest_of_key(tenant: TenantFrom | None, pattern: Text | None, key: KeyDraft | None) -> KeyDraft | None:
    """The fields of the key that the record tells: all but the one that the tenant is put in."""
    if key is None or not _is_put_in(tenant, pattern):
        return key
    return {name: kind for name, kind in key.items() if name != TENANT}


def _is_put_in(tenant: TenantFrom | None, pattern: Text | None) -> bool:
    """Whether a key field `tenant` takes what is told beside the record key."""
    by_topic = pattern is not None and patterns.gives_tenant(pattern.value)
    return by_topic or (tenant is not None and tenant.place is not TenantIn.KEY)


def check_tenant(
    report: Report,
    fields: Fields,
    tenant: TenantFrom | None,
    pattern: Text | None,
    key: KeyDraft | None,
    kind: str | None,
) -> None:
    """Reports what does not go with what tells the tenant."""
    by_topic = pattern is not None and patterns.gives_tenant(pattern.value)
    if by_topic and "tenant" in fields:
        message = "the pattern has a group tenant, and events has tenant: one of them tells it"
        report.add(FindingCode.BAD_TENANT, message, fields["tenant"][0], "Leave one of them out.")
        return
    if by_topic:
        assert pattern is not None
        _check_put_in(report, key, pattern, "the group tenant of the pattern", _TEXTS)
    elif tenant is not None:
        _check_told(report, tenant, key, fields["tenant"][1])
    at: Located | None = pattern if by_topic else fields["tenant"][0] if "tenant" in fields else None
    if at is None:
        return
    if kind == "integrity" and _is_put_in(tenant, pattern):
        message = "events of the format integrity hold the whole key, and tell no tenant beside it"
        hint = "Leave the group out." if by_topic else "Write tenant: {key: ...}, or leave it out."
        report.add(FindingCode.FORMAT_FIELD, message, at, hint)
    if "truncate" in fields and getattr(fields["truncate"][1], "value", None) == Truncates.DELETE_ALL:
        message = "truncate: delete_all does not go with tenants: it would be a deletion of the parents of all of them"
        report.add(FindingCode.BAD_TENANT, message, fields["truncate"][0], "Leave truncate out.")


def _check_told(report: Report, tenant: TenantFrom, key: KeyDraft | None, at: Located) -> None:
    name = tenant.name
    match tenant.place:
        case TenantIn.KEY:
            if key is None:
                return
            if name not in key:
                message = f"tenant names {shown(name)}, which key does not have"
                hint = nearest(name, key) or f"Write it in key, too: {{{bare(name)}: string, ...}}."
                report.add(FindingCode.UNKNOWN_KEY_FIELD, message, at, hint)
            elif (of := key[name]) is not None and of not in _WORDS:
                message = f"the key field {shown(name)} is of the type {of}, whose values can't name a tenant"
                report.add(FindingCode.BAD_TENANT, message, at, f"A tenant is {listed(_WORDS)}.")
        case TenantIn.HEADER:
            _check_put_in(report, key, at, "the header", _TEXTS)
        case TenantIn.FIELD:
            _check_put_in(report, key, at, "the field", _WORDS)
            if key is not None and name in key and name != TENANT:
                message = f"{shown(name)} is a field of the key, which null records have too"
                report.add(FindingCode.BAD_TENANT, message, at, f"Write tenant: {{key: {name}}}.")


def _check_put_in(report: Report, key: KeyDraft | None, at: Located, what: str, types: Collection[KeyType]) -> None:
    """The key field `tenant`, if there is one, takes what is told."""
    if key is None or TENANT not in key:
        return
    kind = key[TENANT]
    if kind is not None and kind not in types:
        message = f"{what} gives the key field tenant, which is of the type {kind}"
        report.add(FindingCode.BAD_TENANT, message, at, f"Write tenant: {listed(types)}.")
    if len(key) == 1:
        message = f"{what} gives the tenant, which is all of the key"
        report.add(FindingCode.BAD_TENANT, message, at, "Name the fields of the record key beside it.")
