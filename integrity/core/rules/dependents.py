"""One entry of `dependents`: where it is, what it references, which rows, and what happens to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from integrity.core.duration import duration_s
from integrity.core.keys import KeySpec
from integrity.core.rules import names
from integrity.core.rules.actions import Reference, is_event_value, read_action, report_immutable, report_mixed
from integrity.core.rules.document import ListNode, MappingNode, Node
from integrity.core.rules.findings import FindingCode, Located, Report, did_you_mean, listed, shown
from integrity.core.rules.key_fields import KeyDraft, read_key
from integrity.core.rules.model import (
    Action,
    Cascade,
    Dependent,
    Ignore,
    Literal,
    Match,
    Place,
    Restrict,
    Target,
    TargetKind,
    Tombstone,
)
from integrity.core.rules.rows import check_rows
from integrity.core.rules.vocabulary import DEPENDENT_FIELDS, DEPENDENT_LATER
from integrity.core.rules.walk import (
    Fields,
    Text,
    choice_of,
    fields_of,
    flag_of,
    kind_of,
    list_of,
    literal_of,
    mapping_of,
    not_supported,
    required,
    text_of,
    wrong_type,
)

_SERVERS: Mapping[TargetKind, str] = {
    TargetKind.TABLE: "PostgreSQL",
    TargetKind.COLLECTION: "MongoDB",
    TargetKind.TOPIC: "Kafka",
}
_TARGET_FAULTS: Mapping[TargetKind, tuple[FindingCode, Callable[[str], str | None]]] = {
    TargetKind.TABLE: (FindingCode.BAD_TARGET, names.table_fault),
    TargetKind.COLLECTION: (FindingCode.BAD_TARGET, names.collection_fault),
    TargetKind.TOPIC: (FindingCode.BAD_TOPIC, names.topic_fault),
}


@dataclass(frozen=True, slots=True)
class DependentDraft:
    """What could be read of a dependent, for the checks over all files; None where it could not.

    A target whose name could not be read has none.

    `dependent` is whole or None. `at` is where the entry stands, `references_at` its references.
    """

    name: Text | None
    store: str | None
    target: Target | None
    columns: tuple[str, ...]
    at: Located
    references_at: Located
    dependent: Dependent | None
    entity: Text | None = None
    """What its rows are; `key` names them, at `key_at`."""
    key: KeyDraft | None = None
    key_at: Located | None = None


def peek_rows(node: Node) -> tuple[tuple[str, KeyDraft], ...]:
    """The entities that the rows of a list of dependents are, with their keys. Reports nothing: whoever reads the
    dependents does."""
    quiet = Report("")
    found: list[tuple[str, KeyDraft]] = []
    for item in node.items if isinstance(node, ListNode) else ():
        said = {key.text: value for key, value in item.entries} if isinstance(item, MappingNode) else {}
        entity = text_of(quiet, "entity", said["entity"]) if "entity" in said else None
        key = read_key(quiet, said.get("key"))
        if entity is not None and key is not None:
            found.append((entity.value, key))
    return tuple(found)


def read_dependent(report: Report, node: Node, entity: str | None, key: KeyDraft | None) -> DependentDraft | None:
    """A dependent of a parent, whose name and key are None when they could not be read."""
    what = "the dependent"
    mapping = mapping_of(report, what, node, "{store: orders_db, table: orders, references: ..., on_delete: ...}")
    if mapping is None:
        return None
    fields = fields_of(report, what, mapping, DEPENDENT_FIELDS, DEPENDENT_LATER)
    target, target_node = read_target(report, what, fields, mapping, tuple(TargetKind))
    name = read_name(report, fields, target, target_node)
    store = read_named(report, "store", required(report, what, fields, "store", mapping), names.store_fault)
    kind = None if target is None else target.kind
    references = _references(report, required(report, what, fields, "references", mapping), kind, key)
    where = _where(report, fields["where"][1], kind) if "where" in fields else {}
    max_rows = _max_rows(report, fields["max_rows"][1]) if "max_rows" in fields else None
    match = _match(report, fields)
    as_of = _as_of(report, fields, kind, tuple(references or ()))
    on_delete, on_update = _actions(report, fields, mapping, kind, references or {}, key, match)
    undo_ms = _undo(report, fields, on_delete, on_update)
    array = _array(report, fields, kind, references or {}, where or {}, on_delete)
    rows_entity, rows_key = _rows(report, fields, kind)
    rows_spec: KeySpec | None = None
    if rows_key is not None:
        rows_spec = check_rows(report, rows_key, fields["key"][0], references or {}, key, kind, (on_delete, on_update))
        if array and any(column in rows_key for column in references or ()):
            hint = "Name the field that names the document, such as _id."
            report.add(
                FindingCode.BAD_ARRAY, "array: a list is no part of the key of a document", fields["key"][0], hint
            )
    dependent: Dependent | None = None
    if (
        entity is not None
        and key is not None
        and name is not None
        and store is not None
        and target is not None
        and references is not None
        and where is not None
        and on_delete is not None
        and on_update is not None
        and array is not None
        and (rows_entity is None) == (rows_spec is None)
    ):
        ordered = {column: field for field in key for column, named in references.items() if named == field}
        dependent = Dependent(
            id=f"{entity}.{name.value}",
            name=name.value,
            store=store.value,
            target=target,
            references=MappingProxyType(ordered),
            on_delete=on_delete,
            on_update=on_update,
            where=MappingProxyType(where),
            place=Place(report.file, mapping.line, mapping.column),
            max_rows=max_rows,
            array=array,
            entity=None if rows_entity is None else rows_entity.value,
            key=rows_spec,
            match=match,
            as_of=as_of,
            undo_ms=undo_ms,
        )
    return DependentDraft(
        name=name,
        store=None if store is None else store.value,
        target=target,
        columns=tuple(references or ()),
        at=mapping,
        references_at=fields["references"][0] if "references" in fields else mapping,
        dependent=dependent,
        entity=rows_entity,
        key=rows_key,
        key_at=fields["key"][0] if "key" in fields else None,
    )


def _rows(report: Report, fields: Fields, kind: TargetKind | None) -> tuple[Text | None, KeyDraft | None]:
    """`entity` and `key`, which go together."""
    for one, other, example in (("entity", "key", "{id: int64}"), ("key", "entity", "order")):
        if one in fields and other not in fields:
            hint = f"Write {other}: {example}, for example."
            report.add(FindingCode.MISSING_FIELD, f"the dependent has {one} and no {other}", fields[one][0], hint)
    entity = read_named(report, "entity", fields["entity"][1] if "entity" in fields else None, names.entity_fault)
    fault_of = None if kind is None else partial(names.column_fault, kind)
    return entity, read_key(report, fields["key"][1] if "key" in fields else None, "key column", fault_of)


def read_target(
    report: Report, what: str, fields: Fields, at: Located, choices: Sequence[TargetKind]
) -> tuple[Target | None, Node | None]:
    """The one target that is named, with its node; its name is empty where it could not be read."""
    kinds = [kind for kind in choices if kind in fields]
    if not kinds:
        servers = ", ".join(f"{kind} ({_SERVERS[kind]})" for kind in choices)
        report.add(FindingCode.ONE_OF_FIELDS, f"{what} has no {listed(choices)}", at, f"Write one of {servers}.")
        return None, None
    if len(kinds) > 1:
        second = fields[kinds[1]][0]
        report.add(FindingCode.ONE_OF_FIELDS, f"{what} has {listed(kinds, 'and')}: write one of them", second)
        return None, None
    [kind] = kinds
    node = fields[kind][1]
    text = text_of(report, kind, node)
    if text is None:
        # The kind is known all the same, so that the actions are read as they were meant.
        return Target(kind, ""), None
    code, fault_of = _TARGET_FAULTS[kind]
    fault = fault_of(text.value)
    if fault is not None:
        report.add(code, f"the {kind} {shown(text.value)} {fault}", text)
        return Target(kind, ""), None
    return Target(kind, text.value), node


def read_name(report: Report, fields: Fields, target: Target | None, target_node: Node | None) -> Text | None:
    """The name, by default that of the target."""
    if "name" in fields:
        return read_named(report, "name", fields["name"][1], names.dependent_fault)
    if target is None or target_node is None:
        return None
    if names.dependent_fault(target.name) is not None:
        hint = "Add a name of letters, digits, '_', '.' and '-'."
        report.add(
            FindingCode.BAD_NAME, f"{shown(target.name)} cannot serve as the dependent's name", target_node, hint
        )
        return None
    return Text(target.name, target_node.line, target_node.column)


def read_named(report: Report, what: str, node: Node | None, fault_of: Callable[[str], str | None]) -> Text | None:
    """A text that is a name."""
    text = None if node is None else text_of(report, what, node)
    fault = None if text is None else fault_of(text.value)
    if text is not None and fault is not None:
        report.add(FindingCode.BAD_NAME, f"{what} {shown(text.value)} {fault}", text)
        return None
    return text


def _references(
    report: Report, node: Node | None, kind: TargetKind | None, key: KeyDraft | None
) -> dict[str, str] | None:
    mapping = None if node is None else mapping_of(report, "references", node, "references: {customer_id: id}")
    if mapping is None:
        return None
    if len(mapping.entries) > names.KEY_FIELDS_MAX:
        report.add(FindingCode.WRONG_TYPE, f"references has more than {names.KEY_FIELDS_MAX} columns", mapping)
        return None
    found: dict[str, str] = {}
    is_sound = True
    for column, value in mapping.entries:
        if kind is not None and (fault := names.column_fault(kind, column.text)) is not None:
            report.add(FindingCode.BAD_COLUMN, f"the column {shown(column.text)} of references {fault}", column)
            is_sound = False
        field = text_of(report, f"{shown(column.text)} of references", value)
        if field is None or not _is_key_field(report, field, found, key):
            is_sound = False
            continue
        found[column.text] = field.value
    if kind is not None and (pair := names.overlapping(kind, tuple(found))) is not None:
        message = f"the field {shown(pair[1])} of references lies in {shown(pair[0])}"
        report.add(FindingCode.OVERLAPPING_FIELDS, message, mapping)
        is_sound = False
    missing = [name for name in key if name not in found.values()] if key is not None and is_sound else []
    if missing:
        message = f"references does not name {listed([shown(name) for name in missing], 'and')}"
        hint = "A reference names every field of events.key exactly once."
        report.add(FindingCode.MISSING_KEY_FIELD, message, mapping, hint)
    return found if is_sound and not missing else None


def _is_key_field(report: Report, field: Text, found: Mapping[str, str], key: KeyDraft | None) -> bool:
    if key is not None and field.value not in key:
        message = f"references names {shown(field.value)}, which is not a field of events.key"
        report.add(FindingCode.UNKNOWN_KEY_FIELD, message, field, did_you_mean(field.value, key))
        return False
    if field.value in found.values():
        message = f"references names the key field {shown(field.value)} twice"
        report.add(FindingCode.REPEATED_KEY_FIELD, message, field)
        return False
    return True


def _where(report: Report, node: Node, kind: TargetKind | None) -> dict[str, Literal | tuple[Literal, ...]] | None:
    mapping = mapping_of(report, "where", node, "where: {owner_type: Customer}")
    if mapping is None:
        return None
    found: dict[str, Literal | tuple[Literal, ...]] = {}
    is_sound = True
    for column, value in mapping.entries:
        what = f"{shown(column.text)} of where"
        if kind is not None and (fault := names.column_fault(kind, column.text)) is not None:
            report.add(FindingCode.BAD_COLUMN, f"the column {shown(column.text)} of where {fault}", column)
            is_sound = False
        if isinstance(value, MappingNode):
            wrong_type(report, what, "a value, a list of values, or null", value, "There are no operators in where.")
            is_sound = False
        elif isinstance(value, ListNode):
            values = _alternatives(report, what, value)
            is_sound = is_sound and values is not None
            found[column.text] = values or ()
        else:
            literal = literal_of(report, what, value)
            if literal is None or is_event_value(report, what, literal):
                is_sound = False
            else:
                found[column.text] = literal.value
    return found if is_sound else None


def _max_rows(report: Report, node: Node) -> int | None:
    literal = literal_of(report, "max_rows", node)
    if literal is None:
        return None
    if type(literal.value) is not int or literal.value < 1:
        wrong_type(report, "max_rows", "a whole number from 1", literal, "Leave max_rows out for no limit.")
        return None
    return literal.value


def _alternatives(report: Report, what: str, node: ListNode) -> tuple[Literal, ...] | None:
    items = list_of(report, what, node, "[eu, uk]")
    if items is None:
        return None
    found: dict[Literal, None] = {}  # in order, and quick to look up
    is_sound = True
    for item in items:
        literal = literal_of(report, what, item)
        if literal is None or is_event_value(report, what, literal):
            is_sound = False
        elif literal.value is None:
            report.add(
                FindingCode.WRONG_TYPE, f"{what} has a null in its list", literal, "Write null alone, without a list."
            )
            is_sound = False
        elif found and kind_of(next(iter(found))) != kind_of(literal.value):
            message = f"{what} mixes {kind_of(next(iter(found)))} and {kind_of(literal.value)}"
            report.add(FindingCode.WRONG_TYPE, message, literal, "Quote numbers that are text.")
            is_sound = False
        elif literal.value in found:
            report.add(FindingCode.REPEATED, f"{what} names {shown(str(literal.value))} twice", literal)
            is_sound = False
        else:
            found[literal.value] = None
    return tuple(found) if is_sound else None


def _array(
    report: Report,
    fields: Fields,
    kind: TargetKind | None,
    references: Mapping[str, str],
    where: Mapping[str, object],
    on_delete: Action | None,
) -> bool | None:
    """Whether the reference is a list of keys; None when something was reported."""
    if "array" not in fields:
        return False
    at, node = fields["array"]
    array = flag_of(report, "array", node)
    if kind is TargetKind.TOPIC:
        not_supported(report, "array on a topic", at)
        return None
    fault: tuple[str, str] | None = None
    if kind is TargetKind.TABLE:
        fault = "a table has no lists of keys", "Refer from a table with a row for each key."
    elif array:
        fault = _list_fault(references, where, on_delete)
        if fault is None and "as_of" in fields:
            fault = "as_of tells when a document was written, not when a key came into its list", "Leave as_of out."
    if fault is not None:
        report.add(FindingCode.BAD_ARRAY, f"array: {fault[0]}", at, fault[1])
    return array if fault is None else None


def _list_fault(
    references: Mapping[str, str], where: Mapping[str, object], on_delete: Action | None
) -> tuple[str, str] | None:
    """Why a collection's reference cannot be a list, and what to do."""
    columns = tuple(references)
    if len(columns) > 1:
        return "a composite key cannot be in a list", "Refer from a collection with a document for each key."
    if any(column.split(".")[0] == "_id" for column in columns):
        return "MongoDB never changes _id", "Name another field."
    if isinstance(on_delete, Tombstone):
        return "tombstone would mark the document, which stays", "Write cascade: it takes the key out of the list."
    if any(column in where for column in columns) or names.overlapping(TargetKind.COLLECTION, (*columns, *where)):
        return "where names the list or a part of it", "Name other fields in where."
    return None


def _match(report: Report, fields: Fields) -> Match:
    """Simple where nothing, or nothing readable, is written: a fault is reported, and nothing starts."""
    word = choice_of(report, "match", fields["match"][1], [*Match]) if "match" in fields else None
    return Match.SIMPLE if word is None else Match(word)


def _as_of(report: Report, fields: Fields, kind: TargetKind | None, columns: tuple[str, ...]) -> str | None:
    """The column, or None where none is written or a fault was reported."""
    text = text_of(report, "as_of", fields["as_of"][1]) if "as_of" in fields else None
    if text is None:
        return None
    if kind is not None and (fault := names.column_fault(kind, text.value)) is not None:
        report.add(FindingCode.BAD_COLUMN, f"the column {shown(text.value)} of as_of {fault}", text)
    elif text.value in columns:
        message = f"as_of names {shown(text.value)}, which is a column of references"
        hint = "Name the column that says when a row was written, such as created_at."
        report.add(FindingCode.REFERENCE_COLUMN, message, text, hint)
    elif kind is not None and (pair := names.overlapping(kind, (*columns, text.value))) is not None:
        message = f"the field {shown(pair[1])} lies in {shown(pair[0])}: one is of references, one is as_of"
        report.add(FindingCode.OVERLAPPING_FIELDS, message, text)
    return text.value


def _undo(report: Report, fields: Fields, on_delete: Action | None, on_update: Action | None) -> int | None:
    """How long it is kept, in milliseconds, or None where none is written or a fault was reported."""
    text = text_of(report, "undo", fields["undo"][1]) if "undo" in fields else None
    if text is None:
        return None
    seconds = duration_s(text.value)
    if seconds is None or not names.UNDO_MIN_S <= seconds <= names.UNDO_MAX_S:
        message = f"undo must be a duration from 1m to 3650d, not {shown(text.value)}"
        report.add(FindingCode.UNKNOWN_VALUE, message, text, "Write 30d, for example.")
        return None
    if isinstance(on_delete, Restrict | Ignore) and isinstance(on_update, Restrict | Ignore):
        message = "undo keeps nothing where neither on_delete nor on_update changes a row"
        report.add(FindingCode.NOTHING_TO_UNDO, message, fields["undo"][0], "Leave undo out.")
    return round(seconds * 1000)


def _actions(
    report: Report,
    fields: Fields,
    at: Located,
    kind: TargetKind | None,
    references: Mapping[str, str],
    key: KeyDraft | None,
    match: Match,
) -> tuple[Action | None, Action | None]:
    types = key or {}
    reference = Reference(
        kind=kind,
        columns=tuple(sorted(references, key=lambda column: _position(key, references[column]))),
        types={column: types.get(field) for column, field in references.items()},
    )
    delete_node = required(report, "the dependent", fields, "on_delete", at, "Write on_delete: cascade, for example.")
    on_delete = None if delete_node is None else read_action(report, "on_delete", delete_node, reference)
    on_update: Action | None = Cascade()
    if "on_update" in fields:
        on_update = read_action(report, "on_update", fields["on_update"][1], reference)
    if on_delete is not None and on_update is not None:
        report_immutable(report, reference, on_delete, on_update, at)
        if match is Match.FULL:
            for field, action in (("on_delete", on_delete), ("on_update", on_update)):
                report_mixed(report, field, action, reference, fields[field][0] if field in fields else at)
    return on_delete, on_update


def _position(key: KeyDraft | None, field: str) -> int:
    return list(key).index(field) if key is not None and field in key else 0
