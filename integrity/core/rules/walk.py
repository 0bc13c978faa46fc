"""Reading a node tree: typed access to fields, and a finding for everything that is not as it must be.

A function that returns None has reported why, or the node was reported when the document was read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from integrity.core.rules.document import BrokenNode, KeyNode, ListNode, MappingNode, Node, ScalarNode
from integrity.core.rules.findings import FindingCode, Located, Report, bare, did_you_mean, listed, nearest, shown
from integrity.core.rules.model import Literal


@dataclass(frozen=True, slots=True)
class Text:
    """A text value and where it stands."""

    value: str
    line: int
    column: int


Fields = Mapping[str, tuple[KeyNode, Node]]
"""The known fields of a mapping: name -> its key and its value."""


def described(node: Node) -> str:
    """What a node is, in words."""
    match node:
        case MappingNode():
            return "a mapping"
        case ListNode():
            return "a list"
        case BrokenNode():
            return "broken"
        case ScalarNode(is_empty=True):
            return "nothing"
        case ScalarNode(value=None):
            return "null"
        case ScalarNode(value=bool() as value):
            return str(value).lower()
        case ScalarNode(value=str() as value):
            return f"the text {shown(value)}"
        case ScalarNode(value=value):
            return f"the number {value}"


def wrong_type(report: Report, what: str, expected: str, node: Node, hint: str = "") -> None:
    """Reports a value of the wrong type, once."""
    if not isinstance(node, BrokenNode):
        report.add(FindingCode.WRONG_TYPE, f"{what} must be {expected}, not {described(node)}", node, hint)


def text_of(report: Report, what: str, node: Node, hint: str = "") -> Text | None:
    """Text that is not empty. `hint` mends what is no single value."""
    if isinstance(node, ScalarNode) and isinstance(node.value, str):
        if node.value:
            return Text(node.value, node.line, node.column)
        report.add(FindingCode.EMPTY, f"{what} is empty", node, "Write a text.")
        return None
    if isinstance(node, ScalarNode) and not node.is_empty:
        hint = "Quote it if it is text."
    wrong_type(report, what, "text", node, hint or "Write one text.")
    return None


def literal_of(report: Report, what: str, node: Node) -> ScalarNode | None:
    """A scalar that somebody wrote: null has to be said."""
    if not isinstance(node, ScalarNode):
        wrong_type(report, what, "a single value", node)
        return None
    if node.is_empty:
        report.add(FindingCode.WRONG_TYPE, f"{what} has no value", node, "Write null for a null.")
        return None
    return node


def flag_of(report: Report, what: str, node: Node) -> bool | None:
    """true or false."""
    if isinstance(node, ScalarNode) and isinstance(node.value, bool):
        return node.value
    wrong_type(report, what, "true or false", node)
    return None


def choice_of(
    report: Report, what: str, node: Node, choices: Collection[str], later: Collection[str] = (), hint: str = ""
) -> str | None:
    """One word of a list; words that a later version knows are refused as such. `hint` is for words that are near to
    none."""
    text = text_of(report, what, node)
    return None if text is None else checked_choice(report, what, text, choices, later, hint)


def checked_choice(
    report: Report, what: str, text: Text, choices: Collection[str], later: Collection[str] = (), hint: str = ""
) -> str | None:
    """The same for a text that has been read."""
    if text.value in choices:
        return text.value
    if text.value in later:
        not_supported(report, f"{what}: {text.value}", text, f"This version takes {listed(choices)}.")
        return None
    hint = nearest(text.value, choices) or hint
    report.add(FindingCode.UNKNOWN_VALUE, f"{what} must be {listed(choices)}, not {shown(text.value)}", text, hint)
    return None


def not_supported(report: Report, what: str, at: Located, hint: str = "") -> None:
    report.add(FindingCode.NOT_SUPPORTED_YET, f"{what} is not supported yet", at, hint)


def list_of(report: Report, what: str, node: Node, example: str) -> tuple[Node, ...] | None:
    """A list that is not empty."""
    if not isinstance(node, ListNode):
        wrong_type(report, what, "a list", node, f"Write {example}.")
        return None
    if not node.items:
        report.add(FindingCode.EMPTY, f"{what} is an empty list", node, f"Write {example}.")
        return None
    return node.items


def mapping_of(report: Report, what: str, node: Node, example: str) -> MappingNode | None:
    """A mapping that is not empty."""
    if not isinstance(node, MappingNode):
        wrong_type(report, what, "a mapping", node, f"Write {example}.")
        return None
    if not node.entries:
        report.add(FindingCode.EMPTY, f"{what} is empty", node, f"Write {example}.")
        return None
    return node


def fields_of(
    report: Report, what: str, node: MappingNode, known: Collection[str], later: Iterable[str] = ()
) -> Fields:
    """The known fields of a mapping; all others are reported."""
    later = frozenset(later)
    found: dict[str, tuple[KeyNode, Node]] = {}
    for key, value in node.entries:
        if key.text in known:
            found[key.text] = (key, value)
        elif key.text in later:
            not_supported(report, f"{bare(key.text)} of {what}", key)
        else:
            hint = "" if report.is_full else did_you_mean(key.text, known)
            report.add(FindingCode.UNKNOWN_FIELD, f"unknown field {shown(key.text)} of {what}", key, hint)
    return found


def required(report: Report, what: str, fields: Fields, name: str, at: Located, hint: str = "") -> Node | None:
    """The value of a field that has to be there."""
    if name in fields:
        return fields[name][1]
    report.add(FindingCode.MISSING_FIELD, f"{what} has no {name}", at, hint)
    return None


def kind_of(value: Literal) -> str:
    """The type of a literal, for lists of one type."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "text"
