"""`integrity graph`: the reference graph of the rule files, without a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from integrity.cli.base import print_json
from integrity.core.rules.graph import as_dot, as_mermaid, as_text, graph_of
from integrity.rules_files import load_rules

FORMATS = ("text", "mermaid", "dot", "json")


@click.command("graph")
@click.argument("path", type=click.Path(path_type=Path), default="rules", envvar="INTEGRITY_RULES")
@click.option(
    "--format", "output", type=click.Choice(FORMATS), default="text", show_default=True, help="How to print the graph."
)
@click.option("--json", "is_json", is_flag=True, help="The same as --format json.")
def command(path: Path, output: str, is_json: bool) -> None:
    """Print the reference graph: parents, their dependents, and what depends on those.

    PATH is a rule file or a directory of them; by default INTEGRITY_RULES, else "rules". The way says how what happened
    to a parent reaches a dependent: by events of its own, in the transaction of the rows above, or by derived events.
    """
    graph = graph_of(load_rules(path))
    match "json" if is_json else output:
        case "text":
            click.echo(as_text(graph))
        case "mermaid":
            click.echo(as_mermaid(graph))
        case "dot":
            click.echo(as_dot(graph))
        case "json":
            print_json(asdict(graph))
        case _:
            raise AssertionError(f"an unknown format: {output}")
