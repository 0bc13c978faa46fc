"""`integrity validate`: checks rule files alone, without a network."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

import integrity
from integrity.cli.findings import as_github, as_json_values, as_sarif, as_text
from integrity.core.rules.model import RuleSet
from integrity.errors import Finding, RulesError
from integrity.rules_files import load_rules

FORMATS = ("text", "json", "github", "sarif")


@click.command("validate")
@click.argument("path", type=click.Path(path_type=Path), default="rules", envvar="INTEGRITY_RULES")
@click.option(
    "--format",
    "output",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How to print what was found.",
)
@click.option("--json", "is_json", is_flag=True, help="The same as --format json.")
def command(path: Path, output: str, is_json: bool) -> None:
    """Check rule files without a network.

    PATH is a rule file or a directory of them; by default INTEGRITY_RULES, else "rules". Every fault is named with its
    file, line and column. Exit 0: all is well; 2: there are faults.
    """
    output = "json" if is_json else output
    try:
        rules = load_rules(path)
    except RulesError as exc:
        _print_findings(exc.findings, output)
        click.echo(_sentence(exc.findings), err=True)
        sys.exit(exc.exit_code)
    _print_success(rules, output)


def _print_findings(findings: Sequence[Finding], output: str) -> None:
    match output:
        case "text":
            click.echo(as_text(findings))
        case "json":
            error = {"code": RulesError.code, "message": _sentence(findings), "hint": "See findings."}
            _print_json({"ok": False, "error": error, "findings": as_json_values(findings)})
        case "github":
            click.echo(as_github(findings))
        case "sarif":
            click.echo(as_sarif(findings, integrity.__version__))
        case _:
            raise AssertionError(f"an unknown format: {output}")


def _print_success(rules: RuleSet, output: str) -> None:
    parents = len(rules.parents)
    dependents = sum(len(parent.dependents) for parent in rules.parents)
    copies = sum(len(parent.copies) for parent in rules.parents)
    match output:
        case "json":
            counts = {"files": parents, "parents": parents, "dependents": dependents, "copies": copies}
            _print_json({"ok": True, "findings": [], **counts, "rules": rules.hash})
        case "sarif":
            click.echo(as_sarif((), integrity.__version__))
        case _:
            counted = [_count(parents, "file"), _count(parents, "parent"), _count(dependents, "dependent")]
            if copies == 1:
                counted.append("1 copy")
            elif copies:
                counted.append(f"{copies} copies")
            click.echo(f"The rules are valid: {', '.join(counted)}, hash {rules.hash}.")


def _sentence(findings: Sequence[Finding]) -> str:
    files = len({finding.file for finding in findings if finding.file})
    where = f" in {_count(files, 'file')}" if files else ""
    return f"The rules have {_count(len(findings), 'fault')}{where}: mend them, nothing starts before."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_json(value: Mapping[str, object]) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
