"""Where the parents of a rule are, to be compared with or looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, assert_never

from integrity.core.change import ParentChange
from integrity.core.condition import null_test
from integrity.core.decode.record import Decoded, Decoder, Ignored, Record
from integrity.core.policy import policy_of
from integrity.core.rules.model import Parent, RuleSet, Source
from integrity.core.scan import parents_as_dependent
from integrity.errors import Finding, RulesError, UsageError
from integrity.ports import Parents, Scannable
from integrity.service.scan import ParentRows
from integrity.settings import Settings, StoreKind, StoreSettings
from integrity.stores.rule import StoreRule
from integrity.wiring.decoding import decoder_of
from integrity.wiring.stores import store_faults, url_of

if TYPE_CHECKING:
    from integrity.registry.cache import SchemaCache


def open_scanner(
    name: str, store: StoreSettings, settings: Settings, rules: Mapping[str, Sequence[StoreRule]]
) -> Scannable:
    """What reads all references of a store in order, not connected yet."""
    url = url_of(name, store)
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


def parents_of(
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
        decoder = decoder_of(parent, schemas, ())
        if events.tenant_field is None and (tenant := settings.tenant):
            decoder = _of_tenant(decoder, tenant)
        learn = None if schemas is None else schemas.learn_of
        found = TopicParents(
            settings.kafka.client, events.topics, spec, decoder, is_telling=events.tell_who_lives, learn=learn
        )
        return found, f"topic {events.shown}", note
    name, kind = as_dependent.store, as_dependent.target.kind
    if unfit := store_faults(settings, name, kind):
        place = parent.place
        raise RulesError([Finding(*each, place.file, place.line, place.column) for each in unfit])
    rule = StoreRule(parent.entity, as_dependent, spec, policy_of(as_dependent, spec))
    scanner = open_scanner(name, settings.stores[name], settings, {parent.entity: (rule,)})
    return ParentRows(scanner, as_dependent.id), f"{kind} {as_dependent.target.name} of {name}", note


def _of_tenant(decoder: Decoder, tenant: str) -> Decoder:
    """Reads what is of one tenant, whose keys may be those of another."""

    def read(record: Record) -> Decoded:
        said = decoder(record)
        return _OF_ANOTHER if isinstance(said, ParentChange) and said.tenant != tenant else said

    return read


_OF_ANOTHER = Ignored("tenant", "An event of another tenant.")
