"""`integrity demo`: a small shop on embedded servers."""

from __future__ import annotations

import sys

import click

from integrity.cli.base import run_async


@click.command("demo")
@click.option(
    "--kafka",
    type=click.Choice(["auto", "real", "embedded"]),
    default="auto",
    show_default=True,
    help="real: Apache Kafka, downloaded if need be; embedded: a mock in this process; auto: real if it is here.",
)
@click.option("--keep", is_flag=True, help="Go on running afterwards, to look around, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the final figures as one JSON document.")
@click.pass_context
def command(ctx: click.Context, kafka: str, keep: bool, as_json: bool) -> None:
    """Show a small shop on embedded servers, end to end.

    Starts PostgreSQL, MongoDB and Kafka on free ports of 127.0.0.1, lets customers be deleted and change their keys,
    and shows how orders (PostgreSQL), reviews (MongoDB) and carts (a compacted topic) follow. One event is poison: it
    becomes a dead letter, and stops nothing. Takes less than a minute, leaves nothing behind, and Ctrl-C stops it at
    any time. Needs the extra: pip install 'integrity[demo]'.

    Exit 0: no orphan is left and the poison is the only dead letter; 1: something is not as it should be; 2: parts are
    missing; 3: a fault.
    """
    from integrity.demo.broker import KafkaChoice
    from integrity.demo.curtain import until_signalled
    from integrity.demo.play import play
    from integrity.demo.show import screen

    shown = screen(sys.stdout, sys.stderr, as_json=as_json)
    result = run_async(until_signalled(play(KafkaChoice(kafka), shown, keep=keep), shown.say))
    ctx.exit(0 if result.is_fine else 1)
