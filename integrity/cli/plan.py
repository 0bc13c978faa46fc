"""`integrity plan`: what would happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, print_json, run_async, tenant_option
from integrity.cli.looking import end, key_of, looking, parent_of, tell
from integrity.errors import UsageError

if TYPE_CHECKING:
    from integrity.core.keys import Key
    from integrity.core.plan import Planned
    from integrity.core.rules.model import Parent
    from integrity.errors import OperationError

LEVELS_TIMEOUT_S = 60.0
"""After that no further level is looked at: the rows below are told as "at least"."""


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
@tenant_option
@click.pass_obj
def command(options: Options, tenant: str | None, entity: str, key: str, op: str, to: str | None, is_json: bool) -> int:
    """Show what a deletion or key change would do to the dependents in all stores, and change nothing.

    Rows that are parents themselves are followed to what depends on them, in whatever store.

    KEY is the key of the parent ENTITY; the parts of a composite key are joined with commas, each percent-encoded.
    Write -- before a key that begins with a minus. Exit 0: all stores answered; 2: wrong usage, settings or rules;
    3: a store did not answer (it is named, the others are shown).
    """
    if (op == "update") != (to is not None):
        raise UsageError("--op update and --to KEY go together.")
    return end(run_async(_plan(options, tenant, entity, key, to, is_json)))


async def _plan(
    options: Options, tenant: str | None, entity: str, text: str, to_text: str | None, is_json: bool
) -> Mapping[str, OperationError]:
    async with looking(options, entity, below=True, tenant=tenant, key=text) as found:
        from integrity.ports import Deadline
        from integrity.service.plan import impact_document, plan

        parent = parent_of(found.rules, entity)
        key = key_of(parent, text)
        to = None if to_text is None else key_of(parent, to_text)
        if key == to:
            raise UsageError("--to names the same key.")
        planning = await plan(
            found.rules,
            found.stores,
            entity,
            key,
            to,
            deadline=found.deadline,
            until=Deadline.after(LEVELS_TIMEOUT_S),
            tell=lambda names: tell(options, names),
        )
    if is_json:
        print_json(impact_document(parent, key, to, planning))
    else:
        _print(parent, key, to, planning.found)
    return planning.silent


def _print(parent: Parent, key: Key, to: Key | None, found: Sequence[Planned]) -> None:
    from integrity.core.key_text import key_text

    what = "is deleted" if to is None else f"becomes {key_text(to)}"
    click.echo(f"When {parent.entity} {key_text(key)} {what}:")
    rows = [
        (
            "  " * (each.level - 1) + each.dependent.id,
            f"{each.dependent.store}/{each.dependent.target.name}",
            each.action,
            f"{'at least ' if each.at_least else ''}{each.rows}",
        )
        for each in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for each, row in zip(found, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)]
        count = f"{row[3].rjust(widths[3])} row{'' if each.rows == 1 else 's'}"
        click.echo(f"  {'  '.join(cells)}  {count}{_held(each)}{_sample(each)}")


def _held(planned: Planned) -> str:
    if not planned.held:
        return ""
    limit = planned.dependent.max_rows
    return ", held" if limit is None or planned.rows <= limit else f", held: max_rows is {limit}"


def _sample(planned: Planned) -> str:
    if not planned.sample:
        return ""
    named = "; ".join(", ".join(f"{name} {value}" for name, value in row.items()) for row in planned.sample)
    more = "; …" if planned.rows > len(planned.sample) else ""
    return f"  ({''.join(c if c.isprintable() else '?' for c in named)}{more})"
