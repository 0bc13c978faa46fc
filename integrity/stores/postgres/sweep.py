"""One page of a sweep, in one transaction: who holds the row of the sweep does it, all others pass by."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from integrity.core.batch import Batch
from integrity.core.change import Version, parse_version
from integrity.core.fold import lookups
from integrity.core.key_text import key_of_ledger
from integrity.core.keys import Key, canonical, key_hash
from integrity.core.ledger import Head, heads_to_write
from integrity.core.parts import TooManyRows, changing
from integrity.core.sweep import (
    Acted,
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
from integrity.stores.descent import Branch, Descent
from integrity.stores.postgres.effects import Effects
from integrity.stores.postgres.ledger import Connection, Heads, Ledger
from integrity.stores.postgres.names import quoted
from integrity.stores.rule import StoreRule, policies


class _Late(NamedTuple):
    """The keys of an entity that are gone, and rule by rule those of them that rows refer to."""

    entity: str
    rules: Sequence[StoreRule]
    keys: Mapping[str, Sequence[Key]]


class Way(Protocol):
    """Goes down the graph from late rows, in the transaction of the page, of which it does the `extent`."""

    extent: Extent

    def begin(self) -> Descent:
        """Of the keys of another entity."""
        ...

    async def go(self, asks: Branch) -> list[int]:
        """Carry out a branch: the rows of each of its groups."""
        ...

    async def end(self) -> None:
        """Write down what happened to rows that are parents."""
        ...


class Sweeper:
    """The statements of sweeps. `on_dependent` is told whose statement comes next, None for the ledger's."""

    def __init__(self, ledger: Ledger, lane: str, on_dependent: Callable[[str | None], None]) -> None:
        self._ledger = ledger
        self._lane = lane
        self._on_dependent = on_dependent
        at = quoted(ledger.schema)
        self._begin_sql = (
            f"insert into {at}.sweeps (lane, age_ms, enforced_ms, key_hash) values ($1, $2, $3, '')"
            " on conflict do nothing"
        )
        self._lock_sql = (
            f"select enforced_ms, key_hash from {at}.sweeps where lane = $1 and age_ms = $2 for update skip locked"
        )
        self._move_sql = f"update {at}.sweeps set enforced_ms = $3, key_hash = $4 where lane = $1 and age_ms = $2"
        self.page_sql = (
            f"select key_hash, entity, key, fate, seen, enforced_ms from {at}.keys where fate is not null"
            " and enforced_ms >= $1 and enforced_ms <= $3 and (enforced_ms > $1 or key_hash > $2)"
            " order by enforced_ms, key_hash limit $4"
        )
        self._led_sql = (
            f"select u.n, k.fate from unnest($2::text[]) with ordinality u(key, n)"
            f" join {at}.keys k on k.moved_to = u.key where k.entity = $1"
            f" union all select u.n, f.fate from unnest($2::text[]) with ordinality u(key, n)"
            f" join {at}.fates f on f.moved_to = u.key join {at}.keys k on k.key_hash = f.key_hash where k.entity = $1"
        )
        self._acted_sql = (
            f"select key_hash, coalesce(event, last), rows::text from {at}.keys"
            " where key_hash = any($1::bytea[]) and fate is not null"
            f" union all select key_hash, event, rows::text from {at}.fates where key_hash = any($1::bytea[])"
        )
        self._undone_sql = f"select key_hash, event, dependent from {at}.undone where key_hash = any($1::bytea[])"

    async def run(
        self,
        connection: Connection,
        sweep: Sweep,
        rules: Mapping[str, Sequence[StoreRule]],
        effects_of: Callable[[StoreRule], Effects],
        way: Way,
    ) -> Swept:
        """The page, inside a transaction that the caller has begun and commits. `way` goes down from late rows. Raises
        TooManyRows when there are more than its extent has."""
        place = await self._take(connection, sweep)
        if place is None:
            return Swept()
        page = await connection.fetch(self.page_sql, *place, sweep.until_ms, sweep.keys_max)
        if not page:
            return Swept()
        gone: dict[str, list[Key]] = {}
        for hashed, entity, text, fate, seen, _ in page:
            if entity in sweep.entities and entity in rules and _is_newest(fate, seen):
                key = key_of_ledger(text, rules[entity][0].spec)
                # A long key is cut there, and one of another type than the rule gives now means nothing.
                if key is not None and key_hash(entity, key) == hashed:
                    gone.setdefault(entity, []).append(key)
        repaired: list[Repaired] = []
        for entity, keys in gone.items():
            late = await self._look(connection, entity, keys, rules[entity], sweep, effects_of)
            if any(late.keys.values()):
                repaired += await self._repair(connection, late, sweep, way)
        if way.extent is Extent.PART:
            if not repaired:
                raise TooManyRows
            return Swept(tuple(repaired), more=True, unfinished=True)
        last = page[-1]
        await connection.execute(self._move_sql, self._lane, sweep.age_ms, last["enforced_ms"], last["key_hash"])
        return Swept(tuple(repaired), more=len(page) == sweep.keys_max)

    async def _take(self, connection: Connection, sweep: Sweep) -> tuple[int, bytes] | None:
        """Where the sweep is; None when another process is at it, or it begins only now."""
        row = await connection.fetchrow(self._lock_sql, self._lane, sweep.age_ms)
        if row is None:
            await connection.execute(self._begin_sql, self._lane, sweep.age_ms, sweep.until_ms)
            return None
        return row["enforced_ms"], row["key_hash"]

    async def _look(
        self,
        connection: Connection,
        entity: str,
        keys: Sequence[Key],
        rules: Sequence[StoreRule],
        sweep: Sweep,
        effects_of: Callable[[StoreRule], Effects],
    ) -> _Late:
        """Which of the keys have rows. Locks nothing: most sweeps end here."""
        found: dict[str, Sequence[Key]] = {}
        for rule in rules:
            if rule.id not in sweep.left_out:
                self._on_dependent(rule.id)
                found[rule.id] = await effects_of(rule).referenced(connection, keys)
        self._on_dependent(None)
        return _Late(entity, rules, found)

    async def _repair(
        self,
        connection: Connection,
        late: _Late,
        sweep: Sweep,
        way: Way,
    ) -> list[Repaired]:
        own = {key for keys in late.keys.values() for key in keys}
        read, known = await self._heads(connection, late, own)
        gone = {key for key in own if key in read.heads and is_gone(read.heads[key])}
        gone -= await self._led_to(connection, late.entity, gone, read.heads)
        # Whatever is an arrival came later than the fate: the key lives again.
        arrivals = await self._ledger.read_arrivals(connection, gone, read.hashes, [rule.id for rule in late.rules])
        gone -= {key for of_key in arrivals.values() for key in of_key}
        acted = await self._acted(connection, read, known)
        repaired: list[Repaired] = []
        changes = causes(late.entity, read.heads, gone)
        descent = way.begin()
        for rule in late.rules:
            keys = [key for key in late.keys.get(rule.id, ()) if key in gone]
            groups, settled, firsts = late_rows(rule.policy, read.heads, keys, acted, changes)
            if way.extent is Extent.PART:
                groups = changing(groups)
            if groups:
                self._on_dependent(rule.id)
                rows = await way.go(descent.branch(rule, groups, settled, changes, None, firsts))
                if over := descent.held(rule, ()):
                    raise TooManyLate.below(over)
                # A deferred one would tell at the end, and not for whom.
                await connection.execute("set constraints all immediate")
                await connection.execute("set constraints all deferred")
                repaired += repairs(rule.policy, late.entity, rule.dependent.max_rows, read.heads, groups, rows)
        self._on_dependent(None)
        await way.end()
        repaired += repairs_below(changes, read.heads, descent.went_along())
        batch = Batch((), {}, sweep.at_ms)
        updates = heads_to_write(known, own, read.heads, {})
        await self._ledger.write_heads(connection, late.entity, updates, read, (), batch)
        await self._ledger.write_repairs(connection, repaired, read.hashes, sweep.at_ms)
        return repaired

    async def _heads(self, connection: Connection, late: _Late, own: set[Key]) -> tuple[Heads, set[Key]]:
        """The heads of the keys, locked, and of all that their fates lead to."""
        spec = late.rules[0].spec
        read, known = Heads(), set(own)
        await self._ledger.read_heads(connection, late.entity, spec, read, own=own)
        first = min((head.fates[-1].version for head in read.heads.values() if head.fates), default=None)
        chosen = policies(late.rules)
        while missing := lookups((), known, {k: h.fates for k, h in read.heads.items()}, chosen):
            await self._ledger.read_heads(connection, late.entity, spec, read, reached=missing)
            known |= missing
            older = {key for key in missing if key in read.older}
            if older and first is not None:
                await self._ledger.read_older_fates(connection, spec, older, first, read)
        return read, known

    async def _led_to(self, connection: Connection, entity: str, keys: set[Key], heads: Mapping[Key, Head]) -> set[Key]:
        """The keys that a later key change has led to: they live again, though their own events have not said so."""
        listed = list(keys)
        found: set[Key] = set()
        for n, fate in await connection.fetch(self._led_sql, entity, [canonical(key) for key in listed]):
            key = listed[n - 1]
            led_at: Version = parse_version(fate)
            if led_at > heads[key].fates[-1].version:
                found.add(key)
        return found

    async def _acted(self, connection: Connection, read: Heads, known: set[Key]) -> Acted:
        """What was enforced on which dependent, and was not undone."""
        key_of = {read.hashes[key]: key for key in known}
        undone = {(key_of[of], *rest) for of, *rest in await connection.fetch(self._undone_sql, list(key_of))}
        acted = {
            (key_of[hashed], event, dependent)
            for hashed, event, rows in await connection.fetch(self._acted_sql, list(key_of))
            if rows is not None
            for dependent in json.loads(rows)
        }
        return not_undone(acted, undone)


def _is_newest(fate: str, seen: str | None) -> bool:
    """Nothing later than the fate was seen of the key; what was seen is left out when it is the fate itself."""
    return seen is None or parse_version(seen) <= parse_version(fate)
