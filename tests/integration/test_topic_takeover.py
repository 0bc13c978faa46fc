"""One owner at a time, and every effect once, whatever is cut off where."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError

from integrity.core.outcome import Applied, Diverged, Outcome, Retry
from integrity.core.rules.model import Cascade, Nullify
from integrity.demo.servers import KafkaServer
from integrity.ports import Deadline
from integrity.stores.topic import TopicStore
from integrity.stores.topic.reader import Reader
from integrity.stores.topic.state import State
from integrity.stores.topic.writer import Writer
from tests.conftest import CreateTopic
from tests.contract.world import Events, apply
from tests.integration.topic_shop import SOURCE, Shop, shop, topic_rule

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def carts(kafka: KafkaServer, create_topic: CreateTopic) -> AsyncIterator[Shop]:
    async with shop({"bootstrap_servers": kafka.bootstrap_servers}, create_topic) as made:
        for number in range(1, 4):
            await made.put(b"k%d" % number, b'{"customer_id":%d}' % number, number % 2)
        yield made


def deleted(*keys: int) -> Events:
    events = Events()
    for key in keys:
        events.deleted((key,), at=key * 10)
    return events


async def test_former_owner_is_fenced_and_changes_nothing(carts: Shop) -> None:
    rule = topic_rule(carts.topic, Cascade())
    former = await carts.store(rule)
    await apply(former, deleted(1).batch())
    owner = await carts.store(rule)
    second = Events()
    second.deleted((1,), at=10)
    second.batch()
    second.deleted((2,), at=20)
    batch = second.batch()
    assert isinstance(await former.apply(batch, Deadline.after(20)), Diverged)
    assert isinstance(await former.apply(batch, Deadline.after(20)), Diverged), "it does not take back by itself"
    assert len(await carts.rows()) == 2
    (effect,) = await apply(owner, batch)
    assert effect.rows == 1
    assert await former.progress(SOURCE, Deadline.after(20)) == {SOURCE[0]: 2}, "when asked, it does"
    assert isinstance(await owner.apply(batch, Deadline.after(20)), Diverged)


async def test_open_transaction_of_the_former_owner_is_rolled_back(
    carts: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The former owner hangs between its effects and its commit, and wakes when another has taken over."""
    rule = topic_rule(carts.topic, Cascade())
    former = await carts.store(rule)
    commit, reached, wake = Writer.commit, asyncio.Event(), asyncio.Event()

    async def hang(self: Writer) -> None:
        if self is former._writer:
            reached.set()
            await wake.wait()
        await commit(self)

    monkeypatch.setattr(Writer, "commit", hang)
    batch = deleted(1, 2).batch()
    hanging = asyncio.create_task(former.apply(batch, Deadline.after(30)))
    await reached.wait()
    assert len(await carts.rows(end="read_committed")) == 3
    owner = await carts.store(rule)
    effects = await apply(owner, batch)
    assert [effect.rows for effect in effects] == [1, 1]
    wake.set()
    assert isinstance(await hanging, Diverged)
    assert sorted(await carts.rows()) == [(1, b"k3")]
    assert sum(record.value is None for record in await carts.records()) == 2, "each effect once"


async def test_process_that_stands_by_does_not_disturb_the_owner(carts: Shop) -> None:
    rule = topic_rule(carts.topic, Cascade())
    owner = await carts.store(rule)
    standby = await carts.store(rule, take_over=False)
    assert await standby.progress([], Deadline.after(20)) == {}
    (effect,) = await apply(owner, deleted(1).batch())
    assert effect.rows == 1


async def test_process_that_gave_up_its_partitions_does_not_disturb_the_owner(carts: Shop) -> None:
    rule = topic_rule(carts.topic, Cascade())
    former = await carts.store(rule)
    await former.progress([], Deadline.after(20))
    owner = await carts.store(rule)
    async with former._lock:
        assert former._writer is None
    (effect,) = await apply(owner, deleted(1).batch())
    assert effect.rows == 1


async def test_commit_of_unknown_outcome_is_read_from_the_ledger(carts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    commit = Writer.commit

    async def lost(self: Writer) -> None:
        await commit(self)
        monkeypatch.setattr(Writer, "commit", commit)
        raise KafkaConnectionError("the answer was lost")

    monkeypatch.setattr(Writer, "commit", lost)
    batch = deleted(1, 2).batch()
    result = await store.apply(batch, Deadline.after(20))
    assert isinstance(result, Retry)
    assert result.unreachable
    effects = await apply(store, batch)
    assert [(effect.outcome, effect.rows) for effect in effects] == [(Outcome.DUPLICATE, 0)] * 2
    assert sum(record.value is None for record in await carts.records()) == 2


async def test_new_process_builds_the_same_view(carts: Shop) -> None:
    """After a key change out of order: heads, fates, arrivals and progress all come back from the ledger."""
    rule = topic_rule(carts.topic, Cascade())
    events = Events()
    first = await carts.store(rule)
    events.moved((1,), (2,), at=50)
    await apply(first, events.batch())
    await first.close()
    second = await carts.store(rule)
    assert await second.progress(SOURCE, Deadline.after(20)) == {SOURCE[0]: 1}
    events.deleted((2,), at=20, partition=1)
    (effect,) = await apply(second, events.batch())
    assert effect.rows == 1, "k2 goes; k1 arrived at 2 only later"
    await second.close()
    third = await carts.store(rule)
    events.deleted((2,), at=60, partition=1)
    (effect,) = await apply(third, events.batch())
    assert effect.rows == 1
    assert sorted(await carts.rows()) == [(1, b"k3")]


async def test_view_that_has_not_looked_for_long_is_read_anew(carts: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction may have removed null records meanwhile: what the view has beyond the topic would be brought back."""
    store = await carts.store(topic_rule(carts.topic, Nullify(("customer_id",))))
    events = deleted(1)
    await apply(store, events.batch())
    async with store._lock:
        await store._look()
        before = store._reader.taken
        monkeypatch.setattr("integrity.stores.topic.store._VIEW_AGE_MAX_S", -1.0)
        await store._look()
        assert store._reader.taken - before >= 4, "everything was read again"
    events.deleted((2,), at=20)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1


async def test_topic_made_anew_is_read_from_its_start(carts: Shop, create_topic: CreateTopic) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = deleted(1)
    await apply(store, events.batch())
    # While the topic is gone no client may ask for it: this broker makes what is asked for.
    await carts.owner.stop()
    async with store._lock:
        await store._look()
        store._reader.close()
        store._discard_writer()
        await store._closer.wait()
        admin = AIOKafkaAdminClient(**carts.client)
        await admin.start()
        try:
            await admin.delete_topics([carts.topic])
            async with asyncio.timeout(20):
                while carts.topic in await admin.list_topics():
                    await asyncio.sleep(0.05)
            await create_topic(carts.topic, partitions=2, config={"cleanup.policy": "compact"})
        finally:
            await admin.close()
    carts.owner = AIOKafkaProducer(**carts.client, acks="all")
    await carts.owner.start()
    await carts.put(b"new", b'{"customer_id":2}')
    events.deleted((2,), at=20)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1
    assert await carts.rows() == {}
    assert store._state is not None
    async with store._lock:
        await store._look()
    assert store._state.children() == 0, "nothing of the old topic is left"


async def test_view_whose_files_are_deleted_meanwhile_goes_on(carts: Shop) -> None:
    """As a cleaner of temporary directories does."""
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = deleted(1)
    await apply(store, events.batch())
    assert store._scratch is not None
    shutil.rmtree(store._scratch.path)
    events.deleted((2,), at=20)
    (effect,) = await apply(store, events.batch())
    assert effect.rows == 1
    assert sorted(await carts.rows()) == [(1, b"k3")]


@pytest.mark.parametrize("with_its_directory", [False, True])
async def test_view_that_is_broken_is_built_anew(
    carts: Shop, monkeypatch: pytest.MonkeyPatch, with_its_directory: bool
) -> None:
    """Arrivals, fates and progress come back from the ledger, children from their topic."""
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    events = Events()
    events.moved((1,), (2,), at=50)
    await apply(store, events.batch())
    assert store._scratch is not None
    before = store._scratch.path
    choose = State.choose

    def broken(self: State, *args: Any) -> list[int]:
        monkeypatch.setattr(State, "choose", choose)
        if with_its_directory:
            shutil.rmtree(before)
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(State, "choose", broken)
    events.deleted((2,), at=20, partition=1)
    batch = events.batch()
    assert isinstance(await store.apply(batch, Deadline.after(20)), Retry)
    (effect,) = await apply(store, batch)
    assert effect.rows == 1, "k2 goes; k1 arrived at 2 only later"
    assert store._scratch.path != before
    assert not before.exists()
    assert sorted(await carts.rows()) == [(1, b"k1"), (1, b"k3")]


STEPS: list[tuple[type, str]] = [
    (Writer, "start"), (Writer, "begin"), (Writer, "send"), (Writer, "delivered"), (Writer, "commit"),
    (Reader, "partitions"), (Reader, "read_to_end"), (Reader, "_ends_of"), (Reader, "_assign"),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_failure_at_any_step_changes_nothing_or_everything(
    carts: Shop, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """Fails the first, second, third … call that leaves the process, until a run passes; before or after its work."""
    rule = topic_rule(carts.topic, Nullify(("customer_id",)))
    calls, fail_at = 0, 0

    def rigged(real: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def call(*args: object) -> object:
            nonlocal calls
            calls += 1
            failing = calls == fail_at
            if failing and not after:
                raise KafkaConnectionError("rigged")
            found = await real(*args)
            if failing:
                raise KafkaConnectionError("rigged")
            return found

        return call

    for kind, name in STEPS:
        monkeypatch.setattr(kind, name, rigged(getattr(kind, name)))
    store = await carts.store(rule)
    # The background task reads on at times of its own; here the count has to be the same each time.
    assert store._attendant is not None
    store._attendant.cancel()
    await asyncio.wait({store._attendant})
    store._attendant = None
    events = Events()
    failures = 0
    for number in range(1, 100):
        await carts.put(b"n", b'{"customer_id":%d}' % (100 + number))
        events.deleted((100 + number,), at=number)
        batch = events.batch()
        calls, fail_at = 0, number
        result = await store.apply(batch, Deadline.after(20))
        rows = sum(effect.rows for effect in result.effects) if isinstance(result, Applied) else 0
        if not isinstance(result, Applied):
            assert isinstance(result, Retry), result
            failures += 1
            rows = sum(effect.rows for effect in await apply(store, batch))
        written = [r for r in await carts.records() if r.key == b"n"]
        assert written[-1].value == b'{"customer_id":null}'
        assert len(written) == 2 * number, "each effect once"
        assert rows == 1 or (after and isinstance(result, Retry)), "only a commit that took effect leaves none to do"
        if calls < fail_at:
            break
    assert failures >= len(STEPS)


KILLED = """
import asyncio, json, os, signal, sys
from integrity.core.rules.model import Cascade
from integrity.ports import Deadline
from integrity.stores.topic import TopicStore
from integrity.stores.topic.writer import Writer
from tests.integration.topic_shop import SOURCE, topic_rule
from tests.integration.test_topic_takeover import deleted

servers, topic, when = sys.argv[1:]
commit = Writer.commit

async def kill(self):
    if when == "after":
        await commit(self)
    os.kill(os.getpid(), signal.SIGKILL)

Writer.commit = kill

async def main():
    rules = {"customer": [topic_rule(topic, Cascade())]}
    store = TopicStore("shop", {"bootstrap_servers": servers}, rules, lane=topic, schema=topic)
    await store.migrate(Deadline.after(20))
    await store.progress(SOURCE, Deadline.after(20))
    await store.apply(deleted(1, 2).batch(), Deadline.after(20))

asyncio.run(main())
"""


@pytest.mark.parametrize(("when", "outcome"), [("before", Outcome.APPLIED), ("after", Outcome.DUPLICATE)])
async def test_process_killed_at_its_commit_leaves_all_or_nothing(carts: Shop, when: str, outcome: Outcome) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(carts.client["bootstrap_servers"]), carts.topic, when, cwd=ROOT
    )
    async with asyncio.timeout(60):
        assert await process.wait() == -signal.SIGKILL
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    assert len(await carts.rows()) == (3 if when == "before" else 1)
    effects = await apply(store, deleted(1, 2).batch())
    assert [effect.outcome for effect in effects] == [outcome] * 2
    assert sorted(await carts.rows()) == [(1, b"k3")]
    assert sum(record.value is None for record in await carts.records()) == 2, "each effect once"


async def test_ledger_tells_what_happened_to_a_key(carts: Shop) -> None:
    store = await carts.store(topic_rule(carts.topic, Cascade()))
    await apply(store, deleted(1).batch())
    ledger = {
        record.key.decode(): json.loads(record.value) for record in await carts.records(f"{carts.topic}.ledger.shop")
    }
    (fate,) = [value for key, value in ledger.items() if key.startswith("fate|")]
    (head,) = [value for key, value in ledger.items() if key.startswith("head|")]
    assert (head["entity"], head["key"]) == ("customer", "[1]")
    assert fate["rows"] == {"customer.carts": ["cascade", 1]}
    assert fate["event"] == "shop.public.customers/0/0"
    assert fate["trace"] == "0" * 31 + "1"
    assert ledger[f"progress|{carts.topic}|shop.public.customers|0"] == {"next": 1}


async def test_closing_leaves_no_file_behind(carts: Shop, tmp_path: Path) -> None:
    rules = {"customer": [topic_rule(carts.topic, Cascade())]}
    store = TopicStore("shop", carts.client, rules, lane="l", schema=carts.topic, state_dir=tmp_path)
    await store.migrate(Deadline.after(20))
    await store.progress(SOURCE, Deadline.after(20))
    await apply(store, deleted(1).batch())
    assert list(tmp_path.iterdir())
    await store.close()
    assert not list(tmp_path.iterdir())
