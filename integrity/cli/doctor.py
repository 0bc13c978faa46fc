"""`integrity doctor`: the rules against the live world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

import integrity
from integrity.cli.base import Options, print_json, run_async, start, tenant_option
from integrity.cli.findings import as_github, as_json_values, as_sarif, as_text
from integrity.cli.validate import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from integrity.errors import Finding, OperationError
    from integrity.service.doctor import Examination

EXIT_FOUND = 1
EXIT_SILENT = 3


@click.command("doctor")
@click.option("--store", "stores", multiple=True, metavar="S", help="Only this store; may be repeated.")
@click.option(
    "--format",
    "output",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="How to print what was found.",
)
@click.option("--json", "is_json", is_flag=True, help="The same as --format json.")
@tenant_option
@click.pass_obj
def command(options: Options, tenant: str | None, stores: tuple[str, ...], output: str, is_json: bool) -> int:
    """Look at stores and topics: do the rules fit them? Changes nothing.

    Each finding says where, what, and how to mend it. An error keeps a rule from being enforced, or loses events; a
    warning costs something in a case that may come. Exit 0: no errors; 1: errors; 2: wrong usage, settings or rules;
    3: a store or Kafka did not answer (it is named, the rest is shown).
    """
    return run_async(_doctor(options, tenant, stores, "json" if is_json else output))


async def _doctor(options: Options, tenant: str | None, stores: tuple[str, ...], output: str) -> int:
    settings = start(options, tenant)
    from integrity.rules_files import load_rules
    from integrity.wiring.doctor import examined

    found = await examined(settings, load_rules(settings.rules), stores)
    findings = with_sources(found.findings)
    _print(findings, found, output)
    for name, why in found.silent.items():
        click.echo(f"{name} did not answer: {why}", err=True)
    if found.silent:
        return EXIT_SILENT
    return EXIT_FOUND if any(finding.severity == "error" for finding in findings) else 0


def with_sources(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with the lines of the files that they are about, where these can be read."""
    lines: dict[str, list[str]] = {}
    done: list[Finding] = []
    for finding in findings:
        if finding.file and finding.file not in lines:
            try:
                lines[finding.file] = Path(finding.file).read_text(encoding="utf-8").splitlines()
            except (OSError, ValueError):
                lines[finding.file] = []
        of_file = lines.get(finding.file, [])
        source = of_file[finding.line - 1] if 1 <= finding.line <= len(of_file) else ""
        done.append(replace(finding, source="".join(c if c.isprintable() else " " for c in source[:SOURCE_MAX])))
    return done


SOURCE_MAX = 200


def _print(findings: Sequence[Finding], found: Examination, output: str) -> None:
    errors = sum(finding.severity == "error" for finding in findings)
    match output:
        case "text":
            for finding in findings:
                click.echo(f"{finding.severity}: {as_text([finding])}")
            click.echo(_sentence(errors, len(findings) - errors, found.silent))
        case "json":
            document = {
                "ok": not errors and not found.silent,
                "findings": as_json_values(findings),
                "unanswered": [
                    {"name": name, "message": why.message, "hint": why.hint} for name, why in found.silent.items()
                ],
            }
            print_json(document)
        case "github":
            if findings:
                click.echo(as_github(findings))
        case "sarif":
            click.echo(as_sarif(findings, integrity.__version__))
        case _:
            raise AssertionError(f"an unknown format: {output}")


def _sentence(errors: int, warnings: int, silent: Mapping[str, OperationError]) -> str:
    if not errors and not warnings:
        return "Nothing was found in what answered." if silent else "Everything fits."
    return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
