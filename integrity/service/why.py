"""Why a row of a dependent is gone or changed: what happened to the key that it referenced, step by step, in words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from integrity.core.history import Enforced, KeyHistory, next_fate
from integrity.core.key_text import key_text
from integrity.core.keys import Key
from integrity.core.rules.model import Dependent
from integrity.core.undo import root_event
from integrity.service.ask import version_text, when

STEPS_MAX: Final = 100
"""How many keys a chain of key changes is followed over."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happened to rows at `key`, and how the ledger knows it. `earlier`: it was enforced before the key change
    that led the rows there, so that they went with it at once."""

    key: Key
    enforced: Enforced
    history: KeyHistory
    earlier: bool = False


@dataclass(frozen=True, slots=True)
class Trail:
    """Everything that happened to a key, each key change followed to its end. `history` is the key's own; None when
    the ledger has never heard of it."""

    key: Key
    history: KeyHistory | None
    paths: tuple[tuple[Step, ...], ...]


async def trail(key: Key, history_of: Callable[[Key], Awaitable[KeyHistory | None]]) -> Trail:
    """Ask the ledger of a key, and of those that it changed to."""
    known: dict[Key, KeyHistory | None] = {}

    async def ask(of: Key) -> KeyHistory | None:
        if of not in known:
            known[of] = await history_of(of) if len(known) < STEPS_MAX else None
        return known[of]

    history = await ask(key)
    if history is None:
        return Trail(key, None, ())
    paths: list[tuple[Step, ...]] = []
    for first in history.enforced:
        steps = [Step(key, first, history)]
        while (to := steps[-1].enforced.fate.to) is not None and len(steps) < STEPS_MAX:
            before = steps[-1].enforced
            there = await ask(to)
            after = None if there is None else next_fate(there.enforced, before.fate.version)
            if there is None or after is None:
                break
            steps.append(Step(to, after, there, earlier=after.enforced_ms < before.enforced_ms))
        paths.append(tuple(steps))
    return Trail(key, history, tuple(paths))


def sentences(entity: str, dependent: Dependent, found: Trail) -> list[str]:
    """A trail in words, as far as it concerns one dependent."""
    named = f"{entity} {key_text(found.key)}"
    if found.history is None:
        return [f"The ledger of {dependent.store} knows nothing of {named}: nothing of it was enforced there."]
    told = [
        f"{entity} {_shown(came.key)} became {named} (event {came.event_id}, version {version_text(came.version)},"
        f" enforced {when(came.enforced_ms)})."
        for came in found.history.came_from
    ]
    for path in found.paths:
        told += [_sentence(entity, dependent, step) for step in path]
    if not found.paths:
        told.append(f"No deletion or key change of {named} was enforced in {dependent.store}.")
    elif found.history.lives_again:
        assert found.history.seen is not None, "it was seen alive"
        told.append(f"{named} lives again: it was seen alive at version {version_text(found.history.seen)}.")
    return told


def _sentence(entity: str, dependent: Dependent, step: Step) -> str:
    enforced, fate = step.enforced, step.enforced.fate
    happened = "was deleted" if fate.to is None else f"became {key_text(fate.to)}"
    trace = f", trace {enforced.trace_id}" if enforced.trace_id else ""
    return (
        f"{entity} {key_text(step.key)} {happened} at {when(fate.occurred_ms)} (event {fate.event_id}, version"
        f" {version_text(fate.version)}, enforced {when(enforced.enforced_ms)}{trace}): {_done(dependent, step)}"
        f"{', before the rows came there: they went with it at once' if step.earlier else ''}."
    )


def _done(dependent: Dependent, step: Step) -> str:
    deleted = step.enforced.fate.to is None
    late = [
        f"; at {when(each.at_ms)} {each.action} {_did(each.action, deleted, _rows(each.rows, dependent))}, written late"
        for each in step.history.repairs
        if each.dependent == dependent.id and each.event_id == step.enforced.fate.event_id
    ]
    undone = [
        f"; at {when(each.at_ms)} {each.actor} put back {_rows(each.rows, dependent)}"
        for each in step.history.undone
        if each.dependent == dependent.id and each.event_id == root_event(step.enforced.fate.event_id)
    ]
    return "".join([_enforced(dependent, step), *late, *undone])


def _enforced(dependent: Dependent, step: Step) -> str:
    done = step.enforced.done.get(dependent.id)
    if done is not None:
        action, rows = done
        return f"{action} {_did(action, step.enforced.fate.to is None, _rows(rows, dependent))}"
    letters = [
        each
        for each in step.history.left_out
        if each.dependent == dependent.id and each.event_id == step.enforced.fate.event_id
    ]
    if letters:
        stands = ", ".join(f"{each.dead_letter} ({each.reason})" for each in letters)
        return f"the dead letter {stands} stands for what was to be done to {dependent.name}"
    return f"the ledger tells of nothing that was done to {dependent.name}"


def _did(action: str, deleted: bool, rows: str) -> str:
    match action:
        case "cascade":
            return f"removed {rows}" if deleted else f"led {rows} to the new key"
        case "nullify":
            return f"set the reference of {rows} to null"
        case "set_default":
            return f"set the reference of {rows} to its default"
        case "tombstone":
            return f"marked {rows}"
        case _:
            return f"was done to {rows}"


def _rows(rows: int, dependent: Dependent) -> str:
    return f"{rows} {'row' if rows == 1 else 'rows'} of {dependent.name}"


def _shown(canonical_text: str) -> str:
    return canonical_text.removeprefix("[").removesuffix("]")
