"""What a store keeps of a dependent: the rule, its parent's key, and the fold's policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from integrity.core.fold import Policy
from integrity.core.keys import KeySpec
from integrity.core.policy import policy_of
from integrity.core.rules.model import Dependent, RuleSet


@dataclass(frozen=True, slots=True)
class StoreRule:
    """A dependent of this store with everything that `apply` needs of it."""

    entity: str
    dependent: Dependent
    spec: KeySpec
    policy: Policy

    @property
    def id(self) -> str:
        return self.dependent.id


def store_rules(rules: RuleSet, store: str) -> Mapping[str, tuple[StoreRule, ...]]:
    """Entity -> its dependents in that store, in the order of the rule file."""
    return {
        entity: tuple(
            StoreRule(entity, dependent, spec := rules.by_entity[entity].events.key, policy_of(dependent, spec))
            for dependent in dependents
        )
        for entity, dependents in rules.of_store(store).items()
    }


def policies(rules: Iterable[StoreRule]) -> tuple[Policy, ...]:
    return tuple(rule.policy for rule in rules)
