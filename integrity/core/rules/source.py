"""`events.source`: the parent's own table or collection, where a scan looks up which parents there are."""

from __future__ import annotations

from collections.abc import Sequence

from integrity.core.rules import names
from integrity.core.rules.dependents import read_target
from integrity.core.rules.document import Node
from integrity.core.rules.findings import FindingCode, Report, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import Source, TargetKind
from integrity.core.rules.vocabulary import SOURCE_FIELDS
from integrity.core.rules.walk import fields_of, mapping_of, required, text_of

KINDS: Sequence[TargetKind] = (TargetKind.TABLE, TargetKind.COLLECTION)


def read_source(report: Report, node: Node, key: KeyDraft | None) -> Source | None:
    """The source of a parent with that key; None when something was reported of it."""
    mapping = mapping_of(report, "source", node, "{store: shop_db, table: public.customers}")
    if mapping is None:
        return None
    fields = fields_of(report, "source", mapping, SOURCE_FIELDS)
    store_node = required(report, "source", fields, "store", mapping, "Write store: shop_db, for example.")
    store = None if store_node is None else text_of(report, "store", store_node)
    fault = None if store is None else names.store_fault(store.value)
    if store is not None and fault is not None:
        report.add(FindingCode.BAD_NAME, f"store {shown(store.value)} {fault}", store)
        store = None
    target, _ = read_target(report, "source", fields, mapping, KINDS)
    if target is None or not target.name:
        return None
    for field in key or ():
        if fault := names.column_fault(target.kind, field):
            message = f"the key field {shown(field)} is no name of a column of source: it {fault}"
            report.add(
                FindingCode.BAD_COLUMN, message, mapping, "Leave source out: the topic tells which parents live."
            )
            return None
    return None if store is None else Source(store.value, target)
