"""Hardened YAML: one file's text to a tree of nodes with positions, and every fault on the way.

Accepts mappings with unique text keys, lists and the scalars of `core.rules.scalars`, and nothing else of YAML: no
anchor, alias, merge key, tag, directive or second document. It works on the parser's event stream with a limit on
depth, so neither an alias bomb nor deep nesting costs anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from integrity.core.rules.findings import FindingCode, Report, bare, shown
from integrity.core.rules.model import Literal
from integrity.core.rules.scalars import Ambiguous, OutOfRange, read_plain

BYTES_MAX = 1024 * 1024
DEPTH_MAX = 32

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What YAML 1.1 and 1.2 both call printable; the byte order mark has been taken off before.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_INDENTING_TAB = re.compile(r"^ *\t[ \t]*(?=[^\s#])", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a file; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar. `is_empty`: nothing was written, which YAML calls null."""

    value: Literal
    line: int
    column: int
    is_empty: bool = False


@dataclass(frozen=True, slots=True)
class ListNode:
    items: tuple[Node, ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class KeyNode:
    """A key of a mapping."""

    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping; its keys are text and unique."""

    entries: tuple[tuple[KeyNode, Node], ...]
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class BrokenNode:
    """What has been reported already: later checks pass over it."""

    line: int
    column: int


Node = ScalarNode | ListNode | MappingNode | BrokenNode


class _Unusable(Exception):
    """The rest of the file cannot be read; the reason has been reported."""


def read_document(data: bytes | str, file: str) -> tuple[Node | None, Report]:
    """The only document of a file. None when it cannot be read; then the report says why."""
    text, report = _decoded(data, file)
    if text is None:
        return None, report
    for tab in _INDENTING_TAB.finditer(text):
        spot = _spot(text, tab.start() + tab.group().index("\t"))
        report.add(FindingCode.YAML_TAB, "a tab in the indentation", spot, "Indent with spaces.")
    try:
        return _Reader(report, yaml.parse(text, Loader=_LOADER)).document(), report
    except _Unusable:
        return None, report
    except yaml.YAMLError as exc:
        if report.is_clean:
            _report_syntax(report, exc)
        return None, report


def _decoded(data: bytes | str, file: str) -> tuple[str | None, Report]:
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass"))
    if size > BYTES_MAX:
        report = Report(file)
        report.add_file(FindingCode.YAML_TOO_LARGE, f"more than {BYTES_MAX} bytes")
        return None, report
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as exc:
        before = exc.object[: exc.start].decode("utf-8")
        report = Report(file, exc.object.decode("utf-8", "replace"))
        report.add(FindingCode.YAML_ENCODING, "not UTF-8 text", _spot(before, len(before)), "Save the file as UTF-8.")
        return None, report
    text = text.removeprefix("\ufeff")
    report = Report(file, text)
    unprintable = _UNPRINTABLE.search(text)
    if unprintable is None:
        return text, report
    message = f"the character U+{ord(unprintable.group()):04X} is not allowed in YAML"
    report.add(FindingCode.YAML_CHARACTER, message, _spot(text, unprintable.start()))
    return None, report


def _spot(text: str, index: int) -> Spot:
    before = Report("", text[:index]).lines
    return Spot(len(before), len(before[-1]) + 1)


def _report_syntax(report: Report, exc: yaml.YAMLError) -> None:
    mark = exc.problem_mark if isinstance(exc, yaml.MarkedYAMLError) else None
    problem = exc.problem if isinstance(exc, yaml.MarkedYAMLError) else None
    context = exc.context if isinstance(exc, yaml.MarkedYAMLError) else None
    spot = Spot(1, 1) if mark is None else Spot(mark.line + 1, mark.column + 1)
    reason = ", ".join(part for part in (context, problem) if part) or "it cannot be parsed"
    # The parser quotes the file in its words: they pass the same gate as any foreign text.
    report.add(FindingCode.YAML_SYNTAX, f"not valid YAML: {bare(reason, 200)}", spot)


class _Reader:
    """Builds nodes from events."""

    def __init__(self, report: Report, events: Iterator[Event]) -> None:
        self._report = report
        self._events = events

    def document(self) -> Node | None:
        root: Node | None = None
        is_first = True
        for event in self._events:
            match event:
                case StreamStartEvent() | StreamEndEvent() | DocumentEndEvent():
                    continue
                case DocumentStartEvent() if not is_first:
                    hint = "Write one parent a file, without a line ---."
                    self._stop(FindingCode.YAML_DOCUMENTS, "a second document in one file", event, hint)
                case DocumentStartEvent():
                    is_first = False
                    if event.version or event.tags:
                        self._stop(FindingCode.YAML_DIRECTIVE, "YAML directives are not allowed", event)
                case _:
                    root = self._node(event, 1)
        if is_first:
            self._report.add(FindingCode.EMPTY, "the file is empty", Spot(1, 1))
        return root

    def _node(self, event: Event, depth: int) -> Node:
        spot = _start(event)
        if isinstance(event, AliasEvent):
            self._alias(f"the alias *{bare(event.anchor or '')}", spot)
            return BrokenNode(spot.line, spot.column)
        assert isinstance(event, NodeEvent), "between a document's start and end there are only nodes"
        if event.anchor is not None:
            self._alias(f"the anchor &{bare(event.anchor)}", spot)
        if isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent) and event.tag is not None:
            message = f"the tag {shown(event.tag)} is not allowed"
            self._report.add(FindingCode.YAML_TAG, message, spot, "Leave it out; quote text that looks like a number.")
        if depth > DEPTH_MAX:
            self._stop(FindingCode.YAML_TOO_DEEP, f"nested deeper than {DEPTH_MAX} levels", event)
        match event:
            case ScalarEvent():
                return self._scalar(event, spot)
            case SequenceStartEvent():
                return ListNode(tuple(self._items(depth)), spot.line, spot.column)
            case MappingStartEvent():
                return MappingNode(tuple(self._entries(depth)), spot.line, spot.column)
            case _:
                raise AssertionError(f"an unknown YAML event: {event!r}")

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self._events), SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[KeyNode, Node]]:
        first: dict[str, KeyNode] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            key = self._key(event, depth)
            value = self._node(next(self._events), depth + 1)
            if key is None:
                continue
            if key.text in first:
                message = f"the key {shown(key.text)} is there twice; the first is on line {first[key.text].line}"
                self._report.add(FindingCode.YAML_DUPLICATE_KEY, message, key)
                continue
            first[key.text] = key
            yield key, value

    def _key(self, event: Event, depth: int) -> KeyNode | None:
        spot = _start(event)
        if not isinstance(event, ScalarEvent):
            if isinstance(self._node(event, depth + 1), ListNode | MappingNode):
                self._report.add(FindingCode.YAML_KEY, "a list or mapping cannot be a key", spot)
            return None
        if event.value == "<<" and not event.style:
            self._alias("the merge key <<", spot)
            return None
        if event.anchor is not None or event.tag is not None:
            self._node(event, depth + 1)
            return None
        value = event.value if event.style else read_plain(event.value)
        match value:
            case str():
                pass
            case Ambiguous():
                message = f"the key {shown(event.value)} {value.reading}: quote it"
                self._report.add(FindingCode.AMBIGUOUS_SCALAR, message, spot, f'Write "{bare(event.value)}".')
            case _:
                message = f"a key must be text, and {shown(event.value)} is not: quote it"
                self._report.add(FindingCode.YAML_KEY, message, spot)
        # An unquoted key is taken for the text it shows, so that its value is checked as well.
        return KeyNode(event.value, spot.line, spot.column)

    def _scalar(self, event: ScalarEvent, spot: Spot) -> Node:
        if event.style:
            return ScalarNode(event.value, spot.line, spot.column)
        value = read_plain(event.value)
        match value:
            case Ambiguous():
                message = f"{shown(event.value)} {value.reading}: quote it"
                hint = f'Write "{bare(event.value)}" if it is text.'
                self._report.add(FindingCode.AMBIGUOUS_SCALAR, message, spot, hint)
                return BrokenNode(spot.line, spot.column)
            case OutOfRange():
                message = f"the number {shown(event.value)} {value.reading}"
                self._report.add(FindingCode.NUMBER_RANGE, message, spot, "Quote it if it is text.")
                return BrokenNode(spot.line, spot.column)
            case _:
                return ScalarNode(value, spot.line, spot.column, is_empty=event.value == "")

    def _alias(self, what: str, spot: Spot) -> None:
        message = f"{what}: anchors, aliases and merge keys are not allowed"
        self._report.add(FindingCode.YAML_ALIAS, message, spot, "Write the value out where it is used.")

    def _stop(self, code: FindingCode, message: str, event: Event, hint: str = "") -> None:
        self._report.add(code, message, _start(event), hint)
        raise _Unusable


def _start(event: Event) -> Spot:
    assert event.start_mark is not None, "a parsed event has a mark"
    return Spot(event.start_mark.line + 1, event.start_mark.column + 1)
