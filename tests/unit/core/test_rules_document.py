"""Hardened YAML: what is read, what is refused, where the finding stands, and that hostile files cost nothing."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.core.rules.document import BYTES_MAX, ListNode, MappingNode, ScalarNode, read_document
from integrity.core.rules.findings import FINDINGS_MAX, FindingCode
from integrity.core.rules.model import Literal


def _findings(text: bytes | str) -> list[tuple[str, int, int]]:
    _, report = read_document(text, "rules.yaml")
    return [(finding.code, finding.line, finding.column) for finding in report.findings()]


def _value(text: str) -> Literal:
    node, report = read_document(f"key: {text}\n", "rules.yaml")
    assert report.findings() == ()
    assert isinstance(node, MappingNode)
    [(_, value)] = node.entries
    assert isinstance(value, ScalarNode)
    return value.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("9223372036854775807", 2**63 - 1),
        ("1.50", 1.5),
        ("-0.25", -0.25),
        ("orders", "orders"),
        ("customer deleted", "customer deleted"),
        ("$event.time", "$event.time"),
        ("30d", "30d"),
        ("1.2.3", "1.2.3"),
        ("2024-01", "2024-01"),
        ("a:b", "a:b"),
        ("'yes'", "yes"),
        ('"012"', "012"),
        ("'null'", "null"),
    ],
)
def test_scalar_that_all_yaml_versions_read_alike_is_read(text: str, value: Literal) -> None:
    read = _value(text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        "y",
        "N",
        "yes",
        "No",
        "on",
        "OFF",
        "True",
        "TRUE",
        "False",
        "~",
        "Null",
        "NULL",
        "012",
        "08",
        "0o12",
        "0b1",
        "0x1F",
        "1_000",
        "+5",
        "-0",
        "1e3",
        "1.5e3",
        "1.",
        ".5",
        "-.5",
        ".inf",
        "-.Inf",
        ".nan",
        "12:30",
        "12:30:45",
        "190:20:30.15",
        "2024-01-01",
        "2024-1-1",
        "2024-01-01T10:00:00Z",
        "=",
    ],
)
def test_scalar_that_yaml_versions_read_differently_is_refused(text: str) -> None:
    assert _findings(f"key: {text}\n") == [(FindingCode.AMBIGUOUS_SCALAR, 1, 6)]
    assert _value(f'"{text}"') == text


@pytest.mark.parametrize("text", ["9223372036854775808", "9" * 6000, "0.1234567890123456", "1." + "0" * 5000])
def test_number_that_would_lose_digits_is_refused(text: str) -> None:
    assert _findings(f"key: {text}\n") == [(FindingCode.NUMBER_RANGE, 1, 6)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [("empty", 1, 1)]),
        ("# nothing\n", [("empty", 1, 1)]),
        ("a: 1\nb: 2\na: 3\n", [("yaml_duplicate_key", 3, 1)]),
        ("x: {a: 1, a: 2}\n", [("yaml_duplicate_key", 1, 11)]),
        ("on: delete\n", [("ambiguous_scalar", 1, 1)]),
        ("1: a\n", [("yaml_key", 1, 1)]),
        ("null: a\n", [("yaml_key", 1, 1)]),
        ("true: a\n", [("yaml_key", 1, 1)]),
        ("? [a]\n: b\n", [("yaml_key", 1, 3)]),
        ("? {a: b}\n: b\n", [("yaml_key", 1, 3)]),
        ("a: &x 1\nb: *x\n", [("yaml_alias", 1, 4), ("yaml_alias", 2, 4)]),
        ("&x a: 1\n*x : 2\n", [("yaml_alias", 1, 1), ("yaml_alias", 2, 1)]),
        ("a: &x [*x]\n", [("yaml_alias", 1, 4), ("yaml_alias", 1, 8)]),
        ("<<: {a: 1}\n", [("yaml_alias", 1, 1)]),
        ("a: !!python/object/apply:os.system [ls]\n", [("yaml_tag", 1, 4)]),
        ("a: !!str 5\n", [("yaml_tag", 1, 4)]),
        ("!local a: 5\n", [("yaml_tag", 1, 1)]),
        ("a: 1\n---\nb: 2\n", [("yaml_documents", 2, 1)]),
        ("%YAML 1.1\n---\na: 1\n", [("yaml_directive", 1, 1)]),
        ("a:\n\tb: 1\n", [("yaml_tab", 2, 1)]),
        ("a:\n  \tb: 1\n", [("yaml_tab", 2, 3)]),
        ("a: b: c\n", [("yaml_syntax", 1, 5)]),
        ("a: [1, 2\n", [("yaml_syntax", 2, 1)]),
        ("a: 1\nb: \x1b[31m\n", [("yaml_character", 2, 4)]),
        ("a: '\ud800'\n", [("yaml_character", 1, 5)]),
        (b"a: 1\nb: \xff\n", [("yaml_encoding", 2, 4)]),
    ],
)
def test_yaml_beyond_the_plain_is_refused_where_it_stands(text: bytes | str, found: list[tuple[str, int, int]]) -> None:
    assert _findings(text) == found


def test_all_faults_of_a_file_are_found_at_once() -> None:
    text = "a: yes\nb: *x\na: 1\nc: !t 1\nd: 12:30\n"
    assert [line for _, line, _ in _findings(text)] == [1, 2, 3, 4, 5]


def test_byte_order_mark_and_explicit_document_start_are_accepted() -> None:
    node, report = read_document(b"\xef\xbb\xbf---\na: [1, x]\n...\n", "rules.yaml")
    assert report.findings() == ()
    assert isinstance(node, MappingNode)
    assert isinstance(node.entries[0][1], ListNode)


def test_finding_carries_its_source_line() -> None:
    _, report = read_document("a: 1\r\nb: {c: no}\r\n", "rules.yaml")
    [finding] = report.findings()
    assert (finding.source, finding.source[finding.column - 1 :]) == ("b: {c: no}", "no}")


def test_finding_shows_no_control_character_of_the_file() -> None:
    _, report = read_document("a: \x1b]0;title\x07\n", "rules.yaml")
    [finding] = report.findings()
    assert all(character.isprintable() for character in f"{finding.message}{finding.source}")


def test_findings_of_one_file_are_capped() -> None:
    _, report = read_document("".join(f"k{n}: yes\n" for n in range(FINDINGS_MAX + 5)), "rules.yaml")
    findings = report.findings()
    assert len(findings) == FINDINGS_MAX + 1
    assert findings[-1].code == FindingCode.TOO_MANY_FINDINGS
    assert findings[-1].message.startswith("5 more")


_BOMB = "a0: &a0 [x,x,x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1},*a{n - 1}]\n" for n in range(1, 90))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 5000, FindingCode.YAML_TOO_DEEP),
        ("a: " + "[" * 5000 + "]" * 5000, FindingCode.YAML_TOO_DEEP),
        ("{a: " * 5000, FindingCode.YAML_TOO_DEEP),
        ("- " * 5000, FindingCode.YAML_TOO_DEEP),
        ("? " * 5000, FindingCode.YAML_TOO_DEEP),
        ("[" * BYTES_MAX, FindingCode.YAML_TOO_DEEP),
        (_BOMB, FindingCode.YAML_ALIAS),
        ("a" * BYTES_MAX, None),
        ("a" * (BYTES_MAX + 1), FindingCode.YAML_TOO_LARGE),
        ("ä" * (BYTES_MAX // 2 + 1), FindingCode.YAML_TOO_LARGE),
        ("a: 1\n" * (BYTES_MAX // 5), FindingCode.YAML_DUPLICATE_KEY),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "valid",
)
def test_hostile_file_ends_quickly(text: str, code: FindingCode | None) -> None:
    start = time.process_time()
    found = _findings(text)
    # Far above what it takes, far below what an exponential or quadratic reader would.
    assert time.process_time() - start < 20
    assert (found[0][0] if found else None) == code


@given(st.text())
def test_random_text_never_breaks_the_reader(text: str) -> None:
    node, report = read_document(text, "rules.yaml")
    assert node is not None or not report.is_clean


@given(st.binary())
def test_random_bytes_never_break_the_reader(data: bytes) -> None:
    node, report = read_document(data, "rules.yaml")
    assert node is not None or not report.is_clean
