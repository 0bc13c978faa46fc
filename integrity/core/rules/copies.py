"""One entry of `copies`: where it is, which fields of the parent's row it holds, and what a deletion does to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from integrity.core.rules import names
from integrity.core.rules.actions import Reference, read_copy_action
from integrity.core.rules.dependents import read_name, read_named, read_target
from integrity.core.rules.document import KeyNode, MappingNode, Node
from integrity.core.rules.findings import FindingCode, Located, Report, listed, nearest, shown
from integrity.core.rules.key_fields import KeyDraft
from integrity.core.rules.model import Cascade, Copy, Dependent, Ignore, Place, Target, TargetKind, Tombstone
from integrity.core.rules.vocabulary import COPY_FIELDS
from integrity.core.rules.walk import Fields, Text, fields_of, mapping_of, required, text_of

COLUMNS_MAX = 200
_ID = "_id"


@dataclass(frozen=True, slots=True)
class CopyDraft:
    """What could be read of a copy, for the checks over all files; None where it could not. `copy` is whole or None."""

    name: Text | None
    store: str | None
    target: Target | None
    at: Located
    copy: Copy | None


def read_copy(report: Report, node: Node, entity: str | None, key: KeyDraft | None) -> CopyDraft | None:
    """A copy of a parent, whose name and key are None when they could not be read."""
    what = "the copy"
    mapping = mapping_of(report, what, node, "{store: orders_db, table: customer_copy, columns: {id: id, name: name}}")
    if mapping is None:
        return None
    fields = fields_of(report, what, mapping, COPY_FIELDS)
    target, target_node = read_target(report, what, fields, mapping, tuple(TargetKind))
    name = read_name(report, fields, target, target_node)
    store = read_named(report, "store", required(report, what, fields, "store", mapping), names.store_fault)
    kind = None if target is None else target.kind
    columns = _columns(report, required(report, what, fields, "columns", mapping), kind, key)
    on_delete = _on_delete(report, fields, kind, columns or {})
    copy: Copy | None = None
    if (
        entity is not None
        and key is not None
        and name is not None
        and store is not None
        and target is not None
        and columns is not None
        and on_delete is not None
    ):
        reference = {column: field for field in key for column, named in columns.items() if named == field}
        rows = Dependent(
            id=f"{entity}.{name.value}",
            name=name.value,
            store=store.value,
            target=target,
            references=MappingProxyType(reference),
            on_delete=on_delete,
            on_update=Ignore(),
            where=MappingProxyType({}),
            place=Place(report.file, mapping.line, mapping.column),
        )
        copy = Copy(rows, MappingProxyType(columns))
    return CopyDraft(name, None if store is None else store.value, target, mapping, copy)


def _columns(report: Report, node: Node | None, kind: TargetKind | None, key: KeyDraft | None) -> dict[str, str] | None:
    mapping = None if node is None else mapping_of(report, "columns", node, "columns: {id: id, name: name}")
    if mapping is None:
        return None
    if len(mapping.entries) > COLUMNS_MAX:
        report.add(FindingCode.WRONG_TYPE, f"columns has more than {COLUMNS_MAX} columns", mapping)
        return None
    found: dict[str, str] = {}
    is_sound = True
    for column, value in mapping.entries:
        if not _is_column(report, column, kind):
            is_sound = False
        field = text_of(report, f"{shown(column.text)} of columns", value)
        if field is None:
            is_sound = False
            continue
        if (fault := names.key_field_fault(field.value)) is not None:
            report.add(FindingCode.BAD_COLUMN, f"the field {shown(field.value)} of columns {fault}", field)
            is_sound = False
        elif key is not None and field.value in key and field.value in found.values():
            message = f"columns names the key field {shown(field.value)} twice"
            report.add(FindingCode.REPEATED_KEY_FIELD, message, field)
            is_sound = False
        elif key is not None and field.value not in key and column.text == _ID and kind is TargetKind.COLLECTION:
            message = f"columns copies {shown(field.value)} to _id, which MongoDB never changes"
            report.add(FindingCode.IMMUTABLE_ID, message, field, "Copy a field of events.key to it, or leave it out.")
            is_sound = False
        found[column.text] = field.value
    return found if _has_key(report, mapping, found, key, is_sound) and is_sound else None


def _is_column(report: Report, column: KeyNode, kind: TargetKind | None) -> bool:
    fault = None if kind is None else names.column_fault(kind, column.text)
    if fault is None and kind is not None and kind is not TargetKind.TABLE and "." in column.text:
        fault = "must be a field of the copy itself, without a dot"
    if fault is not None:
        report.add(FindingCode.BAD_COLUMN, f"the column {shown(column.text)} of columns {fault}", column)
    return fault is None


def _has_key(report: Report, at: MappingNode, found: Mapping[str, str], key: KeyDraft | None, is_sound: bool) -> bool:
    missing = [name for name in key if name not in found.values()] if key is not None and is_sound else []
    if missing:
        message = f"columns does not copy {listed([shown(name) for name in missing], 'and')}, of events.key"
        others = [field for field in found.values() if key is not None and field not in key]
        hint = nearest(missing[0], others) or f"Write {missing[0]}: {missing[0]} too: the key names the row."
        report.add(FindingCode.MISSING_KEY_FIELD, message, at, hint)
    return not missing


def _on_delete(
    report: Report, fields: Fields, kind: TargetKind | None, columns: Mapping[str, str]
) -> Cascade | Tombstone | None:
    if "on_delete" not in fields:
        return Cascade()
    return read_copy_action(report, fields["on_delete"][1], Reference(kind, tuple(columns), {}, "columns"))
