"""What can be wrong with a rule file: the stable codes, and the report that gathers the findings of one file.

Every code is in the table of docs/rules.md. A report keeps at most `FINDINGS_MAX` findings, so that a hostile file
cannot flood a terminal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Protocol

from integrity.errors import Finding

FINDINGS_MAX = 100
SOURCE_CHARACTERS_MAX = 200
SHOWN_CHARACTERS_MAX = 60

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


class FindingCode(StrEnum):
    """The stable code of a finding in a rule file."""

    # the files
    NO_RULES = "no_rules"
    UNREADABLE_FILE = "unreadable_file"
    TOO_MANY_FINDINGS = "too_many_findings"
    # YAML
    YAML_TOO_LARGE = "yaml_too_large"
    YAML_ENCODING = "yaml_encoding"
    YAML_CHARACTER = "yaml_character"
    YAML_TAB = "yaml_tab"
    YAML_SYNTAX = "yaml_syntax"
    YAML_TOO_DEEP = "yaml_too_deep"
    YAML_ALIAS = "yaml_alias"
    YAML_TAG = "yaml_tag"
    YAML_DIRECTIVE = "yaml_directive"
    YAML_DOCUMENTS = "yaml_documents"
    YAML_KEY = "yaml_key"
    YAML_DUPLICATE_KEY = "yaml_duplicate_key"
    AMBIGUOUS_SCALAR = "ambiguous_scalar"
    NUMBER_RANGE = "number_range"
    # shape
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    UNKNOWN_VALUE = "unknown_value"
    NOT_SUPPORTED_YET = "not_supported_yet"
    ONE_OF_FIELDS = "one_of_fields"
    EMPTY = "empty"
    REPEATED = "repeated"
    # names
    BAD_NAME = "bad_name"
    BAD_TARGET = "bad_target"
    BAD_COLUMN = "bad_column"
    BAD_TOPIC = "bad_topic"
    BAD_PATTERN = "bad_pattern"
    # meaning
    UNKNOWN_KEY_FIELD = "unknown_key_field"
    MISSING_KEY_FIELD = "missing_key_field"
    REPEATED_KEY_FIELD = "repeated_key_field"
    NOT_A_REFERENCE = "not_a_reference"
    REFERENCE_COLUMN = "reference_column"
    OVERLAPPING_FIELDS = "overlapping_fields"
    MIXED_REFERENCE = "mixed_reference"
    NULL_MARKER = "null_marker"
    BAD_CONDITION = "bad_condition"
    LITERAL_TYPE = "literal_type"
    IMMUTABLE_ID = "immutable_id"
    BAD_ARRAY = "bad_array"
    NOTHING_TO_UNDO = "nothing_to_undo"
    KEY_COLUMN = "key_column"
    KEY_CLASH = "key_clash"
    NEEDS_EVENTS = "needs_events"
    FORMAT_FIELD = "format_field"
    NO_ROW = "no_row"
    BAD_TENANT = "bad_tenant"
    # over all files
    DUPLICATE_PARENT = "duplicate_parent"
    DUPLICATE_TOPIC = "duplicate_topic"
    DUPLICATE_DEPENDENT = "duplicate_dependent"
    DUPLICATE_REFERENCE = "duplicate_reference"
    COPY_TARGET = "copy_target"
    CYCLE = "cycle"
    ENTITY_CLASH = "entity_clash"
    UNNAMED_ENTITY = "unnamed_entity"


class Located(Protocol):
    """Anything that stands somewhere in a file; line and column count from 1."""

    @property
    def line(self) -> int: ...

    @property
    def column(self) -> int: ...


class Report:
    """The findings of one file, each with its source line."""

    def __init__(self, file: str, text: str = "") -> None:
        self.file = file
        self.lines: Sequence[str] = _LINE_BREAK.split(text)
        self._findings: list[Finding] = []
        self._left_out = 0

    def add(self, code: FindingCode, message: str, at: Located, hint: str = "") -> None:
        """Takes a finding; the message must show foreign text through `shown` only."""
        if self.is_full:
            self._left_out += 1
            return
        self._findings.append(Finding(code, message, hint, self.file, at.line, at.column, source=self._source(at.line)))

    def add_file(self, code: FindingCode, message: str, hint: str = "") -> None:
        """Takes a finding that concerns the whole file."""
        self._findings.append(Finding(code, message, hint, self.file))

    @property
    def is_full(self) -> bool:
        """Whether further findings are counted only, so that a hint need not be looked for."""
        return len(self._findings) >= FINDINGS_MAX

    @property
    def is_clean(self) -> bool:
        return not self._findings

    def findings(self) -> tuple[Finding, ...]:
        """All findings, by line and column."""
        found = sorted(self._findings, key=lambda finding: (finding.line, finding.column))
        if self._left_out:
            message = f"{self._left_out} more faults are not listed"
            found.append(Finding(FindingCode.TOO_MANY_FINDINGS, message, "Mend the ones above first.", self.file))
        return tuple(found)

    def _source(self, line: int) -> str:
        if not 1 <= line <= len(self.lines) or len(self.lines[line - 1]) > SOURCE_CHARACTERS_MAX:
            return ""
        # One character for one, so that a caret under it keeps its place.
        return "".join(c if c.isprintable() else " " for c in self.lines[line - 1])


def shown(text: str, characters_max: int = SHOWN_CHARACTERS_MAX) -> str:
    """Foreign text for a message: quoted, cut, and without control characters."""
    return f'"{bare(text, characters_max)}"'


def bare(text: str, characters_max: int = SHOWN_CHARACTERS_MAX) -> str:
    """The same without the quotes."""
    cut = text if len(text) <= characters_max else text[: characters_max - 1] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def listed(values: Iterable[str], word: str = "or") -> str:
    """Own words in a row: `a, b or c`."""
    words = list(values)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word; may be empty."""
    near = difflib.get_close_matches(word[:SHOWN_CHARACTERS_MAX].lower(), list(known), n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The same, or all known words when there are few; may be empty."""
    choices = list(known)
    if hint := nearest(word, choices):
        return hint
    return f"Known: {', '.join(choices)}." if 0 < len(choices) <= 12 else ""
