"""The program `integrity`: finds the command, runs it, and turns whatever goes wrong into one sentence and an exit
code (contract 4): 0 fine, 1 something was found, 2 wrong usage, settings or rules, 3 a fault while running.

`--help` and `version` import neither a driver nor the rules, so that they answer at once.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from integrity.cli.base import Options
from integrity.errors import Finding, IntegrityError, UsageError

EXIT_USAGE: Final = 2
EXIT_FAULT: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


class Entry(NamedTuple):
    """A command: the module that holds it as `command`, its line in the help, and whether it reads settings."""

    module: str
    help: str
    reads_settings: bool = False


COMMANDS: Final[Mapping[str, Entry]] = {
    "run": Entry(
        "integrity.cli.run",
        "Enforce the rules: read what happened to parents, and make every dependent store follow.",
        reads_settings=True,
    ),
    "validate": Entry("integrity.cli.validate", "Check rule files without a network."),
    "migrate": Entry(
        "integrity.cli.migrate",
        "Create or upgrade the ledger in every store that the rules use.",
        reads_settings=True,
    ),
    "init": Entry(
        "integrity.cli.init",
        "Look at a topic, and print the events block of a rule file that fits it.",
        reads_settings=True,
    ),
    "doctor": Entry(
        "integrity.cli.doctor",
        "Look at stores and topics: do the rules fit them? Changes nothing.",
        reads_settings=True,
    ),
    "dlq": Entry(
        "integrity.cli.dlq",
        "List dead letters, send them back, or give them up.",
        reads_settings=True,
    ),
    "undo": Entry(
        "integrity.cli.undo",
        "Put back what an event changed, where the rules keep what rows were.",
        reads_settings=True,
    ),
    "plan": Entry(
        "integrity.cli.plan",
        "Show what a deletion or key change would do to the dependents in all stores, and change nothing.",
        reads_settings=True,
    ),
    "history": Entry(
        "integrity.cli.history",
        "Show everything that the ledgers of all stores know of a key.",
        reads_settings=True,
    ),
    "why": Entry(
        "integrity.cli.why",
        "Tell why a row is gone or changed, by the value that its reference had.",
        reads_settings=True,
    ),
    "scan": Entry(
        "integrity.cli.scan",
        "Find orphans: rows whose parent is not there.",
        reads_settings=True,
    ),
    "graph": Entry(
        "integrity.cli.graph", "Print the reference graph: parents, their dependents, and what depends on those."
    ),
    "schema": Entry("integrity.cli.schema", "Print the JSON Schema (draft-07) of a rule file."),
    "demo": Entry("integrity.cli.demo", "Show a small shop on embedded servers, end to end."),
    "version": Entry("integrity.cli.version", "Print the version."),
}

_LATER: Final = frozenset(
    (
        *("grants", "status", "pause", "resume"),
        *("diff", "config", "explain", "bundle", "completion", "top"),
    )
)
"""Commands of a later version."""


class _Shell(click.Group):
    """Loads a command when it is called; the help needs none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry.module).command
        return _with_settings(command) if entry.reads_settings else command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _LATER:
            raise click.UsageError(f"The command {name} is not in this version.", ctx)
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"There is no command {name}.{hint}", ctx)
        if name in COMMANDS and not COMMANDS[name].reads_settings:
            for option in _settings_options():
                if ctx.params.get(option.name or ""):
                    raise click.UsageError(f"{option.opts[0]} has no effect on {name}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _settings_options() -> Iterator[click.Option]:
    path = click.Path(path_type=Path)
    yield click.Option(
        ["--config"], type=path, metavar="FILE", help="A YAML file of settings; environment and .env win."
    )
    yield click.Option(
        ["--secrets-dir"], type=path, metavar="DIR", help="A directory of files, each named like a setting."
    )
    yield click.Option(["--rules"], type=path, metavar="PATH", help="Rule file or directory, over INTEGRITY_RULES.")
    yield click.Option(["--verbose", "-v"], is_flag=True, help="Log more (level DEBUG).")
    yield click.Option(["--quiet", "-q"], is_flag=True, help="Log errors only.")


def _with_settings(command: click.Command) -> click.Command:
    """The command, and every command below it, with the options of the settings."""
    command = copy.copy(command)
    if isinstance(command, click.Group):
        command.commands = {name: _with_settings(below) for name, below in command.commands.items()}
    else:
        command.params = [*command.params, *(_after_command(option) for option in _settings_options())]
    return command


def _after_command(option: click.Option) -> click.Option:
    """The same option where people write it as well: behind the command."""

    def override(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            ctx.obj = replace(ctx.obj, **{param.name or "": value})
            _check(ctx)

    option.expose_value = False
    option.callback = override
    return option


def _debug_option() -> click.Option:
    return click.Option(["--debug"], is_flag=True, help="Print the traceback of a fault.")


def _check(ctx: click.Context) -> None:
    if ctx.obj.verbose and ctx.obj.quiet:
        raise click.UsageError("--verbose and --quiet exclude each other.", ctx)


def _options(ctx: click.Context, **values: Any) -> None:
    ctx.obj = Options(**values)
    _check(ctx)


def shell() -> click.Group:
    """The group of all commands."""
    return _Shell(
        "integrity",
        callback=click.pass_context(_options),
        params=[*_settings_options(), _debug_option()],
        help="The foreign key that spans services: what happens to a parent is enforced on its dependents everywhere.",
        epilog="Exit codes: 0 fine, 1 something was found, 2 wrong usage, settings or rules, 3 a fault while running.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        no_args_is_help=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A command says it by `ctx.exit`, or by returning it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(arguments)
        finally:
            # Here, so that a closed pipe is noticed where it is dealt with.
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends: there must be something to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(arguments: list[str]) -> int:
    # Known before anything is parsed, since parsing may be what fails.
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    wants_json, is_debug = "--json" in words, "--debug" in words
    # --debug stands before or behind the command alike.
    arguments = (["--debug"] if is_debug else []) + [
        word for index, word in enumerate(arguments) if word != "--debug" or index >= len(words)
    ]
    try:
        root = shell()
        with root.make_context("integrity", arguments) as ctx:
            result = root.invoke(ctx)
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return EXIT_USAGE
    except click.ClickException as exc:
        return _usage_fault(exc, wants_json)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as exc:  # noqa: BLE001 - the outermost place: nothing but a sentence may come out
        if is_debug:
            traceback.print_exception(exc)
        return max(_fault(fault, wants_json, is_debug) for fault in _flat(exc))


def _flat(exc: Exception) -> list[Exception]:
    """The faults in a task group's exception: each sentence once, and our own before any other."""
    if not isinstance(exc, ExceptionGroup):
        return [exc]
    found = [fault for nested in exc.exceptions for fault in _flat(nested)]
    own = [fault for fault in found if isinstance(fault, IntegrityError)]
    return list({str(fault): fault for fault in own or found[:1]}.values())


def _usage_fault(exc: click.ClickException, wants_json: bool) -> int:
    ctx = getattr(exc, "ctx", None)
    path = ctx.command_path if isinstance(ctx, click.Context) else "integrity"
    _say("usage", exc.format_message(), f"See {path} --help.", wants_json)
    return EXIT_USAGE


def _fault(exc: Exception, wants_json: bool, is_debug: bool) -> int:
    if not isinstance(exc, IntegrityError):
        hint = "" if is_debug else "Run it with --debug for the traceback."
        # The type alone: a driver's message may quote a row.
        _say("unexpected", f"Something unexpected happened: {type(exc).__name__}.", hint, wants_json)
        return EXIT_FAULT
    findings: Sequence[Finding] = getattr(exc, "findings", ())
    if findings and not wants_json:
        from integrity.cli.findings import as_text

        click.echo(as_text(findings), err=True)
        start = " Nothing has started." if isinstance(exc, UsageError) else ""
        click.echo(f"{len(findings)} {'fault' if len(findings) == 1 else 'faults'} to mend.{start}", err=True)
    else:
        _say(exc.code, exc.message, exc.hint, wants_json)
    return exc.exit_code


def _say(code: str, message: str, hint: str, wants_json: bool) -> None:
    if wants_json:
        click.echo(json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False))
    text = f"{message} {hint}".strip()
    click.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in text), err=True)
