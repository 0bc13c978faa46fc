"""One page of a sweep on the state, yielding what has to be published for it; as a batch does."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence

from integrity.core.fold import lookups
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, canonical, key_hash
from integrity.core.ledger import Head, heads_to_write
from integrity.core.parts import TooManyRows, changing
from integrity.core.sweep import (
    Extent,
    Repaired,
    Sweep,
    Swept,
    TooManyLate,
    causes,
    is_gone,
    late_rows,
    repairs,
    repairs_below,
)
from integrity.core.undo import not_undone
from integrity.stores.descent import from_late_rows
from integrity.stores.rule import StoreRule, policies
from integrity.stores.topic import records
from integrity.stores.topic.enforce import Enforcement
from integrity.stores.topic.records import SweepRecord, Write
from integrity.stores.topic.state import State

Work = Generator[list[Write], None, Swept]


class SweepWork:
    """One page, or as much of it as the extent says. `enforcement` carries out what is found; it has no events of its
    own."""

    def __init__(
        self,
        state: State,
        rules: Mapping[str, Sequence[StoreRule]],
        sweep: Sweep,
        enforcement: Enforcement,
        lane: str,
        extent: Extent,
        rows_max: int,
    ) -> None:
        self._extent = extent
        self._rows_max = rows_max
        self._state = state
        self._rules = rules
        self._sweep = sweep
        self._enforcement = enforcement
        self._lane = lane

    def run(self) -> Work:
        """Yields records to publish, in order. Raises Refused, TooManyLate; TooManyRows when there are more children
        than the extent has."""
        sweep = self._sweep
        place = self._state.swept(sweep.age_ms)
        if place is None:
            yield [self._moved(SweepRecord(sweep.until_ms, ""))]
            return Swept()
        due = self._state.fates_due(place, sweep.until_ms, sweep.keys_max)
        if not due:
            return Swept()
        gone: dict[str, dict[Key, bytes]] = {}
        for _, digest in due:
            entity, key = self._gone(digest)
            if key is not None:
                gone.setdefault(entity, {})[key] = digest
        repaired: list[Repaired] = []
        for entity, keys in gone.items():
            repaired += yield from self._repair(entity, keys)
        if self._extent is Extent.PART:
            if not repaired:
                raise TooManyRows
            return Swept(tuple(repaired), more=True, unfinished=True)
        at_ms, digest = due[-1]
        yield [self._moved(SweepRecord(at_ms, digest.hex()))]
        return Swept(tuple(repaired), more=len(due) == sweep.keys_max)

    def _gone(self, digest: bytes) -> tuple[str, Key | None]:
        """The entity and key with that hash, if it is one of this sweep's that is gone."""
        record = self._state.head_record(digest)
        if record is None or record.entity not in self._sweep.entities or record.entity not in self._rules:
            return "", None
        entity, spec = record.entity, self._rules[record.entity][0].spec
        # A long key is cut there, and one of another type than the rule gives now means nothing.
        key = key_of_ledger(record.key, spec)
        if key is None or key_hash(entity, key) != digest:
            return "", None
        head = self._state.head(digest, spec)
        if head is None or not is_gone(head) or self._is_led_to(entity, key, head):
            return "", None
        return entity, key

    def _is_led_to(self, entity: str, key: Key, head: Head) -> bool:
        """A later key change has led to the key: it lives again, though its own events have not said so."""
        moves = self._state.fates_to(canonical(key))
        return any(of.entity == entity and move.version > head.fates[-1].version for of, move in moves)

    def _repair(self, entity: str, keys: Mapping[Key, bytes]) -> Generator[list[Write], None, list[Repaired]]:
        rules = self._rules[entity]
        late = {rule.id: self._referenced(rule, keys) for rule in rules if rule.id not in self._sweep.left_out}
        own = {key for of_rule in late.values() for key in of_rule}
        if not own:
            return []
        heads, known = self._heads(entity, rules, own)
        acted = {
            (key, fate.event, dependent)
            for key in known
            for fate in self._state.fates(key_hash(entity, key))
            for dependent in fate.rows
        }
        acted = not_undone(
            acted,
            {
                (key, undone.event, undone.dependent)
                for key in known
                for undone in self._state.undone(key_hash(entity, key))
            },
        )
        repaired: list[Repaired] = []
        changes = causes(entity, heads, own)
        descent = from_late_rows(self._rules, self._extent, self._rows_max, exact=False)
        for rule in rules:
            number = self._number(rule)
            # Whatever is an arrival came later than the fate: the key lives again.
            wanted = [key for key in late.get(rule.id, ()) if not self._state.arrivals_at(number, keys[key])]
            groups, settled, firsts = late_rows(rule.policy, heads, wanted, acted, changes)
            if self._extent is Extent.PART:
                groups = changing(groups)
            asks = descent.branch(rule, groups, settled, changes, None, firsts)
            rows = yield from self._enforcement.late(rule, asks)
            if over := descent.held(rule, ()):
                raise TooManyLate.below(over)
            repaired += repairs(rule.policy, entity, rule.dependent.max_rows, heads, groups, rows)
        repaired += repairs_below(changes, heads, descent.went_along())
        yield self._enforcement.heads(entity, rules, heads, heads_to_write(known, own, heads, {}), ())
        yield self._enforcement.repairs(repaired)
        return repaired

    def _referenced(self, rule: StoreRule, keys: Mapping[Key, bytes]) -> list[Key]:
        number = self._number(rule)
        return [key for key, digest in keys.items() if self._state.referencing(number, digest, 0)[0]]

    def _heads(self, entity: str, rules: Sequence[StoreRule], own: Iterable[Key]) -> tuple[dict[Key, Head], set[Key]]:
        heads: dict[Key, Head] = {}
        known: set[Key] = set()
        wanted = set(own)
        while wanted:
            known |= wanted
            for key in wanted:
                head = self._state.head(key_hash(entity, key), rules[0].spec)
                if head is not None:
                    heads[key] = head
            wanted = lookups((), known, {key: head.fates for key, head in heads.items()}, policies(rules))
        return heads, known

    def _number(self, rule: StoreRule) -> int:
        number = self._state.number(rule.id)
        assert number is not None, "the state knows every rule of the store"
        return number

    def _moved(self, record: SweepRecord) -> Write:
        data = records.encode(record)
        self._state.set_swept(self._sweep.age_ms, record)
        return self._enforcement.record(records.sweep_key(self._lane, self._sweep.age_ms), data)
