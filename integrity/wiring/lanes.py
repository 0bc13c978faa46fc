"""The lane of a store, of a copy, and of the databases of all tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from integrity.core.batch import ANY_DEPENDENT, TopicPartition
from integrity.core.retry import Backoff
from integrity.core.rules.model import Copy, Parent, Place, RuleSet
from integrity.errors import UnfitStoreError
from integrity.kafka.assignor import SingleOwnerAssignor
from integrity.kafka.consumer import Consumer
from integrity.kafka.dead_letters import DeadLetters
from integrity.kafka.letters import LetterIndex
from integrity.kafka.redrives import redrive_topic, wanted
from integrity.ports import Store
from integrity.service.enforce import Enforcer, Patience, Watch
from integrity.service.halts import Halts
from integrity.service.lane import Lane
from integrity.service.redrive import Redriver
from integrity.service.report import CopyReport, Report
from integrity.service.supervisor import Member, fit
from integrity.service.tenant_redrive import BY_ITSELF, TenantRedriver
from integrity.service.tenants import Dispatcher, TenantCare, TenantDatabase, TenantWatch
from integrity.service.truncate import Counting, Truncator
from integrity.service.work import Returning
from integrity.settings import Settings, StoreSettings
from integrity.stores.tenants import Database, TenantStores
from integrity.wiring.decoding import copy_decoders, lane_decoders
from integrity.wiring.dlq import dead_letters, redriver
from integrity.wiring.shared import CONNECT_TIMEOUT_S
from integrity.wiring.stores import CopyStore, OpenStore, copy_name, open_store

if TYPE_CHECKING:
    from integrity.registry.cache import SchemaCache


def _consumer(settings: Settings, group: str, *, exclusive: bool) -> Consumer:
    """A member of the consumer group of a lane, which also reads what is sent back to it."""
    return Consumer(
        settings.kafka.client,
        group=group,
        assignor=SingleOwnerAssignor() if exclusive else StickyPartitionAssignor,
        made=[wanted(redrive_topic(settings.group))],
    )


def _places(rules: RuleSet, store: str) -> dict[str, list[Place]]:
    """Where the rules of each dependent of a store stand, and of what depends on it."""
    return {
        rule.id: [each.place for each in rules.branch(rule)]
        for of_entity in rules.of_store(store).values()
        for rule in of_entity
    }


def _enforcers(
    store: Store,
    store_settings: StoreSettings,
    rules: RuleSet,
    letters: DeadLetters,
    watch: Watch,
    halts: Halts,
    *,
    unread: str = ANY_DEPENDENT,
) -> tuple[list[Enforcer], Enforcer]:
    """What a lane applies batches with, as many as it applies at a time, and one aside for truncates."""
    aside, *enforcers = [
        Enforcer(
            store,
            letters,
            watch,
            system=store_settings.kind.value,
            rules_hash=rules.hash,
            timeout_s=2 * store_settings.timeout,
            halts=halts,
            unread=unread,
        )
        for _ in range((1 if store.exclusive else store_settings.pool_size) + 1)
    ]
    return enforcers, aside


def copy_lane_of(
    store: CopyStore,
    store_settings: StoreSettings,
    settings: Settings,
    rules: RuleSet,
    parent: Parent,
    copy: Copy,
    letters: DeadLetters,
    report: Report,
    compacted: Collection[str],
    schemas: SchemaCache | None,
) -> Lane:
    """The lane of a copy, beside that of its store."""
    assert parent.events is not None, "a parent with copies has events"
    decoders = copy_decoders(rules, copy, schemas)
    watch = CopyReport(report, copy_name(copy))
    redrives = redrive_topic(settings.group)
    halts = Halts(store, watch, {})  # a copy waits until it is mended: nothing else is in its lane
    enforcers, aside = _enforcers(store, store_settings, rules, letters, watch, halts, unread=copy.id)
    return Lane(
        store=store,
        open_source=partial(_consumer, settings, settings.lane(copy_name(copy)), exclusive=store.exclusive),
        enforcers=enforcers,
        watch=watch,
        decoders=decoders,
        batch_size=store_settings.batch_size,
        returning=Returning(redrives, copy.store, {copy.id}, alone=True),
        complete=compacted,
        truncator=Truncator(store, aside, timeout_s=2 * store_settings.timeout) if parent.truncates else None,
        schemas=schemas,
    )


def lane_of(
    store: OpenStore,
    store_settings: StoreSettings,
    settings: Settings,
    rules: RuleSet,
    letters: DeadLetters,
    report: Report,
    schemas: SchemaCache | None,
) -> Lane:
    """The lane of a store with one database."""
    decoders = lane_decoders(rules, store.name, schemas)
    redrives = redrive_topic(settings.group)
    dependents = {rule.id for of_entity in rules.of_store(store.name).values() for rule in of_entity}
    halts = Halts(store, report, _places(rules, store.name))
    enforcers, aside = _enforcers(store, store_settings, rules, letters, report, halts)
    parents = [rules.by_entity[entity] for entity in rules.of_store(store.name)]
    truncator: Truncator | None = None
    if any(parent.truncates for parent in parents):
        truncator = Truncator(store, aside, timeout_s=2 * store_settings.timeout, counting=Counting(store, rules))
    return Lane(
        store=store,
        open_source=partial(_consumer, settings, settings.lane(store.name), exclusive=store.exclusive),
        enforcers=enforcers,
        watch=report,
        decoders=decoders,
        batch_size=store_settings.batch_size,
        returning=Returning(redrives, store.name, dependents, {copy.id for _, copy in rules.copies_of(store.name)}),
        truncator=truncator,
        schemas=schemas,
    )


def tenant_databases(
    name: str, store: StoreSettings, settings: Settings, rules: RuleSet, *, migrate: bool
) -> TenantStores:
    """The databases of a store that has one for each tenant, none open yet."""

    async def prepare(database: Database) -> None:
        if findings := await fit(database, min(store.timeout, CONNECT_TIMEOUT_S), migrate=migrate):
            raise UnfitStoreError(findings)

    def open_tenant(tenant: str) -> Database:
        alone = store.of_tenant(tenant).model_copy(update={"pool_size": 1})
        return open_store(name, alone, settings, rules)

    return TenantStores(name, open_tenant, prepare, connections_max=store.connections_max, timeout_s=2 * store.timeout)


def tenant_member(
    stack: AsyncExitStack,
    name: str,
    store: StoreSettings,
    settings: Settings,
    rules: RuleSet,
    letters: DeadLetters,
    report: Report,
    schemas: SchemaCache | None,
    parked: Callable[[], Mapping[str, int]],
    migrate: bool,
) -> tuple[Member, TenantStores]:
    """The lane of a store with a database for each tenant, and what runs beside it; and those databases."""
    timeout_s = 2 * store.timeout
    databases = tenant_databases(name, store, settings, rules, migrate=migrate)
    stack.push_async_callback(databases.close)
    places = _places(rules, name)
    watch = TenantWatch(report)

    def enforcer_of(database: TenantDatabase, watch: Watch, patience: Patience | None) -> Enforcer:
        return Enforcer(
            database,
            letters,
            watch,
            system=store.kind.value,
            rules_hash=rules.hash,
            timeout_s=timeout_s,
            halts=Halts(database, watch, places, tenant=database.tenant),
            backoff=Backoff(cap_s=max(0.2, store.tenant_wait / 4)),
            tenant=database.tenant,
            patience=patience,
        )

    general = enforcer_of(databases.of(""), watch.of(""), None)
    dispatcher = Dispatcher(
        databases,
        general,
        enforcer_of,
        watch,
        report,
        store.tenant_fault,
        batch_size=store.batch_size,
        wait_s=store.tenant_wait,
    )
    redrives = redrive_topic(settings.group)
    lane = Lane(
        store=databases,
        open_source=partial(_consumer, settings, settings.lane(name), exclusive=False),
        enforcers=[general],
        watch=report,
        decoders=lane_decoders(rules, name, schemas),
        batch_size=store.batch_size,
        returning=Returning(redrives, name, set(places)),
        schemas=schemas,
        dispatch=dispatcher,
    )

    @asynccontextmanager
    async def letters_now() -> AsyncIterator[tuple[LetterIndex, Redriver]]:
        async with (
            dead_letters(settings) as (reader, index),
            redriver(settings, rules, reader, index, BY_ITSELF) as by_itself,
        ):
            yield index, by_itself

    own = TopicPartition(redrives, 0)
    care = TenantCare(
        databases,
        dispatcher,
        report,
        rules.sweeps_of(name),
        lane.caught_up,
        timeout_s=timeout_s,
        keeps=any(rule.undo_ms for of_entity in rules.of_store(name).values() for rule in of_entity),
    )
    back = TenantRedriver(databases, dispatcher, letters_now, is_mine=lambda: lane.has(own), parked=parked)
    return Member(databases, lane, None, more=(dispatcher, back, care)), databases
