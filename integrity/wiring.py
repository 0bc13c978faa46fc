"""The only module that knows concrete classes: from settings and rules to stores, lanes and their supervisor.

Everything that is opened is closed in reverse order by one AsyncExitStack.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, assert_never, cast

from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

import integrity
from integrity.core.batch import TopicPartition
from integrity.core.change import ParentChange
from integrity.core.condition import null_test
from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoded, Decoder, Ignored, Record
from integrity.core.decode.wire import unwrapped
from integrity.core.doctor import TopicLook, defaults
from integrity.core.policy import policy_of
from integrity.core.retry import Backoff
from integrity.core.rules.graph import derived_topic
from integrity.core.rules.meaning import copy_hash
from integrity.core.rules.model import Copy, Dependent, KeyFormat, Parent, Place, RuleSet, Source, TargetKind
from integrity.core.rules.patterns import has_patterns, with_topics
from integrity.core.scan import parents_as_dependent
from integrity.core.tenants import tenant_faults
from integrity.core.undo import Choice
from integrity.errors import Finding, OperationError, RulesError, UnfitStoreError, UnreachableError, UsageError
from integrity.kafka.acls import Need, Operation, Resource, command, lacking
from integrity.kafka.assignor import SingleOwnerAssignor
from integrity.kafka.audit import AuditTrail
from integrity.kafka.consumer import Consumer, GroupProgress, existing_topics
from integrity.kafka.dead_letters import DeadLetters, status_topic
from integrity.kafka.derived import DerivedEvents, ensure_derived
from integrity.kafka.letters import LetterIndex, LetterReader, open_letters
from integrity.kafka.looking import acls, look_at
from integrity.kafka.open_letters import OpenLetters, Waiting
from integrity.kafka.producer import BATCH_BYTES_MAX, Producer, WantedTopic, ensure_topics
from integrity.kafka.redrives import redrive_topic, wanted
from integrity.kafka.scans import ScanResult, ScanResults, publish, scans_topic
from integrity.ports import (
    Deadline,
    Examinable,
    Inspectable,
    InspectableCopy,
    Outbox,
    Parents,
    Scannable,
    Store,
    Sweepable,
    Truncatable,
    Undoable,
)
from integrity.service.doctor import Examination, examine
from integrity.service.enforce import Enforcer, Patience, Watch
from integrity.service.expiry import Expiry
from integrity.service.halts import Halts
from integrity.service.lane import Lane
from integrity.service.outbox import OutboxPublisher
from integrity.service.redrive import Person, Redriver
from integrity.service.report import CopyReport, Report
from integrity.service.scan import ParentRows, Subject
from integrity.service.scan_repair import Repairer
from integrity.service.supervisor import FIRST_CHECK_TIMEOUT_S, Member, Supervisor, fit
from integrity.service.sweep import Sweeper
from integrity.service.tenant_redrive import BY_ITSELF, TenantRedriver
from integrity.service.tenants import Dispatcher, TenantCare, TenantDatabase, TenantWatch
from integrity.service.topics import Follower, TopicWatch
from integrity.service.truncate import Counting, Truncator
from integrity.service.undo import Undoer
from integrity.service.waiting import cancelled
from integrity.service.work import Returning
from integrity.settings import Settings, StoreKind, StoreSettings
from integrity.stores.rule import StoreRule, copied_rows, copy_rule, store_rules
from integrity.stores.tenants import Database, TenantStores
from integrity.telemetry import Metrics, open_telemetry

if TYPE_CHECKING:
    from integrity.registry.cache import SchemaCache
    from integrity.stores.postgres.identity import ReplicaIdentities

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 15.0
TOPICS_TIMEOUT_S = 60.0
"""How long `integrity doctor` reads topics."""
VIEW_TIMEOUT_S = 600.0
"""A topic is read from its beginning before it can be asked anything."""

_TARGETS = {
    StoreKind.POSTGRES: TargetKind.TABLE,
    StoreKind.MONGO: TargetKind.COLLECTION,
    StoreKind.TOPIC: TargetKind.TOPIC,
}


def chosen_stores(settings: Settings, rules: RuleSet, names: Collection[str] = ()) -> Mapping[str, StoreSettings]:
    """The stores to work on: those named, else all that the rules use.

    Raises RulesError where a rule names a store without settings or of another kind, UsageError for an unknown name.
    """
    findings = [
        Finding(code, message, hint, place.file, place.line, place.column)
        for parent in rules.parents
        for dependent in parent.followers.values()
        for place in (dependent.place,)
        for code, message, hint in _unfit(settings, dependent.store, dependent.target.kind)
    ]
    apart = {name for name, store in settings.stores.items() if store.has_tenants or store.tenant}
    findings += tenant_faults(rules, apart)
    if findings:
        raise RulesError(findings)
    unknown = sorted(set(names) - set(rules.stores))
    if unknown:
        raise UsageError(
            f"--store {unknown[0]}: no rule has a dependent or copy in that store.",
            hint=f"The rules use: {', '.join(rules.stores)}.",
        )
    return {name: settings.stores[name] for name in rules.stores if not names or name in names}


def _unfit(settings: Settings, store: str, kind: TargetKind) -> list[tuple[str, str, str]]:
    known = settings.stores.get(store)
    if known is None:
        variable = f"INTEGRITY_STORES__{store.upper()}__URL"
        return [("unknown_store", f"store {store!r} has no settings", f"set {variable}")]
    if _TARGETS[known.kind] is not kind:
        wanted = _TARGETS[known.kind]
        message = f"store {store!r} is {known.kind.value}, which holds a {wanted.value}, not a {kind.value}"
        return [("wrong_store_kind", message, f"name a {wanted.value}, or another store")]
    return []


def _url(name: str, store: StoreSettings) -> str:
    """The URL of a store's database. Raises UsageError where each tenant has one, and none is named."""
    if store.has_tenants:
        message = f"The store {name} has a database for each tenant, and none is named."
        raise UsageError(message, hint="Say whose it is: --tenant T.")
    return store.url.get_secret_value()


class OpenStore(Store, Inspectable, Sweepable, Undoable, Examinable, Truncatable, Protocol):
    """What every kind of store can do."""


def open_store(name: str, store: StoreSettings, settings: Settings, rules: RuleSet) -> OpenStore:
    """The store, not connected yet. Drivers are imported only for the kinds that are used."""
    lane, found, copies = settings.lane(name), store_rules(rules, name), copied_rows(rules, name)
    url = _url(name, store)
    match store.kind:
        case StoreKind.POSTGRES:
            from integrity.stores.postgres import PostgresStore as Database
        case StoreKind.MONGO:
            from integrity.stores.mongo import MongoStore as Database  # type: ignore[assignment]
        case StoreKind.TOPIC:
            from integrity.stores.topic import TopicStore

            return TopicStore(
                name,
                settings.kafka.client,
                found,
                lane=lane,
                schema=store.schema_,
                timeout_s=store.timeout,
                copies=copies,
            )
        case _:
            assert_never(store.kind)
    return Database(
        name,
        url,
        found,
        lane=lane,
        schema=store.schema_,
        pool_size=store.pool_size,
        timeout_s=store.timeout,
        copies=copies,
    )


def copy_name(copy: Copy) -> str:
    """What the lane of a copy is called: its consumer group, its metrics, its readiness."""
    return f"{copy.store}.{copy.id}"


class CopyStore(Store, Truncatable, InspectableCopy, Protocol):
    """What the store of a copy can do."""


def open_copy(store: StoreSettings, settings: Settings, parent: Parent, copy: Copy) -> CopyStore:
    """The store of one copy, not connected yet. Its progress and versions go by what the rule says of its rows: they
    are made anew when that changes."""
    group = settings.lane(copy_name(copy))
    lane, rule, url = f"{group}@{copy_hash(parent, copy)}", copy_rule(parent, copy), _url(copy.store, store)
    match store.kind:
        case StoreKind.POSTGRES:
            from integrity.stores.postgres import PostgresCopy as Database
        case StoreKind.MONGO:
            from integrity.stores.mongo import MongoCopy as Database  # type: ignore[assignment]
        case StoreKind.TOPIC:
            from integrity.stores.topic import TopicCopy

            client, schema = settings.kafka.client, store.schema_
            return TopicCopy(copy.store, client, rule, group=group, lane=lane, schema=schema, timeout_s=store.timeout)
        case _:
            assert_never(store.kind)
    return Database(
        copy.store,
        url,
        rule,
        lane=lane,
        schema=store.schema_,
        pool_size=store.pool_size,
        timeout_s=store.timeout,
    )


def open_ledgers(name: str, store: StoreSettings, settings: Settings, rules: RuleSet) -> list[Store]:
    """What makes the ledger of a store, and that of its copies where it is another: all copies of a topic store share
    one, beside that of its dependents."""
    made: list[Store] = [open_store(name, store, settings, rules)]
    if store.kind is StoreKind.TOPIC:
        made += [open_copy(store, settings, parent, copy) for parent, copy in rules.copies_of(name)[:1]]
    return made


@asynccontextmanager
async def open_for_looking(
    settings: Settings, rules: RuleSet, names: Collection[str]
) -> AsyncIterator[Mapping[str, Inspectable]]:
    """Stores that are only asked."""
    async with AsyncExitStack() as stack:
        stores: dict[str, Inspectable] = {}
        for name, store_settings in chosen_stores(settings, rules, names).items():
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
        yield stores


@asynccontextmanager
async def open_copies_for_looking(settings: Settings, parent: Parent) -> AsyncIterator[Mapping[str, InspectableCopy]]:
    """The copies of a parent by their ids, which are only asked."""
    async with AsyncExitStack() as stack:
        copies: dict[str, InspectableCopy] = {}
        for copy in parent.copies:
            copies[copy.id] = store = open_copy(settings.stores[copy.store], settings, parent, copy)
            stack.push_async_callback(store.close)
        yield copies


class _Kafka:
    """Kafka, as `integrity doctor` looks at it."""

    def __init__(
        self, settings: Settings, rules: RuleSet, stores: Collection[str], schemas: SchemaCache | None
    ) -> None:
        self._settings = settings
        self._schemas = schemas
        self._needs = _needs(settings, rules, stores)

    async def topics(self, names: Sequence[str], deadline: Deadline) -> Mapping[str, TopicLook]:
        looks = await look_at(self._settings.kafka.client, names, deadline)
        if self._schemas is None:
            return looks
        found: dict[str, TopicLook] = {}
        for name, look in looks.items():
            try:
                found[name] = await _in_json(look, self._schemas)
            except UnreachableError:  # said of the registry itself
                found[name] = look._replace(last=())
        return found

    async def registry(self) -> None:
        """Whether the schema registry answers, where there is one. Raises UnreachableError."""
        if self._schemas is not None:
            await self._schemas.check()

    async def privileges(self, deadline: Deadline) -> Sequence[Finding]:
        """What the user lacks, where the cluster has ACLs and they can be read."""
        kafka = self._settings.kafka
        # Who one is by a certificate is a matter of the broker's own rules.
        if not kafka.security_protocol.uses_sasl and kafka.ssl_certfile is not None:
            return []
        found = await acls(kafka.client, deadline)
        principal = f"User:{kafka.sasl_username or 'ANONYMOUS'}"
        return [
            Finding(
                "kafka_privilege",
                f"no ACL lets {principal} {need.operation.name.lower()} {need.resource.name.lower()} {need.name}",
                f"{command(need, principal)}. A super user needs none.",
                severity="warning",
            )
            for need in (lacking(found, principal, self._needs) if found is not None else ())
        ]


async def _in_json(look: TopicLook, schemas: SchemaCache) -> TopicLook:
    """The last records of a topic, out of the wire format. Raises UnreachableError."""
    await schemas.learn_of(look.last)
    return look._replace(last=[unwrapped(each, schemas.schemas, schemas.bare_keys) for each in look.last])


async def look_for_rule(settings: Settings, topic: str) -> TopicLook | None:
    """The last records of a topic that no rule names yet, in JSON as far as a schema registry makes them so; None when
    there is no such topic. Raises UnreachableError."""
    look = (await look_at(settings.kafka.client, [topic], Deadline.after(TOPICS_TIMEOUT_S))).get(topic)
    async with AsyncExitStack() as stack:
        schemas = _schemas(stack, settings)
        if look is None or schemas is None:
            return look
        found = await _in_json(look, schemas)
        # Nobody has said how keys are written: of a record that can't be read whole its value may be.
        schemas.bare_keys.add(topic)
        values = await _in_json(look, schemas)
        whole = zip(look.last, found.last, values.last, strict=True)
        return look._replace(last=[of_value if read is raw else read for raw, read, of_value in whole])


def _needs(settings: Settings, rules: RuleSet, stores: Collection[str]) -> list[Need]:
    """What the lanes of these stores do with Kafka, without what may also be made by somebody else."""
    copies = [(parent, copy) for store in stores for parent, copy in rules.copies_of(store)]
    entities = {entity for store in stores for entity in rules.of_store(store)}
    entities |= {parent.entity for parent, _ in copies}
    sources = _decoders(rules.by_entity[entity] for entity in sorted(entities))
    read = [*sources, redrive_topic(settings.group), scans_topic(settings.group)]
    dead = settings.dlq.topic
    written = [dead, status_topic(dead), *([settings.audit.topic] if settings.audit.topic else [])]
    children = sorted(
        {
            dependent.target.name
            for store in stores
            for of_entity in rules.of_store(store).values()
            for dependent in of_entity
            if dependent.target.kind is TargetKind.TOPIC
        }
        | {copy.rows.target.name for _, copy in copies if copy.rows.target.kind is TargetKind.TOPIC}
    )
    needs = [Need(Resource.TOPIC, name, Operation.READ) for name in (*read, status_topic(dead), *children)]
    needs += [Need(Resource.TOPIC, name, Operation.WRITE) for name in (*written, *children)]
    needs += [Need(Resource.GROUP, settings.lane(store), Operation.READ) for store in stores if rules.of_store(store)]
    needs += [Need(Resource.GROUP, settings.lane(copy_name(copy)), Operation.READ) for _, copy in copies]
    return needs


async def examined(settings: Settings, rules: RuleSet, names: Collection[str] = ()) -> Examination:
    """Everything that `integrity doctor` finds."""
    with suppress(UnreachableError):  # what is asked of Kafka below tells it
        rules = await with_known_topics(settings, rules)
    async with AsyncExitStack() as stack:
        stores: dict[str, OpenStore] = {}
        copies: dict[str, list[Store]] = {}
        chosen = chosen_stores(settings, rules, names)
        for name, store_settings in chosen.items():
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
            for parent, copy in rules.copies_of(name):
                copied = open_copy(store_settings, settings, parent, copy)
                copies.setdefault(name, []).append(copied)
                stack.push_async_callback(copied.close)

        def deadline(name: str) -> Deadline:
            store = settings.stores.get(name)
            if store is not None and store.kind is not StoreKind.TOPIC:
                return Deadline.after(store.timeout)
            return Deadline.after(TOPICS_TIMEOUT_S)

        schemas = _schemas(stack, settings)
        parents: dict[str, tuple[Parents, str]] = {}
        for entity in {default.entity for default in defaults(rules) if default.dependent.store in chosen}:
            rows, where, _ = _parents(settings, rules, rules.by_entity[entity], schemas)
            stack.push_async_callback(rows.close)
            parents[entity] = rows, where
        decoders = {parent.entity: _decoder(parent, schemas) for parent in rules.parents}
        kafka = _Kafka(settings, rules, chosen, schemas)
        sources = _sources(stack, settings, rules, chosen)
        return await examine(rules, stores, parents, kafka, decoders, deadline, copies, sources)


def _sources(
    stack: AsyncExitStack, settings: Settings, rules: RuleSet, chosen: Collection[str]
) -> Mapping[str, ReplicaIdentities]:
    """The PostgreSQL databases, by store, that events of the parents of these stores come from, as far as rules name
    them and settings know them; closed by the stack."""
    from integrity.stores.postgres.identity import ReplicaIdentities, is_logged

    found: dict[str, list[Parent]] = {}
    for parent in rules.parents:
        if is_logged(parent) and any(each.store in chosen for each in parent.followers.values()):
            assert parent.events is not None and parent.events.source is not None
            found.setdefault(parent.events.source.store, []).append(parent)
    sources: dict[str, ReplicaIdentities] = {}
    for name, parents in found.items():
        store = settings.stores.get(name)
        # Of a database for each tenant, `doctor --tenant` looks at one.
        if store is None or store.kind is not StoreKind.POSTGRES or store.has_tenants:
            continue
        url = store.url.get_secret_value()
        sources[name] = ReplicaIdentities(name, url, parents, schema=store.schema_, timeout_s=store.timeout)
        stack.push_async_callback(sources[name].close)
    return sources


async def require_identities(settings: Settings, rules: RuleSet, chosen: Collection[str]) -> None:
    """Look at the replica identities of the parents' tables, where rules name their database.

    Raises RulesError where deletions would come with another row's key. A database that does not answer keeps nobody
    waiting: the service works without it."""
    findings: list[Finding] = []
    async with AsyncExitStack() as stack:
        for name, source in _sources(stack, settings, rules, chosen).items():
            try:
                findings += await source.check(Deadline.after(FIRST_CHECK_TIMEOUT_S))
            except OperationError as exc:
                log.warning(
                    "the replica identity of parents could not be looked at",
                    extra={"store": name, "error": exc.message},
                )
    for finding in findings:
        if finding.severity != "error":
            log.warning("parents are not as they should be", extra={"finding": str(finding)})
    if errors := [finding for finding in findings if finding.severity == "error"]:
        raise RulesError(errors)


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
        schemas = _schemas(stack, settings)
        parents: dict[str, tuple[Parents, str, str]] = {}
        subjects: list[Subject] = []
        for dependent in dependents:
            parent = next(each for each in rules.parents if dependent in each.dependents)
            if dependent.store not in scanners:
                scanner = _scanner(
                    dependent.store, chosen[dependent.store], settings, store_rules(rules, dependent.store)
                )
                stack.push_async_callback(scanner.close)
                scanners[dependent.store] = scanner
            _check_comparable(settings, rules, parent, dependent)
            if parent.entity not in parents:
                parents[parent.entity] = found = _parents(settings, rules, parent, schemas)
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
                    settings.kafka.client, group=settings.lane(name), topics=sorted(_lane_decoders(rules, name))
                )
                closing.push_async_callback(progress.close)
                audit = _person_audit(closing, settings, rules)
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


def _scanner(
    name: str, store: StoreSettings, settings: Settings, rules: Mapping[str, Sequence[StoreRule]]
) -> Scannable:
    url = _url(name, store)
    match store.kind:
        case StoreKind.POSTGRES:
            from integrity.stores.postgres.scan import PostgresScanner

            return PostgresScanner(name, url, rules, schema=store.schema_, timeout_s=store.timeout)
        case StoreKind.MONGO:
            from integrity.stores.mongo.scan import MongoScanner

            return MongoScanner(name, url, rules, schema=store.schema_, timeout_s=store.timeout)
        case StoreKind.TOPIC:
            from integrity.stores.topic.scan import TopicScanner

            return TopicScanner(name, settings.kafka.client, rules, lane=settings.lane(name), schema=store.schema_)
        case _:
            assert_never(store.kind)


def _parents(
    settings: Settings, rules: RuleSet, parent: Parent, schemas: SchemaCache | None
) -> tuple[Parents, str, str]:
    """Where the parents are, the same in words, and what has to be known of it: their own table, where the rule names
    it; else the rows of dependents, where they are such; else the compacted topics of their events."""
    events, spec, note = parent.events, parent.key, ""
    condition = None if events is None else events.deleted_when
    named = rules.named(parent.entity)
    if events is not None and events.source is not None:
        test = None if condition is None else null_test(condition)
        live = test[0] if test is not None and not test[1] else None
        if condition is not None and live is None:
            note = "deleted_when can't be asked of a table: every row there counts as a parent"
        as_dependent = parents_as_dependent(
            parent.entity, events.source, dict(zip(spec.names, spec.names, strict=True)), parent.place, live
        )
    elif named:
        assert named[0].key is not None, "a dependent with an entity has its key"
        columns = dict(zip(named[0].key.names, spec.names, strict=True))
        source = Source(named[0].store, named[0].target)
        as_dependent = parents_as_dependent(parent.entity, source, columns, named[0].place)
    else:
        assert events is not None, "without events the rows are named"
        if events.pattern is not None:
            why = "a topic of its pattern may be gone, or yet to come"
            message = f"The parents of {parent.entity} can't be looked up: {why}."
            raise UsageError(message, hint="Name the parents' own table: events.source: {store: ..., table: ...}.")
        from integrity.stores.topic.scan import TopicParents

        # Read as for a copy, of no field: an update says that its parent lives, and may be all that compaction left.
        decoder = _decoder(parent, schemas, ())
        if events.tenant_field is None and (tenant := settings.tenant):
            decoder = _of_tenant(decoder, tenant)
        learn = None if schemas is None else schemas.learn_of
        found = TopicParents(
            settings.kafka.client, events.topics, spec, decoder, is_telling=events.tell_who_lives, learn=learn
        )
        return found, f"topic {events.shown}", note
    name, kind = as_dependent.store, as_dependent.target.kind
    if unfit := _unfit(settings, name, kind):
        place = parent.place
        raise RulesError([Finding(*each, place.file, place.line, place.column) for each in unfit])
    rule = StoreRule(parent.entity, as_dependent, spec, policy_of(as_dependent, spec))
    scanner = _scanner(name, settings.stores[name], settings, {parent.entity: (rule,)})
    return ParentRows(scanner, as_dependent.id), f"{kind} {as_dependent.target.name} of {name}", note


def _of_tenant(decoder: Decoder, tenant: str) -> Decoder:
    """Reads what is of one tenant, whose keys may be those of another."""

    def read(record: Record) -> Decoded:
        said = decoder(record)
        return _OF_ANOTHER if isinstance(said, ParentChange) and said.tenant != tenant else said

    return read


_OF_ANOTHER = Ignored("tenant", "An event of another tenant.")


async def publish_scans(settings: Settings, results: Sequence[ScanResult]) -> None:
    """Tell the services what was found. Raises OperationError."""
    await publish(settings.kafka.client, scans_topic(settings.group), results, Deadline.after(CONNECT_TIMEOUT_S))


@dataclass(frozen=True, slots=True)
class Service:
    """A process of the cluster, wired: what `integrity run` drives."""

    supervisor: Supervisor
    metrics: Metrics
    rules: RuleSet
    stores: Mapping[str, Inspectable]
    copies: Mapping[str, InspectableCopy]


@asynccontextmanager
async def service(
    settings: Settings, rules: RuleSet, names: Collection[str] = (), *, migrate: bool = False
) -> AsyncIterator[Service]:
    """Open everything that `run` needs; closes it again in reverse order."""
    chosen = chosen_stores(settings, rules, names)
    client = settings.kafka.client
    async with AsyncExitStack() as stack:
        metrics = Metrics(version=integrity.__version__, rules=rules.hash)
        telemetry = open_telemetry(os.environ, metrics, version=integrity.__version__)
        stack.push_async_callback(lambda: telemetry.close(Deadline.after(CLOSE_TIMEOUT_S)))
        letters = DeadLetters(client, topic=settings.dlq.topic, group=settings.group)
        stack.push_async_callback(lambda: letters.close(Deadline.after(CLOSE_TIMEOUT_S)))
        audit = _audit(stack, settings, rules, metrics.count_audit_dropped, close_s=CLOSE_TIMEOUT_S)
        parked: dict[str, int] = {}

        def tell_waiting(now: Waiting) -> None:
            metrics.set_waiting(now.open, now.held, now.oldest_ms)
            parked.clear()
            parked.update(now.parked)

        following = asyncio.create_task(
            OpenLetters(client, settings.dlq.topic, tell_waiting).run(), name="open letters"
        )
        stack.push_async_callback(lambda: cancelled(following))
        ids = {dependent.id for parent in rules.parents for dependent in parent.dependents}
        scans = ScanResults(
            client,
            scans_topic(settings.group),
            lambda dependent, rows: metrics.set_orphans(dependent, rows) if dependent in ids else None,
        )
        hearing = asyncio.create_task(scans.run(), name="scans")
        stack.push_async_callback(lambda: cancelled(hearing))
        report = Report(metrics, telemetry.tracing, audit, rules, settings)
        members: list[Member] = []
        followers: list[Follower] = []
        stores: dict[str, Inspectable] = {}
        compacted = await _compacted(settings, rules, chosen)
        schemas = _schemas(stack, settings)
        for name, store_settings in chosen.items():
            if store_settings.has_tenants:
                member, stores[name] = _tenant_member(
                    stack, name, store_settings, settings, rules, letters, report, schemas, lambda: parked, migrate
                )
                members.append(member)
                followers.append((member.lane, partial(_lane_decoders, store=name, schemas=schemas)))
                continue
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
            for parent, copy in rules.copies_of(name):
                copied = open_copy(store_settings, settings, parent, copy)
                stack.push_async_callback(copied.close)
                lane = _copy_lane(
                    copied, store_settings, settings, rules, parent, copy, letters, report, compacted, schemas
                )
                members.append(Member(copied, lane, None, copy=copy_name(copy)))
                followers.append((lane, partial(_copy_decoders, copy=copy, schemas=schemas)))
            if not rules.of_store(name):
                continue
            outbox: OutboxPublisher | None = None
            # A topic store publishes them itself, in the transaction of its effects.
            if rules.derived(name) and store_settings.kind is not StoreKind.TOPIC:
                sender = DerivedEvents(client, [parent.entity for parent in rules.derived(name)])
                stack.push_async_callback(_closing(sender))
                outbox = OutboxPublisher(cast("Outbox", store), sender.send)
            lane = _lane(store, store_settings, settings, rules, letters, report, schemas)
            followers.append((lane, partial(_lane_decoders, store=name, schemas=schemas)))
            sweeper = Sweeper(
                store,
                report,
                rules.sweeps_of(name),
                lane.caught_up,
                timeout_s=2 * store_settings.timeout,
            )
            expiry = Expiry(store, timeout_s=2 * store_settings.timeout)
            members.append(Member(store, lane, sweeper, outbox=outbox, expiry=expiry))
        for name in rules.stores:
            if name in stores:
                continue
            # Another process works on it; who asks about a parent asks about all stores.
            if settings.stores[name].has_tenants:
                stores[name] = _databases(name, settings.stores[name], settings, rules, migrate=False)
            else:
                stores[name] = store = open_store(name, settings.stores[name], settings, rules)
                stack.push_async_callback(store.close)
        watch = TopicWatch(lambda: _look_at_topics(settings, rules), followers)
        watching = asyncio.create_task(watch.run(), name="topics")
        stack.push_async_callback(lambda: cancelled(watching))
        copies: dict[str, InspectableCopy] = {}
        for parent in rules.parents:
            # Of their own: whoever asks must not disturb the lane.
            copies |= await stack.enter_async_context(open_copies_for_looking(settings, parent))
        supervisor = Supervisor(members, migrate=migrate)
        yield Service(supervisor, metrics, rules, stores, copies)


@asynccontextmanager
async def dead_letters(settings: Settings) -> AsyncIterator[tuple[LetterReader, LetterIndex]]:
    """The dead letters as they are now."""
    deadline = Deadline.after(CONNECT_TIMEOUT_S)
    async with open_letters(settings.kafka.client, settings.dlq.topic, deadline) as reader:
        index = await reader.index()
        try:
            yield reader, index
        finally:
            index.close()


@asynccontextmanager
async def redriver(
    settings: Settings, rules: RuleSet, reader: LetterReader, index: LetterIndex, person: Person
) -> AsyncIterator[Redriver]:
    """What sends dead letters back to the lanes of these settings, or gives them up."""
    rules = await with_known_topics(settings, rules)
    client = settings.kafka.client
    topic = redrive_topic(settings.group)
    async with AsyncExitStack() as stack:
        facts = (await ensure_topics(client, [wanted(topic)], Deadline.after(CONNECT_TIMEOUT_S)))[topic]
        letters = DeadLetters(client, topic=settings.dlq.topic, group=settings.group)
        stack.push_async_callback(lambda: letters.close(Deadline.after(CLOSE_TIMEOUT_S)))
        producer = Producer(
            client, client_id=f"{settings.group}-redrive", batch_bytes_max=min(BATCH_BYTES_MAX, facts.bytes_max)
        )
        stack.push_async_callback(lambda: producer.close(Deadline.after(CLOSE_TIMEOUT_S)))
        audit = _person_audit(stack, settings, rules)
        schemas = _schemas(stack, settings)
        yield Redriver(
            reader,
            index,
            marks=letters,
            sends=producer,
            audit=audit,
            topic=topic,
            bytes_max=facts.bytes_max,
            rules=rules,
            decoders=_decoders(rules.parents, schemas),
            person=person,
            learn=None if schemas is None else schemas.learn_of,
            of_tenants={name for name, store in settings.stores.items() if store.has_tenants},
        )


@asynccontextmanager
async def undoer(
    settings: Settings, rules: RuleSet, names: Collection[str], choice: Choice, person: Person
) -> AsyncIterator[Undoer]:
    """What puts back what events changed in these stores."""
    async with AsyncExitStack() as stack:
        stores: dict[str, Undoable] = {}
        for name, store_settings in chosen_stores(settings, rules, names).items():
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
        audit = _person_audit(stack, settings, rules)
        yield Undoer(
            stores,
            choice,
            person,
            rules=rules,
            audit=audit,
            timeout_of=lambda name: _undo_timeout_s(settings.stores[name]),
        )


def _undo_timeout_s(store: StoreSettings) -> float:
    """A topic is read from its beginning before anything of it is put back."""
    return VIEW_TIMEOUT_S if store.kind is StoreKind.TOPIC else store.timeout


def _person_audit(stack: AsyncExitStack, settings: Settings, rules: RuleSet) -> AuditTrail | None:
    """The audit of what a person does: nobody reads metrics there, so what is dropped is said."""

    def say(count: int) -> None:
        log.warning("audit records were dropped", extra={"count": count})

    return _audit(stack, settings, rules, say, close_s=CONNECT_TIMEOUT_S)


def _audit(
    stack: AsyncExitStack, settings: Settings, rules: RuleSet, on_dropped: Callable[[int], None], *, close_s: float
) -> AuditTrail | None:
    """The audit trail, started, and closed by the stack; None when it is switched off."""
    if not settings.audit.topic:
        return None
    secret = settings.audit.hmac_key.get_secret_value().encode() if settings.audit.hash_keys else None
    trail = AuditTrail(settings.kafka.client, rules, topic=settings.audit.topic, on_dropped=on_dropped, hmac_key=secret)
    trail.start()
    stack.push_async_callback(lambda: trail.close(Deadline.after(close_s)))
    return trail


def _closing(sender: DerivedEvents) -> Callable[[], Awaitable[None]]:
    return lambda: sender.close(Deadline.after(CLOSE_TIMEOUT_S))


def _our_topics(settings: Settings, rules: RuleSet) -> set[str]:
    """The topics of this program, which no pattern names."""
    dead, group = settings.dlq.topic, settings.group
    ours = {dead, status_topic(dead), redrive_topic(group), scans_topic(group), settings.audit.topic}
    return ours | {derived_topic(parent.entity) for parent in rules.parents}


async def with_known_topics(settings: Settings, rules: RuleSet) -> RuleSet:
    """The rules with the topics that fulfil their patterns now. Asks Kafka only where there are patterns.

    Raises UnreachableError, and RulesError where a topic would feed two parents.
    """
    return (await _look_at_topics(settings, rules))[0] if has_patterns(rules) else rules


async def _look_at_topics(settings: Settings, rules: RuleSet) -> tuple[RuleSet, Collection[str]]:
    known = await existing_topics(settings.kafka.client, Deadline.after(CLOSE_TIMEOUT_S))
    return with_topics(rules, known, _our_topics(settings, rules)), known


async def require_topics(settings: Settings, rules: RuleSet, chosen: Collection[str]) -> RuleSet:
    """The rules with the topics that fulfil their patterns now; with patterns it waits until Kafka answers.

    Raises RulesError for a topic that does not exist, with its place; says nothing when Kafka does not answer yet
    (the lanes wait for it)."""
    parents = {entity: rules.by_entity[entity] for store in chosen for entity in rules.of_store(store)}
    parents |= {parent.entity: parent for store in chosen for parent, _ in rules.copies_of(store)}
    wanted = {
        topic: parent
        for parent in parents.values()
        if parent.events and parent.events.pattern is None
        for topic in parent.events.topics
    }
    known: Collection[str] | None = None
    attempt = 0
    while known is None:
        try:
            rules, known = await _look_at_topics(settings, rules)
        except UnreachableError as exc:
            log.warning("Kafka can't be reached and is waited for", extra={"error": exc.message})
            if not has_patterns(rules):
                return rules
            attempt += 1
            await asyncio.sleep(Backoff().delay_s(attempt, random.random()))
    for entity, parent in parents.items():
        events = rules.by_entity[entity].events
        if events is not None and events.pattern is not None and not events.topics:
            place = f"{parent.place.file}:{parent.place.line}"
            log.warning("no topic fulfils the pattern yet", extra={"pattern": events.pattern, "rule": place})
    findings = [
        Finding(
            "missing_topic",
            f"topic {topic!r} does not exist",
            "create it, or start the connector that writes it",
            parent.place.file,
            parent.place.line,
            parent.place.column,
        )
        for topic, parent in wanted.items()
        if topic not in known
    ]
    if findings:
        raise RulesError(findings)
    derived = {p.entity for store in chosen for p in (*rules.derived(store), *rules.follows_derived(store))}
    if missing := [entity for entity in sorted(derived) if derived_topic(entity) not in known]:
        await ensure_derived(settings.kafka.client, missing, Deadline.after(CONNECT_TIMEOUT_S))
    return rules


async def _compacted(settings: Settings, rules: RuleSet, chosen: Collection[str]) -> frozenset[str]:
    """Which topics of parents with copies are compacted, as far as Kafka answers."""
    copied = [parent for store in chosen for parent, _ in rules.copies_of(store)]
    topics = {topic for parent in copied if parent.events for topic in parent.events.topics}
    if not topics:
        return frozenset()
    client = settings.kafka.client
    try:
        known = topics & await existing_topics(client, Deadline.after(CLOSE_TIMEOUT_S))
        wanted_topics = [WantedTopic(topic, 1) for topic in sorted(known)]
        facts = await ensure_topics(client, wanted_topics, Deadline.after(CLOSE_TIMEOUT_S))
    except OperationError as exc:
        log.warning("Kafka does not say which topics are compacted", extra={"error": exc.message})
        return frozenset()
    return frozenset(topic for topic, fact in facts.items() if fact.compacted)


def _schemas(stack: AsyncExitStack, settings: Settings) -> SchemaCache | None:
    """The schemas of the registry, closed by the stack; None when the settings name none."""
    registry = settings.schema_registry
    if not registry.url:
        return None
    from integrity.registry.cache import SchemaCache
    from integrity.registry.client import RegistryClient

    client = RegistryClient(registry.url, auth=registry.auth, tls=registry.tls)
    stack.push_async_callback(client.close)
    return SchemaCache(client)


def _decoder(parent: Parent, schemas: SchemaCache | None, copied: Collection[str] | None = None) -> Decoder:
    if schemas is None:
        return decoder_for(parent, copied=copied)
    if parent.events is not None and parent.events.key_format is not KeyFormat.JSON:
        schemas.bare_keys.update(parent.events.topics)
    return decoder_for(parent, copied=copied, schemas=schemas.schemas)


def _decoders(parents: Iterable[Parent], schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """Topic -> the entity of its parent, and how its records are read."""
    return {
        topic: (parent.entity, _decoder(parent, schemas))
        for parent in parents
        for topic in ((derived_topic(parent.entity),) if parent.events is None else parent.events.topics)
    }


def _lane_decoders(rules: RuleSet, store: str, schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """The topics that the lane of a store reads."""
    followed = rules.follows_derived(store)
    parents = [rules.by_entity[entity] for entity in rules.of_store(store)]
    return _decoders((parent for parent in parents if parent.events is not None or parent in followed), schemas)


def _copy_decoders(rules: RuleSet, copy: Copy, schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """The topics that the lane of a copy reads."""
    parent = next(parent for parent in rules.parents if any(each.id == copy.id for each in parent.copies))
    fields = tuple(dict.fromkeys(copy.values.values()))
    topics = () if parent.events is None else parent.events.topics
    return {topic: (parent.entity, _decoder(parent, schemas, fields)) for topic in topics}


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


def _copy_lane(
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
    assert parent.events is not None, "a parent with copies has events"
    decoders = _copy_decoders(rules, copy, schemas)
    watch = CopyReport(report, copy_name(copy))
    redrives = redrive_topic(settings.group)
    halts = Halts(store, watch, {})  # a copy waits until it is mended: nothing else is in its lane
    enforcers = [
        Enforcer(
            store,
            letters,
            watch,
            system=store_settings.kind.value,
            rules_hash=rules.hash,
            timeout_s=2 * store_settings.timeout,
            halts=halts,
            unread=copy.id,
        )
        for _ in range((1 if store.exclusive else store_settings.pool_size) + 1)
    ]
    aside = enforcers.pop()  # for truncates
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


def _lane(
    store: OpenStore,
    store_settings: StoreSettings,
    settings: Settings,
    rules: RuleSet,
    letters: DeadLetters,
    report: Report,
    schemas: SchemaCache | None,
) -> Lane:
    decoders = _lane_decoders(rules, store.name, schemas)
    redrives = redrive_topic(settings.group)
    dependents = {rule.id for of_entity in rules.of_store(store.name).values() for rule in of_entity}
    halts = Halts(store, report, _places(rules, store.name))
    enforcers = [
        Enforcer(
            store,
            letters,
            report,
            system=store_settings.kind.value,
            rules_hash=rules.hash,
            timeout_s=2 * store_settings.timeout,
            halts=halts,
        )
        for _ in range((1 if store.exclusive else store_settings.pool_size) + 1)
    ]
    aside = enforcers.pop()  # for truncates
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


def _databases(name: str, store: StoreSettings, settings: Settings, rules: RuleSet, *, migrate: bool) -> TenantStores:
    """The databases of a store that has one for each tenant, none open yet."""

    async def prepare(database: Database) -> None:
        if findings := await fit(database, min(store.timeout, CONNECT_TIMEOUT_S), migrate=migrate):
            raise UnfitStoreError(findings)

    def open_tenant(tenant: str) -> Database:
        alone = store.of_tenant(tenant).model_copy(update={"pool_size": 1})
        return open_store(name, alone, settings, rules)

    return TenantStores(name, open_tenant, prepare, connections_max=store.connections_max, timeout_s=2 * store.timeout)


def _tenant_member(
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
    databases = _databases(name, store, settings, rules, migrate=migrate)
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
        decoders=_lane_decoders(rules, name, schemas),
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
