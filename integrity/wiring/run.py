"""A process of the cluster, as `integrity run` drives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import integrity
from integrity.core.rules.model import RuleSet
from integrity.kafka.dead_letters import DeadLetters
from integrity.kafka.derived import DerivedEvents
from integrity.kafka.open_letters import OpenLetters, Waiting
from integrity.kafka.scans import ScanResults, scans_topic
from integrity.ports import Deadline, Inspectable, InspectableCopy, Outbox
from integrity.service.expiry import Expiry
from integrity.service.outbox import OutboxPublisher
from integrity.service.report import Report
from integrity.service.supervisor import Member, Supervisor
from integrity.service.sweep import Sweeper
from integrity.service.topics import Follower, TopicWatch
from integrity.service.waiting import cancelled
from integrity.settings import Settings, StoreKind
from integrity.telemetry import Metrics, open_telemetry
from integrity.wiring.decoding import copy_decoders, lane_decoders, open_schemas
from integrity.wiring.lanes import copy_lane_of, lane_of, tenant_databases, tenant_member
from integrity.wiring.shared import CLOSE_TIMEOUT_S, open_audit
from integrity.wiring.stores import chosen_stores, copy_name, open_copies_for_looking, open_copy, open_store
from integrity.wiring.topics import compacted_topics, look_at_topics


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
        audit = open_audit(stack, settings, rules, metrics.count_audit_dropped, close_s=CLOSE_TIMEOUT_S)
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
        compacted = await compacted_topics(settings, rules, chosen)
        schemas = open_schemas(stack, settings)
        for name, store_settings in chosen.items():
            if store_settings.has_tenants:
                member, stores[name] = tenant_member(
                    stack, name, store_settings, settings, rules, letters, report, schemas, lambda: parked, migrate
                )
                members.append(member)
                followers.append((member.lane, partial(lane_decoders, store=name, schemas=schemas)))
                continue
            stores[name] = store = open_store(name, store_settings, settings, rules)
            stack.push_async_callback(store.close)
            for parent, copy in rules.copies_of(name):
                copied = open_copy(store_settings, settings, parent, copy)
                stack.push_async_callback(copied.close)
                lane = copy_lane_of(
                    copied, store_settings, settings, rules, parent, copy, letters, report, compacted, schemas
                )
                members.append(Member(copied, lane, None, copy=copy_name(copy)))
                followers.append((lane, partial(copy_decoders, copy=copy, schemas=schemas)))
            if not rules.of_store(name):
                continue
            outbox: OutboxPublisher | None = None
            # A topic store publishes them itself, in the transaction of its effects.
            if rules.derived(name) and store_settings.kind is not StoreKind.TOPIC:
                sender = DerivedEvents(client, [parent.entity for parent in rules.derived(name)])
                stack.push_async_callback(_closing(sender))
                outbox = OutboxPublisher(cast("Outbox", store), sender.send)
            lane = lane_of(store, store_settings, settings, rules, letters, report, schemas)
            followers.append((lane, partial(lane_decoders, store=name, schemas=schemas)))
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
                stores[name] = tenant_databases(name, settings.stores[name], settings, rules, migrate=False)
            else:
                stores[name] = store = open_store(name, settings.stores[name], settings, rules)
                stack.push_async_callback(store.close)
        watch = TopicWatch(lambda: look_at_topics(settings, rules), followers)
        watching = asyncio.create_task(watch.run(), name="topics")
        stack.push_async_callback(lambda: cancelled(watching))
        copies: dict[str, InspectableCopy] = {}
        for parent in rules.parents:
            # Of their own: whoever asks must not disturb the lane.
            copies |= await stack.enter_async_context(open_copies_for_looking(settings, parent))
        supervisor = Supervisor(members, migrate=migrate)
        yield Service(supervisor, metrics, rules, stores, copies)


def _closing(sender: DerivedEvents) -> Callable[[], Awaitable[None]]:
    return lambda: sender.close(Deadline.after(CLOSE_TIMEOUT_S))
