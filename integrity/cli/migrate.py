"""`integrity migrate`: the ledger of every store."""

from __future__ import annotations

import click

from integrity.cli.base import Options, run_async, start, tenant_option


@click.command("migrate")
@click.option("--store", "stores", multiple=True, metavar="S", help="Only this store; may be repeated.")
@click.option("--print", "is_print", is_flag=True, help="Print the statements and change nothing.")
@tenant_option
@click.pass_obj
def command(options: Options, tenant: str | None, stores: tuple[str, ...], is_print: bool) -> None:
    """Create or upgrade the ledger in every store that the rules use.

    Safe to repeat, and to run from two places at once. With --print nothing is connected to: the statements are for
    whoever may run them. Exit 0: every ledger is there; 2: settings or rules are wrong; 3: a store does not answer.
    """
    run_async(_migrate(options, tenant, stores, is_print))


async def _migrate(options: Options, tenant: str | None, stores: tuple[str, ...], is_print: bool) -> None:
    settings = start(options, tenant)
    from integrity.ports import Deadline
    from integrity.rules_files import load_rules
    from integrity.wiring.stores import chosen_stores, open_ledgers

    rules = load_rules(settings.rules)
    for name, store_settings in chosen_stores(settings, rules, stores).items():
        for store in open_ledgers(name, store_settings, settings, rules):
            try:
                if is_print:
                    click.echo(f"-- {name}\n{store.ddl().rstrip()}\n")
                else:
                    await store.migrate(Deadline.after(store_settings.timeout))
            finally:
                await store.close()
        if not is_print:
            click.echo(f"{name}: the ledger is there")
