"""What the commands that look share: the rule and key that are asked for, the stores, and how the answers end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from integrity.cli.base import Options, start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from integrity.core.keys import Key, KeySpec
    from integrity.core.rules.model import Parent, RuleSet
    from integrity.errors import OperationError
    from integrity.ports import Deadline, Inspectable, InspectableCopy
    from integrity.settings import Settings

EXIT_SILENT = 3
TOPICS_TIMEOUT_S = 600.0
"""A topic is read from its beginning before it can be asked anything."""


@dataclass(frozen=True, slots=True)
class Looking:
    """The rules, and the stores to ask."""

    settings: Settings
    rules: RuleSet
    stores: Mapping[str, Inspectable]

    def deadline(self, store: Inspectable | InspectableCopy) -> Deadline:
        """How long a store is waited for."""
        from integrity.ports import Deadline
        from integrity.settings import StoreKind

        known = self.settings.stores[store.name]
        return Deadline.after(TOPICS_TIMEOUT_S if known.kind is StoreKind.TOPIC else known.timeout)


@asynccontextmanager
async def looking(
    options: Options,
    entity: str | None = None,
    store: str | None = None,
    *,
    below: bool = False,
    tenant: str | None = None,
    key: str | None = None,
) -> AsyncIterator[Looking]:
    """Everything that is asked of the stores with dependents of an entity (`below`: or of what depends on those, and so
    on), or of one store. Where stores have a database for each tenant, `tenant` names it, unless `key`, the text of a
    key of the entity, holds it. Raises UsageError for a name that no rule has."""
    settings = start(options, tenant)
    from integrity.core.plan import reachable
    from integrity.rules_files import load_rules
    from integrity.wiring.stores import open_for_looking

    rules = load_rules(settings.rules)
    if store is not None:
        names = [store]
    else:
        parent = parent_of(rules, entity or "")
        names = [*reachable(rules, parent.entity)] if below else stores_of(parent)
        held = None if key is None else _tenant_in(parent, key_of(parent, key))
        of = {*names, *(copy.store for copy in parent.copies)}
        if held is not None and any(name in settings.stores and settings.stores[name].has_tenants for name in of):
            settings = settings.of_tenant(held)
        elif held is not None and tenant is not None and held != tenant:
            raise other_tenant(tenant)
    async with open_for_looking(settings, rules, names) as stores:
        yield Looking(settings, rules, {name: stores[name] for name in names})


def parent_of(rules: RuleSet, entity: str) -> Parent:
    """The parent of that name. Raises UsageError."""
    from integrity.core.rules.findings import did_you_mean, shown
    from integrity.errors import UsageError

    found = rules.by_entity.get(entity)
    if found is None:
        raise UsageError(f"No rule file has the parent {shown(entity)}.", hint=did_you_mean(entity, rules.by_entity))
    return found


def _tenant_in(parent: Parent, key: Key) -> str | None:
    """The tenant that a key holds; None where it holds none."""
    field = None if parent.events is None else parent.events.tenant_field
    return None if field is None else str(key[parent.key.names.index(field)])


def other_tenant(tenant: str) -> Exception:
    from integrity.core.rules.findings import bare
    from integrity.errors import UsageError

    return UsageError(f"The key is not one of the tenant {bare(tenant)}.", hint="Leave --tenant out: the key holds it.")


def stores_of(parent: Parent) -> list[str]:
    return sorted({dependent.store for dependent in parent.dependents})


def key_of(parent: Parent, text: str) -> Key:
    """The key that was written on the command line. Raises UsageError."""
    from integrity.core.key_text import parse_key
    from integrity.core.keys import KeyRefused

    try:
        return parse_key(text, parent.key)
    except KeyRefused as exc:
        raise refused(parent, exc.message) from exc


def refused(parent: Parent, message: str) -> Exception:
    """What is said of a key that is none of the parent's."""
    from integrity.errors import UsageError

    return UsageError(f"This is no key of {parent.entity}: {message}.", hint=f"Its key is {spec_text(parent.key)}.")


def spec_text(spec: KeySpec) -> str:
    return ", ".join(f"{name} ({kind.value})" for name, kind in spec.fields)


def tell(options: Options, names: Collection[str]) -> None:
    """Say which stores are waited for."""
    if not options.quiet:
        click.echo(f"waiting for {', '.join(names)} …", err=True)


def end(silent: Mapping[str, OperationError]) -> int:
    """Name the stores that did not answer; the exit code."""
    for name, why in silent.items():
        click.echo(f"{name} did not answer: {why}", err=True)
    return EXIT_SILENT if silent else 0
