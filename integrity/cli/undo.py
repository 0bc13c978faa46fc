"""`integrity undo`: puts back what events changed, where the rules keep what rows were."""

from __future__ import annotations

import getpass
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import click

from integrity.cli.base import Options, print_json, run_async, since_of, start, tenant_option

if TYPE_CHECKING:
    from integrity.core.rules.model import RuleSet
    from integrity.core.undo import Choice
    from integrity.service.undo import Found

EXIT_FOUND: Final = 1
_EVENT: Final = re.compile(r"[^/]+/[0-9]{1,10}/[0-9]{1,19}")
_TELL_EVERY_S: Final = 10.0
_STAYED_SHOWN: Final = 20
_ORPHANS: Final = "While their parent is gone, these rows are orphans: no sweep takes them, but a scan reports them."


@click.command("undo")
@click.option("--event", metavar="ID", default="", help="What this event changed: topic/partition/offset.")
@click.option("--since", metavar="TIME", default="", help="What was changed since: 2026-03-01T12:00:00Z, or 2h (ago).")
@click.option("--dependent", "dependents", multiple=True, metavar="D", help="Of this dependent only; may be repeated.")
@click.option("--store", "stores", multiple=True, metavar="S", help="In this store only; may be repeated.")
@click.option("--reason", metavar="TEXT", default="", help="Why; kept in the ledger and the audit.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.option("--no-input", is_flag=True, help="Never ask.")
@click.option("--json", "is_json", is_flag=True, help="One JSON document on standard output.")
@tenant_option
@click.pass_obj
def command(
    options: Options,
    tenant: str | None,
    event: str,
    since: str,
    dependents: tuple[str, ...],
    stores: tuple[str, ...],
    reason: str,
    yes: bool,
    no_input: bool,
    is_json: bool,
) -> int:
    """Put back what an event changed, where the rules keep what rows were.

    That is every store, and every level of a graph, whose rule has undo. Say which by --event, or by --since together
    with --dependent. Rows that went are written again where there is no row of that identity; others are changed back
    where they still hold what the event set. Everything else stays as it is, and is told. Says what it will do, and
    asks, unless --yes. Exit 0; 1: some rows stay as they are.
    """
    if bool(event) == bool(since):
        raise click.UsageError("Say which: --event ID, or --since TIME with --dependent D.")
    if since and not dependents:
        raise click.UsageError("--since needs --dependent: name every dependent that is to be put back.")
    if event and not _EVENT.fullmatch("/".join(event.split("/", 3)[:3])):
        raise click.UsageError(f"--event {event}: an event is written topic/partition/offset, as history shows it.")
    return run_async(_undo(options, tenant, event, since, dependents, stores, reason, yes, no_input, is_json))


async def _undo(
    options: Options,
    tenant: str | None,
    event: str,
    since: str,
    dependents: tuple[str, ...],
    stores: tuple[str, ...],
    reason: str,
    yes: bool,
    no_input: bool,
    is_json: bool,
) -> int:
    from integrity.core.undo import Choice, root_event
    from integrity.rules_files import load_rules
    from integrity.service.redrive import Person
    from integrity.wiring.undo import undoer

    since_ms = int(since_of(since).timestamp() * 1000) if since else None
    settings = start(options, tenant)
    rules = load_rules(settings.rules)
    choice = Choice(root_event(event) if event else None, since_ms, frozenset(dependents))
    names = _stores(rules, dependents, stores)
    async with undoer(settings, rules, names, choice, Person(getpass.getuser(), reason)) as hand:
        foretold = await hand.foretell(_progress(options, "looked at"))
        _foretell(foretold)
        if not foretold.counts:
            _print(choice, foretold, is_json)
            return 0
        if not _agreed(yes, no_input):
            return 0
        found = await hand.act(_progress(options, "done"))
    _print(choice, found, is_json)
    return _tell(found)


def _stores(rules: RuleSet, dependents: Sequence[str], stores: Sequence[str]) -> list[str]:
    """The stores that keep what may be asked for. Raises UsageError."""
    from integrity.core.rules.findings import did_you_mean, shown
    from integrity.errors import UsageError

    known = {dependent.id: dependent for parent in rules.parents for dependent in parent.dependents}
    for name in dependents:
        if name not in known:
            raise UsageError(f"--dependent {shown(name)}: no rule has it.", hint=did_you_mean(name, known))
    chosen = [known[name] for name in dependents or known]
    keeping = sorted({each.store for each in chosen if dependents or each.undo_ms is not None})
    if not stores and not keeping:
        raise UsageError("No rule has undo, so nothing is kept.", hint="Write undo: 30d at a dependent.")
    return list(stores) or keeping


def _foretell(found: Found) -> None:
    """Say what will be done."""
    from integrity.core.undo import Verdict

    if not found.counts:
        click.echo(
            "Nothing is kept of it: it was undone before, it has expired, or no rule with undo met it.", err=True
        )
        return
    rows = found.total(Verdict.PUT_BACK)
    click.echo(f"Put back: {rows} {'row' if rows == 1 else 'rows'}.", err=True)
    for (store, dependent), counts in found.counts.items():
        actions = ", ".join(sorted(found.actions[store, dependent]))
        click.echo(f"  {counts[Verdict.PUT_BACK]:>8}  {_printable(dependent)}  ({store}; {actions})", err=True)
        sample = found.samples.get((store, dependent), [])
        if sample:
            more = ", …" if counts[Verdict.PUT_BACK] > len(sample) else ""
            click.echo(f"            {_printable(', '.join(sample))}{more}", err=True)
    _stayed(found, "will stay as they are")
    click.echo(_ORPHANS, err=True)


def _stayed(found: Found, what: str) -> None:
    from integrity.core.undo import Verdict

    why = {
        Verdict.EXISTS: "there is a row of that identity again",
        Verdict.CHANGED: "it does not hold any more what the event set",
        Verdict.GONE: "it is not there any more",
        Verdict.REFUSED: "the store refuses it",
    }
    total = found.total(*why)
    if not total:
        return
    reasons = ", ".join(f"{count} {verdict.value}" for verdict in why if (count := found.total(verdict)))
    click.echo(f"{total} {'row' if total == 1 else 'rows'} {what}: {reasons}.", err=True)
    for store, row in found.stayed[:_STAYED_SHOWN]:
        told = row.message or why[row.verdict]
        click.echo(f"  {store}  {_printable(row.dependent)}  {_printable(row.row)}: {_printable(told)}", err=True)
    if total > min(len(found.stayed), _STAYED_SHOWN):
        click.echo("  and others.", err=True)


def _agreed(yes: bool, no_input: bool) -> bool:
    """Whether it is to be done. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if no_input or not sys.stdin.isatty():
        raise click.UsageError("Nothing was changed: this needs --yes, or a terminal to ask on.")
    return click.confirm("Do it?", err=True)


def _progress(options: Options, word: str) -> Callable[[int], None]:
    last_s = time.monotonic()

    def told(rows: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if not options.quiet and now_s - last_s >= _TELL_EVERY_S:
            last_s = now_s
            click.echo(f"{rows} rows {word}", err=True)

    return told


def _print(choice: Choice, found: Found, is_json: bool) -> None:
    from integrity.core.undo import Verdict
    from integrity.service.ask import when

    if not is_json:
        click.echo(f"Put back: {found.total(Verdict.PUT_BACK)}.")
        return
    print_json(
        {
            "event": choice.event,
            "since": None if choice.since_ms is None else when(choice.since_ms),
            **{verdict.value: found.total(verdict) for verdict in Verdict},
            "dependents": [
                {"store": store, "dependent": dependent, **{verdict.value: counts[verdict] for verdict in Verdict}}
                for (store, dependent), counts in found.counts.items()
            ],
            "stayed": [
                {
                    "store": store,
                    "dependent": row.dependent,
                    "event": row.event,
                    "row": json.loads(row.row),
                    "why": row.verdict.value,
                    "message": row.message or None,
                }
                for store, row in found.stayed
            ],
            "stopped": found.stopped or None,
        }
    )


def _tell(found: Found) -> int:
    """Name what stays as it is; the exit code."""
    from integrity.core.undo import Verdict

    _stayed(found, "stay as they are")
    if found.stopped:
        click.echo(f"Stopped: {_printable(found.stopped)} Mend it, and undo again: it goes on.", err=True)
    stays = found.total(*(verdict for verdict in Verdict if verdict is not Verdict.PUT_BACK))
    return EXIT_FOUND if stays or found.stopped else 0


def _printable(text: str) -> str:
    """Text of others, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
