"""Asks several stores at once, and puts what they answer into words and documents for people and programs.

A store that does not answer is named; what the others say is shown all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from integrity.core.change import EARLIEST, Version
from integrity.core.copies import Known
from integrity.core.history import CameFrom, Enforced, KeyHistory, LeftOut
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, KeySpec
from integrity.core.rules.model import Parent
from integrity.errors import OperationError
from integrity.kafka.dead_letters import rfc3339

_Answer = TypeVar("_Answer")
_Asked = TypeVar("_Asked")
_Answer_co = TypeVar("_Answer_co", covariant=True)
Document = dict[str, object]

TELL_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Answers(Generic[_Answer_co]):
    """Store -> what it answered, and store -> why it did not."""

    found: Mapping[str, _Answer_co]
    silent: Mapping[str, OperationError]

    @property
    def unanswered(self) -> list[Document]:
        """The stores that did not answer, as a document."""
        return unanswered(self.silent)


def unanswered(silent: Mapping[str, OperationError]) -> list[Document]:
    """The stores that did not answer, as a document."""
    return [{"store": name, "message": why.message, "hint": why.hint} for name, why in silent.items()]


async def ask(
    stores: Mapping[str, _Asked],
    question: Callable[[_Asked], Awaitable[_Answer]],
    *,
    tell: Callable[[Collection[str]], None] | None = None,
) -> Answers[_Answer]:
    """Put the question to all stores side by side. `tell` is called every 10 s with those that are waited for."""
    asked: dict[asyncio.Future[_Answer], str] = {
        asyncio.ensure_future(question(store)): name for name, store in stores.items()
    }
    pending: Collection[asyncio.Future[_Answer]] = set(asked)
    try:
        while pending:
            _, pending = await asyncio.wait(pending, timeout=TELL_EVERY_S)
            if pending and tell is not None:
                tell(sorted(asked[future] for future in pending))
    finally:
        for future in pending:
            future.cancel()
    found: dict[str, _Answer] = {}
    silent: dict[str, OperationError] = {}
    for future, name in asked.items():
        try:
            found[name] = future.result()
        except OperationError as exc:
            silent[name] = exc
    return Answers(found, silent)


# --- documents ----------------------------------------------------------------------------------------------------


def key_document(spec: KeySpec, key: Key) -> Document:
    """A key as an object; numbers with a point as text, so that they stay exact."""
    return dict(zip(spec.names, msgspec.to_builtins(key), strict=True))


def history_document(
    parent: Parent, key: Key, answers: Answers[KeyHistory | None], copied: Answers[Known | None]
) -> Document:
    """What all ledgers know of a key; `copied` are the answers of the parent's copies, by their ids."""
    spec = parent.key
    return {
        "entity": parent.entity,
        "key": key_document(spec, key),
        "stores": [{"store": name, **ledger_document(spec, found)} for name, found in answers.found.items()],
        "copies": copies_document({copy.id: copy.store for copy in parent.copies}, copied),
        "unanswered": [*answers.unanswered, *copied.unanswered],
    }


def copies_document(copies: Mapping[str, str], answers: Answers[Known | None]) -> list[Document]:
    """What the ledgers of copies know of a key; `copies` maps their ids to their stores."""
    return [{"copy": copy, "store": copies[copy], **_copied(known)} for copy, known in answers.found.items()]


def _copied(known: Known | None) -> Document:
    if known is None:
        return {"known": False}
    return {
        "known": True,
        "alive": known.alive,
        "version": None if known.version == EARLIEST else version_text(known.version),
        "last_record": None if known.last is None else known.last._asdict(),
        "missed": [version_text(version) for version in known.missed],
    }


def ledger_document(spec: KeySpec, history: KeyHistory | None) -> Document:
    """What one ledger knows of a key."""
    if history is None:
        return {"known": False}
    last = history.last
    return {
        "known": True,
        "alive": None if history.seen is None else history.lives_again,
        "seen": None if history.seen is None else version_text(history.seen),
        "last_record": None if last is None else last._asdict(),
        "fates": [fate_document(spec, each) for each in history.enforced],
        "moved_from": [_came_from(spec, each) for each in history.came_from],
        "repairs": [
            {
                "dependent": each.dependent,
                "action": each.action,
                "rows": each.rows,
                "event": each.event_id,
                "at": rfc3339(each.at_ms),
            }
            for each in history.repairs
        ],
        "undone": [
            {
                "dependent": each.dependent,
                "rows": each.rows,
                "event": each.event_id,
                "at": rfc3339(each.at_ms),
                "actor": each.actor,
                "note": each.note,
            }
            for each in history.undone
        ],
        "dead_letters": [_left_out(each) for each in history.left_out],
    }


def fate_document(spec: KeySpec, enforced: Enforced) -> Document:
    """One deletion or key change, and what it did."""
    fate = enforced.fate
    return {
        "kind": "deleted" if fate.to is None else "moved",
        "to": None if fate.to is None else key_document(spec, fate.to),
        "version": version_text(fate.version),
        "event": fate.event_id,
        "occurred_at": when(fate.occurred_ms),
        "enforced_at": rfc3339(enforced.enforced_ms),
        "trace_id": enforced.trace_id or None,
        "dependents": [
            {"dependent": dependent, "action": action, "rows": rows}
            for dependent, (action, rows) in enforced.done.items()
        ],
    }


def version_text(version: Version) -> str:
    """A version as the audit writes it: `epoch:position`."""
    return f"{version.epoch}:{'.'.join(map(str, version.position))}"


def when(at_ms: int) -> str:
    """A time of a source, which may be none that a calendar has."""
    try:
        return rfc3339(at_ms)
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms after 1970"


def _came_from(spec: KeySpec, came: CameFrom) -> Document:
    key = key_of_ledger(came.key, spec)
    return {
        "key": came.key if key is None else key_document(spec, key),
        "version": version_text(came.version),
        "event": came.event_id,
        "enforced_at": rfc3339(came.enforced_ms),
    }


def _left_out(left_out: LeftOut) -> Document:
    return {
        "id": left_out.dead_letter,
        "dependent": left_out.dependent,
        "reason": left_out.reason,
        "version": None if left_out.version is None else version_text(left_out.version),
        "event": left_out.event_id,
        "at": rfc3339(left_out.at_ms),
    }
