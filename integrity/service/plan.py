"""Asks all stores what an event of a key would do, level by level down the graph (`core.plan`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from integrity.core.keys import Key
from integrity.core.plan import Plan, Planned
from integrity.core.rules.model import Parent, RuleSet
from integrity.errors import OperationError
from integrity.ports import Deadline, Inspectable
from integrity.service.ask import TELL_EVERY_S, Document, ask, key_document, unanswered


@dataclass(frozen=True, slots=True)
class Planning:
    """What would happen, and store -> why it did not answer."""

    found: Sequence[Planned]
    silent: Mapping[str, OperationError]


async def plan(
    rules: RuleSet,
    stores: Mapping[str, Inspectable],
    entity: str,
    key: Key,
    to: Key | None,
    *,
    deadline: Callable[[Inspectable], Deadline],
    until: Deadline,
    tell: Callable[[Collection[str]], None] | None = None,
) -> Planning:
    """What a deletion of the key (or a change to `to`) would do; `stores` has all that the entity reaches.

    Each question has the `deadline` of its store; after `until` no more are asked. `tell` is called every 10 s."""
    walk = Plan(rules, entity, [key], to)
    silent: dict[str, OperationError] = {}
    told_s = time.monotonic()
    while (portion := walk.ask(silent)) is not None:
        question = portion.question
        answers = await ask(
            {name: stores[name] for name in portion.stores},
            lambda store, asked=question: store.impact(asked, deadline(store)),  # type: ignore[misc]
            tell=tell,
        )
        silent |= answers.silent
        for impacts in answers.found.values():
            walk.take(portion, impacts)
        if not until.remaining_s():
            walk.stop()
        if tell is not None and time.monotonic() - told_s >= TELL_EVERY_S:
            told_s = time.monotonic()
            tell(portion.stores)
    return Planning(walk.found(), silent)


def impact_document(parent: Parent, key: Key, to: Key | None, planning: Planning) -> Document:
    """What an event of a key would do in all stores."""
    spec = parent.key
    found = planning.found
    return {
        "entity": parent.entity,
        "key": key_document(spec, key),
        "op": "delete" if to is None else "update",
        "to": None if to is None else key_document(spec, to),
        "restricted": any(planned.action == "restrict" and planned.rows > 0 for planned in found),
        "held": any(planned.held for planned in found),
        "at_least": any(planned.at_least for planned in found),
        "dependents": [_planned(planned) for planned in found],
        "unanswered": unanswered(planning.silent),
    }


def _planned(planned: Planned) -> Document:
    dependent = planned.dependent
    return {
        "dependent": dependent.id,
        "parent": planned.entity,
        "level": planned.level,
        "store": dependent.store,
        "target": {"kind": dependent.target.kind.value, "name": dependent.target.name},
        "action": planned.action,
        "rows": planned.rows,
        "at_least": planned.at_least,
        "held": planned.held,
        "sample": [dict(row) for row in planned.sample],
    }
