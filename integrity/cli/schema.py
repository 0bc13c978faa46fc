"""`integrity schema`: the JSON Schema of rule files, for editors."""

from __future__ import annotations

import json

import click

from integrity.core.rules.schema import rules_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema (draft-07) of a rule file.

    Save it and let a rule file begin with "# yaml-language-server: $schema=./schema.json": the editor then completes
    and checks it.
    """
    click.echo(json.dumps(rules_schema(), indent=2))
