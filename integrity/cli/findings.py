"""Findings as text with a caret, as JSON, as GitHub annotations and as SARIF 2.1.0. Pure: findings in, text out."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from integrity.errors import Finding

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_text(findings: Sequence[Finding]) -> str:
    """One paragraph a finding: place and message, the source line with a caret, the hint."""
    return "\n".join(_paragraph(finding) for finding in findings)


def as_json_values(findings: Sequence[Finding]) -> list[Mapping[str, object]]:
    return [
        {
            "code": str(finding.code),
            "severity": finding.severity,
            "message": finding.message,
            "hint": finding.hint,
            "file": finding.file,
            "line": finding.line,
            "column": finding.column,
        }
        for finding in findings
    ]


def as_github(findings: Sequence[Finding]) -> str:
    """Workflow commands of GitHub Actions: an annotation at each place."""
    return "\n".join(_annotation(finding) for finding in findings)


def as_sarif(findings: Sequence[Finding], version: str) -> str:
    """One SARIF run, also when there is no finding."""
    codes = sorted({str(finding.code) for finding in findings})
    driver = {"name": "integrity", "version": version, "rules": [{"id": code} for code in codes]}
    results = [_sarif_result(finding) for finding in findings]
    return json.dumps(
        {
            "$schema": _SARIF_SCHEMA,
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
        },
        indent=2,
        ensure_ascii=False,
    )


def _paragraph(finding: Finding) -> str:
    place = f"{finding.file}:{finding.line}:{finding.column}: " if finding.line else ""
    place = place or (f"{finding.file}: " if finding.file else "")
    lines = [f"{_printable(place)}{finding.message} [{finding.code}]"]
    if finding.source and finding.column:
        indent = len(finding.source) - len(finding.source.lstrip())
        before = finding.source[min(indent, finding.column - 1) : finding.column - 1]
        lines += [f"    {finding.source[min(indent, finding.column - 1) :]}", f"    {' ' * _width(before)}^"]
    if finding.hint:
        lines.append(f"    {finding.hint}")
    return "\n".join(lines)


def _width(text: str) -> int:
    """The columns of a terminal that a text takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _annotation(finding: Finding) -> str:
    properties = {"file": finding.file, "title": f"integrity {finding.code}"}
    if finding.line:
        properties |= {"line": str(finding.line), "col": str(finding.column)}
    written = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items() if value)
    text = f"{finding.message}\n{finding.hint}".strip()
    return f"::{finding.severity} {written}::{_escaped(text)}"


def _escaped(text: str, also: str = "") -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    for character in also:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _sarif_result(finding: Finding) -> Mapping[str, object]:
    location: dict[str, object] = {"artifactLocation": {"uri": quote(finding.file)}}
    if finding.line:
        location["region"] = {"startLine": finding.line, "startColumn": finding.column}
    return {
        "ruleId": str(finding.code),
        "level": finding.severity,
        "message": {"text": ". ".join(part for part in (finding.message, finding.hint) if part)},
        "locations": [{"physicalLocation": location}] if finding.file else [],
    }
