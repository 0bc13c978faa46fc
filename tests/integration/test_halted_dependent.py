"""A rule that stops fitting a real store halts its dependent alone, and goes on once the store is mended."""

from __future__ import annotations

import pytest

from integrity.core.batch import Span, TopicPartition
from integrity.core.decode.record import Record
from integrity.core.rules.model import Cascade
from integrity.errors import Reason
from integrity.kafka.dead_letters import Status
from integrity.kafka.redrives import Ask, Returned, outgoing
from integrity.ports import Deadline
from integrity.service.enforce import Enforcer
from integrity.service.halts import Halts
from integrity.service.work import Piece, Reader, Returning
from tests.contract.world import rule
from tests.integration.pg_shop import fetch, store_of
from tests.integration.pg_shop import run as run_sql
from tests.unit.service.doubles import TOPIC, Letters, Watched, decode, deleted

pytestmark = pytest.mark.servers

REDRIVES = TopicPartition("integrity.redrive", 0)
TABLES = (
    "create table orders(id bigint primary key, customer_id bigint)",
    "create index on orders(customer_id)",
    "create table notes(id bigint primary key, customer_id bigint)",
    "create index on notes(customer_id)",
    "insert into orders select i, i from generate_series(1, 4) i",
    "insert into notes select i, i from generate_series(1, 4) i",
)


async def test_dropped_column_halts_its_dependent_until_it_is_back_and_the_missed_events_are_sent_again(
    pg_database: str,
) -> None:
    await run_sql(pg_database, *TABLES)
    rules = [rule(Cascade(), name="orders"), rule(Cascade(), name="notes")]
    reader = Reader({TOPIC: ("customer", decode)}, Returning(REDRIVES.topic, "shop", {each.id for each in rules}))
    letters, watch = Letters(), Watched()
    async with store_of(pg_database, *rules) as store:
        assert await store.check(Deadline.after(30)) == []
        halts = Halts(store, watch, {each.id: [each.dependent.place] for each in rules})
        enforcer = Enforcer(store, letters, watch, system="postgresql", rules_hash="", timeout_s=10, halts=halts)

        async def enforce(partition: TopicPartition, *records: Record) -> None:
            piece = Piece(spans={partition: Span(records[0].offset, records[-1].offset + 1)})
            reader.read(partition, records, piece)
            await enforcer.enforce(piece)

        await run_sql(pg_database, "alter table orders rename column customer_id to gone")
        await enforce(TopicPartition(TOPIC, 0), deleted(1, 0), deleted(2, 1))
        await halts.recheck()
        await enforce(TopicPartition(TOPIC, 0), deleted(3, 2))
        assert [(each.dependent, each.reason) for each in letters.published] == [
            ("customer.orders", Reason.SCHEMA_MISMATCH)
        ] * 3
        assert await fetch(pg_database, "select id from notes") == [(4,)]
        assert "customer.orders is halted" in halts.trouble

        await run_sql(pg_database, "alter table orders rename column gone to customer_id")
        await halts.recheck()
        assert halts.trouble == ""
        await enforce(TopicPartition(TOPIC, 0), deleted(4, 3))
        assert await fetch(pg_database, "select id from orders order by 1") == [(1,), (2,), (3,)]

        back = [
            outgoing(REDRIVES.topic, Returned(Ask.RETRY, each.id, each.entity, each.dependent, "shop", 1, each.record))
            for each in letters.published
        ]
        await enforce(REDRIVES, *(Record(*REDRIVES, n, 0, r.key, r.value, r.headers) for n, r in enumerate(back)))
    assert await fetch(pg_database, "select id from orders") == []
    assert await fetch(pg_database, "select count(*) from integrity.exceptions") == [(0,)]
    assert [each.status for each in letters.marked] == [Status.RESOLVED] * 3
    assert len(letters.published) == 3
    assert watch.halts == [("customer.orders", True), ("customer.orders", False)]
