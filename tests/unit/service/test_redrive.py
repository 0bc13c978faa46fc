"""Dead letters that come back, through reader and enforcer; and what is sent back and what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integrity.core.batch import Batch, DeadLetterMark, Span, TopicPartition
from integrity.core.change import ParentChange
from integrity.core.decode.record import Decoded, Decoder, Half, Record
from integrity.core.outcome import Rejected
from integrity.errors import Reason
from integrity.kafka.dead_letters import Status, dead_letter_id
from integrity.kafka.letters import Filter, Letter, LetterIndex
from integrity.kafka.redrives import Ask, Returned, outgoing, read_returned
from integrity.rules_files import load_rules
from integrity.service.redrive import Person, Redriver
from integrity.service.work import Piece, Reader, Returning, halves
from integrity.wiring.decoding import redrive_decoders
from tests.unit.service.doubles import TOPIC, BentStore, Letters, Watched, decode, deleted, enforcers_of, memory_store

REDRIVES = "integrity.redrive"
AT = TopicPartition(REDRIVES, 0)
P0 = TopicPartition(TOPIC, 0)
ORDERS = "customer.orders"


def letter_id(offset: int, dependent: str = ORDERS) -> str:
    return dead_letter_id(TOPIC, 0, offset, dependent, "memory")


def returned(
    record: Record, at: int, *, ask: Ask = Ask.RETRY, dependent: str = ORDERS, store: str = "memory", retries: int = 1
) -> Record:
    """The record as the topic of redrives has it."""
    letter = letter_id(record.offset, dependent)
    sent = outgoing(REDRIVES, Returned(ask, letter, "customer", dependent, store, retries, record))
    return Record(REDRIVES, 0, at, 1_800_000_000_000, sent.key, sent.value, sent.headers)


def read(*records: Record) -> Piece:
    piece = Piece(spans={AT: Span(records[0].offset, records[-1].offset + 1)})
    reader = Reader({TOPIC: ("customer", decode)}, Returning(REDRIVES, "memory", {ORDERS}))
    reader.read(AT, records, piece)
    return piece


def test_a_record_comes_back_as_it_came_with_its_place_and_time() -> None:
    record = deleted(1, 7)._replace(headers=(("trace", b"\x00"), ("traceparent", b"x"), ("trace", None)))
    found = read_returned(returned(record, 3, ask=Ask.APPROVE, retries=4))
    assert found == Returned(Ask.APPROVE, letter_id(7), "customer", ORDERS, "memory", 4, record)


@pytest.mark.parametrize("header", ["integrity.redrive", "integrity.offset", "integrity.timestamp", "integrity.id"])
def test_a_record_that_lacks_a_header_is_none_of_ours(header: str) -> None:
    record = returned(deleted(1, 7), 0)
    assert read_returned(record._replace(headers=[h for h in record.headers if h[0] != header])) is None
    assert read(record._replace(headers=[(n, b"?" if n == header != "integrity.id" else v) for n, v in record.headers]))


def test_lanes_take_what_is_of_their_store_only() -> None:
    piece = read(returned(deleted(1, 1), 0, store="other"), returned(deleted(2, 2), 1))
    assert [change.key for change in piece.changes] == [(2,)]
    assert piece.redrives[0].offset == 1


def test_halves_cut_where_a_redrive_was_read_not_where_its_event_stands() -> None:
    piece = read(*(returned(deleted(key, 50 + key), key) for key in range(4)))
    first, second = halves(piece)
    assert (first.spans, second.spans) == ({AT: Span(0, 2)}, {AT: Span(2, 4)})
    assert [second.redrives[index].offset for index in (0, 1)] == [2, 3]


async def test_redrive_that_succeeds_is_resolved_and_acts_once() -> None:
    store, letters = BentStore(memory_store(2)), Letters()
    one = enforcers_of(store, letters, Watched())[0]
    change = decode(deleted(0, 5))
    left_out = {(0, ORDERS): DeadLetterMark(Reason.STORE_REJECTED, letter_id(5))}
    await store.store.apply(Batch((change,), {P0: Span(5, 6)}, 0, exceptions=left_out), None)  # type: ignore[arg-type]
    for at in (0, 1):
        await one.enforce(read(returned(deleted(0, 5), at)))
    assert [(each.id, each.status) for each in letters.marked] == [(letter_id(5), Status.RESOLVED)] * 2
    assert [row["customer_id"] for row in store.store.targets["orders"]] == [1]
    assert letters.published == []


async def test_redrive_that_fails_again_is_open_under_its_id_with_one_more_retry() -> None:
    def bend(batch: Batch) -> Rejected | None:
        refused = any((index, ORDERS) not in batch.exceptions for index in batch.redrives)
        return Rejected(ORDERS, Reason.STORE_REJECTED, "still refused") if refused else None

    letters = Letters()
    one = enforcers_of(BentStore(memory_store(2), bend), letters, Watched())[0]
    await one.enforce(read(returned(deleted(0, 5), 0, retries=3), returned(deleted(1, 6), 1)))
    assert [(each.id, each.retries, each.status) for each in letters.published] == [
        (letter_id(5), 3, Status.OPEN),
        (letter_id(6), 1, Status.OPEN),
    ]
    assert letters.marked == []


async def test_redrive_that_cannot_be_read_any_more_keeps_its_id() -> None:
    letters = Letters()
    one = enforcers_of(BentStore(memory_store(1)), letters, Watched())[0]
    gone = returned(deleted(0, 5), 0, dependent="customer.notes")
    torn = returned(deleted(0, 6)._replace(value=b"x"), 1)
    await one.enforce(read(gone, torn))
    assert [(each.id, each.reason, each.retries) for each in letters.published] == [
        (letter_id(5, "customer.notes"), Reason.SCHEMA_MISMATCH, 1),
        (letter_id(6), Reason.BAD_JSON, 1),
    ]


# --- by hand ---------------------------------------------------------------------------------------------------


class _Sends:
    def __init__(self, order: list[Any]) -> None:
        self.order = order

    async def send_all(self, records: Any, deadline: Any) -> None:
        await asyncio.sleep(0)
        self.order += [("sent", dict(record.headers)["integrity.id"].decode()) for record in records]

    async def mark(self, changes: Any, deadline: Any) -> None:
        self.order += [(change.status.value, *filter(None, (change.id, change.parked))) for change in changes]

    def write_by_hand(self, done: Any) -> None:
        self.order += [("audited " + each.outcome, each.id) for each in done]


class _Index(LetterIndex):
    """An index whose letters are given, over a partition that holds `later`; None: it does not reach back."""

    def __init__(self, letters: list[Letter], later: list[Record] | None = None) -> None:
        super().__init__()
        self.letters = letters
        self.later = later

    async def read_after(self, topic: str, partition: int, offset: int, take: Any) -> bool:
        if self.later:
            await take(self.later)
        return self.later is not None

    def find(self, chosen: Filter, limit: int | None = None) -> Iterator[Letter]:
        yield from self.letters

    async def payloads(self, letters: list[Letter]) -> dict[str, Record]:
        return {letter.id: deleted(1, letter.offset) for letter in letters if letter.note != "gone"}


def letter(name: str, **changes: Any) -> Letter:
    values: dict[str, Any] = dict.fromkeys(Letter._fields, "")
    values |= {"id": name, "status": Status.OPEN, "dependent": ORDERS, "store": "memory", "topic": TOPIC}
    values |= {"partition": 0, "offset": 5, "retries": 0, "truncated": False, "bytes": 1, "reason": "bad_json"}
    return Letter(**(values | changes))


def redriver(
    letters: list[Letter],
    order: list[Any],
    bytes_max: int = 10_000,
    later: list[Record] | None = None,
    decode: Decoder = decode,
) -> Redriver:
    class _Named:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    dependent = _Named(id=ORDERS, store="memory")
    parent = _Named(followers={dependent.id: dependent}, events=_Named(topics=[TOPIC]))
    rules = _Named(parents=[parent], store_of={dependent.id: dependent.store})
    sends, index = _Sends(order), _Index(letters, later)
    return Redriver(
        index,  # type: ignore[arg-type]
        index,
        marks=sends,
        sends=sends,
        audit=sends,
        topic=REDRIVES,
        bytes_max=bytes_max,
        rules=rules,  # type: ignore[arg-type]
        decoders={TOPIC: ("customer", decode)},
        person=Person("ada"),
    )


async def test_a_letter_is_marked_before_it_is_sent_so_that_the_lanes_word_is_the_last() -> None:
    order: list[Any] = []
    done = await redriver([letter("a")], order).retry(Filter(), None)
    assert (done.done, done.refused) == (1, 0)
    assert order == [("retried", "a"), ("sent", "a"), ("audited retried", "a")]


async def test_the_mark_of_a_parked_letter_says_so_that_it_is_looked_for_if_it_was_never_sent() -> None:
    order: list[Any] = []
    await redriver([letter("a", parked="acme")], order).retry(Filter(), None)
    assert order[0] == ("retried", "a", "acme")


async def test_what_cannot_be_sent_back_stays_as_it_is_and_says_why() -> None:
    order: list[Any] = []
    letters = [
        letter("described", truncated=True),
        letter("done", status=Status.RESOLVED),
        letter("no dependent", dependent="customer.gone"),
        letter("no topic", topic="elsewhere"),
        letter("retained", note="gone"),
    ]
    done = await redriver(letters, order).retry(Filter(ids=("unknown",)), None)
    assert {refusal.id for refusal in done.refusals} == {each.id for each in letters} | {"unknown"}
    assert order == []
    small = await redriver([letter("large")], order, bytes_max=10).retry(Filter(), None)
    assert (small.done, small.refused, order) == (0, 1, [])


@pytest.mark.parametrize(
    ("later", "sent"),
    [
        ([], True),
        ([deleted(1, 6)], True),
        ([deleted(2, 6)._replace(value=b"c9")], True),
        ([deleted(1, 6)._replace(value=b"c9")], False),
        ([deleted(1, 6)._replace(value=b"?")], False),  # nobody can say what it says
        ([deleted(1, 6)._replace(value=None)], True),
        (None, False),
    ],
)
async def test_what_could_not_be_read_is_not_sent_back_once_its_key_may_be_in_use_again(
    later: list[Record] | None, sent: bool
) -> None:
    """The ledgers may not know the key of such a record: nothing else protects a parent that was created again."""
    order: list[Any] = []
    done = await redriver([letter("unread", dependent="*")], order, later=later).retry(Filter(), None)
    assert (done.done, done.refused) == (int(sent), int(not sent))
    assert (("sent", "unread") in order) == sent


@pytest.mark.parametrize(("dependent", "sent"), [("*", False), (ORDERS, True)])
async def test_half_of_a_key_change_that_could_not_be_read_is_not_sent_back(dependent: str, sent: bool) -> None:
    """Nothing tells any more whether its other half came after it. What it was once found to be it stays."""

    def unmarked(record: Record) -> Decoded:
        change = decode(record)
        return Half(change, True, (), None, None) if isinstance(change, ParentChange) else change

    one = redriver([letter("half", dependent=dependent)], order := [], later=[], decode=unmarked)
    done = await one.retry(Filter(), None)
    assert (("sent", "half") in order, done.refused) == (sent, int(not sent))


@pytest.mark.parametrize(
    ("tenants", "sent"),
    [(("a", "a"), False), (("a", "b"), True), (("a", ""), False), (("", "b"), True)],
)
async def test_a_key_that_is_in_use_again_at_another_tenant_is_another_key(
    tenants: tuple[str, str], sent: bool
) -> None:
    mine, others = tenants

    def of_tenant(record: Record) -> Decoded:
        said = decode(record)
        assert isinstance(said, ParentChange)
        return said._replace(tenant=mine if record.offset == 5 else others)

    order: list[Any] = []
    one = redriver([letter("parked", dependent="*")], order, later=[deleted(1, 6)._replace(value=b"c9")])
    one._decoders = {TOPIC: ("customer", of_tenant)}
    await one.retry(Filter(), None)
    assert (("sent", "parked") in order) == sent


def test_an_update_tells_whose_it_is_to_who_asks_for_keys_in_use(tmp_path: Path) -> None:
    """One that told it not would keep the deletions of all tenants that have a parent of its key from coming back."""
    (tmp_path / "customer.yaml").write_text(
        "version: 1\nparent: customer\nevents:\n  topic: customers\n  format: debezium\n  key: {id: int64}\n"
        "  tenant: {header: tenant}\ndependents:\n"
        "  - {store: s, table: orders, references: {customer_id: id}, on_delete: cascade}\n"
    )
    [(_, read)] = redrive_decoders(load_rules(tmp_path).parents, None).values()
    row, source = {"id": 1}, {"connector": "mysql", "file": "b.1", "pos": 4, "row": 0, "ts_ms": 1}
    value = json.dumps({"op": "u", "before": row, "after": row, "source": source}).encode()
    said = read(Record("customers", 0, 6, 0, b'{"id":1}', value, (("tenant", b"acme"),)))
    assert isinstance(said, ParentChange) and (said.key, said.tenant) == ((1,), "acme")


async def test_what_a_tenant_gives_up_is_sent_with_the_record_that_tells_whose_it_is() -> None:
    sent: list[Any] = []
    one = redriver([letter("a", entity="customer"), letter("gone", note="gone"), letter("unread", dependent="*")], [])
    one._of_tenants = {"memory"}
    one._sends = _Keeps(sent)  # type: ignore[assignment]
    done = await one.discard(Filter(), None)
    assert (done.done, [refusal.id for refusal in done.refusals]) == (2, ["gone"])
    back = [Record(REDRIVES, 0, 3, 0, each.key, each.value, each.headers) for each in sent]
    piece = Piece(spans={AT: Span(3, 4)})

    def of_tenant(record: Record) -> Decoded:
        said = decode(record)
        return said._replace(tenant="acme") if isinstance(said, ParentChange) else said

    Reader({TOPIC: ("customer", of_tenant)}, Returning(REDRIVES, "memory", {ORDERS})).read(AT, back, piece)
    assert [(each.letter, each.tenant) for each in piece.discards] == [("a", "acme")]


async def test_a_held_letter_is_approved_by_its_id_alone() -> None:
    held = letter("held", status=Status.HELD, reason="too_many_rows")
    sent: list[Any] = []
    one = redriver([held], [])
    one._sends = _Keeps(sent)  # type: ignore[assignment]
    await one.retry(Filter(ids=("held",)), None)
    await one.retry(Filter(), None)
    assert [dict(record.headers)["integrity.redrive"] for record in sent] == [b"approve", b"retry"]


class _Keeps:
    def __init__(self, sent: list[Any]) -> None:
        self.sent = sent

    async def send_all(self, records: Any, deadline: Any) -> None:
        self.sent += records


async def test_discard_tells_the_lanes_unless_nothing_waits_for_the_letter() -> None:
    order: list[Any] = []
    await redriver([letter("a"), letter("unread", dependent="*"), letter("b", truncated=True)], order).discard(
        Filter(), None
    )
    assert [name for what, name in order if what == "discarded"] == ["a", "unread", "b"]
    assert [name for what, name in order if what == "sent"] == ["a", "b"]
