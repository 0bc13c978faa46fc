"""`key`: the fields that name a parent, or the columns that name a row, each with its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from integrity.core.keys import KeyType
from integrity.core.rules import names
from integrity.core.rules.document import Node
from integrity.core.rules.findings import FindingCode, Report, did_you_mean, shown
from integrity.core.rules.vocabulary import KEY_TYPE_HABITS, KEY_TYPES
from integrity.core.rules.walk import mapping_of, text_of

KeyDraft = Mapping[str, KeyType | None]
"""Key fields in order; None for a type that could not be read."""


def read_key(
    report: Report, node: Node | None, what: str = "key field", fault_of: Callable[[str], str | None] | None = None
) -> KeyDraft | None:
    """The fields of `key`. `fault_of` tells what is wrong with a name of a column; without it they are key fields."""
    mapping = None if node is None else mapping_of(report, "key", node, "key: {id: int64}")
    if mapping is None:
        return None
    if len(mapping.entries) > names.KEY_FIELDS_MAX:
        report.add(FindingCode.WRONG_TYPE, f"key has more than {names.KEY_FIELDS_MAX} fields", mapping)
        return None
    found: dict[str, KeyType | None] = {}
    for name, value in mapping.entries:
        fault = (fault_of or names.key_field_fault)(name.text)
        if fault is not None:
            code = FindingCode.BAD_NAME if fault_of is None else FindingCode.BAD_COLUMN
            report.add(code, f"the {what} {shown(name.text)} {fault}", name)
        found[name.text] = _key_type(report, what, name.text, value)
    return found


def _key_type(report: Report, what: str, name: str, node: Node) -> KeyType | None:
    what = f"the type of the {what} {shown(name)}"
    text = text_of(report, what, node)
    if text is None:
        return None
    if text.value in KEY_TYPES:
        return KeyType(text.value)
    habit = KEY_TYPE_HABITS.get(text.value.lower())
    hint = f"Did you mean {habit}?" if habit is not None else did_you_mean(text.value, KEY_TYPES)
    report.add(FindingCode.UNKNOWN_VALUE, f"{what} is unknown: {shown(text.value)}", text, hint)
    return None
