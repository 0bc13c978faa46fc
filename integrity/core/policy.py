"""From a rule to what the fold asks of it: actions as steps on key positions, literals through the key gate."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_never

from integrity.core.fold import Count, Follow, Leave, Mark, Policy, Remove, Replace, Step
from integrity.core.keys import KeySpec, Scalar, gate
from integrity.core.rules.model import (
    Action,
    Cascade,
    Copy,
    Dependent,
    Ignore,
    Literal,
    Nullify,
    Restrict,
    SetDefault,
    Tombstone,
    action_name,
)


def policy_of(dependent: Dependent, spec: KeySpec) -> Policy:
    """The steps of a dependent. Literals were checked when the rule was loaded."""
    return Policy(
        dependent=dependent.id,
        on_delete=_step(dependent.on_delete, Remove(), dependent, spec),
        on_update=_step(dependent.on_update, Follow(), dependent, spec),
        on_delete_action=action_name(dependent.on_delete),
        on_update_action=action_name(dependent.on_update),
        by_age=dependent.as_of is not None,
    )


def copy_policy(copy: Copy) -> Policy:
    """The steps of a copy's rows. When a key changes, the row of the old one goes as that of a deleted one does: the
    new one comes with an event of its own."""
    step = Mark() if isinstance(copy.rows.on_delete, Tombstone) else Remove()
    return Policy(copy.id, step, step, copy.action, copy.action)


def _step(action: Action, cascade: Step, dependent: Dependent, spec: KeySpec) -> Step:
    columns = dependent.columns
    match action:
        case Cascade():
            return cascade
        case Nullify():
            return Replace(tuple((columns.index(column), None) for column in action.columns))
        case SetDefault():
            return Replace(
                tuple(
                    (columns.index(column), _scalar(value, spec, columns.index(column)))
                    for column, value in action.values.items()
                )
            )
        case Tombstone():
            return Mark()
        case Restrict():
            return Count()
        case Ignore():
            return Leave()
        case _:
            assert_never(action)


def _scalar(value: Literal, spec: KeySpec, position: int) -> Scalar | None:
    if value is None:
        return None
    return gate(spec.types[position], Decimal(repr(value)) if isinstance(value, float) else value, None)
