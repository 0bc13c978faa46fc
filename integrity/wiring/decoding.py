"""How the records of topics are read, and the schemas that this takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from integrity.core.decode import decoder_for
from integrity.core.decode.record import Decoder
from integrity.core.rules.graph import derived_topic
from integrity.core.rules.model import Copy, KeyFormat, KeyFrom, Parent, RuleSet
from integrity.settings import Settings

if TYPE_CHECKING:
    from integrity.registry.cache import SchemaCache


def open_schemas(stack: AsyncExitStack, settings: Settings) -> SchemaCache | None:
    """The schemas of the registry, closed by the stack; None when the settings name none."""
    registry = settings.schema_registry
    if not registry.url:
        return None
    from integrity.registry.cache import SchemaCache
    from integrity.registry.client import RegistryClient

    client = RegistryClient(registry.url, auth=registry.auth, tls=registry.tls)
    stack.push_async_callback(client.close)
    return SchemaCache(client)


def decoder_of(parent: Parent, schemas: SchemaCache | None, copied: Collection[str] | None = None) -> Decoder:
    """How the records of a parent\'s topics are read; `copied` are the fields that a copy wants of its rows."""
    if schemas is None:
        return decoder_for(parent, copied=copied)
    if parent.events is not None and parent.events.key_format is not KeyFormat.JSON:
        schemas.bare_keys.update(parent.events.topics)
    return decoder_for(parent, copied=copied, schemas=schemas.schemas)


def decoders_of(parents: Iterable[Parent], schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """Topic -> the entity of its parent, and how its records are read."""
    return {
        topic: (parent.entity, decoder_of(parent, schemas))
        for parent in parents
        for topic in ((derived_topic(parent.entity),) if parent.events is None else parent.events.topics)
    }


def redrive_decoders(parents: Sequence[Parent], schemas: SchemaCache | None) -> dict[str, tuple[str, Decoder]]:
    """As `decoders_of`. Those of tenants read as for a copy, of no field: so an update tells whose it is, and counts
    for no other tenant that has a parent of its key."""
    found = decoders_of(parents, schemas)
    for parent in parents:
        events = parent.events
        if events is not None and events.gives_tenant and events.key_from is not KeyFrom.BEFORE:
            found |= {topic: (parent.entity, decoder_of(parent, schemas, ())) for topic in events.topics}
    return found


def lane_decoders(rules: RuleSet, store: str, schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """The topics that the lane of a store reads."""
    followed = rules.follows_derived(store)
    parents = [rules.by_entity[entity] for entity in rules.of_store(store)]
    return decoders_of((parent for parent in parents if parent.events is not None or parent in followed), schemas)


def copy_decoders(rules: RuleSet, copy: Copy, schemas: SchemaCache | None = None) -> dict[str, tuple[str, Decoder]]:
    """The topics that the lane of a copy reads."""
    parent = next(parent for parent in rules.parents if any(each.id == copy.id for each in parent.copies))
    fields = tuple(dict.fromkeys(copy.values.values()))
    topics = () if parent.events is None else parent.events.topics
    return {topic: (parent.entity, decoder_of(parent, schemas, fields)) for topic in topics}
