"""`integrity doctor`: everything that is looked at, and what could not be."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeVar

from integrity.core.decode.record import Decoder
from integrity.core.doctor import TopicLook, defaults, of_clock, of_default, of_topics
from integrity.core.rules.model import RuleSet
from integrity.errors import Finding, OperationError, UnfitStoreError
from integrity.ports import Deadline, Parents
from integrity.service.ask import ask

_Answer = TypeVar("_Answer")


class Examined(Protocol):
    """A store that is looked at. Both calls raise OperationError."""

    name: str

    async def check(self, deadline: Deadline) -> Sequence[Finding]: ...

    async def clock_ms(self, deadline: Deadline) -> int | None: ...


class Checked(Protocol):
    """A copy in a store, or the database of parents. Raises as a store does."""

    async def check(self, deadline: Deadline) -> Sequence[Finding]: ...


class Broker(Protocol):
    """Kafka and what stands beside it, as far as they are looked at. All calls raise OperationError."""

    async def topics(self, names: Sequence[str], deadline: Deadline) -> Mapping[str, TopicLook]: ...

    async def privileges(self, deadline: Deadline) -> Sequence[Finding]: ...

    async def registry(self) -> None:
        """Whether the schema registry, if there is one, answers; bounded."""
        ...


@dataclass(frozen=True, slots=True)
class Examination:
    """The findings, those of files first and in their order; and name -> why it did not answer."""

    findings: Sequence[Finding]
    silent: Mapping[str, OperationError]


async def examine(
    rules: RuleSet,
    stores: Mapping[str, Examined],
    parents: Mapping[str, tuple[Parents, str]],
    broker: Broker,
    decoders: Mapping[str, Decoder],
    deadline: Callable[[str], Deadline],
    copies: Mapping[str, Sequence[Checked]] = MappingProxyType({}),
    sources: Mapping[str, Checked] = MappingProxyType({}),
) -> Examination:
    """Look at these stores and their `copies`, and at the topics of the parents that they follow. Changes nothing.

    `parents` are where the rows of entities with defaults are looked up, also in words; `sources` are the
    databases that parents' events come from. `deadline` gives each store's time, by its name, and Kafka's ("kafka")."""
    findings: list[Finding] = []
    silent: dict[str, OperationError] = {}

    async def told(name: str, question: Awaitable[_Answer]) -> _Answer | None:
        try:
            return await question
        except UnfitStoreError:
            return None  # its check has told why
        except OperationError as exc:
            silent.setdefault(name, exc)
            return None

    async def of_store(store: Examined) -> Sequence[Finding]:
        # Where there are copies only, they have the ledger.
        found = [*await store.check(deadline(store.name))] if rules.of_store(store.name) else []
        for copy in copies.get(store.name, ()):
            found += [each for each in await copy.check(deadline(store.name)) if each not in found]
        before_ms = time.time() * 1000
        clock_ms = await store.clock_ms(deadline(store.name))
        if clock_ms is not None:
            found += of_clock(store.name, round(clock_ms - (before_ms + time.time() * 1000) / 2))
        return found

    answers = await ask(stores, of_store)
    silent |= answers.silent
    for found in answers.found.values():
        findings += found
    for name, source in sources.items():
        findings += await told(name, source.check(deadline(name))) or ()
    wanted = [each for each in defaults(rules) if each.dependent.store in stores]
    for each in wanted:
        rows, where = parents[each.entity]
        present = await told(where, rows.present([each.key], deadline(where)))
        findings += of_default(each, present, where) if present is not None else ()
    chosen = [parent for parent in rules.parents if any(d.store in stores for d in parent.followers.values())]
    topics = [topic for parent in chosen if parent.events is not None for topic in parent.events.topics]
    looks = await told("kafka", broker.topics(topics, deadline("kafka")))
    if looks is not None:
        now_ms = round(time.time() * 1000)
        for parent in chosen:
            if parent.events is not None:
                findings += of_topics(parent, looks, decoders[parent.entity], now_ms)
        findings += await told("kafka", broker.privileges(deadline("kafka"))) or ()
    await told("schema registry", broker.registry())
    return Examination(sorted(findings, key=lambda each: (not each.file, each.file, each.line, each.column)), silent)
