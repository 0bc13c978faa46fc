"""The shop: customers of one service, and what other services keep of them, each in a store of its own.

`crm` (PostgreSQL) owns the customers. Orders are rows of another database, reviews are documents, carts are records of
a compacted topic: no foreign key reaches them. Beside its customers `crm` keeps a copy of all three under native
foreign keys. Nothing but this program's audience reads it: it is what the stores are compared with at the end.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple, assert_never

import asyncpg
from aiokafka import AIOKafkaProducer, TopicPartition
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from integrity.demo.events import ChangeRecord, Commit, Debezium, Row
from integrity.demo.topics import Topics

CUSTOMERS: Final = 300
HAPPENINGS: Final = 240
CHILDREN: Final[Mapping[str, int]] = {"orders": 3_000, "reviews": 1_200, "carts": 280}
"""Rows of each dependent at the start."""

EVENTS_TOPIC: Final = "shop.public.customers"
CARTS_TOPIC: Final = "carts"
_SEED: Final = 20260301
_FIRST_NEW_ID: Final = 1_001

_NAMES: Final = ("Ada", "Bo", "Cleo", "Dag", "Eli", "Fay", "Gus", "Hana", "Ivo", "Jun", "Kim", "Lou", "Mia", "Noor")

_CRM_TABLES: Final = """
    create table public.customers (id bigint primary key, name text, email text);
    create schema native;
    create table native.orders (
        id bigint primary key,
        customer_id bigint references public.customers on delete cascade on update cascade
    );
    create table native.reviews (
        id bigint primary key,
        customer_id bigint references public.customers on delete set null on update cascade
    );
    create table native.carts (
        id bigint primary key,
        customer_id bigint references public.customers on delete cascade on update cascade
    );
    comment on schema native is 'What orders, reviews and carts would be under native foreign keys.';
"""
_ORDERS_TABLE: Final = """
    create table public.orders (
        id bigint primary key, customer_id bigint not null, total numeric(10, 2) not null, placed_at timestamptz
    )
"""

References = Mapping[int, int | None]
"""The row's id and the customer that it references; None: none."""


class Kind(StrEnum):
    """What can happen to a customer."""

    DELETE = "delete"
    KEY_CHANGE = "key change"
    KEY_SWAP = "key swap"
    INSERT = "insert"
    UPDATE = "update"
    POISON = "poison"


class Happening(NamedTuple):
    """Something that happens in one transaction, and the customers it happens to by their ids."""

    kind: Kind
    ids: tuple[int, ...]

    def __str__(self) -> str:
        first = self.ids[0]
        match self.kind:
            case Kind.DELETE:
                return f"customer {first} deleted"
            case Kind.KEY_CHANGE:
                return f"customer {first} becomes {self.ids[1]}"
            case Kind.KEY_SWAP:
                return f"customers {first} and {self.ids[1]} swap keys"
            case Kind.INSERT:
                return f"customer {first} added"
            case Kind.UPDATE:
                return f"customer {first} changes e-mail"
            case Kind.POISON:
                return "a record torn in its middle"
            case _:
                assert_never(self.kind)


@dataclass(frozen=True, slots=True)
class Published:
    """A happening, and where its records are."""

    happening: Happening
    places: tuple[tuple[int, int], ...]
    """Partition and offset of each record."""


_WEIGHTS: Final[Mapping[Kind, int]] = {
    Kind.DELETE: 48,
    Kind.KEY_CHANGE: 24,
    Kind.KEY_SWAP: 4,
    Kind.INSERT: 12,
    Kind.UPDATE: 12,
}


def happenings(count: int = HAPPENINGS) -> list[Happening]:
    """What happens, the same in every run: mostly deletions and key changes, and the poison in their middle."""
    dice = random.Random(_SEED)
    alive, dead = list(range(1, CUSTOMERS + 1)), list[int]()
    new_ids = itertools.count(_FIRST_NEW_ID)
    found: list[Happening] = []
    ids: tuple[int, ...]
    for number in range(count):
        dice.shuffle(alive)
        kind = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if number == count // 2:
            kind = Kind.POISON
        match kind:
            case Kind.DELETE:
                ids = (alive.pop(),)
                dead += ids
            case Kind.KEY_CHANGE:
                # Now and then to the key of somebody who has just gone, whose rows must not come back.
                ids = (alive.pop(), dead.pop() if dead and dice.random() < 0.3 else next(new_ids))
                alive.append(ids[1])
            case Kind.KEY_SWAP:
                ids = (alive[0], alive[1], next(new_ids))
            case Kind.INSERT:
                ids = (dead.pop(0) if dead and dice.random() < 0.5 else next(new_ids),)
                alive += ids
            case Kind.UPDATE | Kind.POISON:
                ids = (alive[0],)
            case _:
                assert_never(kind)
        found.append(Happening(kind, ids))
    return found


class Shop:
    """The shop on running servers; `open` makes it, `close` lets go of the connections."""

    def __init__(
        self, *, crm_url: str, orders_url: str, reviews_url: str, bootstrap_servers: str, topics: Topics
    ) -> None:
        self._crm_url = crm_url
        self._orders_url = orders_url
        self._reviews_url = reviews_url
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._debezium = Debezium(server="shop", database="crm", table="customers")
        assert self._debezium.topic == EVENTS_TOPIC
        self._crm: asyncpg.Connection[Any]
        self._orders: asyncpg.Connection[Any]
        self._mongo: AsyncMongoClient[dict[str, Any]]
        self._producer: AIOKafkaProducer
        self._open: list[Any] = []
        self.ends: dict[TopicPartition, int] = {}
        """Where each partition of the events' topic ends, as far as published."""

    async def open(self) -> None:
        """Create tables, collection and topics, and fill them."""
        self._crm = await asyncpg.connect(self._crm_url)
        self._open.append(self._crm.close)
        self._orders = await asyncpg.connect(self._orders_url)
        self._open.append(self._orders.close)
        self._mongo = AsyncMongoClient(self._reviews_url)
        self._open.append(self._mongo.close)
        await self._topics.create({EVENTS_TOPIC: {}, CARTS_TOPIC: {"cleanup.policy": "compact"}})
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap_servers, enable_idempotence=True, acks="all"
        )
        await self._producer.start()
        self._open.append(self._producer.stop)
        await self._fill()

    async def close(self) -> None:
        for close in reversed(self._open):
            await close()
        self._open.clear()

    async def happen(self, happening: Happening) -> Published:
        """Let it happen in `crm`, then publish it; returns when Kafka has acknowledged every record."""
        records = await self._records(happening)
        sent = [
            await self._producer.send(EVENTS_TOPIC, key=record.key, value=record.value, headers=record.headers)
            for record in records
        ]
        places = [(done.partition, done.offset) for done in [await each for each in sent]]
        for partition, offset in places:
            self.ends[TopicPartition(EVENTS_TOPIC, partition)] = offset + 1
        return Published(happening, tuple(places))

    async def customers(self) -> set[int]:
        """The keys that exist."""
        return {row["id"] for row in await self._crm.fetch("select id from public.customers")}

    async def references(self, dependent: str) -> References:
        """What a dependent's store holds now, read from the store itself."""
        match dependent:
            case "orders":
                return dict(await self._orders.fetch("select id, customer_id from public.orders"))
            case "reviews":
                return {each["_id"]: each["customerId"] async for each in self._reviews.find({})}
            case "carts":
                carts: dict[int, int | None] = {}
                for record in await self._topics.read(CARTS_TOPIC):
                    number = int(record.key.decode().removeprefix("cart-"))
                    carts.pop(number, None)
                    if record.value is not None:
                        carts[number] = json.loads(record.value)["customer_id"]
                return carts
            case _:
                raise AssertionError(dependent)

    async def native(self, dependent: str) -> References:
        """What native foreign keys have made of the same rows."""
        return dict(await self._crm.fetch(f"select id, customer_id from native.{dependent}"))

    @property
    def _reviews(self) -> AsyncCollection[dict[str, Any]]:
        return self._mongo.get_default_database()["reviews"]

    async def _fill(self) -> None:
        dice = random.Random(_SEED)
        customers = [(number, dice.choice(_NAMES), f"c{number}@shop.example") for number in range(1, CUSTOMERS + 1)]
        owners = {
            dependent: [(number, dice.randint(1, CUSTOMERS)) for number in range(1, count + 1)]
            for dependent, count in CHILDREN.items()
        }
        await self._crm.execute(_CRM_TABLES)
        await self._crm.copy_records_to_table("customers", schema_name="public", records=customers)
        for dependent, records in owners.items():
            await self._crm.copy_records_to_table(dependent, schema_name="native", records=records)
            await self._crm.execute(f"create index on native.{dependent} (customer_id)")
        await self._orders.execute(_ORDERS_TABLE)
        orders = [(number, owner, dice.randint(500, 20_000) / 100) for number, owner in owners["orders"]]
        await self._orders.executemany("insert into public.orders values ($1, $2, $3, now())", orders)
        await self._orders.execute("create index on public.orders (customer_id)")
        await self._reviews.insert_many(
            {"_id": number, "customerId": owner, "stars": dice.randint(1, 5)} for number, owner in owners["reviews"]
        )
        await self._reviews.create_index("customerId")
        sent = [
            await self._producer.send(CARTS_TOPIC, key=f"cart-{number}".encode(), value=_cart(owner, dice))
            for number, owner in owners["carts"]
        ]
        await asyncio.gather(*sent)

    async def _records(self, happening: Happening) -> list[ChangeRecord]:
        ids = happening.ids
        async with self._crm.transaction():
            match happening.kind:
                case Kind.DELETE:
                    row = await self._row("delete from public.customers where id = $1 returning *", ids[0])
                    return self._debezium.deleted(row, await self._commit())
                case Kind.INSERT:
                    row = await self._row(
                        "insert into public.customers values ($1, $2, $3) returning *",
                        ids[0],
                        _NAMES[ids[0] % len(_NAMES)],
                        f"c{ids[0]}@shop.example",
                    )
                    return self._debezium.inserted(row, await self._commit())
                case Kind.UPDATE:
                    row = await self._row(
                        "update public.customers set email = 'new.' || email where id = $1 returning *", ids[0]
                    )
                    return self._debezium.updated(row, await self._commit())
                case Kind.KEY_CHANGE:
                    return await self._move(ids[0], ids[1])
                case Kind.KEY_SWAP:
                    first, second, between = ids
                    steps = ((first, between), (second, first), (between, second))
                    return [record for step in steps for record in await self._move(*step)]
                case Kind.POISON:
                    # Nobody is deleted: the record only begins as if somebody were.
                    row = await self._row("select * from public.customers where id = $1", ids[0])
                    return [self._debezium.torn(row, await self._commit())]
                case _:
                    assert_never(happening.kind)

    async def _move(self, old: int, new: int) -> list[ChangeRecord]:
        row = await self._row("update public.customers set id = $2 where id = $1 returning *", old, new)
        return self._debezium.moved(old, row, await self._commit())

    async def _row(self, sql: str, *arguments: object) -> Row:
        row = await self._crm.fetchrow(sql, *arguments)
        assert row is not None, "what happens, happens to customers that exist"
        return dict(row)

    async def _commit(self) -> Commit:
        """Where the log is now: behind the change just made, before any later one."""
        row = await self._crm.fetchrow(
            "select (pg_current_wal_insert_lsn() - '0/0')::bigint as lsn, pg_current_xact_id()::text::bigint as xid"
        )
        assert row is not None
        return Commit(row["lsn"], row["xid"])


def _cart(owner: int, dice: random.Random) -> bytes:
    items = [{"sku": f"sku-{dice.randint(1, 99)}", "count": dice.randint(1, 3)} for _ in range(dice.randint(1, 4))]
    return json.dumps({"customer_id": owner, "items": items}).encode()


def orphans(references: References, customers: set[int]) -> int:
    """How many rows reference a customer that does not exist."""
    return sum(owner is not None and owner not in customers for owner in references.values())


def different(found: References, wanted: References) -> int:
    """How many rows are not what they should be: gone, still there, or of another customer."""
    return len({number for number, _ in found.items() ^ wanted.items()})
