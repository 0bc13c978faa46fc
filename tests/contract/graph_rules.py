"""Rules of graphs: customers have orders, orders have items, items have parts; and comments that answer comments."""

from __future__ import annotations

from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Action, Cascade
from integrity.stores.rule import StoreRule
from tests.contract.world import rule

LINE = KeySpec((("order_id", KeyType.INT64), ("id", KeyType.INT64)))
"""A line's key holds its order's: an identifying relationship."""


def orders(on_delete: Action | None = None, on_update: Action | None = None, *, recorded: bool = True) -> StoreRule:
    return rule(on_delete or Cascade(), on_update, name="orders", rows="order", recorded=recorded)


def items(on_delete: Action | None = None, on_update: Action | None = None, **more: object) -> StoreRule:
    return rule(on_delete or Cascade(), on_update, name="items", columns=("order_id",), entity="order", **more)  # type: ignore[arg-type]


def parts(on_delete: Action | None = None) -> StoreRule:
    return rule(on_delete or Cascade(), name="parts", columns=("item_id",), entity="item")


def comments(on_delete: Action | None = None) -> list[StoreRule]:
    """Comments of a customer, and comments that answer comments: rows of one table that refer to one another."""
    return [
        rule(Cascade(), name="comments", rows="comment"),
        rule(
            on_delete or Cascade(),
            name="answers",
            target="comments",
            columns=("answers_id",),
            entity="comment",
            rows="comment",
        ),
    ]
