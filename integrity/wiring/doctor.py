"""What `integrity doctor` and `init` look at, and what is looked at before `run` begins."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from integrity.core.decode.wire import unwrapped
from integrity.core.doctor import TopicLook, defaults
from integrity.core.rules.model import Parent, RuleSet, TargetKind
from integrity.errors import Finding, OperationError, RulesError, UnreachableError
from integrity.kafka.acls import Need, Operation, Resource, command, lacking
from integrity.kafka.dead_letters import status_topic
from integrity.kafka.looking import acls, look_at
from integrity.kafka.redrives import redrive_topic
from integrity.kafka.scans import scans_topic
from integrity.ports import Deadline, Parents, Store
from integrity.service.doctor import Examination, examine
from integrity.service.supervisor import FIRST_CHECK_TIMEOUT_S
from integrity.settings import Settings, StoreKind
from integrity.wiring.decoding import decoder_of, decoders_of, open_schemas
from integrity.wiring.parents import parents_of
from integrity.wiring.stores import OpenStore, chosen_stores, copy_name, open_copy, open_store
from integrity.wiring.topics import with_known_topics

if TYPE_CHECKING:
    from integrity.registry.cache import SchemaCache
    from integrity.stores.postgres.identity import ReplicaIdentities

log = logging.getLogger(__name__)


TOPICS_TIMEOUT_S = 60.0
"""How long `integrity doctor` reads topics."""


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
        schemas = open_schemas(stack, settings)
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
    sources = decoders_of(rules.by_entity[entity] for entity in sorted(entities))
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

        schemas = open_schemas(stack, settings)
        parents: dict[str, tuple[Parents, str]] = {}
        for entity in {default.entity for default in defaults(rules) if default.dependent.store in chosen}:
            rows, where, _ = parents_of(settings, rules, rules.by_entity[entity], schemas)
            stack.push_async_callback(rows.close)
            parents[entity] = rows, where
        decoders = {parent.entity: decoder_of(parent, schemas) for parent in rules.parents}
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
