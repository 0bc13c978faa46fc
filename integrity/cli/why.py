"""`integrity why`: why a row is gone or changed, by its reference value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, print_json, run_async, tenant_option
from integrity.cli.looking import end, looking, refused, tell
from integrity.errors import UsageError

if TYPE_CHECKING:
    from integrity.core.rules.model import Dependent, Parent, RuleSet
    from integrity.service.ask import Answers
    from integrity.service.why import Trail


@click.command("why")
@click.argument("store")
@click.argument("table")
@click.argument("references", metavar="COLUMN=VALUE...", nargs=-1, required=True)
@click.option("--json", "is_json", is_flag=True, help="One JSON document.")
@tenant_option
@click.pass_obj
def command(
    options: Options, tenant: str | None, store: str, table: str, references: tuple[str, ...], is_json: bool
) -> int:
    """Tell why a row is gone or changed, by the value that its reference had.

    TABLE is the table, collection or topic of a rule, COLUMN=VALUE its reference: one for each column of a composite
    one. Exit 0: the ledger answered; 2: wrong usage, settings or rules; 3: the store did not answer.
    """
    return end(run_async(_why(options, tenant, store, table, references, is_json)).silent)


async def _why(
    options: Options, tenant: str | None, store: str, table: str, references: Sequence[str], is_json: bool
) -> Answers[object]:
    values = _values(references)
    async with looking(options, store=store, tenant=tenant) as found:
        from integrity.core.key_text import parse_parts
        from integrity.core.keys import KeyRefused
        from integrity.service.ask import ask
        from integrity.service.why import trail

        dependent, parent = _rule(found.rules, store, table, values)
        try:
            key = parse_parts([values[column] for column in dependent.columns], parent.key)
        except KeyRefused as exc:
            raise refused(parent, exc.message) from exc
        answers = await ask(
            found.stores,
            lambda asked: trail(key, lambda of: asked.history(parent.entity, of, found.deadline(asked))),
            tell=lambda names: tell(options, names),
        )
    for each in answers.found.values():
        _print(dependent, parent, each, is_json)
    if is_json and not answers.found:
        print_json({"store": store, "unanswered": answers.unanswered})
    return answers


def _print(dependent: Dependent, parent: Parent, found: Trail, is_json: bool) -> None:
    from integrity.service.ask import fate_document, key_document, ledger_document
    from integrity.service.why import sentences

    told = sentences(parent.entity, dependent, found)
    if not is_json:
        click.echo("\n".join(told))
        return
    spec = parent.key
    print_json(
        {
            "store": dependent.store,
            "dependent": dependent.id,
            "entity": parent.entity,
            "key": key_document(spec, found.key),
            "ledger": ledger_document(spec, found.history),
            "paths": [
                [{"key": key_document(spec, step.key), **fate_document(spec, step.enforced)} for step in path]
                for path in found.paths
            ],
            "told": told,
            "unanswered": [],
        }
    )


def _values(references: Sequence[str]) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for reference in references:
        column, equals, value = reference.partition("=")
        if not equals or not column:
            raise UsageError("A reference is written COLUMN=VALUE.", hint="For example customer_id=7.")
        if column in values:
            raise UsageError(f"The column {column} is there twice.")
        values[column] = value
    return values


def _rule(rules: RuleSet, store: str, table: str, values: Mapping[str, str]) -> tuple[Dependent, Parent]:
    """The rule whose reference it is: of the table that is named so, in its schema or without it."""
    known = [
        (dependent, parent) for parent in rules.parents for dependent in parent.dependents if dependent.store == store
    ]
    named = [each for each in known if each[0].target.name == table]
    named = named or [each for each in known if each[0].target.name.rpartition(".")[2] == table]
    if not named:
        tables = ", ".join(sorted({dependent.target.name for dependent, _ in known}))
        raise UsageError(f"No rule has a dependent {table} in {store}.", hint=f"The rules know {tables}.")
    fit = [each for each in named if set(each[0].columns) == values.keys()]
    if len(fit) != 1:
        wanted = " or ".join(" ".join(f"{column}=VALUE" for column in each[0].columns) for each in fit or named)
        raise UsageError(f"No one rule of {table} has this reference.", hint=f"Write {wanted}.")
    return fit[0]
