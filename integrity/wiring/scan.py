"""What `integrity scan` compares, and what mends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from integrity.core.rules.model import Dependent, Parent, RuleSet
from integrity.errors import UsageError
from integrity.kafka.consumer import GroupProgress
from integrity.kafka.scans import ScanResult, publish, scans_topic
from integrity.ports import Deadline, Parents, Scannable
from integrity.service.scan import Subject
from integrity.service.scan_repair import Repairer
from integrity.settings import Settings
from integrity.stores.rule import store_rules
from integrity.wiring.decoding import lane_decoders, open_schemas
from integrity.wiring.parents import open_scanner, parents_of
from integrity.wiring.shared import CONNECT_TIMEOUT_S, VIEW_TIMEOUT_S, person_audit
from integrity.wiring.stores import chosen_stores, open_store
from integrity.wiring.topics import with_known_topics


@dataclass(frozen=True, slots=True)
class Scans:
    """What is to be scanned, in the order of the rules, and what mends it."""

    subjects: Sequence[Subject]
    timeout_s: float
    """How long a question about some keys may take."""
    repairer: Callable[[Subject, Callable[[int], None]], AbstractAsyncContextManager[Repairer]]


@asynccontextmanager
async def scanning(
    settings: Settings, rules: RuleSet, dependents: Sequence[Dependent], *, actor: str
) -> AsyncIterator[Scans]:
    """The stores of these dependents and the parents that they refer to, not connected yet. `actor` is who asks."""
    rules = await with_known_topics(settings, rules)
    # A question to one may have to wait for a topic that is read on.
    patience_s = max(VIEW_TIMEOUT_S, *(2 * store.timeout for store in settings.stores.values()))
    chosen = chosen_stores(settings, rules, sorted({dependent.store for dependent in dependents}))
    async with AsyncExitStack() as stack:
        scanners: dict[str, Scannable] = {}
        schemas = open_schemas(stack, settings)
        parents: dict[str, tuple[Parents, str, str]] = {}
        subjects: list[Subject] = []
        for dependent in dependents:
            parent = next(each for each in rules.parents if dependent in each.dependents)
            if dependent.store not in scanners:
                scanner = open_scanner(
                    dependent.store, chosen[dependent.store], settings, store_rules(rules, dependent.store)
                )
                stack.push_async_callback(scanner.close)
                scanners[dependent.store] = scanner
            _check_comparable(settings, rules, parent, dependent)
            if parent.entity not in parents:
                parents[parent.entity] = found = parents_of(settings, rules, parent, schemas)
                stack.push_async_callback(found[0].close)
            subjects.append(
                Subject(parent.entity, parent.key, dependent, scanners[dependent.store], *parents[parent.entity])
            )

        @asynccontextmanager
        async def repairer(subject: Subject, done: Callable[[int], None]) -> AsyncIterator[Repairer]:
            name = subject.dependent.store
            async with AsyncExitStack() as closing:
                store = open_store(name, chosen[name], settings, rules)
                closing.push_async_callback(store.close)
                progress = GroupProgress(
                    settings.kafka.client, group=settings.lane(name), topics=sorted(lane_decoders(rules, name))
                )
                closing.push_async_callback(progress.close)
                audit = person_audit(closing, settings, rules)
                yield Repairer(
                    subject,
                    store,
                    progress.caught_up,
                    audit,
                    actor=actor,
                    timeout_s=patience_s,
                    done=done,
                )

        yield Scans(subjects, patience_s, repairer)


def _check_comparable(settings: Settings, rules: RuleSet, parent: Parent, dependent: Dependent) -> None:
    """Raises UsageError where the parents are those of one tenant, and the rows those of all: they would be orphans."""
    source, named = None if parent.events is None else parent.events.source, rules.named(parent.entity)
    at = source.store if source is not None else named[0].store if named else None
    known = None if at is None else settings.stores.get(at)
    if known is not None and known.tenant and not settings.stores[dependent.store].tenant:
        raise UsageError(
            f"{dependent.id} can't be scanned: its rows are of all tenants, and the parents in {at} of one.",
            hint="Name other dependents by --dependent.",
        )


async def publish_scans(settings: Settings, results: Sequence[ScanResult]) -> None:
    """Tell the services what was found. Raises OperationError."""
    await publish(settings.kafka.client, scans_topic(settings.group), results, Deadline.after(CONNECT_TIMEOUT_S))
