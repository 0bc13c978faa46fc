"""Rules for topics that carry messages, as a rule file says them, and what one record is decoded to."""

from __future__ import annotations

from collections.abc import Collection
from typing import assert_never

from integrity.core.change import ParentChange
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Decoder, Ignored, Undecodable
from integrity.core.rules.model import Parent
from integrity.core.rules.parse import parse_rules
from tests.golden.histories import Expected

FILE = """\
version: 1
parent: customer
events:
  topic: customers
%s
dependents:
  - {store: orders_db, table: orders, references: {%s}, on_delete: cascade}
"""


def rule(*events: str, fields: Collection[str] = ("id",)) -> Parent:
    """A rule on a parent with these key fields; `events` are the lines below `topic`."""
    references = ", ".join(f"customer_{field}: {field}" for field in fields)
    text = FILE % ("\n".join(f"  {line}" for line in events), references)
    [parent] = parse_rules({"customer.yaml": text}).parents
    return parent


def decoder(*events: str, fields: Collection[str] = ("id",), copied: Collection[str] | None = None) -> Decoder:
    return decoder_for(rule(*events, fields=fields), copied=copied)


def seen(decoded: Decoded) -> Expected:
    match decoded:
        case ParentChange():
            return Expected(decoded.op, decoded.key, decoded.to)
        case Ignored():
            return Expected(decoded.op)
        case Undecodable():
            return Expected(decoded.reason)
        case _:
            assert_never(decoded)
