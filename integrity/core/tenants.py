"""Where rules and settings meet: a store of tenants, one database each, or one database that holds all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from integrity.core.rules.model import Dependent, Parent, RuleSet
from integrity.errors import Finding


def tenant_faults(rules: RuleSet, apart: Collection[str]) -> list[Finding]:
    """What can't work, each at the place of its rule. `apart` are the stores that have a database for each tenant."""
    return [
        Finding(code, message, hint, dependent.place.file, dependent.place.line, dependent.place.column)
        for parent in rules.parents
        for dependent in parent.followers.values()
        for code, message, hint in _faults(rules, parent, dependent, apart)
    ]


def _faults(
    rules: RuleSet, parent: Parent, dependent: Dependent, apart: Collection[str]
) -> Iterator[tuple[str, str, str]]:
    store, events = dependent.store, parent.events
    is_apart = store in apart
    if events is None:
        rows = rules.named(parent.entity)[0].store
        if rows != store and (is_apart or rows in apart):
            of_tenants = store if is_apart else rows
            yield (
                "derived_tenant",
                f"store {of_tenants!r} has a database for each tenant, and the derived events of {parent.entity}, from "
                f"{rows!r} to {store!r}, tell no tenant",
                f"keep both in one store, or give {parent.entity} events of its own that tell the tenant",
            )
    elif is_apart and any(dependent.id == copy.id for copy in parent.copies):
        yield (
            "tenant_copy",
            f"store {store!r} has a database for each tenant, and copies of parents into such a store are not kept yet",
            "name a store for the copy that is one database, with the tenant in the key",
        )
    elif is_apart and not events.gives_tenant:
        yield (
            "no_tenant",
            f"store {store!r} has a database for each tenant, and nothing tells the tenant of an event of "
            f"{parent.entity}",
            "write events.tenant, or a group (?P<tenant>...) in its pattern",
        )
    elif not is_apart and events.gives_tenant and events.tenant_field is None:
        yield (
            "shared_store",
            f"store {store!r} is one database for all tenants, and the key of {parent.entity} does not hold the "
            "tenant: equal keys of two tenants would be one",
            f"add tenant: string to its key, or write {{tenant}} in INTEGRITY_STORES__{store.upper()}__URL",
        )
