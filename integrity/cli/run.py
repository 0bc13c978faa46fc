"""`integrity run`: the service."""

from __future__ import annotations

import asyncio
import logging

import click

from integrity.cli.base import Options, run_async, start

log = logging.getLogger(__name__)


@click.command("run")
@click.option("--store", "stores", multiple=True, metavar="S", help="Work for this store only; may be repeated.")
@click.option("--migrate", is_flag=True, help="Create or upgrade the ledgers first.")
@click.option("--exit-at-end", is_flag=True, help="Stop once everything up to the end seen at start is enforced.")
@click.pass_obj
def command(options: Options, stores: tuple[str, ...], migrate: bool, exit_at_end: bool) -> None:
    """Enforce the rules: read what happened to parents, and make every dependent store follow.

    Several processes share the work. SIGTERM or SIGINT stops after the open batch; a second one stops at once. Exit 0:
    stopped as asked; 2: settings, rules, stores or ledgers are not fit, nothing was started; 3: a fault.
    """
    run_async(_run(options, stores, migrate, exit_at_end))


async def _run(options: Options, stores: tuple[str, ...], migrate: bool, exit_at_end: bool) -> None:
    settings = start(options)
    from integrity.api.serving import serving
    from integrity.rules_files import load_rules
    from integrity.service.signals import stop_on_signals
    from integrity.service.waiting import unless
    from integrity.wiring.doctor import require_identities
    from integrity.wiring.run import service
    from integrity.wiring.stores import chosen_stores
    from integrity.wiring.topics import require_topics

    rules = load_rules(settings.rules)
    chosen = chosen_stores(settings, rules, stores)
    stop = asyncio.Event()
    with stop_on_signals(stop):
        rules = await unless(stop, require_topics(settings, rules, chosen)) or rules
        await unless(stop, require_identities(settings, rules, chosen))
        async with (
            service(settings, rules, stores, migrate=migrate) as wired,
            serving(wired, settings.http) as port,
        ):
            if await wired.supervisor.check(stop):
                where = f"{settings.http.host}:{port}"
                log.info("enforcing", extra={"stores": ",".join(chosen), "rules": rules.hash, "http": where})
                await wired.supervisor.run(stop, to_end=exit_at_end)
    log.info("stopped")
