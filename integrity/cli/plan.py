"""`integrity plan`: what would happen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, print_json, run_async
from integrity.cli.looking import end, key_of, looking, parent_of, tell
from integrity.errors import UsageError

if TYPE_CHECKING:
    from integrity.core.history import Impact
    from integrity.core.keys import Key
    from integrity.core.rules.model import Parent
    from integrity.service.ask import Answers


@click.command("plan")
@click.argument("entity")
@click.argument("key")
@click.option(
    "--op",
    type=click.Choice(("delete", "update")),
    default="delete",
    show_default=True,
    help="What happens to the key.",
)
@click.option("--to", metavar="KEY", help="The key that it changes to; with --op update.")
@click.option("--json", "is_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(options: Options, entity: str, key: str, op: str, to: str | None, is_json: bool) -> int:
    """Show what a deletion or key change would do to the dependents in all stores, and change nothing.

    KEY is the key of the parent ENTITY; the parts of a composite key are joined with commas, each percent-encoded.
    Write -- before a key that begins with a minus. Exit 0: all stores answered; 2: wrong usage, settings or rules;
    3: a store did not answer (it is named, the others are shown).
    """
    if (op == "update") != (to is not None):
        raise UsageError("--op update and --to KEY go together.")
    return end(run_async(_plan(options, entity, key, to, is_json)))


async def _plan(options: Options, entity: str, text: str, to_text: str | None, is_json: bool) -> Answers[object]:
    async with looking(options, entity) as found:
        from integrity.service.ask import ask, impact_document

        parent = parent_of(found.rules, entity)
        key = key_of(parent, text)
        to = None if to_text is None else key_of(parent, to_text)
        if key == to:
            raise UsageError("--to names the same key.")
        answers = await ask(
            found.stores,
            lambda store: store.impact(entity, key, to, found.deadline(store)),
            tell=lambda names: tell(options, names),
        )
    if is_json:
        print_json(impact_document(parent, key, to, answers))
    else:
        _print(parent, key, to, [impact for of_store in answers.found.values() for impact in of_store])
    return answers


def _print(parent: Parent, key: Key, to: Key | None, impacts: Sequence[Impact]) -> None:
    from integrity.core.key_text import key_text
    from integrity.service.ask import is_held

    what = "is deleted" if to is None else f"becomes {key_text(to)}"
    click.echo(f"When {parent.entity} {key_text(key)} {what}:")
    of_id = {dependent.id: dependent for dependent in parent.dependents}
    rows = [
        (each.dependent, f"{of.store}/{of.target.name}", each.action, str(each.rows))
        for each in impacts
        for of in (of_id[each.dependent],)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for each, row in zip(impacts, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        held = f", held: max_rows is {of_id[each.dependent].max_rows}" if is_held(of_id[each.dependent], each) else ""
        count = f"{row[3].rjust(widths[3])} row{'' if each.rows == 1 else 's'}"
        click.echo(f"  {'  '.join(cells)}  {count}{held}{_sample(each)}")


def _sample(impact: Impact) -> str:
    if not impact.sample:
        return ""
    named = "; ".join(", ".join(f"{name} {value}" for name, value in row.items()) for row in impact.sample)
    more = "; …" if impact.rows > len(impact.sample) else ""
    return f"  ({''.join(c if c.isprintable() else '?' for c in named)}{more})"
