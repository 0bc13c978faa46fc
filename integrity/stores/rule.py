"""What a store keeps of a dependent: the rule, its parent's key, and the fold's policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from integrity.core.derive import Rows
from integrity.core.fold import Policy
from integrity.core.keys import KeySpec
from integrity.core.policy import copy_policy, policy_of
from integrity.core.rules.model import Copy, Dependent, Parent, RuleSet


@dataclass(frozen=True, slots=True)
class StoreRule:
    """A dependent of this store with everything that `apply` needs of it."""

    entity: str
    dependent: Dependent
    spec: KeySpec
    policy: Policy
    rows: Rows | None = None
    """What its rows are, where something depends on them in this store, or somewhere by derived events."""
    keeps_alive: bool = False
    """That a key is alive is worth a row in the ledger. Its events may be in several topics, which nothing orders: so
    older events of the other topics are stale. Or a truncate deletes all parents: so it is known which there are."""

    @property
    def id(self) -> str:
        return self.dependent.id


def store_rules(rules: RuleSet, store: str) -> Mapping[str, tuple[StoreRule, ...]]:
    """Entity -> its dependents in that store, in the order of the rule file."""
    of_store = rules.of_store(store)
    return {
        entity: tuple(
            StoreRule(
                entity,
                dependent,
                parent.key,
                policy_of(dependent, parent.key),
                rows_of(rules, dependent),
                parent.truncates or (parent.events is not None and parent.events.several_topics),
            )
            for parent in (rules.by_entity[entity],)
            for dependent in dependents
        )
        for entity, dependents in of_store.items()
    }


@dataclass(frozen=True, slots=True)
class CopyRule:
    """A copy of this store. `rows` is what removes or marks its rows, as a dependent whose reference is the key."""

    copy: Copy
    rows: StoreRule

    @property
    def id(self) -> str:
        return self.copy.id

    @property
    def entity(self) -> str:
        return self.rows.entity

    @property
    def spec(self) -> KeySpec:
        return self.rows.spec


def copy_rule(parent: Parent, copy: Copy) -> CopyRule:
    """What a store keeps of a copy."""
    return CopyRule(copy, StoreRule(parent.entity, copy.rows, parent.key, copy_policy(copy)))


def copied_rows(rules: RuleSet, store: str) -> Mapping[str, tuple[StoreRule, ...]]:
    """Entity -> what removes or marks rows of its copies in that store."""
    found: dict[str, tuple[StoreRule, ...]] = {}
    for parent, copy in rules.copies_of(store):
        found[parent.entity] = (*found.get(parent.entity, ()), copy_rule(parent, copy).rows)
    return found


def merged(
    rules: Mapping[str, Sequence[StoreRule]], more: Mapping[str, Sequence[StoreRule]]
) -> Mapping[str, Sequence[StoreRule]]:
    """Both, by entity."""
    return {entity: (*rules.get(entity, ()), *more.get(entity, ())) for entity in {**rules, **more}}


def rows_of(rules: RuleSet, dependent: Dependent) -> Rows | None:
    """What the rows of a dependent are; None where nothing depends on them that this store has to take along."""
    parent = None if dependent.entity is None else rules.by_entity.get(dependent.entity)
    if parent is None or dependent.key is None or dependent.array:
        return None  # of a list an element goes, the row stays
    has_own_events = parent.events is not None
    if has_own_events and all(below.store != dependent.store for below in parent.dependents):
        return None
    elsewhere = any(below.store != dependent.store for below in parent.dependents)
    return rows(
        parent.entity,
        dependent.key,
        dependent.columns,
        recorded=not has_own_events,
        published=not has_own_events and elsewhere,
    )


def with_rows(rule: StoreRule) -> StoreRule:
    """The rule as one whose rows' own keys can be read, wherever something may depend on them."""
    dependent = rule.dependent
    if rule.rows is not None or dependent.entity is None or dependent.key is None or dependent.array:
        return rule
    return replace(rule, rows=rows(dependent.entity, dependent.key, dependent.columns, recorded=False))


def rows(entity: str, spec: KeySpec, columns: Sequence[str], *, recorded: bool, published: bool = False) -> Rows:
    """Rows with this own key and these reference columns."""
    shared = tuple((own, columns.index(name)) for own, name in enumerate(spec.names) if name in columns)
    return Rows(entity, spec, shared, recorded, published)


def policies(rules: Iterable[StoreRule]) -> tuple[Policy, ...]:
    return tuple(rule.policy for rule in rules)
