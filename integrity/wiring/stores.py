"""Settings and rules to stores, ledgers and copies. Drivers are imported only for the kinds that are used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, assert_never

from integrity.core.rules.meaning import copy_hash
from integrity.core.rules.model import Copy, Parent, RuleSet, TargetKind
from integrity.core.tenants import tenant_faults
from integrity.errors import Finding, RulesError, UsageError
from integrity.ports import Examinable, Inspectable, InspectableCopy, Store, Sweepable, Truncatable, Undoable
from integrity.settings import Settings, StoreKind, StoreSettings
from integrity.stores.rule import copied_rows, copy_rule, store_rules

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
        for code, message, hint in store_faults(settings, dependent.store, dependent.target.kind)
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


def store_faults(settings: Settings, store: str, kind: TargetKind) -> list[tuple[str, str, str]]:
    """Why nothing of that kind can be in a store, as code, message and hint: it has no settings, or is of another."""
    known = settings.stores.get(store)
    if known is None:
        variable = f"INTEGRITY_STORES__{store.upper()}__URL"
        return [("unknown_store", f"store {store!r} has no settings", f"set {variable}")]
    if _TARGETS[known.kind] is not kind:
        wanted = _TARGETS[known.kind]
        message = f"store {store!r} is {known.kind.value}, which holds a {wanted.value}, not a {kind.value}"
        return [("wrong_store_kind", message, f"name a {wanted.value}, or another store")]
    return []


def url_of(name: str, store: StoreSettings) -> str:
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
    url = url_of(name, store)
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
    lane, rule, url = f"{group}@{copy_hash(parent, copy)}", copy_rule(parent, copy), url_of(copy.store, store)
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
