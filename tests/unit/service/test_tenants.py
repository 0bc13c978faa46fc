"""The lane of a store with a database for each tenant, over in-memory databases."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from integrity.core import sweep as core_sweep
from integrity.core.batch import Batch, Discard, Redrive, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.decode.record import Decoded, Record
from integrity.core.outcome import ApplyResult, Broken, Retry
from integrity.core.retry import Backoff
from integrity.core.sweep import SweepResult
from integrity.errors import Finding, Reason, UnfitStoreError, UnreachableError
from integrity.kafka.dead_letters import Status
from integrity.kafka.letters import Filter, Letter
from integrity.service import tenants
from integrity.service.enforce import Enforcer, Patience, Watch
from integrity.service.halts import Halts
from integrity.service.lane import Lane
from integrity.service.redrive import Done
from integrity.service.supervisor import fit
from integrity.service.tenant_redrive import AGAIN_S, BY_ITSELF, TenantRedriver
from integrity.service.tenants import Dispatcher, TenantCare, TenantDatabase, TenantWatch, split
from integrity.service.work import Piece
from integrity.stores.tenants import TenantStores
from tests.unit.service.doubles import (
    TOPIC,
    BentStore,
    Letters,
    ScriptedSource,
    Watched,
    broken,
    decode,
    deleted,
    memory_store,
    revoke_without_grace,
    running,
    until,
)

P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
TENANTS = 4


def tenant_of(key: int) -> str:
    return f"t{key % TENANTS}"


def decode_tenant(record: Record) -> Decoded:
    """As `decode`; the tenant is the key's, unless a header says otherwise."""
    said = decode(record)
    if not isinstance(said, ParentChange):
        return said
    told = dict(record.headers).get("tenant")
    [key] = said.key
    return said._replace(tenant=tenant_of(int(str(key))) if told is None else told.decode())


def fault_of(tenant: str) -> str | None:
    return None if tenant.isalnum() else "is no name"


class _Counts:
    def __init__(self, seen: list[int]) -> None:
        self._seen = seen

    def parked(self, store: str, tenants: int) -> None:
        self._seen.append(tenants)


class Rig:
    """A lane over databases that a test bends; time that only a test moves, as far as it decides anything."""

    def __init__(
        self,
        source: ScriptedSource,
        *,
        parents: int = 60,
        batch_size: int = 10,
        connections: int = 3,
        wait_s: float = 1,
    ) -> None:
        self.source = source
        self.now_s = 0.0
        self.letters, self.watch, self.stop = Letters(), Watched(), asyncio.Event()
        self.stores = {tenant_of(t): BentStore(memory_store(parents)) for t in range(TENANTS)}
        self.parked: list[int] = []
        self.opened: list[str] = []
        self.databases = TenantStores(
            "memory",
            self._open,  # type: ignore[arg-type]
            self._prepare,
            connections_max=connections,
            timeout_s=5,
        )
        watch = TenantWatch(self.watch)
        self.dispatcher = Dispatcher(
            self.databases,
            self._enforcer(self.databases.of(""), watch.of(""), None),
            self._enforcer,
            watch,
            _Counts(self.parked),
            fault_of,
            batch_size=batch_size,
            wait_s=wait_s,
            clock=lambda: self.now_s,
        )
        self.lane = Lane(
            store=self.databases,
            open_source=lambda: source,
            enforcers=[self._enforcer(self.databases.of(""), self.watch, None)],
            watch=self.watch,
            decoders={TOPIC: ("customer", decode_tenant)},
            batch_size=batch_size,
            dispatch=self.dispatcher,
        )

    def _open(self, tenant: str) -> BentStore:
        self.opened.append(tenant)
        store = self.stores.get(tenant)
        if store is None:
            store = BentStore(memory_store(0))
            store.down = True
        return store

    async def _prepare(self, store: Any) -> None:
        if findings := await fit(store, 5, migrate=False):
            raise UnfitStoreError(findings)

    def _enforcer(self, database: TenantDatabase, watch: Watch, patience: Patience | None) -> Enforcer:
        return Enforcer(
            database,
            self.letters,
            watch,
            system="memory",
            rules_hash="abc",
            timeout_s=5,
            halts=Halts(database, watch, {}, tenant=database.tenant),
            backoff=Backoff(first_s=0.0005, cap_s=0.002),
            tenant=database.tenant,
            patience=patience,
        )

    def keys_left(self, tenant: str) -> set[int]:
        """Of the tenant's own keys."""
        rows = self.stores[tenant].store.targets["orders"]
        return {int(str(row["customer_id"])) for row in rows if tenant_of(int(str(row["customer_id"]))) == tenant}

    def others_left(self, tenant: str) -> int:
        """Rows of keys that are none of the tenant's: nobody may touch them."""
        rows = self.stores[tenant].store.targets["orders"]
        return sum(tenant_of(int(str(row["customer_id"]))) != tenant for row in rows)

    def down(self, tenant: str) -> None:
        self.stores[tenant].down = True
        self.stores[tenant].bend = lambda batch: Retry("gone", unreachable=True)

    def up(self, tenant: str) -> None:
        self.stores[tenant].down = False
        self.stores[tenant].bend = lambda batch: None


def records(keys: Sequence[int], partition: int = 0) -> list[Record]:
    return [deleted(key, offset, partition=partition) for offset, key in enumerate(keys)]


async def test_each_event_reaches_the_database_of_its_tenant_and_no_other() -> None:
    rig = Rig(ScriptedSource({P0: records(range(0, 60, 2)), P1: records(range(1, 60, 2), 1)}))
    async with running(rig, P0, P1):
        await until(lambda: not any(rig.keys_left(tenant) for tenant in rig.stores))
        await until(lambda: rig.source.committed == {P0: 30, P1: 30})
    assert [rig.others_left(tenant) for tenant in rig.stores] == [45] * TENANTS
    assert rig.databases.open_now <= 3
    assert rig.letters.published == []


async def test_a_database_that_is_away_holds_up_no_other_and_its_events_wait() -> None:
    rig = Rig(ScriptedSource({P0: records(range(60))}), batch_size=60)
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: not any(rig.keys_left(tenant) for tenant in ("t0", "t2", "t3")))
        assert rig.source.committed.get(P0, 0) == 0, "the offset stays below the first event that waits"
        assert rig.letters.published == []
        rig.up("t1")
        await until(lambda: rig.source.committed == {P0: 60})
    assert rig.keys_left("t1") == set()
    assert rig.letters.published == []


async def test_what_waits_for_too_long_is_parked_and_what_comes_then_at_once() -> None:
    rig = Rig(ScriptedSource({P0: records(range(40))}), batch_size=60)
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: rig.stores["t1"].asked != [])
        rig.now_s = 2.0
        await until(lambda: rig.source.committed == {P0: 40})
        assert {letter.record.offset for letter in rig.letters.published} == set(range(1, 40, 4))
        asked = len(rig.stores["t1"].asked)
        rig.source.log[P0] += [deleted(key, key) for key in range(40, 60)]
        await until(lambda: rig.source.committed == {P0: 60})
        assert len(rig.stores["t1"].asked) == asked, "the database was not asked for these"
        assert "1 tenant can't be used" in rig.lane.trouble
    assert len(rig.letters.published) == 15
    assert {(one.dependent, one.reason, one.parked) for one in rig.letters.published} == {
        ("*", Reason.STORE_REJECTED, "t1")
    }
    assert rig.keys_left("t1") == set(range(1, 60, 4))


async def test_a_tenant_goes_on_when_its_database_answers_again() -> None:
    rig = Rig(ScriptedSource({P0: records(range(8))}))
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: rig.stores["t1"].asked != [])
        rig.now_s = 2.0
        await until(lambda: "t1" in rig.dispatcher.parked)
        rig.now_s = 100.0
        await rig.dispatcher.look()
        assert "t1" in rig.dispatcher.parked, "it is still away"
        rig.up("t1")
        rig.now_s = 200.0
        await rig.dispatcher.look()
        assert rig.dispatcher.parked == {} and rig.dispatcher.back.is_set() and rig.lane.trouble == ""
        rig.source.log[P0] += [deleted(9, 8)]
        await until(lambda: 9 not in rig.keys_left("t1"))
    assert rig.parked == [1, 0]


async def test_a_database_that_is_not_fit_is_parked_with_its_reason() -> None:
    rig = Rig(ScriptedSource({P0: records(range(4))}))
    rig.stores["t1"].findings = [Finding("ledger_missing", "there is no ledger", "run integrity migrate")]
    rig.stores["t2"].findings = [Finding("missing_table", "there is no table orders")]
    async with running(rig, P0):
        await until(lambda: bool(rig.stores["t1"].asked and rig.stores["t2"].asked))
        rig.now_s = 2.0
        await until(lambda: rig.source.committed == {P0: 4})
    assert {(one.parked, one.reason) for one in rig.letters.published} == {
        ("t1", Reason.SCHEMA_MISMATCH),
        ("t2", Reason.SCHEMA_MISMATCH),
    }
    assert rig.keys_left("t0") == set(range(4, 60, 4))


async def test_a_tenant_without_a_database_is_unknown() -> None:
    rig = Rig(ScriptedSource({P0: [deleted(1, 0)._replace(headers=(("tenant", b"nobody"),))]}))

    async def not_there(store: Any) -> None:
        raise UnreachableError("there is no database nobody", unknown=True)

    rig.databases._prepare = not_there
    async with running(rig, P0):
        await until(lambda: rig.opened != [])
        rig.now_s = 2.0
        await until(lambda: rig.source.committed == {P0: 1})
    assert [(one.reason, one.parked) for one in rig.letters.published] == [(Reason.UNKNOWN_TENANT, "nobody")]


async def test_an_event_of_no_tenant_is_a_dead_letter_where_it_asks_for_something() -> None:
    def of(key: int, offset: int, tenant: bytes, value: bytes = b"") -> Record:
        record = deleted(key, offset)._replace(headers=(("tenant", tenant),))
        return record._replace(value=value) if value else record

    rig = Rig(ScriptedSource({P0: [of(1, 0, b""), of(2, 1, b"../x"), of(3, 2, b"", b"c5"), broken(3), deleted(0, 4)]}))
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 5})
    found = [(one.record.offset, one.reason, one.parked) for one in rig.letters.published]
    assert sorted(found) == [(0, Reason.UNKNOWN_TENANT, ""), (1, Reason.UNKNOWN_TENANT, ""), (3, Reason.BAD_JSON, "")]
    assert rig.opened == ["t0"]


async def test_the_order_of_a_tenant_is_kept_however_its_events_are_cut_into_pieces() -> None:
    rig = Rig(ScriptedSource({P0: records([0, 4, 8] * 20)}), batch_size=3)
    rig.down("t0")
    async with running(rig, P0):
        await until(lambda: rig.stores["t0"].asked != [])
        rig.up("t0")
        await until(lambda: rig.source.committed == {P0: 60})
    offsets = [change.origin.offset for batch in rig.stores["t0"].calls for change in batch.changes]
    assert offsets == sorted(offsets)


async def test_memory_is_bounded_and_half_of_it_is_for_those_that_get_on() -> None:
    """The events of one tenant that is away come first, more than may be kept."""
    rig = Rig(ScriptedSource({P0: records([1] * 300 + [0, 2, 3])}), batch_size=10, wait_s=1e9)
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 303})
    assert len(rig.letters.published) == 300
    assert [0 in rig.keys_left("t0"), 2 in rig.keys_left("t2"), 3 in rig.keys_left("t3")] == [False] * 3


async def test_what_was_not_committed_is_read_again_and_changes_nothing() -> None:
    """A tenant that waits holds the offset back; after a rebalance the others' events come again."""
    rig = Rig(ScriptedSource({P0: records(range(20))}), batch_size=5)
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: not any(k < 12 for t in ("t0", "t2", "t3") for k in rig.keys_left(t)))
        for tenant in ("t0", "t2", "t3"):  # the parents were created again, and have rows
            rig.stores[tenant].store.targets["orders"] += [
                {"id": f"new {k}", "customer_id": k} for k in range(8) if tenant_of(k) == tenant
            ]
        await rig.source.assign(P0)
        rig.up("t1")
        await until(lambda: rig.source.committed == {P0: 20})
    left = [rig.keys_left(tenant) & set(range(20)) for tenant in sorted(rig.stores)]
    assert left == [{0, 4}, set(), {2, 6}, {3, 7}]


async def test_a_revoke_does_not_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(ScriptedSource({P0: records(range(8))}), wait_s=1e9)
    rig.down("t1")
    async with running(rig, P0):
        await until(lambda: len(rig.stores["t1"].asked) > 2)
        await revoke_without_grace(rig, monkeypatch)
    assert rig.letters.published == []


async def test_a_halted_dependent_of_one_tenant_is_none_of_the_others() -> None:
    def refuses(batch: Batch) -> ApplyResult | None:
        if any((index, "customer.orders") not in batch.exceptions for index in range(len(batch.changes))):
            return Broken("customer.orders", Reason.SCHEMA_MISMATCH, "no such table")
        return None

    rig = Rig(ScriptedSource({P0: records(range(8))}))
    rig.stores["t1"].bend = refuses
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 8})
        assert "halted in the databases of some tenants" in rig.lane.trouble
    assert {(one.record.offset, one.dependent, one.parked) for one in rig.letters.published} == {
        (1, "customer.orders", ""),
        (5, "customer.orders", ""),
    }
    assert rig.watch.halts == [("customer.orders", True)]
    assert rig.keys_left("t2") == set(range(10, 60, 4))


@pytest.mark.parametrize("seed", range(3))
async def test_rebalances_and_outages_at_random_lose_nothing_and_repeat_nothing(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    log: dict[TopicPartition, list[Record]] = {P0: [], P1: []}
    for key in rng.sample(range(60), 60):
        at = P0 if key % 2 else P1
        log[at].append(deleted(key, len(log[at]), partition=at.partition))
    rig = Rig(ScriptedSource(log), batch_size=rng.randint(2, 12), connections=rng.randint(1, 3))
    async with running(rig, P0, P1):
        for _ in range(40):
            tenant = rng.choice(sorted(rig.stores))
            rng.choice([rig.up, rig.down])(tenant)
            if rng.random() < 0.3:
                await rig.source.assign(*rng.choice([(P0, P1), (P0,), (P1,), ()]))
            if rng.random() < 0.2:
                rig.now_s += 2.0  # those that wait are parked
            await asyncio.sleep(0.002)
        for tenant in rig.stores:
            rig.up(tenant)
        await rig.source.assign(P0, P1)
        rig.now_s += 100.0
        await rig.dispatcher.look()
        await until(lambda: rig.source.committed == {P0: 30, P1: 30})
    parked = {(letter.record.partition, letter.record.offset): letter for letter in rig.letters.published}
    assert all(letter.parked for letter in parked.values())
    left = {key for tenant in rig.stores for key in rig.keys_left(tenant)}
    owed = {int(letter.record.key or b"") for letter in parked.values()}
    assert left <= owed, "what is neither enforced nor a dead letter"
    assert sum(e.rows for e in rig.watch.effects) == 60 - len(left)


async def test_to_the_end_stops_by_itself_though_a_tenant_is_parked() -> None:
    rig = Rig(ScriptedSource({P0: records(range(30))}), wait_s=0)
    rig.down("t3")
    async with running(rig, P0, to_end=True) as task:
        await asyncio.wait_for(asyncio.shield(task), 20)
    assert rig.source.committed == {P0: 30}
    assert {letter.parked for letter in rig.letters.published} == {"t3"}


async def test_tenants_that_events_name_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "TENANTS_MAX", 3)
    named = [deleted(k, k)._replace(headers=(("tenant", b"x%d" % k),)) for k in range(21)]
    rig = Rig(ScriptedSource({P0: named[:20]}), wait_s=0)
    async with running(rig, P0):
        await until(lambda: rig.source.committed == {P0: 20})
        rig.source.log[P0].append(named[20])
        await until(lambda: rig.source.committed == {P0: 21})
    assert len(rig.letters.published) == 21
    assert len(rig.dispatcher.parked) == 3
    assert len(rig.dispatcher._enforcers) == 3


async def test_late_rows_are_looked_for_where_something_was_enforced_lately() -> None:
    rig = Rig(ScriptedSource({P0: records([0, 1, 2])}))
    rig.down("t2")
    asked: list[tuple[str, str]] = []

    class Swept:
        def __init__(self, tenant: str) -> None:
            self.name, self._tenant = "memory", tenant

        async def sweep(self, sweep: Any, deadline: Any) -> SweepResult:
            asked.append(("sweep", self._tenant))
            return core_sweep.Swept((), more=False)

        async def forget_kept(self, at_ms: int, rows_max: int, deadline: Any) -> int:
            asked.append(("forget", self._tenant))
            return 0

    behind = False

    async def caught_up(deadline: Any) -> bool:
        return not behind

    care = TenantCare(
        rig.databases,
        rig.dispatcher,
        rig.watch,
        {60_000: frozenset({"customer"})},
        caught_up,
        timeout_s=1,
        keeps=True,
        clock=lambda: rig.now_s,
    )
    async with running(rig, P0):
        await until(lambda: rig.stores["t2"].asked != [] and {"t0", "t1"} == rig.dispatcher.worked_s.keys())
        rig.now_s = 2.0
        await until(lambda: rig.source.committed == {P0: 3})
        rig.databases.of = lambda tenant, *, aside=False: Swept(tenant)  # type: ignore[method-assign, assignment]
        await care.round(rig.stop)
        assert asked == [("sweep", "t0"), ("sweep", "t1")]
        behind = True
        rig.now_s = 400.0
        await care.round(rig.stop)
        assert asked[2:] == [("forget", "t0"), ("forget", "t1")], "no sweep while the lane is behind"
        behind = False
        await care.round(rig.stop)
        assert asked[4:] == [], "the last event is too long ago"


def test_a_piece_is_split_by_tenant_with_the_place_of_each_part() -> None:
    back = TopicPartition("integrity.redrive", 0)
    piece = Piece(spans={P0: Span(5, 9), back: Span(3, 6)})
    for at, record in enumerate([deleted(0, 5), deleted(1, 6), deleted(4, 7), deleted(2, 90)]):
        change = decode_tenant(record)
        assert isinstance(change, ParentChange)
        piece.changes.append(change)
        piece.records.append(record)
        if at == 3:
            piece.redrives[at] = Redrive("letter", "*", back, 3)
    piece.discards = [Discard("given up", "customer.orders", "event", "t1"), Discard("whose", "d", "event")]
    parts, refused = split(piece, fault_of)
    assert refused == []
    assert {tenant: part.spans for tenant, part in parts.items()} == {
        "t0": {P0: Span(0, 8, again=True)},
        "t1": {P0: Span(0, 7, again=True)},
        "t2": {back: Span(0, 4, again=True)},
    }
    assert parts["t2"].redrives == {0: Redrive("letter", "*", back, 3)}
    assert [each.letter for each in parts["t1"].discards] == ["given up"]


# --- parked dead letters come back ------------------------------------------------------------------------------


def parked_letter(id_: str, tenant: str, **changes: Any) -> Letter:
    values: dict[str, Any] = dict.fromkeys(Letter._fields, "")
    values |= {"id": id_, "status": Status.OPEN, "dependent": "*", "store": "memory", "topic": TOPIC, "partition": 0}
    values |= {"offset": 5, "retries": 0, "truncated": False, "bytes": 1, "parked": tenant}
    values |= {"failed_at": "2026-01-01T00:00:00.000Z", "status_at": "2026-01-01T00:00:00.000Z"}
    return Letter(**(values | changes))


class Returns:
    """An index and a redriver: keeps what is sent back, and refuses what it is told to."""

    def __init__(self, letters: list[Letter]) -> None:
        self.letters, self.sent, self.refuse = letters, list[str](), set[str]()
        self.opened = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        self.opened += 1
        yield self, self

    def find(self, chosen: Filter, limit: int | None = None) -> list[Letter]:
        assert chosen == Filter(store="memory", statuses=(Status.OPEN, Status.RETRIED), parked=True)
        return self.letters

    async def retry(self, chosen: Filter, limit: int | None) -> Done:
        done = Done()
        for id_ in chosen.ids:
            if id_ in self.refuse:
                done.refuse(id_, "its key was in use again after it")
            else:
                self.sent.append(id_)
                done.done += 1
        return done


def returning(rig: Rig, letters: list[Letter], *, mine: bool = True) -> tuple[TenantRedriver, Returns]:
    returns = Returns(letters)
    redriver = TenantRedriver(
        rig.databases,
        rig.dispatcher,
        returns.open,
        is_mine=lambda: mine,
        parked=lambda: {"memory": len(letters)},
        clock=lambda: 1_800_000_000 + rig.now_s,
    )
    return redriver, returns


async def test_the_letters_of_a_tenant_come_back_when_its_database_answers() -> None:
    rig = Rig(ScriptedSource({}))
    rig.down("t1")
    redriver, returns = returning(rig, [parked_letter("a", "t1"), parked_letter("b", "t2"), parked_letter("c", "t1")])
    assert redriver.is_due()
    assert await redriver.round() == 1
    assert returns.sent == ["b"]
    assert list(rig.dispatcher.parked) == ["t1"], "it is asked again by the dispatcher alone"
    rig.up("t1")
    rig.now_s = 100
    await rig.dispatcher.look()
    assert redriver.is_due()
    del returns.letters[1]
    assert await redriver.round() == 2
    assert returns.sent == ["b", "a", "c"]


async def test_a_letter_that_is_refused_is_not_tried_again_before_it_failed_again() -> None:
    rig = Rig(ScriptedSource({}))
    redriver, returns = returning(rig, [parked_letter("a", "t1"), parked_letter("b", "t1")])
    returns.refuse = {"a"}
    await redriver.round()
    returns.letters = [parked_letter("a", "t1")]
    returns.refuse = set()
    await redriver.round()
    assert returns.sent == ["b"]
    returns.letters = [parked_letter("a", "t1", failed_at="2026-01-02T00:00:00.000Z")]
    await redriver.round()
    assert returns.sent == ["b", "a"]


@pytest.mark.parametrize(
    ("letter", "is_sent"),
    [
        (parked_letter("open", "t1"), True),
        (
            parked_letter("marked a moment ago", "t1", status=Status.RETRIED, actor=BY_ITSELF.name, status_at="NOW"),
            False,
        ),
        (parked_letter("marked, never sent", "t1", status=Status.RETRIED, actor=BY_ITSELF.name), True),
        (parked_letter("of a person", "t1", status=Status.RETRIED, actor="ada"), False),
        (parked_letter("again and again", "t1", retries=9, status_at="NOW"), False),
        (parked_letter("after its pause", "t1", retries=9), True),
    ],
    ids=lambda each: each.id if isinstance(each, Letter) else "",
)
async def test_which_letters_are_due(letter: Letter, is_sent: bool) -> None:
    rig = Rig(ScriptedSource({}))
    at = "2027-01-15T08:00:00.000Z"  # what the clock of `returning` says
    redriver, returns = returning(rig, [letter._replace(status_at=at) if letter.status_at == "NOW" else letter])
    await redriver.round()
    assert returns.sent == ([letter.id] if is_sent else [])


async def test_one_process_sends_back_and_looks_now_and_then() -> None:
    rig = Rig(ScriptedSource({}))
    other, _ = returning(rig, [parked_letter("a", "t1")], mine=False)
    rig.dispatcher.back.set()
    assert not other.is_due()
    rig.dispatcher.back.clear()
    redriver, returns = returning(rig, [parked_letter("a", "t1")])
    running = asyncio.create_task(redriver.run(rig.stop))
    await until(lambda: returns.opened == 1)
    assert not redriver.is_due()
    rig.now_s = AGAIN_S + 1
    assert redriver.is_due()
    rig.stop.set()
    await running
