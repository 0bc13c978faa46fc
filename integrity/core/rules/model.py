"""What a valid rule file says: frozen values that cannot be wrong any more.

`core.rules.parse` is the only maker. A later stage may rely on every invariant named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from integrity.core.keys import KeySpec

DEFAULT_SWEEPS_MS = (60_000, 600_000, 3_600_000)
"""The sweeps of a file that does not name its own."""

DEFAULT_PREFIX = "__"
"""What flattening puts before the names of what it adds, unless it is told otherwise."""

TENANT = "tenant"
"""The group of a pattern that says whose a topic is, and the key field that takes what is told of the tenant."""

Literal = None | bool | int | float | str
"""A literal of a rule file (`where`, `set_default`, `tombstone.set`)."""


class EventValue(StrEnum):
    """A value of `tombstone.set` that comes from the event or the clock."""

    TIME = "$event.time"
    ID = "$event.id"
    NOW = "$now"


@dataclass(frozen=True, slots=True)
class Cascade:
    """On delete: delete the dependents. On update: their reference follows."""


@dataclass(frozen=True, slots=True)
class Nullify:
    """Set reference columns to null; `columns` are all of the reference's, or the ones the rule names."""

    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetDefault:
    """Set reference columns to literals; columns of the reference that are not named keep their value."""

    values: Mapping[str, Literal]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """Mark dependents. The first column of `set` is the marker: a row whose marker is not null is out of reach."""

    set: Mapping[str, Literal | EventValue]

    @property
    def marker(self) -> str:
        return next(iter(self.set))


@dataclass(frozen=True, slots=True)
class Restrict:
    """Leave the dependents as they are, and report a violation when there are any."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """Leave the dependents as they are."""


Action = Cascade | Nullify | SetDefault | Tombstone | Restrict | Ignore
"""A referential action. `on_update` is never Tombstone."""


def action_name(action: Action) -> str:
    """The word of the rule file: cascade, nullify, set_default, tombstone, restrict, ignore."""
    match action:
        case Cascade():
            return "cascade"
        case Nullify():
            return "nullify"
        case SetDefault():
            return "set_default"
        case Tombstone():
            return "tombstone"
        case Restrict():
            return "restrict"
        case Ignore():
            return "ignore"


class TargetKind(StrEnum):
    """What kind of thing a dependent is; each store URL scheme has one."""

    TABLE = "table"
    COLLECTION = "collection"
    TOPIC = "topic"


@dataclass(frozen=True, slots=True)
class Target:
    """Where the dependents are: a table (`schema.table` or `table`), collection or topic, as the rule writes it."""

    kind: TargetKind
    name: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in a rule file; line and column count from 1."""

    file: str
    line: int
    column: int


class Match(StrEnum):
    """What null parts of a composite reference mean, as in SQL. A reference with a null part refers to nothing either
    way; under FULL no action of the rule leaves some parts null and others not."""

    SIMPLE = "simple"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Dependent:
    """One reference from a store to a parent.

    `references` maps each dependent column (or field path) to a parent key field, in the order of the parent's key;
    it names every key field exactly once. `where` holds column -> literal (null: is null) or tuple of literals.
    `max_rows`: an event with more rows than that is held. `array`, which only a collection has: the one field of the
    reference is a list of keys, each a reference of its own. `as_of` is the column that says when a row came to be.
    `name` is unique in its file; `id`, `entity.name`, is unique over all files.

    `entity` names what the rows are, `key` which columns name one of them: then the file of that entity goes on with
    what depends on the rows. Both are there or neither.
    """

    id: str
    name: str
    store: str
    target: Target
    references: Mapping[str, str]
    on_delete: Action
    on_update: Action
    where: Mapping[str, Literal | tuple[Literal, ...]]
    place: Place
    max_rows: int | None = None
    array: bool = False
    entity: str | None = None
    key: KeySpec | None = None
    match: Match = Match.SIMPLE
    as_of: str | None = None
    undo_ms: int | None = None
    """How long it is kept what rows were before an event changed them, in milliseconds; None: it is not kept."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The reference's columns, in the order of the parent's key."""
        return tuple(self.references)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a parent's rows. `columns` maps each of its columns (or fields) to a field of the parent's row.

    `rows` says what removes or marks a row of it: a dependent whose reference is the key, with the copy's id, name,
    store, target and place.
    """

    rows: Dependent
    columns: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.rows.id

    @property
    def store(self) -> str:
        return self.rows.store

    @property
    def action(self) -> str:
        """The word of the rule file for `on_delete`."""
        return "tombstone" if isinstance(self.rows.on_delete, Tombstone) else "delete"

    @property
    def values(self) -> Mapping[str, str]:
        """Its columns without those of the key."""
        return {column: field for column, field in self.columns.items() if column not in self.rows.references}


class Tombstones(StrEnum):
    """What a null record without a deletion before it says."""

    DELETE = "delete"
    IGNORE = "ignore"


class KeyFormat(StrEnum):
    """How the record keys of a parent's events are written."""

    JSON = "json"
    STRING = "string"
    LONG = "long"


class KeyFrom(StrEnum):
    """Where the parent's key is read from."""

    RECORD = "record"
    PAYLOAD = "payload"
    BEFORE = "before"


@dataclass(frozen=True, slots=True)
class Types:
    """What the types of domain events say, and where the parts of an event are. No type is in two of the tuples, and
    one of them is not empty.

    The type is in the record header `header`, or in the field `field` of the value: at most one is named, and neither
    where the format itself says where it is. `payload` is the field that holds the payload; None: the value is the
    payload. `new_key` maps fields of the parent's key to the payload's fields with their new values; it is there if
    `key_changed` is, and a key field that it leaves out keeps its value.
    """

    deleted: tuple[str, ...]
    key_changed: tuple[str, ...]
    upserted: tuple[str, ...]
    header: str | None
    field: str | None
    payload: str | None
    new_key: Mapping[str, str]


class Truncates(StrEnum):
    """What a truncate of the parent's table does."""

    IGNORE = "ignore"
    DELETE_ALL = "delete_all"


class TenantIn(StrEnum):
    """Where an event says whose it is, if the name of its topic does not."""

    HEADER = "header"
    FIELD = "field"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class TenantFrom:
    """The header, the field of the row or payload, or the field of the parent's key that holds the tenant."""

    place: TenantIn
    name: str


class PairBy(StrEnum):
    """What tells that a deletion and a creation are one key change, where the source does not mark it."""

    TRANSACTION = "transaction"


@dataclass(frozen=True, slots=True)
class Source:
    """The parent's own table or collection: its columns or fields are named as the key fields are."""

    store: str
    target: Target


@dataclass(frozen=True, slots=True)
class Events:
    """Where a parent's events come from. No topic feeds two parents. `topics` has at least one; with a `pattern` they
    are those that are known to fulfil it, if any (`core.rules.patterns`).

    `deleted_when` is a condition that `core.condition` takes, or None. `epoch` is that of every version read. `source`
    is where the parents themselves are, as far as the rule says. `types` is there where events are domain events.
    `version` is the path of the field that places a change, None where the format itself knows. A `key_format` other
    than JSON goes with a key of one field that it can hold. `tenant` is not there where the pattern has a group of that
    name; with either a truncate deletes nothing. `prefix` is what the names begin with that flattening has given to
    what it adds to a row or its headers.
    """

    topics: tuple[str, ...]
    format: str
    key: KeySpec
    tombstones: Tombstones
    deleted_when: str | None = None
    epoch: int = 0
    source: Source | None = None
    types: Types | None = None
    key_from: KeyFrom = KeyFrom.RECORD
    key_format: KeyFormat = KeyFormat.JSON
    version: tuple[str, ...] | None = None
    truncate: Truncates = Truncates.IGNORE
    pattern: str | None = None
    tenant: TenantFrom | None = None
    pair_by: PairBy | None = None
    prefix: str = DEFAULT_PREFIX

    @property
    def tell_who_lives(self) -> bool:
        """Whether the newest record of a key says whether its parent lives. Domain and derived events tell what
        happened, and of most parents nothing has; where keys are in the rows, a null record tells of no key."""
        return self.types is None and self.format != "integrity" and self.key_from is not KeyFrom.BEFORE

    @property
    def several_topics(self) -> bool:
        """Whether the events of one key may be in several topics. A tenant's are in the tenant's own, where the name
        says so."""
        return len(self.topics) > 1 if self.pattern is None else not self._tenant_by_topic

    @property
    def gives_tenant(self) -> bool:
        """Whether the events tell whose they are."""
        return self.tenant is not None or self._tenant_by_topic

    @property
    def _tenant_by_topic(self) -> bool:
        return self.pattern is not None and TENANT in re.compile(self.pattern).groupindex

    @property
    def tenant_field(self) -> str | None:
        """The key field that holds the tenant; None where no field does."""
        if self.tenant is not None and self.tenant.place is TenantIn.KEY:
            return self.tenant.name
        return TENANT if self.gives_tenant and TENANT in self.key.names else None

    @property
    def shown(self) -> str:
        """The topics in words."""
        return ", ".join(self.topics) if self.pattern is None else self.pattern


@dataclass(frozen=True, slots=True)
class Parent:
    """One rule file. Without `events` it is a *derived* parent: what happens to its rows follows from the dependents
    that name its entity, and `rows_key` is the key that they give."""

    entity: str
    events: Events | None
    dependents: tuple[Dependent, ...]
    place: Place
    rows_key: KeySpec | None = None
    sweeps_ms: tuple[int, ...] = DEFAULT_SWEEPS_MS
    """How long after a fate was enforced its key is looked at again for late rows, in milliseconds, ascending."""
    copies: tuple[Copy, ...] = ()
    """Only of a parent with events."""

    @property
    def truncates(self) -> bool:
        """A truncate of its table is the deletion of all parents."""
        return self.events is not None and self.events.truncate is Truncates.DELETE_ALL

    @property
    def followers(self) -> Mapping[str, Dependent]:
        """By id, the dependents, and the copies as dependents that go with their parent."""
        return {each.id: each for each in (*self.dependents, *(copy.rows for copy in self.copies))}

    @property
    def key(self) -> KeySpec:
        """The parent's key: that of its own events, or the one of its rows."""
        key = self.rows_key if self.events is None else self.events.key
        assert key is not None, "a parent has events, or dependents that name it"
        return key


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rule files together; `hash` is 12 hex digits over their meaning (not their comments or layout)."""

    parents: tuple[Parent, ...]
    hash: str
    by_topic: Mapping[str, Parent] = field(repr=False)
    by_entity: Mapping[str, Parent] = field(repr=False)

    @property
    def stores(self) -> tuple[str, ...]:
        """The names of the stores that some dependent or copy is in, sorted."""
        return tuple(sorted(set(self.store_of.values())))

    @property
    def store_of(self) -> dict[str, str]:
        """The id of each dependent and copy -> its store."""
        return {
            **{dependent.id: dependent.store for parent in self.parents for dependent in parent.dependents},
            **{copy.id: copy.store for parent in self.parents for copy in parent.copies},
        }

    def derived(self, store: str) -> tuple[Parent, ...]:
        """The parents without events whose rows are in this store, and that have dependents in another one."""
        return tuple(
            parent
            for parent in self.parents
            if parent.events is None
            and self.named(parent.entity)[0].store == store
            and any(dependent.store != store for dependent in parent.dependents)
        )

    def follows_derived(self, store: str) -> tuple[Parent, ...]:
        """The parents without events whose rows are in another store than some of their dependents in this one."""
        return tuple(
            parent
            for parent in self.parents
            if parent.events is None
            and any(dependent.store == store for dependent in parent.dependents)
            and self.named(parent.entity)[0].store != store
        )

    def named(self, entity: str) -> tuple[Dependent, ...]:
        """The dependents whose rows are this entity. They agree on store, target and key."""
        return tuple(d for parent in self.parents for d in parent.dependents if d.entity == entity)

    def branch(self, dependent: Dependent) -> tuple[Dependent, ...]:
        """A dependent, and all that depends on its rows in the same store."""
        found = {dependent.id: dependent}
        waiting = [dependent]
        while waiting:
            parent = self.by_entity.get(waiting.pop().entity or "")
            for below in () if parent is None else parent.dependents:
                if below.store == dependent.store and below.id not in found:
                    found[below.id] = below
                    waiting.append(below)
        return tuple(found.values())

    def sweeps_of(self, store: str) -> Mapping[int, frozenset[str]]:
        """Age of a sweep (in milliseconds) -> the entities with dependents in that store that name it; ascending."""
        found: dict[int, set[str]] = {}
        for entity in self.of_store(store):
            for age_ms in self.by_entity[entity].sweeps_ms:
                found.setdefault(age_ms, set()).add(entity)
        return {age_ms: frozenset(found[age_ms]) for age_ms in sorted(found)}

    def copies_of(self, store: str) -> tuple[tuple[Parent, Copy], ...]:
        """The copies in that store, each with its parent."""
        return tuple((parent, copy) for parent in self.parents for copy in parent.copies if copy.store == store)

    def of_store(self, store: str) -> Mapping[str, tuple[Dependent, ...]]:
        """Entity -> its dependents in that store; entities without any are left out."""
        found: dict[str, tuple[Dependent, ...]] = {}
        for parent in self.parents:
            dependents = tuple(d for d in parent.dependents if d.store == store)
            if dependents:
                found[parent.entity] = dependents
        return found
