"""`integrity init`: a first rule from what is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, print_json, run_async, start

if TYPE_CHECKING:
    from integrity.core.propose import Proposal

EXIT_NONE = 1


@click.command("init")
@click.option("--from-topic", "topic", required=True, metavar="T", help="The topic of the parent's events.")
@click.option("--json", "is_json", is_flag=True, help="The same as a JSON document.")
@click.pass_obj
def command(options: Options, topic: str, is_json: bool) -> int:
    """Look at a topic, and print the events block of a rule file that fits it.

    What the source can't tell (deletions that it drops, positions, rows before a change) stands there as comments. It
    is a guess: compare it with the table. Changes nothing.

    Exit 0: there it is; 1: nothing fits, and why; 2: wrong usage, or no such topic; 3: Kafka did not answer.
    """
    return run_async(_init(options, topic, is_json))


async def _init(options: Options, topic: str, is_json: bool) -> int:
    settings = start(options)
    from integrity.core.propose import as_yaml, propose
    from integrity.errors import UsageError
    from integrity.wiring.doctor import look_for_rule

    look = await look_for_rule(settings, topic)
    if look is None:
        raise UsageError(f"There is no topic {topic}.", hint="See its name in the connector's settings.")
    if not look.last:
        raise UsageError(f"The topic {topic} holds no record.", hint="Change a row of the table, and ask again.")
    proposal = propose(look, round(time.time() * 1000))
    if is_json:
        print_json(_document(proposal))
    else:
        click.echo(as_yaml(proposal))
    return EXIT_NONE if proposal.events is None else 0


def _document(proposal: Proposal) -> dict[str, object]:
    return {
        "topic": proposal.topic,
        "records": proposal.records,
        "events": proposal.events,
        "remarks": [{"code": each.code, "message": each.message, "hint": each.hint} for each in proposal.remarks],
    }
