"""Rule files on disk: reads them, within limits, and hands them to the parser."""

from __future__ import annotations

from pathlib import Path

from integrity.core.rules.document import BYTES_MAX
from integrity.core.rules.findings import FindingCode
from integrity.core.rules.model import RuleSet
from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding, RulesError

SUFFIXES = (".yaml", ".yml")


def load_rules(path: Path) -> RuleSet:
    """The rules of a file, or of all *.yaml and *.yml files of a directory, by name.

    Raises `RulesError` with every finding: also for a path that does not exist, holds no rule file or cannot be read.
    """
    files, findings = read_rule_files(path)
    try:
        rules = parse_rules(files) if files or not findings else None
    except RulesError as exc:
        findings += exc.findings
        rules = None
    if findings or rules is None:
        raise RulesError(sorted(findings, key=lambda finding: finding.file))
    return rules


def read_rule_files(path: Path) -> tuple[dict[str, bytes], list[Finding]]:
    """Path -> content of each rule file, at most one byte more than allowed; and what could not be read."""
    found: dict[str, bytes] = {}
    findings: list[Finding] = []
    try:
        is_directory = path.is_dir()
        files = _inside(path) if is_directory else [path]
    except OSError as exc:
        return {}, [_unreadable(path, exc)]
    if is_directory and not files:
        hint = "Rule files end in .yaml or .yml."
        return {}, [Finding(FindingCode.NO_RULES, "the directory holds no rule file", hint, str(path))]
    for file in files:
        try:
            with file.open("rb") as stream:
                found[str(file)] = stream.read(BYTES_MAX + 1)
        except OSError as exc:
            findings.append(_unreadable(file, exc))
    return found, findings


def _inside(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.suffix in SUFFIXES and not entry.name.startswith("."))


def _unreadable(file: Path, exc: OSError) -> Finding:
    hint = "Name a rule file or a directory of rule files." if isinstance(exc, FileNotFoundError) else ""
    reason = (exc.strerror or type(exc).__name__).lower()
    return Finding(FindingCode.UNREADABLE_FILE, f"cannot be read: {reason}", hint, str(file))
