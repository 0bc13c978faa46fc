"""The actions of a rule: `on_delete` and `on_update`, in their bare and their mapping form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import assert_never

from integrity.core.keys import KeyType
from integrity.core.rules import names
from integrity.core.rules.document import BrokenNode, MappingNode, Node, ScalarNode
from integrity.core.rules.findings import FindingCode, Located, Report, did_you_mean, listed, shown
from integrity.core.rules.literals import EXPECTED, fits
from integrity.core.rules.model import (
    Action,
    Cascade,
    EventValue,
    Ignore,
    Literal,
    Nullify,
    Restrict,
    SetDefault,
    TargetKind,
    Tombstone,
)
from integrity.core.rules.vocabulary import COPY_ACTIONS, NULLIFY_FIELDS, ON_DELETE, ON_UPDATE, TOMBSTONE_FIELDS
from integrity.core.rules.walk import (
    Text,
    checked_choice,
    choice_of,
    described,
    fields_of,
    list_of,
    literal_of,
    mapping_of,
    required,
    text_of,
    wrong_type,
)

_MONGO_ID = "_id"


@dataclass(frozen=True, slots=True)
class Reference:
    """What an action has to know of its dependent. Nothing is known of it where it was wrong.

    `columns` are in key order; `types` are theirs.
    """

    kind: TargetKind | None
    columns: tuple[str, ...]
    types: Mapping[str, KeyType | None]
    named_by: str = "references"
    """The field that names the columns."""


def read_action(report: Report, field: str, node: Node, reference: Reference) -> Action | None:
    """An action, or None when something was reported. `field` is on_delete or on_update."""
    choices = ON_DELETE if field == "on_delete" else ON_UPDATE
    named = _named(report, field, node, choices)
    if named is None:
        return None
    name, body = named
    what = f"{field}: {name}"
    match name:
        case "cascade":
            return Cascade() if _is_bare(report, what, body) else None
        case "restrict":
            return Restrict() if _is_bare(report, what, body) else None
        case "ignore":
            return Ignore() if _is_bare(report, what, body) else None
        case "nullify":
            return _nullify(report, what, body, reference)
        case "set_default":
            return _set_default(report, what, body, node, reference)
        case "tombstone":
            return _tombstone(report, what, body, node, reference)
        case _:
            raise AssertionError(f"an action without a reader: {name}")


def read_copy_action(report: Report, node: Node, reference: Reference) -> Cascade | Tombstone | None:
    """The `on_delete` of a copy; the reference's columns are all of the copy's."""
    named = _named(report, "on_delete", node, tuple(COPY_ACTIONS))
    if named is None:
        return None
    name, body = named
    what = f"on_delete: {name}"
    if name == "delete":
        return Cascade() if _is_bare(report, what, body) else None
    return _tombstone(report, what, body, node, reference)


def _named(report: Report, field: str, node: Node, choices: Collection[str]) -> tuple[str, Node | None] | None:
    """The word of an action, and what it maps to in its mapping form."""
    body: Node | None = None
    match node:
        case MappingNode(entries=[(key, value)]):
            body = value
            name = checked_choice(report, field, Text(key.text, key.line, key.column), choices)
        case MappingNode():
            wrong_type(report, field, "one action", node, f"Write one action, such as {field}: {next(iter(choices))}.")
            return None
        case _:
            name = choice_of(report, field, node, choices)
    return None if name is None else (name, body)


def report_immutable(report: Report, reference: Reference, on_delete: Action, on_update: Action, at: Located) -> None:
    """MongoDB never changes a document's `_id`: no action may ask for it."""
    if reference.kind is not TargetKind.COLLECTION:
        return
    for field, action in (("on_delete", on_delete), ("on_update", on_update)):
        if any(column.split(".")[0] == _MONGO_ID for column in _written(field, action, reference)):
            message = f"{field} would change _id, which MongoDB never changes"
            hint = "Write on_update: ignore." if field == "on_update" else "Write cascade, tombstone or ignore."
            report.add(FindingCode.IMMUTABLE_ID, message, at, hint)


def report_mixed(report: Report, field: str, action: Action, reference: Reference, at: Located) -> None:
    """Under MATCH FULL no action may leave a reference with some parts null and others not."""
    match action:
        case Nullify():
            nulled = action.columns
        case SetDefault():
            nulled = tuple(column for column, value in action.values.items() if value is None)
        case Cascade() | Tombstone() | Restrict() | Ignore():
            return
        case _:
            assert_never(action)
    if nulled and len(nulled) < len(reference.columns):
        kept = [column for column in reference.columns if column not in nulled]
        message = (
            f"{field} would make {listed(map(shown, nulled), 'and')} null and leave {listed(map(shown, kept), 'and')}:"
            " under match: full a reference is null in all its columns or in none"
        )
        report.add(FindingCode.MIXED_REFERENCE, message, at, "Nullify all columns, or write match: simple.")


def _written(field: str, action: Action, reference: Reference) -> Sequence[str]:
    match action:
        case Cascade():
            return reference.columns if field == "on_update" else ()
        case Nullify():
            return action.columns
        case SetDefault():
            return tuple(action.values)
        case Tombstone():
            return tuple(action.set)
        case Restrict() | Ignore():
            return ()
        case _:
            assert_never(action)


def _is_bare(report: Report, what: str, body: Node | None) -> bool:
    match body:
        case None | MappingNode(entries=()) | ScalarNode(is_empty=True):
            return True
        case MappingNode():
            fields_of(report, what, body, ())
            return False
        case _:
            wrong_type(report, what, "the bare word", body, f"Write {what}.")
            return False


def _nullify(report: Report, what: str, body: Node | None, reference: Reference) -> Nullify | None:
    example = f"{what.split(': ')[0]}: {{nullify: {{columns: [column]}}}}"
    if body is None or (isinstance(body, MappingNode) and not body.entries):
        return Nullify(reference.columns)
    mapping = mapping_of(report, what, body, example)
    if mapping is None:
        return None
    fields = fields_of(report, what, mapping, NULLIFY_FIELDS)
    node = required(report, what, fields, "columns", mapping)
    items = None if node is None else list_of(report, f"columns of {what}", node, "[column]")
    if items is None:
        return None
    columns: set[str] = set()
    is_sound = True
    for item in items:
        text = text_of(report, f"a column of {what}", item)
        if text is None or not _is_reference(report, what, text, reference):
            is_sound = False
        elif text.value in columns:
            report.add(FindingCode.REPEATED, f"{what} names {shown(text.value)} twice", text)
        else:
            columns.add(text.value)
    return Nullify(tuple(column for column in reference.columns if column in columns)) if is_sound else None


def _set_default(report: Report, what: str, body: Node | None, at: Located, reference: Reference) -> SetDefault | None:
    example = f"{what.split(': ')[0]}: {{set_default: {{column: value}}}}"
    if body is None:
        report.add(FindingCode.WRONG_TYPE, f"{what} needs the default values", at, f"Write {example}.")
        return None
    mapping = mapping_of(report, what, body, example)
    if mapping is None:
        return None
    values: dict[str, Literal] = {}
    is_sound = True
    for key, node in mapping.entries:
        literal = literal_of(report, f"{shown(key.text)} of {what}", node)
        is_known = _is_reference(report, what, Text(key.text, key.line, key.column), reference)
        if literal is None or not is_known or not _fits(report, what, key.text, literal, reference):
            is_sound = False
        else:
            values[key.text] = literal.value
    return SetDefault(MappingProxyType(values)) if is_sound else None


def _fits(report: Report, what: str, column: str, literal: ScalarNode, reference: Reference) -> bool:
    if is_event_value(report, what, literal):
        return False
    kind = reference.types.get(column)
    if kind is not None and not fits(kind, literal.value):
        message = f"{what} gives {shown(column)}, a key field of type {kind}, {described(literal)}"
        report.add(FindingCode.LITERAL_TYPE, message, literal, f"Write {EXPECTED[kind]}.")
        return False
    return True


def _is_reference(report: Report, what: str, column: Text, reference: Reference) -> bool:
    if not reference.columns or column.value in reference.columns:
        return True
    message = f"{what} names {shown(column.value)}, which is not a column of references"
    report.add(FindingCode.NOT_A_REFERENCE, message, column, did_you_mean(column.value, reference.columns))
    return False


def is_event_value(report: Report, what: str, literal: ScalarNode) -> bool:
    """Whether a literal is an event value, which only `tombstone` takes; then it is reported."""
    if not _looks_like_event_value(literal.value):
        return False
    message = f"{what} cannot take {shown(str(literal.value))}"
    report.add(FindingCode.UNKNOWN_VALUE, message, literal, "Event values belong into tombstone: {set: ...}.")
    return True


def _looks_like_event_value(value: Literal) -> bool:
    return isinstance(value, str) and (value in ("$now", "$event") or value.startswith(("$event.", "$now.")))


def _tombstone(report: Report, what: str, body: Node | None, at: Located, reference: Reference) -> Tombstone | None:
    if reference.kind is TargetKind.TOPIC:
        if body is None or (isinstance(body, MappingNode) and not body.entries):
            return Tombstone(MappingProxyType({}))
        wrong_type(
            report, f"{what} on a topic", "the bare word", body, "It writes a null record: there is nothing to set."
        )
        return None
    example = f"{what.split(': ')[0]}: {{tombstone: {{set: {{deleted_at: $event.time}}}}}}"
    if body is None:
        if reference.kind is not None:  # otherwise it may be a topic
            report.add(FindingCode.WRONG_TYPE, f"{what} needs the columns to set", at, f"Write {example}.")
        return None
    mapping = mapping_of(report, what, body, example)
    fields = {} if mapping is None else fields_of(report, what, mapping, TOMBSTONE_FIELDS)
    node = None if mapping is None else required(report, what, fields, "set", mapping, f"Write {example}.")
    columns = None if node is None else mapping_of(report, f"set of {what}", node, example)
    if columns is None:
        return None
    values: dict[str, Literal | EventValue] = {}
    is_sound = True
    for key, value_node in columns.entries:
        is_named = _is_settable(report, what, Text(key.text, key.line, key.column), reference)
        value = _set_value(report, what, key.text, value_node)
        if isinstance(value, BrokenNode) or not is_named:
            is_sound = False
        elif value is None and not values and is_sound:
            message = f"{what} gives its marker {shown(key.text)} null, so nothing would be marked"
            report.add(FindingCode.NULL_MARKER, message, value_node, "Put a column first that gets a value.")
            is_sound = False
        else:
            values[key.text] = value
    return (
        Tombstone(MappingProxyType(values))
        if is_sound and _is_apart(report, what, values, columns, reference)
        else None
    )


def _is_settable(report: Report, what: str, column: Text, reference: Reference) -> bool:
    fault = None if reference.kind is None else names.column_fault(reference.kind, column.value)
    if fault is not None:
        report.add(FindingCode.BAD_COLUMN, f"the column {shown(column.value)} of {what} {fault}", column)
    elif column.value in reference.columns:
        message = f"{what} sets {shown(column.value)}, which is a column of {reference.named_by}"
        hint = "A marked row keeps what it held; set other columns."
        report.add(FindingCode.REFERENCE_COLUMN, message, column, hint)
    else:
        return True
    return False


def _is_apart(report: Report, what: str, values: Mapping[str, object], at: Located, reference: Reference) -> bool:
    pair = None if reference.kind is None else names.overlapping(reference.kind, (*values, *reference.columns))
    if pair is not None:
        message = f"{what}: the field {shown(pair[1])} lies in {shown(pair[0])}; both cannot be written at once"
        report.add(FindingCode.OVERLAPPING_FIELDS, message, at)
    return pair is None


def _set_value(report: Report, what: str, column: str, node: Node) -> Literal | EventValue | BrokenNode:
    literal = literal_of(report, f"{shown(column)} of {what}", node)
    if literal is None:
        return BrokenNode(node.line, node.column)
    if not _looks_like_event_value(literal.value):
        return literal.value
    known = checked_choice(
        report, f"{shown(column)} of {what}", Text(str(literal.value), node.line, node.column), [*EventValue]
    )
    return BrokenNode(node.line, node.column) if known is None else EventValue(known)
