"""One batch in one transaction, step by step as in the memory store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pymongo.asynchronous.client_session import AsyncClientSession

from integrity.core.batch import Batch, Share, shares, standing
from integrity.core.fold import Settled, credit, lookups, settle, trace
from integrity.core.keys import Key
from integrity.core.ledger import Head, HeadUpdate, heads_to_write
from integrity.core.outcome import Applied, Diverged, Effect, Held, Rejected
from integrity.core.redrive import Admitted, admit, aside, keys_in_question, retrace
from integrity.stores.mongo.effects import Enforcer
from integrity.stores.mongo.ledger import Arrival, Ledger, hashes_of
from integrity.stores.mongo.lists import ListEnforcer
from integrity.stores.rule import StoreRule, policies


class Attempt:
    """`dependent` is whose operation runs, or ran when an error came; None while the ledger's do."""

    def __init__(self, ledger: Ledger, rules: Mapping[str, Sequence[StoreRule]], batch: Batch) -> None:
        self.dependent: str | None = None
        self._ledger = ledger
        self._rules = rules
        self._batch = batch

    async def run(self, session: AsyncClientSession) -> Applied | Diverged | Rejected | Held:
        """Everything but the commit. Only after Applied there is anything to commit."""
        batch, ledger = self._batch, self._ledger
        counts = standing(batch, await ledger.progress(batch.spans, session))
        if isinstance(counts, str):
            return Diverged(counts)
        # First, so that of two processes with one partition the second collides before it has done any work.
        await ledger.write_progress(batch.spans, counts, batch.at_ms, session)
        effects: list[Effect] = []
        for share in shares(batch, counts, self._rules.keys()):
            done = await self._enforce(share, session)
            if not isinstance(done, list):
                return done
            effects += done
        await ledger.clear_exceptions([(each.dependent, each.event) for each in batch.discards], session)
        return Applied(effects)

    async def _enforce(self, share: Share, session: AsyncClientSession) -> list[Effect] | Rejected | Held:
        entity, changes = share.entity, share.changes
        rules = self._rules[entity]
        hash_of: dict[Key, bytes] = {}
        heads: dict[Key, Head] = {}
        while missing := lookups(changes, hash_of.keys(), {k: h.fates for k, h in heads.items()}, policies(rules)):
            found = hashes_of(entity, missing)
            hash_of |= found
            heads |= await self._ledger.heads({of: key for key, of in found.items()}, rules[0].spec, session)
        settled = settle(changes, heads, done=aside(share, heads))
        asked = {hash_of[key]: key for key in keys_in_question(share, settled)}
        pending = await self._ledger.pending(asked, session) if asked else {}
        admitted = admit(share, settled, policies(rules), pending)
        if isinstance(admitted, Rejected):
            return admitted
        writes = heads_to_write(hash_of, {change.key for change in changes}, heads, settled.updates)
        arrivals = await self._arrivals(settled, admitted, hash_of, session)
        effects: list[Effect] = []
        ended = [a.id for key, of_key in arrivals.items() for a in of_key if _is_passed(a, writes.get(key))]
        for rule in rules:
            mine = {key: [a for a in of_key if a.dependent == rule.id] for key, of_key in arrivals.items()}
            left_out = share.left_out(rule.id)
            sinces = {key: {a.since for a in of_key} for key, of_key in mine.items()}
            groups = trace(rule.policy, settled, sinces, left_out=left_out)
            groups += retrace(rule.policy, settled, admitted, left_out=left_out)
            self.dependent = rule.id
            enforcer = ListEnforcer if rule.dependent.array else Enforcer
            acted = await enforcer(self._ledger, rule, session, self._batch.at_ms).carry_out(
                groups, mine, share.approved
            )
            if isinstance(acted, Held):
                return acted
            rows, came = acted
            self.dependent = None
            effects += credit(
                rule.policy, changes, settled.outcomes, groups, rows, left_out=left_out, only=admitted.only
            )
            ended += [a.id for group in groups for a in mine.get(group.key, ()) if a.since == group.since]
            await self._ledger.add_arrivals(rule.id, [(hash_of[key], since, id_) for key, since, id_ in came], session)
        await self._ledger.remove_arrivals(ended, session)
        await self._record(share, admitted, hash_of, heads, writes, effects, session)
        return [effect._replace(change=share.indexes[effect.change]) for effect in effects]

    async def _arrivals(
        self, settled: Settled, admitted: Admitted, hash_of: Mapping[Key, bytes], session: AsyncClientSession
    ) -> dict[Key, list[Arrival]]:
        """What came to the batch's own keys, as far as it is kept."""
        keys = {hash_of[key]: key for key in (*settled.updates, *admitted.keys) if key in settled.heads}
        found: dict[Key, list[Arrival]] = {}
        for arrival in await self._ledger.arrivals(list(keys), session):
            found.setdefault(keys[arrival.key_hash], []).append(arrival)
        return found

    async def _record(
        self,
        share: Share,
        admitted: Admitted,
        hash_of: Mapping[Key, bytes],
        heads: Mapping[Key, Head],
        writes: Mapping[Key, HeadUpdate],
        effects: Sequence[Effect],
        session: AsyncClientSession,
    ) -> None:
        ledger = self._ledger
        # Without a fate nothing rests on the heads that were read only.
        decides = any(update.fates for update in writes.values()) or bool(share.redrives)
        touched = heads.keys() - writes.keys() if decides else set()
        await ledger.write_heads(share.entity, hash_of, heads, writes, touched, session)
        await ledger.write_fates(share.entity, hash_of, writes, effects, self._batch, session)
        await ledger.clear_exceptions(admitted.over, session)
        await ledger.write_exceptions(share.entity, admitted.left_out, hash_of, self._batch.at_ms, session)


def _is_passed(arrival: Arrival, update: HeadUpdate | None) -> bool:
    """The key's own events have reached the version at which it came: it is like every other from now on."""
    return update is not None and update.seen is not None and arrival.since <= update.seen
