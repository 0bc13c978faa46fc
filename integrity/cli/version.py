"""`integrity version`: which version this is."""

from __future__ import annotations

import platform

import click

import integrity
from integrity.cli.base import print_json


@click.command("version")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON document.")
def command(is_json: bool) -> None:
    """Print the version."""
    if is_json:
        print_json({"version": integrity.__version__, "python": platform.python_version()})
    else:
        click.echo(f"integrity {integrity.__version__} (Python {platform.python_version()})")
