"""Key changes that their source tells as a deletion and a creation without a mark (fact 7, and SQL Server).

The records of PostgreSQL are captured. Those of SQL Server are CONSTRUCTED from the documentation of its connector: an
update of a primary key is a deletion and a creation of one commit_lsn and change_lsn, event_serial_no 1 and 2. What
they prove is how such records are read, not that the connector writes them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from integrity.core.batch import ANY_DEPENDENT, TopicPartition
from integrity.core.change import Op, ParentChange, Version
from integrity.core.decode import decoder_for
from integrity.core.decode.halves import HELD_MAX, OTHER_KEY
from integrity.core.decode.record import Decoder, Headers, Record
from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.model import Events, PairBy, Parent, Place, TenantFrom, TenantIn, Tombstones
from integrity.errors import Reason
from integrity.kafka.redrives import Ask, Returned, outgoing
from integrity.service.work import Piece, Reader, Returning
from integrity.stores.topic.records import ReadRecord
from integrity.stores.topic.scan import _decoding
from tests.golden.histories import BIGINT
from tests.golden.records import load, of_topic
from tests.golden.test_constructed_envelopes import SQLSERVER

TOPIC = "server1.customers"
PARTED = "pg_partitioned_table.public.parted"
TENANT_ID = {"tenant": KeyType.INT64, "id": KeyType.INT64}
SQL_SERVERS: Headers = (("__debezium.context.connectorName", b"sqlserver"),)

Said = tuple[Op, object, object]


def parent(events: Events) -> Parent:
    return Parent("customer", events, (), Place("customer.yaml", 1, 1))


def decoder(pair_by: PairBy | None = None, deleted_when: str | None = None, **key: KeyType) -> Decoder:
    spec = KeySpec(tuple(key.items()))
    events = Events(("t",), "debezium", spec, Tombstones.DELETE, deleted_when, pair_by=pair_by)
    return decoder_for(parent(events))


def envelope(op: str, source: Mapping[str, object], after: object = None) -> bytes:
    return json.dumps({"before": None, "after": after, "source": source, "op": op}).encode()


def lsn(change: int, serial: int = 1, commit: int = 5) -> Mapping[str, object]:
    places = {"commit_lsn": f"00000027:00000758:{commit:04x}", "change_lsn": f"00000027:00000758:{change:04x}"}
    return SQLSERVER | places | {"event_serial_no": serial}


def keyed(**fields: int) -> bytes:
    return json.dumps(fields).encode()


def row(
    op: str, id_: int, change: int, serial: int = 1, commit: int = 5, **more: object
) -> list[tuple[bytes, bytes | None]]:
    """A record of SQL Server, with the null record after it if it is a deletion."""
    one = (keyed(id=id_), envelope(op, lsn(change, serial, commit), None if op == "d" else {"id": id_, **more}))
    return [one, (keyed(id=id_), None)] if op == "d" else [one]


def records_of(*rows: list[tuple[bytes, bytes | None]]) -> list[Record]:
    return [
        Record(TOPIC, 0, offset, 1795474605100, key, value, SQL_SERVERS)
        for offset, (key, value) in enumerate([each for found in rows for each in found])
    ]


def read(records: Sequence[Record], decode: Decoder, *, is_over: bool = True, partitions: int = 1) -> Piece:
    reader = Reader({record.topic: ("customer", decode) for record in records}, None, lambda topic: partitions)
    piece = Piece()
    reader.read(TopicPartition(records[0].topic, 0), records, piece, is_over=is_over)
    return piece


def said(piece: Piece) -> list[Said]:
    return [(change.op, change.key, change.to) for change in piece.changes]


def refusals(piece: Piece) -> list[tuple[int, Reason]]:
    return [(each.record.offset, each.why.reason) for each in piece.refused]


def position(change: int, serial: int, commit: int = 5) -> Version:
    return Version(0, (0x27, 0x758, commit, 0x27, 0x758, change, serial))


# --- PostgreSQL, captured -------------------------------------------------------------------------------------------


def test_captured_row_that_moves_between_partitions_is_a_key_change_where_the_rule_pairs() -> None:
    """UPDATE parted SET tenant=2 WHERE id=1; DELETE FROM parted WHERE id=1."""
    records = of_topic("pg_partitioned_table", "public.parted")
    piece = read(records, decoder(PairBy.TRANSACTION, **TENANT_ID))
    assert said(piece) == [
        (Op.ALIVE, (1, 1), None),
        (Op.MOVED, (1, 1), (2, 1)),
        (Op.ARRIVED, (2, 1), None),
        (Op.DELETED, (2, 1), None),
    ]
    move, arrival = piece.changes[1:3]
    assert move.version == arrival.version == Version(0, (27905256,)), "the place where the new key is taken"
    assert piece.refused == []


def test_captured_row_that_moves_lives_on_where_its_key_does_not_change() -> None:
    """The rule's key is not all of the primary key: the same row, in another partition."""
    piece = read(of_topic("pg_partitioned_table", "public.parted"), decoder(PairBy.TRANSACTION, **BIGINT))
    assert said(piece) == [(Op.ALIVE, (1,), None), (Op.ARRIVED, (1,), None), (Op.DELETED, (1,), None)]


def test_captured_moves_without_pair_by_are_deletions() -> None:
    piece = read(of_topic("pg_partitioned_table", "public.parted"), decoder(**TENANT_ID))
    assert [op for op, _, _ in said(piece)] == [Op.ALIVE, Op.DELETED, Op.ALIVE, Op.DELETED]


def test_captured_statements_on_a_table_without_partitions_pair_what_stands_side_by_side() -> None:
    """Key changes have their marks, and stay what they are. A row that is deleted and inserted by one transaction,
    which the rule says is a move, lives on; two statements of two transactions stay a deletion and a creation."""
    records = of_topic("pg_env", "public.customers")
    plain, paired = read(records, decoder(**BIGINT)), read(records, decoder(PairBy.TRANSACTION, **BIGINT))
    moves = [each for each in said(plain) if each[0] is Op.MOVED]
    assert [each for each in said(paired) if each[0] is Op.MOVED] == moves
    deleted, still = ([change.key for change in each.changes if change.op is Op.DELETED] for each in (plain, paired))
    assert (deleted.count((12,)), still.count((12,))) == (2, 1)
    assert [each for each in deleted if each != (12,)] == [each for each in still if each != (12,)]


def test_captured_replace_of_mariadb_is_a_deletion_whose_row_is_there_again() -> None:
    """Fact 23: REPLACE takes the children of a parent along, by its cascade; and the parent is there before and after.
    Nothing pairs it: MariaDB marks key changes."""
    piece = read([each for each in load("my_env") if each.topic == "my_env.shop.parents"], decoder(**BIGINT))
    replaced = [change for change in piece.changes if change.key == (3,)][-2:]
    assert [change.op for change in replaced] == [Op.DELETED, Op.ALIVE]
    d, c = (change.version for change in replaced)
    assert d is not None and c is not None and d < c


def pg(op: str, transaction: int | None, lsn_: int, **key: int) -> list[tuple[bytes, bytes | None]]:
    value = envelope(op, {"connector": "postgresql", "txId": transaction, "lsn": lsn_, "ts_ms": 1})
    return [(keyed(**key), value), *([(keyed(**key), None)] if op == "d" else [])]


@pytest.mark.parametrize(
    ("rows", "expected", "refused"),
    [
        pytest.param(
            [
                *[pg("d", 7, 1, tenant=1, id=1), pg("c", 7, 2, tenant=2, id=1)],
                *[pg("d", 7, 3, tenant=1, id=2), pg("c", 7, 4, tenant=2, id=2)],
            ],
            [
                *[(Op.MOVED, (1, 1), (2, 1)), (Op.ARRIVED, (2, 1), None)],
                *[(Op.MOVED, (1, 2), (2, 2)), (Op.ARRIVED, (2, 2), None)],
            ],
            0,
            id="one statement moves two rows",
        ),
        pytest.param(
            [pg("d", 7, 1, tenant=1, id=1), pg("c", 8, 2, tenant=2, id=1)],
            [(Op.DELETED, (1, 1), None), (Op.ALIVE, (2, 1), None)],
            0,
            id="two transactions",
        ),
        pytest.param(
            [pg("d", 7, 1, tenant=1, id=1), pg("u", 7, 2, tenant=1, id=9), pg("c", 7, 3, tenant=2, id=1)],
            [(Op.DELETED, (1, 1), None), (Op.ALIVE, (2, 1), None)],
            0,
            id="another change of the transaction in between",
        ),
        pytest.param(
            [pg("d", 7, 1, tenant=1, id=1), pg("d", 7, 2, tenant=1, id=2), pg("c", 7, 3, tenant=2, id=2)],
            [(Op.DELETED, (1, 1), None), (Op.MOVED, (1, 2), (2, 2)), (Op.ARRIVED, (2, 2), None)],
            0,
            id="a deletion before the one that moves",
        ),
        pytest.param(
            [pg("d", 7, 1, tenant=1, id=1), pg("c", 7, 2, tenant=2, id=9)],
            [(Op.ALIVE, (2, 9), None)],
            1,
            id="a creation that has no part of the key",
        ),
        pytest.param(
            [pg("d", 7, 5, tenant=1, id=2), pg("d", 7, 1, tenant=1, id=1), pg("c", 7, 2, tenant=2, id=1)],
            [(Op.MOVED, (1, 1), (2, 1)), (Op.ARRIVED, (2, 1), None)],
            1,
            id="the transaction is emitted again from its beginning",
        ),
        pytest.param(
            [pg("d", None, 1, tenant=1, id=1), pg("c", None, 2, tenant=2, id=1)],
            [(Op.ALIVE, (2, 1), None)],
            1,
            id="no transaction is named",
        ),
    ],
)
def test_constructed_transaction_pairs_what_is_beyond_doubt_and_refuses_what_is_not(
    rows: list[list[tuple[bytes, bytes | None]]], expected: list[Said], refused: int
) -> None:
    piece = read([each._replace(headers=()) for each in records_of(*rows)], decoder(PairBy.TRANSACTION, **TENANT_ID))
    assert (said(piece), len(piece.refused)) == (expected, refused)


def test_null_record_alone_is_refused_where_the_rule_pairs() -> None:
    """Compaction may have taken the deletion before it, or the first half of a move."""
    alone = [each._replace(headers=()) for each in records_of([(keyed(tenant=1, id=1), None)])]
    assert refusals(read(alone, decoder(PairBy.TRANSACTION, **TENANT_ID))) == [(0, Reason.BAD_ENVELOPE)]
    assert [op for op, _, _ in said(read(alone, decoder(**TENANT_ID)))] == [Op.GONE]


# --- SQL Server, constructed ----------------------------------------------------------------------------------------


def test_constructed_primary_key_update_of_sql_server_is_a_key_change() -> None:
    piece = read(records_of(row("d", 10, 3), row("c", 11, 3, 2)), decoder(**BIGINT))
    assert said(piece) == [(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)]
    assert [change.version for change in piece.changes] == [position(3, 2)] * 2
    assert [record.value for record in piece.records] == [envelope("d", lsn(3)), envelope("c", lsn(3, 2), {"id": 11})]


def test_constructed_update_of_sql_server_that_is_split_and_keeps_the_key_is_no_deletion() -> None:
    """An update of another unique column is a deletion and a creation too, of one key."""
    piece = read(records_of(row("d", 10, 3), row("c", 10, 3, 2), row("d", 10, 4)), decoder(**BIGINT))
    assert said(piece) == [(Op.ARRIVED, (10,), None), (Op.DELETED, (10,), None)]


@pytest.mark.parametrize(
    ("rows", "expected", "refused"),
    [
        pytest.param([row("d", 10, 3)], [(Op.DELETED, (10,), None)], [], id="nothing follows"),
        pytest.param(
            [row("d", 10, 3), row("c", 11, 4)],
            [(Op.DELETED, (10,), None), (Op.ALIVE, (11,), None)],
            [],
            id="deleted and created by one transaction, each by its own statement",
        ),
        pytest.param(
            [row("d", 10, 3), row("c", 10, 4)],
            [(Op.DELETED, (10,), None), (Op.ALIVE, (10,), None)],
            [],
            id="replaced under its key by two statements",
        ),
        pytest.param([row("d", 10, 3), row("u", 12, 4, 2)], [(Op.DELETED, (10,), None)], [], id="an update follows"),
        pytest.param(
            [row("d", 10, 3), row("r", 12, 9, commit=9)],
            [(Op.DELETED, (10,), None), (Op.ALIVE, (12,), None)],
            [],
            id="a snapshot follows",
        ),
        pytest.param(
            [row("d", 10, 3), [(b'{"serverName":"server1"}', b'{"ts_ms":1}')], row("c", 11, 3, 2)],
            [(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)],
            [],
            id="a heartbeat in between",
        ),
        pytest.param(
            [row("d", 10, 3), row("d", 10, 3), row("c", 11, 3, 2)],
            [(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)],
            [],
            id="the connector starts again in between and emits the deletion again",
        ),
        pytest.param(
            [row("d", 10, 3), row("c", 8, 2), row("d", 10, 3), row("c", 11, 3, 2)],
            [(Op.ALIVE, (8,), None), (Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)],
            [(0, Reason.BAD_ENVELOPE)],
            id="the connector starts again in between, further back",
        ),
        pytest.param(
            [row("d", 10, 3), [(keyed(id=11), b"{")]],
            [],
            [(0, Reason.BAD_ENVELOPE), (2, Reason.BAD_JSON)],
            id="what follows can't be read",
        ),
        pytest.param(
            [row("d", 10, 3), [(b'{"id":"x"}', envelope("c", lsn(3, 2)))]],
            [],
            [(0, Reason.BAD_ENVELOPE), (2, Reason.TYPE_MISMATCH)],
            id="the new key is none of the rule's type",
        ),
        pytest.param(
            [row("d", 10, 3), row("c", 11, 3, 3)],
            [(Op.ALIVE, (11,), None)],
            [(0, Reason.BAD_ENVELOPE)],
            id="something is missing in between",
        ),
        pytest.param([row("d", 10, 3, 2)], [], [(0, Reason.BAD_ENVELOPE)], id="something is missing before it"),
        pytest.param(
            [row("d", 10, 3), row("c", 11, 3, 2), row("d", 11, 4), row("c", 12, 4, 2), row("d", 12, 5)],
            [
                *[(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)],
                *[(Op.MOVED, (11,), (12,)), (Op.ARRIVED, (12,), None), (Op.DELETED, (12,), None)],
            ],
            [],
            id="one key change after another, and a deletion",
        ),
    ],
)
def test_constructed_deletion_of_sql_server_is_what_the_next_event_makes_of_it(
    rows: list[list[tuple[bytes, bytes | None]]], expected: list[Said], refused: list[tuple[int, Reason]]
) -> None:
    piece = read(records_of(*rows), decoder(**BIGINT))
    assert (said(piece), refusals(piece)) == (expected, refused)


def test_constructed_half_in_a_topic_of_several_partitions_is_refused() -> None:
    piece = read(records_of(row("d", 10, 3), row("c", 11, 3, 2)), decoder(**BIGINT), partitions=2)
    assert (said(piece), refusals(piece)) == ([(Op.ALIVE, (11,), None)], [(0, Reason.BAD_VERSION)])


def test_constructed_key_change_to_a_row_that_counts_as_deleted_takes_the_rows_there() -> None:
    created = (keyed(id=11), envelope("c", lsn(3, 2), {"id": 11, "gone": True}))
    piece = read(records_of(row("d", 10, 3), [created]), decoder(deleted_when="after.gone", **BIGINT))
    assert said(piece) == [(Op.MOVED, (10,), (11,)), (Op.DELETED, (11,), None)]
    moved, deleted = (change.version for change in piece.changes)
    assert moved is not None and deleted is not None and moved < deleted < position(4, 1)


def test_constructed_deletion_waits_no_longer_than_a_bounded_number_of_records() -> None:
    beats = [[(b'{"serverName":"s"}', b'{"ts_ms":1}')] for _ in range(HELD_MAX + 1)]
    few, many = (read(records_of(row("d", 10, 3), *found), decoder(**BIGINT), is_over=False) for found in ([], beats))
    assert (said(few), said(many)) == ([], [(Op.DELETED, (10,), None)])


# --- in parts -------------------------------------------------------------------------------------------------------


def history(rng: random.Random) -> list[list[tuple[bytes, bytes | None]]]:
    rows: list[list[tuple[bytes, bytes | None]]] = []
    for change in range(1, rng.randint(2, 12)):
        a, b = rng.sample(range(5), 2)
        kinds = [
            [row("c", a, change)],
            [row("d", a, change)],
            [row("u", a, change, 2)],
            [row("d", a, change), row("c", b, change, 2)],
            [row("d", a, change), row("c", a, change, 2)],
            [[(b'{"serverName":"s"}', b'{"ts_ms":1}')]],
            [[(keyed(id=a), b"{")]],
        ]
        rows += rng.choice(kinds)
    return rows


@pytest.mark.parametrize("seed", range(40))
def test_constructed_records_say_the_same_however_they_are_fetched(seed: int) -> None:
    rng = random.Random(seed)
    records = records_of(*history(rng))
    whole = read(records, decoder(**BIGINT))
    reader, piece, held = Reader({TOPIC: ("customer", decoder(**BIGINT))}), Piece(), list[Record]()
    rest = records
    while rest:
        cut = rng.randint(1, len(rest))
        now, rest = rest[:cut], rest[cut:]
        held = list(reader.read(TopicPartition(TOPIC, 0), [*held, *now], piece))
        if rng.random() < 0.2:  # the lane begins anew, from the first record that it has not enforced
            reader = Reader({TOPIC: ("customer", decoder(**BIGINT))})
    reader.read(TopicPartition(TOPIC, 0), held, piece, is_over=True)
    assert (piece.changes, refusals(piece)) == (whole.changes, refusals(whole)), f"seed {seed}"


# --- dead letters that come back ------------------------------------------------------------------------------------


def come_back(record: Record, dependent: str, decode: Decoder) -> Piece:
    back = Returned(Ask.RETRY, "id", "customer", dependent, "db", 1, record)
    sent = outgoing("integrity.redrive", back)
    redrive = Record("integrity.redrive", 0, 0, 5, sent.key, sent.value, sent.headers)
    reader = Reader({TOPIC: ("customer", decode)}, Returning("integrity.redrive", "db", ["customer.orders"]))
    piece = Piece()
    reader.read(TopicPartition("integrity.redrive", 0), [redrive], piece)
    return piece


def test_half_that_comes_back_from_a_dead_letter_is_what_it_was_found_to_be() -> None:
    decode = decoder(**BIGINT)
    moved = read(records_of(row("d", 10, 3), row("c", 11, 3, 2)), decode)
    for change, record in zip(moved.changes, moved.records, strict=True):
        [back] = come_back(record, "customer.orders", decode).changes
        assert back._replace(op=change.op) == change
        assert (back.op is Op.MOVED) == (change.op is Op.MOVED)
    alone = read(records_of(row("d", 10, 3)), decode)
    [back] = come_back(alone.records[0], "customer.orders", decode).changes
    assert back == alone.changes[0]


def test_deletion_that_could_not_be_read_is_no_deletion_when_it_comes_back_alone() -> None:
    """Nothing tells any more whether its other half came after it."""
    decode = decoder(**BIGINT)
    [deletion] = records_of(row("d", 10, 3))[:1]
    back = come_back(deletion, ANY_DEPENDENT, decode)
    assert (back.changes, refusals(back)) == ([], [(0, Reason.BAD_ENVELOPE)])


@pytest.mark.parametrize("headers", [(("integrity.pair.version", b"x"),), (("integrity.pair.version", b"0:1.2"),)])
def test_marks_that_nobody_here_wrote_are_refused(headers: Headers) -> None:
    [deletion] = records_of(row("d", 10, 3))[:1]
    back = come_back(deletion._replace(headers=headers), "customer.orders", decoder(**BIGINT))
    assert (back.changes, len(back.refused)) == ([], 1)


def test_mark_of_a_moved_row_is_the_record_key_of_its_other_half() -> None:
    piece = read(records_of(row("d", 10, 3), row("c", 11, 3, 2)), decoder(**BIGINT))
    assert dict(piece.records[0].headers)[OTHER_KEY] == b'{"id": 11}'
    assert dict(piece.records[0].headers).items() >= dict(SQL_SERVERS).items()


def test_row_that_would_move_to_another_tenant_is_refused_with_what_follows_a_creation_of_nobody() -> None:
    """A tenant that the rows tell may differ between the two halves, or be missing in one."""
    spec = KeySpec((("region", KeyType.INT64), ("id", KeyType.INT64)))
    events = Events(
        ("t",),
        "debezium",
        spec,
        Tombstones.DELETE,
        tenant=TenantFrom(TenantIn.HEADER, "who"),
        pair_by=PairBy.TRANSACTION,
    )
    decode = decoder_for(parent(events))
    moving = [pg("d", 7, 1, region=1, id=1), pg("c", 7, 2, region=2, id=1)]
    for whose, expected in ((("a", "a"), [Op.MOVED, Op.ARRIVED]), (("a", "b"), [Op.ALIVE]), (("a", None), [])):
        records = [
            each._replace(headers=() if tenant is None else (("who", tenant.encode()),))
            for each, tenant in zip(records_of(*moving), (whose[0], *whose), strict=True)
        ]
        piece = read(records, decode)
        assert [op for op, _, _ in said(piece)] == expected
        assert not any(op is Op.DELETED for op, _, _ in said(piece))


def test_constructed_cloudevents_of_sql_server_are_put_together_too() -> None:
    def event(op: str, id_: int, serial: int) -> Record:
        attributes = {f"ce_iodebezium{name.replace('_', '')}": str(of) for name, of in lsn(3, serial).items() if of}
        attributes |= {"ce_specversion": "1.0", "ce_id": "x", "ce_source": "/debezium/sqlserver/server1"}
        attributes |= {"ce_type": "io.debezium.connector.sqlserver.DataChangeEvent", "ce_iodebeziumop": op}
        headers = tuple((name, text.encode()) for name, text in attributes.items())
        value = json.dumps({"before": None, "after": {"id": id_}}).encode()
        content = ("content-type", b"application/json")
        return Record(TOPIC, 0, serial, 5, keyed(id=id_), value, (*headers, content))

    events = Events(("t",), "cloudevents", KeySpec((("id", KeyType.INT64),)), Tombstones.DELETE)
    piece = read([event("d", 10, 1), event("c", 11, 2)], decoder_for(parent(events)))
    assert said(piece) == [(Op.MOVED, (10,), (11,)), (Op.ARRIVED, (11,), None)]


def test_compacted_topic_of_sql_server_tells_which_parents_live() -> None:
    """A scan reads what is left of it: the newest record of each key."""
    read_one = _decoding([TOPIC], decoder(**BIGINT))
    for op, lives in (("c", (10,)), ("d", None), ("r", (10,))):
        [record] = records_of(row(op, 10, 3))[:1]
        raw = ReadRecord(TOPIC, 0, 0, record.key, record.value, record.headers)
        assert [held.key for held in read_one(raw)][-1] == lives


def test_tenant_of_the_topic_is_in_both_keys_of_a_move() -> None:
    spec = KeySpec((("tenant", KeyType.STRING), ("id", KeyType.INT64)))
    events = Events((), "debezium", spec, Tombstones.DELETE, pattern=r"(?P<tenant>server[0-9])\.customers")
    piece = read(records_of(row("d", 10, 3), row("c", 11, 3, 2)), decoder_for(parent(events)))
    [moved, _] = piece.changes
    assert (moved.key, moved.to) == (("server1", 10), ("server1", 11))
    [back] = come_back(piece.records[0], "customer.orders", decoder_for(parent(replace(events)))).changes
    assert back == moved
    assert isinstance(back, ParentChange)
