"""`integrity dlq`: dead letters as they are, sent back, or given up."""

from __future__ import annotations

import base64
import getpass
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from integrity.cli.base import Options, print_json, run_async, since_of, start

if TYPE_CHECKING:
    from integrity.kafka.letters import Filter, Letter, LetterIndex
    from integrity.service.redrive import Done

EXIT_FOUND: Final = 1
LIST_MAX: Final = 1_000
STATUSES: Final = ("open", "held", "retried", "resolved", "discarded")
_SHOWN_BYTES: Final = 4_096
_MESSAGE_CHARACTERS: Final = 100


def _chosen(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which letters."""
    for option in reversed(
        (
            click.option("--id", "ids", multiple=True, metavar="ID", help="This dead letter; may be repeated."),
            click.option("--reason", metavar="CODE", default="", help="Only those with this reason code."),
            click.option("--dependent", metavar="D", default="", help="Only those of this dependent; * where unread."),
            click.option("--store", metavar="S", default="", help="Only those of this store."),
            click.option(
                "--since", metavar="TIME", default="", help="Failed since: 2026-03-01T12:00:00Z, or 2h (ago)."
            ),
            click.option("--max", "limit", type=click.IntRange(min=1), metavar="N", help="At most that many."),
            click.option("--json", "is_json", is_flag=True, help="One JSON document on standard output."),
        )
    ):
        command = option(command)
    return command


def _changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what changes data."""
    for option in reversed(
        (
            click.option("--all", "is_all", is_flag=True, help="All that are open."),
            click.option("--note", metavar="TEXT", default="", help="Why; kept in the status and the audit."),
            click.option("--yes", is_flag=True, help="Do it without asking."),
            click.option("--no-input", is_flag=True, help="Never ask."),
        )
    ):
        command = option(command)
    return command


@click.group("dlq")
def command() -> None:
    """List dead letters, send them back, or give them up.

    A dead letter is one event on one dependent that could not be enforced. Its status is open, held (more rows than
    max_rows allows), retried (on its way back), resolved or discarded.
    """


@command.command("list")
@_chosen
@click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Default: open and held.")
@click.option("--all", "is_all", is_flag=True, help="Those of every status.")
@click.pass_obj
def list_command(
    options: Options,
    ids: tuple[str, ...],
    reason: str,
    dependent: str,
    store: str,
    since: str,
    limit: int | None,
    is_json: bool,
    statuses: tuple[str, ...],
    is_all: bool,
) -> None:
    """List dead letters, by the place of their events.

    Shows the first 1,000 unless --max says otherwise; the counts are of all. Exit 0.
    """
    run_async(_list(options, _arguments(ids, reason, dependent, store, since), limit, is_json, statuses, is_all))


async def _list(
    options: Options, chosen: Filter, limit: int | None, is_json: bool, statuses: tuple[str, ...], is_all: bool
) -> None:
    from dataclasses import replace

    from integrity.kafka.dead_letters import Status
    from integrity.service.redrive import totals
    from integrity.wiring.dlq import dead_letters

    if not is_all and not chosen.ids:
        chosen = replace(chosen, statuses=[Status(name) for name in statuses or ("open", "held")])
    settings = start(options)
    async with dead_letters(settings) as (_, index):
        counts = index.count(chosen)
        letters = list(index.find(chosen, limit or LIST_MAX))
    if is_json:
        groups = [
            {"status": status, "reason": reason, "dependent": dependent, "count": count}
            for (status, reason, dependent), count in counts.items()
        ]
        print_json({"total": sum(counts.values()), "groups": groups, "letters": [_described(one) for one in letters]})
        return
    for letter in letters:
        click.echo(_line(letter))
    found = ", ".join(f"{count} {status}" for status, count in totals(counts).items()) or "none"
    click.echo(f"Dead letters: {found}.", err=True)
    if sum(counts.values()) > len(letters):
        click.echo(f"The first {len(letters)} are shown; --max shows more.", err=True)


@command.command("show")
@click.argument("letter_id", metavar="ID")
@click.option("--json", "is_json", is_flag=True, help="One JSON document on standard output.")
@click.pass_obj
def show_command(options: Options, letter_id: str, is_json: bool) -> int:
    """Show one dead letter with its record.

    Exit 0; 1: there is no dead letter with that id.
    """
    return run_async(_show(options, letter_id, is_json))


async def _show(options: Options, letter_id: str, is_json: bool) -> int:
    from integrity.kafka.letters import Filter
    from integrity.wiring.dlq import dead_letters

    settings = start(options)
    async with dead_letters(settings) as (reader, index):
        found = list(index.find(Filter(ids=(letter_id,))))
        records = await reader.payloads(found)
    if not found:
        message = f"There is no dead letter {letter_id}."
        if is_json:
            print_json({"error": {"code": "unknown_id", "message": message, "hint": "integrity dlq list --all"}})
        click.echo(message, err=True)
        return EXIT_FOUND
    letter, record = found[0], records.get(letter_id)
    if is_json:
        document = _described(letter)
        if record is not None:
            document["record"] = {
                "timestamp_ms": record.timestamp_ms,
                "key": _bytes(record.key),
                "value": _bytes(record.value),
                "headers": [[name, _bytes(value)] for name, value in record.headers],
            }
        print_json(document)
        return 0
    for name, value in _described(letter).items():
        click.echo(f"{name + ':':<12} {_printable(str(value))}")
    if record is None:
        click.echo("Its record is not in the topic any more (retention).", err=True)
        return 0
    click.echo(f"{'timestamp:':<12} {record.timestamp_ms} ms")
    for name, raw in (("key", record.key), ("value", record.value), *record.headers):
        click.echo(f"{name + ':':<12} {_shown(raw)}")
    return 0


@command.command("retry")
@_chosen
@_changing
@click.pass_obj
def retry_command(
    options: Options,
    ids: tuple[str, ...],
    reason: str,
    dependent: str,
    store: str,
    since: str,
    limit: int | None,
    is_json: bool,
    is_all: bool,
    note: str,
    yes: bool,
    no_input: bool,
) -> int:
    """Send open dead letters back to the lanes.

    Each acts on its own dependent only, fenced like every event; one that fails again is open again, under its id. A
    held one is sent only when --id names it: that approves it. Says what it will do, and asks, unless --yes. Exit 0; 1:
    some could not be sent.
    """
    chosen = _arguments(ids, reason, dependent, store, since)
    _require_choice(chosen, is_all)
    return run_async(_act(options, "retry", chosen, limit, is_json, note, yes, no_input))


@command.command("discard")
@_chosen
@_changing
@click.pass_obj
def discard_command(
    options: Options,
    ids: tuple[str, ...],
    reason: str,
    dependent: str,
    store: str,
    since: str,
    limit: int | None,
    is_json: bool,
    is_all: bool,
    note: str,
    yes: bool,
    no_input: bool,
) -> int:
    """Give dead letters up, open or held: what they stand for is never to happen.

    The records stay in the topic. Says what it will do, and asks, unless --yes. Exit 0; 1: some could not be discarded.
    """
    chosen = _arguments(ids, reason, dependent, store, since)
    _require_choice(chosen, is_all)
    return run_async(_act(options, "discard", chosen, limit, is_json, note, yes, no_input))


async def _act(
    options: Options,
    action: str,
    chosen: Filter,
    limit: int | None,
    is_json: bool,
    note: str,
    yes: bool,
    no_input: bool,
) -> int:
    from dataclasses import replace

    from integrity.kafka.dead_letters import Status
    from integrity.rules_files import load_rules
    from integrity.service.redrive import Person
    from integrity.wiring.dlq import dead_letters, redriver

    is_retry = action == "retry"
    if not chosen.ids:
        chosen = replace(chosen, statuses=[Status.OPEN] if is_retry else [Status.OPEN, Status.HELD])
    settings = start(options)
    rules = load_rules(settings.rules)
    async with dead_letters(settings) as (reader, index):
        if not _agreed(index, action, chosen, limit, yes, no_input):
            return 0
        async with redriver(settings, rules, reader, index, Person(getpass.getuser(), note)) as hand:
            done = await (hand.retry if is_retry else hand.discard)(chosen, limit, _progress(options))
    return _tell(action, done, is_json)


def _agreed(index: LetterIndex, action: str, chosen: Filter, limit: int | None, yes: bool, no_input: bool) -> bool:
    """Say what will be done; whether it is to be done. Raises UsageError where nobody can be asked."""
    counts = index.count(chosen)
    total = sum(counts.values())
    number = total if limit is None else min(total, limit)
    doing = "Send back to the lanes" if action == "retry" else "Give up for good"
    click.echo(f"{doing}: {number} dead {'letter' if number == 1 else 'letters'}.", err=True)
    for (status, reason, dependent), count in counts.items():
        click.echo(f"  {count:>8}  {status}  {reason}  {_printable(dependent)}", err=True)
    if yes or not (total or chosen.ids):
        return True
    if no_input or not sys.stdin.isatty():
        raise click.UsageError("Nothing was changed: this needs --yes, or a terminal to ask on.")
    return click.confirm("Do it?", err=True)


def _progress(options: Options) -> Callable[[int], None]:
    def told(count: int) -> None:
        if not options.quiet:
            click.echo(f"{count} done", err=True)

    return told


def _tell(action: str, done: Done, is_json: bool) -> int:
    if is_json:
        refusals = [{"id": refusal.id, "why": refusal.why} for refusal in done.refusals]
        name = "retried" if action == "retry" else "discarded"
        print_json({name: done.done, "refused": done.refused, "refusals": refusals})
    else:
        word = "Sent back" if action == "retry" else "Given up"
        click.echo(f"{word}: {done.done}.")
        for refusal in done.refusals:
            click.echo(f"{refusal.id} stays as it is: {_printable(refusal.why)}.", err=True)
        if done.refused > len(done.refusals):
            click.echo(f"{done.refused - len(done.refusals)} more stay as they are.", err=True)
    return EXIT_FOUND if done.refused else 0


def _arguments(ids: tuple[str, ...], reason: str, dependent: str, store: str, since: str) -> Filter:
    from integrity.errors import Reason
    from integrity.kafka.letters import Filter

    if reason and reason not in set(Reason):
        raise click.UsageError(f"--reason {reason}: there is no such reason code (docs/errors.md lists them).")
    return Filter(ids=ids, reason=reason, dependent=dependent, store=store, since=_since(since))


def _since(text: str) -> str:
    """A time as the letters have it."""
    if not text:
        return ""
    written = since_of(text).isoformat(timespec="milliseconds")
    return f"{written.removesuffix('+00:00')}Z"


def _require_choice(chosen: Filter, is_all: bool) -> None:
    limits = any((chosen.ids, chosen.reason, chosen.dependent, chosen.store, chosen.since))
    if not limits and not is_all:
        raise click.UsageError("Say which: --id, --reason, --dependent, --store, --since, or --all.")


def _described(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "status": letter.status,
        "status_at": letter.status_at,
        "actor": letter.actor,
        "note": letter.note,
        "parked": letter.parked,
        "reason": letter.reason,
        "message": letter.message,
        "entity": letter.entity,
        "dependent": letter.dependent,
        "store": letter.store,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "attempts": letter.attempts,
        "retries": letter.retries,
        "failed_at": letter.failed_at,
        "rules": letter.rules,
        "truncated": letter.truncated,
    }


def _line(letter: Letter) -> str:
    place = f"{letter.topic}/{letter.partition}/{letter.offset}"
    message = _printable(letter.message)
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[: _MESSAGE_CHARACTERS - 1] + "…"
    return (
        f"{letter.id}  {letter.status:<9}  {letter.failed_at}  {letter.reason:<20}  {_printable(letter.dependent)}"
        f"  {_printable(place)}  {message}"
    )


def _printable(text: str) -> str:
    """Text of others, without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _shown(raw: bytes | None) -> str:
    if raw is None:
        return "null"
    text = _printable(raw[:_SHOWN_BYTES].decode("utf-8", "backslashreplace"))
    return text if len(raw) <= _SHOWN_BYTES else f"{text}… ({len(raw)} bytes)"


def _bytes(raw: bytes | None) -> dict[str, str] | None:
    """Bytes as JSON has them: text where they are text, else Base64."""
    if raw is None:
        return None
    try:
        text = raw.decode()
        json.dumps(text)
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}
    return {"text": text}
