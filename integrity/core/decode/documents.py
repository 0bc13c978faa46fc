"""MongoDB documents as rows: what a copy takes of one, and what a condition sees, whichever way it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from integrity.core.change import Cell, Row
from integrity.core.condition import Condition, ConditionFault
from integrity.core.decode.extended_json import cell_of, plain_of
from integrity.core.decode.json import JsonFault, parse
from integrity.core.decode.record import Limits, Record, Refused
from integrity.core.decode.row import texts
from integrity.core.decode.schema import Hints
from integrity.core.keys import KeyRefused
from integrity.errors import Reason

_MISSING = Cell(None)


def document_of(found: object, limits: Limits, *, or_none: bool = False) -> Mapping[str, object] | None:
    """A document that stands there as it is, or as JSON text; None: there is none. `or_none`: nor is it refused.

    JsonFault when it is text and no JSON, Refused when it is anything else.
    """
    try:
        if type(found) is str:
            found = parse(found.encode("utf-8", "surrogatepass"), limits)
    except JsonFault:
        if or_none:
            return None
        raise
    if type(found) is dict:
        return found
    if found is not None and not or_none:
        raise Refused(Reason.BAD_ENVELOPE, "The document in the record value is no object.", "value")
    return None


def document_row(document: Mapping[str, object], wanted: Iterable[str]) -> Row:
    """The fields of a document, which is Extended JSON, that a copy wants. One that it does not have is null. One whose
    value has no exact form is none of the row's: a copy refuses the event, and nobody else does."""
    row: dict[str, Cell | None] = {}
    for name in wanted:
        with suppress(KeyRefused):
            row[name] = cell_of(document[name]) if name in document else _MISSING
    return row


def schema_row(document: Mapping[str, object], wanted: Iterable[str], hints: Hints) -> Row:
    """The same where a Connect schema says what each field is, and lists and documents have become text in part."""
    return {
        name: Cell(document.get(name), hints.get(name))
        for name in wanted
        if type(document.get(name)) not in (dict, list)
    }


def is_deleted(
    condition: Condition,
    record: Record,
    op: str,
    after: Mapping[str, object],
    before: Mapping[str, object] | None,
    source: object,
) -> bool:
    """Whether a document counts as deleted by the rule's `deleted_when`. Refused when it gives no answer."""
    values: dict[str, object] = {"after": _plain(after), "op": op}
    if "before" in condition.names:
        values["before"] = None if before is None else _plain(before)
    if "source" in condition.names:
        values["source"] = _plain(source) if isinstance(source, Mapping) else {}
    if "headers" in condition.names:
        values["headers"] = texts(record.headers)
    try:
        return condition.holds(values)
    except ConditionFault as fault:
        message = f"The condition deleted_when has no answer: {fault.message}."
        raise Refused(Reason.BAD_ENVELOPE, message, "value") from None


def _plain(document: Mapping[str, object]) -> dict[str, object]:
    return {name: plain_of(value) for name, value in document.items()}
