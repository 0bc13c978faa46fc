"""Rule files to a `RuleSet`: the only maker of the values in `core.rules.model`.

Strict: whatever is not known to this version is a fault, and all faults of all files are told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from integrity.core import condition
from integrity.core.duration import duration_s
from integrity.core.keys import KeySpec
from integrity.core.rules import names, patterns
from integrity.core.rules.across import ParentDraft, check_across
from integrity.core.rules.copies import CopyDraft, read_copy
from integrity.core.rules.dependents import DependentDraft, peek_rows, read_dependent
from integrity.core.rules.document import BrokenNode, ListNode, MappingNode, Node, ScalarNode, read_document
from integrity.core.rules.event_fields import (
    check_condition,
    check_key_from,
    read_key_format,
    read_pair_by,
    read_prefix,
    read_version,
)
from integrity.core.rules.findings import FindingCode, Report, listed, shown
from integrity.core.rules.formats import check_format
from integrity.core.rules.key_fields import KeyDraft, read_key
from integrity.core.rules.meaning import hash_of
from integrity.core.rules.model import (
    DEFAULT_SWEEPS_MS,
    Events,
    KeyFrom,
    Parent,
    Place,
    RuleSet,
    Tombstones,
    Truncates,
)
from integrity.core.rules.source import read_source
from integrity.core.rules.tenant import check_tenant, read_tenant, rest_of_key
from integrity.core.rules.types import read_types
from integrity.core.rules.vocabulary import (
    COPIED_FORMATS,
    EPOCH_MAX,
    EVENTS_FIELDS,
    EVENTS_LATER,
    FORMATS,
    KEY_FROM,
    LATE_CHILDREN_FIELDS,
    PARENT_FIELDS,
    PARENT_LATER,
    VERSION,
)
from integrity.core.rules.walk import (
    Fields,
    Text,
    choice_of,
    fields_of,
    list_of,
    mapping_of,
    not_supported,
    required,
    text_of,
    wrong_type,
)
from integrity.errors import Finding, RulesError


def parse_rules(files: Mapping[str, bytes | str]) -> RuleSet:
    """All rule files (name -> content) as one rule set.

    Raises `RulesError` with every finding, in the order of the files, then by line.
    """
    if not files:
        raise RulesError([Finding(FindingCode.NO_RULES, "there is no rule file")])
    openings = [_open(file, data) for file, data in files.items()]
    rows = {entity: key for opening in openings for entity, key in opening.rows}
    drafts = [_read(opening, rows) for opening in openings]
    check_across(drafts)
    findings = [finding for draft in drafts for finding in draft.report.findings()]
    if findings:
        raise RulesError(findings)
    parents = tuple(draft.parent for draft in drafts if draft.parent is not None)
    assert len(parents) == len(drafts), "a file without findings gives a parent"
    return RuleSet(
        parents=parents,
        hash=hash_of(parents),
        by_topic=MappingProxyType({t: parent for parent in parents if parent.events for t in parent.events.topics}),
        by_entity=MappingProxyType({parent.entity: parent for parent in parents}),
    )


@dataclass(frozen=True, slots=True)
class _Opening:
    """A file before its dependents are read, which for a derived parent needs what other files say of its rows."""

    report: Report
    root: MappingNode | None = None
    fields: Fields = field(default_factory=dict)
    entity: Text | None = None
    rows: tuple[tuple[str, KeyDraft], ...] = ()
    """The entities that its dependents name, with their keys."""


def _open(file: str, data: bytes | str) -> _Opening:
    root, report = read_document(data, file)
    if root is None:
        return _Opening(report)
    if not isinstance(root, MappingNode):
        wrong_type(report, "a rule file", "a mapping", root, "It begins with version: 1.")
        return _Opening(report)
    what = "the rule file"
    fields = fields_of(report, what, root, PARENT_FIELDS, PARENT_LATER)
    _check_version(report, required(report, what, fields, "version", root, f"Write version: {VERSION}."))
    entity = _entity(report, required(report, what, fields, "parent", root, "Write parent: customer, for example."))
    return _Opening(report, root, fields, entity, peek_rows(fields["dependents"][1]) if "dependents" in fields else ())


def _read(opening: _Opening, rows: Mapping[str, KeyDraft]) -> ParentDraft:
    report, root, fields, entity = opening.report, opening.root, opening.fields, opening.entity
    if root is None:
        return ParentDraft(report)
    topics: tuple[Text, ...] = ()
    pattern: Text | None = None
    key: KeyDraft | None = None
    events: Events | None = None
    if "events" in fields:
        topics, pattern, key, events = _events(report, fields["events"][1])
    elif entity is not None:
        key = rows.get(entity.value)
        if key is None:
            message = f"the file has no events, and no dependent says that its rows are {shown(entity.value)}"
            hint = f"Write events, or entity: {entity.value} and key at the dependent that these rows are."
            report.add(FindingCode.UNNAMED_ENTITY, message, root, hint)
    listed = fields["dependents"][1] if "dependents" in fields else None
    if "copies" not in fields:
        listed = required(report, "the rule file", fields, "dependents", root)
    dependents = _dependents(report, listed, entity, key)
    copies = _copies(report, fields, entity, key, events)
    sweeps = _late_children(report, fields)
    own = key if "events" in fields else None
    draft = ParentDraft(report, entity, topics, dependents, own, copies=copies, pattern=pattern)
    whole = tuple(d.dependent for d in dependents if d.dependent is not None)
    rows_key = None if "events" in fields else _spec(key)
    if report.is_clean and entity is not None and (events is not None or rows_key is not None):
        assert len(whole) == len(dependents), "a dependent without findings is whole"
        place = Place(report.file, root.line, root.column)
        made = tuple(each.copy for each in copies if each.copy is not None)
        assert len(made) == len(copies), "a copy without findings is whole"
        draft.parent = Parent(entity.value, events, whole, place, rows_key, sweeps, made)
    return draft


def _spec(key: KeyDraft | None) -> KeySpec | None:
    types = () if key is None else tuple((name, kind) for name, kind in key.items() if kind is not None)
    return KeySpec(types) if key is not None and types and len(types) == len(key) else None


def _late_children(report: Report, fields: Fields) -> tuple[int, ...]:
    """The ages of the sweeps. Of rows that are parents without events nobody tells when a key is in use again."""
    if "late_children" not in fields:
        return DEFAULT_SWEEPS_MS if "events" in fields else ()
    key, node = fields["late_children"]
    if "events" not in fields:
        message = "late_children needs events: without them nobody tells that a key of these rows is in use again"
        hint = "Name the rows' own events. Rows that are orphans already are found by integrity scan."
        report.add(FindingCode.NEEDS_EVENTS, message, key, hint)
        return ()
    return _sweeps(report, node)


def _sweeps(report: Report, node: Node) -> tuple[int, ...]:
    mapping = mapping_of(report, "late_children", node, "sweeps: [1m, 10m, 1h] below it")
    if mapping is None:
        return ()
    fields = fields_of(report, "late_children", mapping, LATE_CHILDREN_FIELDS)
    if "sweeps" not in fields:
        return DEFAULT_SWEEPS_MS
    listed = fields["sweeps"][1]
    if not isinstance(listed, ListNode):
        wrong_type(report, "sweeps", "a list", listed, "Write [1m, 10m, 1h], or [] for none.")
        return ()
    if len(listed.items) > names.SWEEPS_MAX:
        report.add(FindingCode.WRONG_TYPE, f"sweeps has more than {names.SWEEPS_MAX} ages", listed)
    found: dict[int, Node] = {}
    for item in listed.items:
        age_ms = _sweep(report, item)
        if age_ms in found:
            report.add(FindingCode.REPEATED, "an age is in sweeps twice", item)
        elif age_ms is not None:
            found[age_ms] = item
    return tuple(sorted(found))


def _sweep(report: Report, node: Node) -> int | None:
    text = text_of(report, "an age of sweeps", node)
    if text is None:
        return None
    seconds = duration_s(text.value)
    if seconds is None or not names.SWEEP_MIN_S <= seconds <= names.SWEEP_MAX_S:
        message = f"an age of sweeps must be a duration from 1s to 30d, not {shown(text.value)}"
        report.add(FindingCode.UNKNOWN_VALUE, message, text, "Write 1m, 10m or 1h, for example.")
        return None
    return round(seconds * 1000)


def _check_version(report: Report, node: Node | None) -> None:
    match node:
        case None | BrokenNode():
            return
        case ScalarNode(value=bool() | float()):
            wrong_type(report, "version", f"{VERSION}", node)
        case ScalarNode(value=int() as value):
            if value != VERSION:
                message = f"version {value} is not known; this program reads version {VERSION}"
                report.add(FindingCode.UNKNOWN_VALUE, message, node)
        case _:
            wrong_type(report, "version", f"{VERSION}", node)


def _entity(report: Report, node: Node | None) -> Text | None:
    text = None if node is None else text_of(report, "parent", node)
    fault = None if text is None else names.entity_fault(text.value)
    if text is not None and fault is not None:
        report.add(FindingCode.BAD_NAME, f"parent {shown(text.value)} {fault}", text)
        return None
    return text


def _events(report: Report, node: Node | None) -> tuple[tuple[Text, ...], Text | None, KeyDraft | None, Events | None]:
    mapping = None if node is None else mapping_of(report, "events", node, "topic, format and key below it")
    if mapping is None:
        return (), None, None, None
    fields = fields_of(report, "events", mapping, EVENTS_FIELDS, EVENTS_LATER)
    topics = _topics(report, fields, mapping)
    format_node = required(report, "events", fields, "format", mapping, "Write format: debezium.")
    hint = "Name what the records say. How they are serialised (JSON, or by a schema registry) is found out."
    kind = None if format_node is None else choice_of(report, "format", format_node, FORMATS, hint=hint)
    key = read_key(report, required(report, "events", fields, "key", mapping, "Write key: {id: int64}, for example."))
    tombstones: str | None = Tombstones.DELETE
    if "tombstones" in fields:
        tombstones = choice_of(report, "tombstones", fields["tombstones"][1], [*Tombstones])
    truncate: str | None = Truncates.IGNORE
    if "truncate" in fields:
        truncate = choice_of(report, "truncate", fields["truncate"][1], [*Truncates])
    deleted_when = _deleted_when(report, fields["deleted_when"][1], kind) if "deleted_when" in fields else None
    epoch = _epoch(report, fields["epoch"][1]) if "epoch" in fields else 0
    source = read_source(report, fields["source"][1], key) if "source" in fields else None
    pattern = _pattern(report, fields)
    by_name = pattern is not None and patterns.gives_tenant(pattern.value)
    tenant = read_tenant(report, fields)
    check_tenant(report, fields, tenant, pattern, key, kind)
    told = rest_of_key(tenant, pattern, key)
    types = None if kind is None else read_types(report, fields, mapping, kind, told)
    key_from: str | None = KeyFrom.RECORD
    if "key_from" in fields:
        key_from = choice_of(report, "key_from", fields["key_from"][1], KEY_FROM)
    if kind is not None:
        at = pattern if pattern is not None else fields["topics"][0] if len(topics) > 1 else None
        check_format(report, fields, kind, types, None if by_name else at)
    spec = _spec(key)
    key_format = read_key_format(report, fields, _spec(told))
    prefix = read_prefix(report, fields)
    version = read_version(report, fields, kind, prefix)
    several = len(topics) > 1 or (pattern is not None and not by_name)
    check_key_from(report, fields, kind, key_from, several=several)
    pair_by = read_pair_by(report, fields, several=several)
    is_known = bool(topics) or pattern is not None
    if not is_known or kind is None or spec is None or tombstones is None or truncate is None or key_from is None:
        return topics, pattern, key, None
    found = tuple(topic.value for topic in topics)
    said, where, emptied = Tombstones(tombstones), KeyFrom(key_from), Truncates(truncate)
    more = key_format, version, emptied, None if pattern is None else pattern.value, tenant, pair_by, prefix
    events = Events(found, kind, spec, said, deleted_when, epoch, source, types, where, *more)
    return topics, pattern, key, events


def _pattern(report: Report, fields: Fields) -> Text | None:
    """What names topics, when it can be used."""
    if "pattern" not in fields:
        return None
    text = text_of(report, "pattern", fields["pattern"][1])
    if text is None:
        return None
    fault = patterns.fault_of(text.value)
    if fault is not None:
        report.add(FindingCode.BAD_PATTERN, f"the pattern {fault[0]}", text, fault[1])
        return None
    return text


def _deleted_when(report: Report, node: Node, form: str | None) -> str | None:
    text = text_of(report, "deleted_when", node)
    fault = None if text is None else condition.fault_of(text.value)
    if text is not None and fault is not None:
        hint = 'Write "after.deleted_at != null", for example. The language is CEL.'
        report.add(FindingCode.BAD_CONDITION, f"the condition {fault}", text, hint)
    elif text is not None:
        check_condition(report, node, text.value, form)
    return None if text is None else text.value


_EPOCH_HINT = "Raise it by one, from 0 on, when the source begins to count its versions anew: epoch: 1."


def _epoch(report: Report, node: Node) -> int:
    match node:
        case ScalarNode(value=bool()):
            wrong_type(report, "epoch", "a whole number", node, _EPOCH_HINT)
        case ScalarNode(value=int() as value):
            if 0 <= value <= EPOCH_MAX:
                return value
            message = f"epoch must be from 0 to {EPOCH_MAX}, not {value}"
            report.add(FindingCode.NUMBER_RANGE, message, node, _EPOCH_HINT)
        case _:
            wrong_type(report, "epoch", "a whole number", node, _EPOCH_HINT)
    return 0


def _topics(report: Report, fields: Fields, at: MappingNode) -> tuple[Text, ...]:
    named = [name for name in ("topic", "topics", "pattern") if name in fields]
    if len(named) != 1:
        place = fields[named[-1]][0] if named else at
        message = f"events has {' and '.join(named)}: write one of them" if named else "events has no topic"
        hint = "Leave the others out." if named else "Write topic: shop.public.customers, for example."
        report.add(FindingCode.ONE_OF_FIELDS, message, place, hint)
        return ()
    if named == ["pattern"]:
        return ()
    node = fields[named[0]][1]
    items = (node,) if named == ["topic"] else list_of(report, "topics", node, "[shop.public.customers]") or ()
    hint = "Write topics: [...] for several." if named == ["topic"] else ""
    texts = [text_of(report, "topic", item, hint) for item in items]
    return tuple(text for text in texts if text is not None and _is_topic(report, text))


def _is_topic(report: Report, text: Text) -> bool:
    fault = names.topic_fault(text.value)
    if fault is not None:
        report.add(FindingCode.BAD_TOPIC, f"the topic {shown(text.value)} {fault}", text)
    return fault is None


def _copies(
    report: Report, fields: Fields, entity: Text | None, key: KeyDraft | None, events: Events | None
) -> tuple[CopyDraft, ...]:
    if "copies" not in fields:
        return ()
    at, node = fields["copies"]
    if "events" not in fields:
        hint = "Derived events name a key, and hold no row."
        not_supported(report, "copies of a file without events", at, hint)
    if events is not None and events.format not in COPIED_FORMATS:
        message = f"events of the format {events.format} hold no row that could be copied"
        report.add(FindingCode.NO_ROW, message, at, f"Copies take it from {listed(COPIED_FORMATS)}.")
    elif events is not None and events.key_from is KeyFrom.BEFORE:
        message = "copies do not go with key_from: before: of a key change no event tells the new row by itself"
        report.add(FindingCode.NO_ROW, message, at, "Copy a parent whose key is the record key.")
    elif events is not None and events.types is not None and not events.types.upserted:
        message = "types has no upserted, so no event holds a row that could be copied"
        report.add(FindingCode.NO_ROW, message, at, "Name the types whose payload is the whole row by upserted.")
    name = None if entity is None else entity.value
    items = list_of(report, "copies", node, "- store: orders_db and so on, one entry each")
    drafts = [read_copy(report, item, name, key) for item in items or ()]
    return tuple(draft for draft in drafts if draft is not None)


def _dependents(
    report: Report, node: Node | None, entity: Text | None, key: KeyDraft | None
) -> tuple[DependentDraft, ...]:
    name = None if entity is None else entity.value
    items = (
        None if node is None else list_of(report, "dependents", node, "- store: orders_db and so on, one entry each")
    )
    drafts = [read_dependent(report, item, name, key) for item in items or ()]
    return tuple(draft for draft in drafts if draft is not None)
