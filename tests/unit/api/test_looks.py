"""`/v1/history` and `/v1/impact`, asked without a socket, over the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from integrity.api.http import application
from integrity.api.looks import Looks
from integrity.core.change import Cell
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.rules.parse import parse_rules
from integrity.errors import UnreachableError
from integrity.ports import Deadline
from integrity.stores.memory import MemoryStore
from integrity.stores.memory_copy import MemoryCopy
from integrity.stores.rule import copy_rule, store_rules
from integrity.telemetry import Metrics
from tests.contract.world import Events, apply

RULES = parse_rules(
    {
        "customer.yaml": """\
version: 1
parent: customer
events: {topic: shop.public.customers, format: debezium, key: {tenant: string, id: int64}}
dependents:
  - store: orders_db
    table: orders
    references: {tenant: tenant, customer_id: id}
    on_delete: cascade
  - store: reviews_db
    collection: reviews
    references: {tenant: tenant, customerId: id}
    on_delete: nullify
"""
    }
)
ROWS = [{"id": n, "tenant": "a,b", "customer_id": 7} for n in range(3)]


class Lanes:
    def ready(self) -> dict[str, str]:
        return {}


class Silent:
    """A store that does not answer."""

    name = "reviews_db"

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        raise UnreachableError("MongoDB does not answer.", hint="Start it.")

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        raise UnreachableError("MongoDB does not answer.", hint="Start it.")

    async def close(self) -> None: ...


class SilentCopy(Silent):
    async def known_of(self, key: Key, deadline: Deadline) -> None:
        raise UnreachableError("MongoDB does not answer.", hint="Start it.")


def stores(**others: Any) -> dict[str, Any]:
    orders = MemoryStore("orders_db", store_rules(RULES, "orders_db"), {"orders": [dict(row) for row in ROWS]})
    return {
        "orders_db": orders,
        "reviews_db": MemoryStore("m", store_rules(RULES, "reviews_db"), {"reviews": []}),
    } | others


async def ask(
    path: str, asked: dict[str, Any] | None = None, token: str = "", read_token: str = "", **headers: str | bytes
) -> Any:
    looks = Looks(RULES, asked or stores(), token, read_token)
    app = application(Lanes(), Metrics(version="1", rules="r"), looks)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(path, headers=headers)


async def test_impact_tells_what_a_deletion_would_do_in_all_stores() -> None:
    answer = await ask("/v1/impact/customer/a%2Cb,7")
    assert answer.status_code == 200
    assert answer.json() == {
        "entity": "customer",
        "key": {"tenant": "a,b", "id": 7},
        "op": "delete",
        "to": None,
        "restricted": False,
        "held": False,
        "at_least": False,
        "dependents": [
            {
                "dependent": "customer.orders",
                "parent": "customer",
                "level": 1,
                "store": "orders_db",
                "target": {"kind": "table", "name": "orders"},
                "action": "cascade",
                "rows": 3,
                "at_least": False,
                "held": False,
                "sample": [{"id": 0}, {"id": 1}, {"id": 2}],
            },
            {
                "dependent": "customer.reviews",
                "parent": "customer",
                "level": 1,
                "store": "reviews_db",
                "target": {"kind": "collection", "name": "reviews"},
                "action": "nullify",
                "rows": 0,
                "at_least": False,
                "held": False,
                "sample": [],
            },
        ],
        "unanswered": [],
    }


async def test_impact_of_a_key_change_names_its_new_key() -> None:
    answer = await ask("/v1/impact/customer/a%2Cb,7?op=update&to=a%252Cb%2C8")
    assert (answer.json()["to"], answer.json()["dependents"][0]["rows"]) == ({"tenant": "a,b", "id": 8}, 3)


async def test_history_tells_what_the_ledgers_know() -> None:
    asked = stores()
    events = Events()
    events.deleted(("a,b", 7), 10)
    await apply(asked["orders_db"], events.batch())
    answer = await ask("/v1/history/customer/a%2Cb,7", asked)
    orders, reviews = answer.json()["stores"]
    assert reviews == {"store": "reviews_db", "known": False}
    assert (orders["alive"], orders["seen"]) == (False, "0:10")
    assert orders["fates"] == [
        {
            "kind": "deleted",
            "to": None,
            "version": "0:10",
            "event": "shop.public.customers/0/0",
            "occurred_at": "2023-11-14T22:13:20.010Z",
            "enforced_at": "2023-11-14T22:13:20.000Z",
            "trace_id": "0" * 31 + "1",
            "dependents": [{"dependent": "customer.orders", "action": "cascade", "rows": 3}],
        }
    ]


async def test_history_tells_what_the_ledgers_of_copies_know() -> None:
    """A copy that does not answer makes an error of it, as a store does."""
    text = """\
version: 1
parent: customer
events: {topic: shop.public.customers, format: debezium, key: {id: int64}}
copies:
  - {store: orders_db, table: customer_copy, columns: {id: id, name: name}}
"""
    rules = parse_rules({"customer.yaml": text})
    [parent] = rules.parents
    [copy] = parent.copies
    store = MemoryCopy("orders_db", copy_rule(parent, copy))
    events = Events()
    events.alive((7,), 10, row={"name": Cell("Ada")})
    await apply(store, events.batch())

    async def ask_copy(asked: Any) -> Any:
        app = application(Lanes(), Metrics(version="1", rules="r"), Looks(rules, {}, "", "", {copy.id: asked}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.get("/v1/history/customer/7")

    [told] = (await ask_copy(store)).json()["copies"]
    assert (told["copy"], told["alive"], told["version"]) == (copy.id, True, "0:10")
    assert (await ask_copy(SilentCopy())).json()["detail"] == f"No answer from {copy.id}."


@pytest.mark.parametrize("kind", ["history", "impact"])
async def test_silence_of_a_store_is_an_error_that_names_it_and_shows_the_rest(kind: str) -> None:
    """A program must not read "no dependents" out of a store that did not answer."""
    answer = await ask(f"/v1/{kind}/customer/a%2Cb,7", stores(reviews_db=Silent()))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    problem = answer.json()
    assert (problem["status"], problem["detail"]) == (503, "No answer from reviews_db.")
    assert problem["unanswered"] == [
        {"store": "reviews_db", "message": "MongoDB does not answer.", "hint": "Start it."}
    ]
    assert problem["stores" if kind == "history" else "dependents"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/impact/nobody/1", 404),
        ("/v1/impact/customer/7", 400),
        ("/v1/impact/customer/a,5.7", 400),
        ("/v1/impact/customer/a,+7", 400),
        ("/v1/impact/customer/a,7/8", 400),
        ("/v1/impact/customer/a,7?op=update", 400),
        ("/v1/impact/customer/a,7?op=truncate", 400),
        ("/v1/impact/customer/a,7?to=a,8", 400),
        ("/v1/history/customer/%FF,7", 400),
    ],
)
async def test_a_key_in_doubt_is_a_problem_document(path: str, status: int) -> None:
    answer = await ask(path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("header", "status"),
    [("Bearer s3cret-ü", 200), ("bearer s3cret-ü", 200), ("Bearer s3cret", 401), ("Basic s3cret-ü", 401), ("", 401)],
)
@pytest.mark.parametrize("kind", ["history", "impact"])
async def test_nothing_is_told_without_the_token(header: str, status: int, kind: str) -> None:
    path = f"/v1/{kind}/customer/a,7"
    answer = await ask(path, token="s3cret-ü", authorization=header.encode())
    assert answer.status_code == status
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert (await ask("/v1/impact/nobody/1", token="s3cret")).status_code == 401, "nor whether a rule is there"


@pytest.mark.parametrize(("token", "status"), [("s3cret", 200), ("r3ad", 200), ("s3cretr3ad", 401), ("", 401)])
@pytest.mark.parametrize("kind", ["history", "impact"])
async def test_read_token_reads(token: str, status: int, kind: str) -> None:
    path = f"/v1/{kind}/customer/a,7"
    answer = await ask(path, token="s3cret", read_token="r3ad", authorization=f"Bearer {token}")
    assert answer.status_code == status
