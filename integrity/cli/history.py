"""`integrity history`: everything the ledgers know of a key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, print_json, run_async, tenant_option
from integrity.cli.looking import end, key_of, looking, parent_of, tell

if TYPE_CHECKING:
    from integrity.core.copies import Known
    from integrity.core.history import KeyHistory
    from integrity.core.keys import KeySpec
    from integrity.errors import OperationError


@click.command("history")
@click.argument("entity")
@click.argument("key")
@click.option("--json", "is_json", is_flag=True, help="One JSON document.")
@tenant_option
@click.pass_obj
def command(options: Options, tenant: str | None, entity: str, key: str, is_json: bool) -> int:
    """Show everything that the ledgers of all stores know of a key.

    Those of the parent's copies are asked, too.

    KEY is the key of the parent ENTITY; the parts of a composite key are joined with commas, each percent-encoded.
    Write -- before a key that begins with a minus. Exit 0: all stores answered; 2: wrong usage, settings or rules;
    3: a store did not answer (it is named, the others are shown).
    """
    return end(run_async(_history(options, tenant, entity, key, is_json)))


async def _history(
    options: Options, tenant: str | None, entity: str, text: str, is_json: bool
) -> Mapping[str, OperationError]:
    async with looking(options, entity, tenant=tenant, key=text) as found:
        from integrity.core.key_text import key_text
        from integrity.service.ask import ask, history_document
        from integrity.wiring.stores import open_copies_for_looking

        parent = parent_of(found.rules, entity)
        key = key_of(parent, text)
        answers = await ask(
            found.stores,
            lambda store: store.history(entity, key, found.deadline(store)),
            tell=lambda names: tell(options, names),
        )
        async with open_copies_for_looking(found.settings, parent) as copies:
            copied = await ask(
                copies,
                lambda copy: copy.known_of(key, found.deadline(copy)),
                tell=lambda names: tell(options, names),
            )
    if is_json:
        print_json(history_document(parent, key, answers, copied))
    else:
        click.echo(f"{entity} {key_text(key)}")
        for name, history in answers.found.items():
            click.echo("\n".join(["", *_lines(name, parent.key, history)]))
        stores = {copy.id: copy.store for copy in parent.copies}
        for name, known in copied.found.items():
            click.echo("\n".join(["", *_copied(f"{name} ({stores[name]})", known)]))
    return {**answers.silent, **copied.silent}


def _copied(copy: str, known: Known | None) -> Iterator[str]:
    from integrity.core.change import EARLIEST
    from integrity.service.ask import version_text

    if known is None:
        yield f"{copy}: the copy's ledger knows nothing of it"
        return
    state = "the copy has its row" if known.alive else "the copy has no row of it"
    version = "" if known.version == EARLIEST else f", version {version_text(known.version)}"
    yield f"{copy}: {state}{version}"
    for missed in known.missed:
        yield f"  a dead letter stands for its event of version {version_text(missed)}"


def _lines(store: str, spec: KeySpec, history: KeyHistory | None) -> Iterator[str]:
    from integrity.core.key_text import key_of_ledger, key_text
    from integrity.service.ask import version_text, when

    if history is None:
        yield f"{store}: the ledger knows nothing of it"
        return
    if history.seen is None:
        state = "no event of its own was seen yet"
    elif history.lives_again:
        state = f"alive, seen at version {version_text(history.seen)}"
    else:
        state = "gone"
    yield f"{store}: {state}"
    for came in history.came_from:
        key = key_of_ledger(came.key, spec)
        source = came.key if key is None else key_text(key)
        yield f"  {source} became it  (event {came.event_id}, version {version_text(came.version)})"
    for each in history.enforced:
        fate = each.fate
        what = "deleted" if fate.to is None else f"became {key_text(fate.to)}"
        trace = f", trace {each.trace_id}" if each.trace_id else ""
        yield (
            f"  {when(fate.occurred_ms)}  {what}  (event {fate.event_id}, version {version_text(fate.version)},"
            f" enforced {when(each.enforced_ms)}{trace})"
        )
        for dependent, (action, rows) in each.done.items():
            yield f"      {dependent}: {action}, {rows} row{'' if rows == 1 else 's'}"
    for repair in history.repairs:
        yield (
            f"  {when(repair.at_ms)}  rows written late  ({repair.dependent}: {repair.action}, {repair.rows}"
            f" row{'' if repair.rows == 1 else 's'}, event {repair.event_id})"
        )
    for undone in history.undone:
        note = f": {undone.note}" if undone.note else ""
        yield (
            f"  {when(undone.at_ms)}  put back by {undone.actor}{note}  ({undone.dependent}, {undone.rows}"
            f" row{'' if undone.rows == 1 else 's'}, event {undone.event_id})"
        )
    for letter in history.left_out:
        yield (
            f"  {when(letter.at_ms)}  dead letter {letter.dead_letter}  ({letter.dependent}, {letter.reason},"
            f" event {letter.event_id})"
        )
