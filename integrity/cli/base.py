"""What commands share: the options of the whole program, settings and logging, and running a coroutine.

Importing this costs nothing but click: what is heavy is imported when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    import asyncio

    from integrity.settings import Settings

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Options:
    """What was said on the command line for the whole program; a command gets it by `@click.pass_obj`."""

    config: Path | None = None
    secrets_dir: Path | None = None
    rules: Path | None = None
    verbose: bool = False
    quiet: bool = False
    debug: bool = False


def tenant_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--tenant`, of the commands that open stores."""
    help_ = "Whose databases, where a store's URL holds {tenant}."
    return click.option("--tenant", metavar="T", help=help_)(command)


def start(options: Options, tenant: str | None = None) -> Settings:
    """Read the settings and begin to log. Warnings about the settings go to standard error. With a tenant, stores of
    tenants are its databases.

    Raises SettingsError with every fault at once, UsageError for a tenant that there is no database of.
    """
    from integrity.cli.findings import as_text
    from integrity.logs import setup_logging
    from integrity.settings import read_settings

    loaded = read_settings(options.config, options.secrets_dir, rules=options.rules)
    if loaded.warnings and not options.quiet:
        click.echo("\n".join(f"warning: {as_text([finding])}" for finding in loaded.warnings), err=True)
    setup_logging(loaded.settings.log, verbose=options.verbose, quiet=options.quiet)
    return loaded.settings if tenant is None else loaded.settings.of_tenant(tenant)


def run_async(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run to the end on uvloop where it is installed. SIGINT cancels the coroutine and raises KeyboardInterrupt."""
    import asyncio

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(coroutine)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def print_json(value: Mapping[str, object]) -> None:
    """One document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def since_of(text: str) -> datetime:
    """What --since says, in UTC: a time, or how long ago. Raises UsageError."""
    from integrity.settings import duration_s

    at: datetime
    try:
        seconds = duration_s(text)
        at = datetime.now(UTC) - timedelta(seconds=float(seconds))  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        try:
            at = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            raise click.UsageError(f"--since {text}: neither a time (2026-03-01T12:00:00Z) nor 2h, 30m, 1d.") from None
        if at.tzinfo is None:
            raise click.UsageError(f"--since {text}: the time needs a zone, such as Z.") from None
    return at.astimezone(UTC)
