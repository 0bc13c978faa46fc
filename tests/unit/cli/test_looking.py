"""`integrity history`, `plan` and `why`, over stores in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from integrity.cli import main
from integrity.core.batch import DeadLetterMark
from integrity.core.change import Cell
from integrity.core.history import Impact, KeyHistory, Question
from integrity.core.keys import Key
from integrity.core.rules.parse import parse_rules
from integrity.errors import Reason, UnreachableError
from integrity.ports import Deadline
from integrity.settings import StoreSettings
from integrity.stores.memory import MemoryStore
from integrity.stores.memory_copy import MemoryCopy
from integrity.stores.rule import copy_rule, store_rules
from integrity.wiring import stores as wiring
from tests.contract.world import Events, apply

RULES = """\
version: 1
parent: customer
events: {topic: shop.public.customers, format: debezium, key: {id: int64}}
dependents:
  - {name: orders, store: orders_db, table: public.orders, references: {customer_id: id}, on_delete: cascade}
  - {store: reviews_db, collection: reviews, references: {customerId: id}, on_delete: nullify, on_update: ignore}
"""
WHEN = "2023-11-14T22:13:20"
TRACE = "0" * 31 + "1"
TOPIC = "shop.public.customers"


class Silent:
    name = "reviews_db"

    async def history(self, entity: str, key: Key, deadline: Deadline) -> KeyHistory | None:
        raise UnreachableError("MongoDB at mongo:27017 does not answer.", hint="Start it.")

    async def impact(self, question: Question, deadline: Deadline) -> Sequence[Impact]:
        raise UnreachableError("MongoDB at mongo:27017 does not answer.", hint="Start it.")

    async def close(self) -> None: ...


class SilentCopy(Silent):
    name = "orders_db"

    async def known_of(self, key: Key, deadline: Deadline) -> None:
        raise UnreachableError("MongoDB at mongo:27017 does not answer.", hint="Start it.")


class World:
    """The stores that the commands find."""

    def __init__(self) -> None:
        rules = parse_rules({"customer.yaml": RULES})
        orders = [{"id": n, "customer_id": reference} for n, reference in enumerate([5, 5, 5, 7, 8])]
        reviews = [{"id": n, "customerId": reference} for n, reference in enumerate([7, 7])]
        self.orders = MemoryStore("orders_db", store_rules(rules, "orders_db"), {"public.orders": orders})
        self.reviews = MemoryStore("reviews_db", store_rules(rules, "reviews_db"), {"reviews": reviews})
        self.stores: dict[str, Any] = {"orders_db": self.orders, "reviews_db": self.reviews}
        self.events = Events()

    def happened(self, *stores: MemoryStore, **more: Any) -> None:
        batch = self.events.batch(**more)
        for store in stores or (self.orders, self.reviews):
            asyncio.run(apply(store, batch))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()

    @asynccontextmanager
    async def opened(settings: Any, rules: Any, names: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        wiring.chosen_stores(settings, rules, names)
        yield {name: made.stores[name] for name in names}

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "customer.yaml").write_text(RULES)
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", "postgresql://h/d")
    monkeypatch.setenv("INTEGRITY_STORES__REVIEWS_DB__URL", "mongodb://h/d")
    monkeypatch.setattr(wiring, "open_for_looking", opened)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Run = Callable[..., tuple[int, str, str]]


TENANTS = """\
version: 1
parent: customer
events: {topic: customers, format: debezium, key: {client: string, id: int64}, tenant: {key: client}}
dependents:
  - {store: orders_db, table: orders, references: {client: client, customer_id: id}, on_delete: cascade}
"""


@pytest.mark.parametrize(
    ("url", "arguments", "opened", "said"),
    [
        ("shop_{tenant}", ["plan", "customer", "acme,5"], "postgresql://h/shop_acme", ""),
        ("shop_{tenant}", ["history", "customer", "acme,5", "--tenant", "acme"], "postgresql://h/shop_acme", ""),
        (
            "shop_{tenant}",
            ["why", "orders_db", "orders", "client=a", "customer_id=5"],
            None,
            "Say whose it is: --tenant",
        ),
        (
            "shop_{tenant}",
            ["why", "orders_db", "orders", "client=a", "customer_id=5", "--tenant", "a"],
            "postgresql://h/shop_a",
            "",
        ),
        ("shop_{tenant}", ["plan", "customer", "acme,5", "--tenant", "globex"], None, "not one of the tenant globex"),
        ("shop_{tenant}", ["history", "customer", "a%2Fb,5"], None, "The tenant a/b is not 1 to 63 letters"),
        ("shop", ["history", "customer", "acme,5"], "postgresql://h/shop", ""),
        ("shop", ["history", "customer", "acme,5", "--tenant", "acme"], None, "Leave --tenant out"),
    ],
)
def test_commands_that_look_open_the_database_of_the_tenant_or_say_that_they_need_one(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url: str,
    arguments: list[str],
    opened: str | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(TENANTS)
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", f"postgresql://h/{url}")
    urls: list[str] = []

    def open_store(name: str, store: StoreSettings, settings: Any, rules: Any) -> MemoryStore:
        urls.append(wiring.url_of(name, store))
        return MemoryStore(name, store_rules(rules, name), {"orders": []})

    monkeypatch.setattr(wiring, "open_store", open_store)
    code, _, err = run(*arguments)
    assert (code, urls) == (0 if opened else 2, [opened] if opened else [])
    assert said in err


def test_tenant_that_no_event_tells_is_refused_at_the_rule(world: World, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTEGRITY_STORES__REVIEWS_DB__URL", "mongodb://h/{tenant}")
        code, _, err = run("history", "customer", "5", "--tenant", "acme")
    assert code == 2
    assert "customer.yaml:6:5" in err and "events.tenant" in err


def test_history_tells_what_the_ledgers_of_copies_know(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = RULES + "copies:\n  - {store: orders_db, table: customer_copy, columns: {id: id, name: name}}\n"
    Path("rules/customer.yaml").write_text(text)
    [parent] = parse_rules({"customer.yaml": text}).parents
    [copy] = parent.copies
    rule = copy_rule(parent, copy)
    store, silent = MemoryCopy("orders_db", rule), SilentCopy()
    asked: dict[str, Any] = {copy.id: store}

    @asynccontextmanager
    async def opened(settings: Any, parent: Any) -> AsyncIterator[dict[str, Any]]:
        yield asked

    monkeypatch.setattr(wiring, "open_copies_for_looking", opened)
    world.events.alive((7,), 10, row={"name": Cell("Ada")})
    world.events.deleted((8,), 11)
    world.events.alive((9,), 12, row={"name": Cell("Cy")})
    left_out = {(2, copy.id): DeadLetterMark(Reason.VALUE_REJECTED, "e" * 32)}
    asyncio.run(apply(store, world.events.batch(exceptions=left_out)))
    told = {key: run("history", "customer", key)[1].splitlines()[-2:] for key in ("7", "8", "9", "6")}
    name = "customer.customer_copy (orders_db)"
    assert told["7"][1] == f"{name}: the copy has its row, version 0:10"
    assert told["8"][1] == f"{name}: the copy has no row of it, version 0:11"
    assert told["9"] == [
        f"{name}: the copy has no row of it",
        "  a dead letter stands for its event of version 0:12",
    ]
    assert told["6"][1] == f"{name}: the copy's ledger knows nothing of it"
    [document] = json.loads(run("history", "customer", "7", "--json")[1])["copies"]
    last = {"topic": TOPIC, "partition": 0, "offset": 0, "alive": True}
    assert document == {
        "copy": copy.id,
        "store": "orders_db",
        "known": True,
        "alive": True,
        "version": "0:10",
        "last_record": last,
        "missed": [],
    }
    asked[copy.id] = silent
    code, _, err = run("history", "customer", "7")
    assert (code, err) == (3, f"{copy.id} did not answer: MongoDB at mongo:27017 does not answer. Start it.\n")


def test_history_shows_fates_with_rows_moves_and_dead_letters(world: World, run: Run) -> None:
    world.events.moved((5,), (7,), 10)
    world.events.deleted((7,), 20)
    world.happened(world.orders, exceptions={(1, "customer.orders"): DeadLetterMark(Reason.TOO_MANY_ROWS, "e" * 32)})
    code, out, err = run("history", "customer", "7")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "customer 7",
        "",
        "orders_db: gone",
        f"  5 became it  (event {TOPIC}/0/0, version 0:10)",
        f"  {WHEN}.020Z  deleted  (event {TOPIC}/0/1, version 0:20, enforced {WHEN}.000Z, trace {TRACE})",
        f"  {WHEN}.000Z  dead letter {'e' * 32}  (customer.orders, too_many_rows, event {TOPIC}/0/1)",
        "",
        "reviews_db: the ledger knows nothing of it",
    ]


def test_history_as_json_is_one_document(world: World, run: Run) -> None:
    world.events.moved((5,), (7,), 10)
    world.happened(world.orders)
    code, out, _ = run("history", "customer", "5", "--json")
    document = json.loads(out)
    assert (code, document["entity"], document["key"], document["unanswered"]) == (0, "customer", {"id": 5}, [])
    [orders, reviews] = document["stores"]
    assert (orders["store"], orders["alive"], orders["fates"][0]["to"]) == ("orders_db", False, {"id": 7})
    assert orders["fates"][0]["dependents"] == [{"dependent": "customer.orders", "action": "cascade", "rows": 3}]
    assert reviews == {"store": "reviews_db", "known": False}


@pytest.mark.parametrize("arguments", [["history", "customer", "7"], ["plan", "customer", "7"]])
def test_store_that_does_not_answer_is_named_and_the_others_are_shown(
    world: World, run: Run, arguments: list[str]
) -> None:
    world.stores["reviews_db"] = Silent()
    code, out, err = run(*arguments)
    assert code == 3
    assert err == "reviews_db did not answer: MongoDB at mongo:27017 does not answer. Start it.\n"
    assert "orders" in out and "reviews" not in out
    code, out, _ = run(*arguments, "--json")
    assert (code, json.loads(out)["unanswered"][0]["store"]) == (3, "reviews_db")


def test_plan_shows_the_action_rows_and_a_sample_of_each_dependent(world: World, run: Run) -> None:
    code, out, _ = run("plan", "customer", "7")
    assert code == 0
    assert out.splitlines() == [
        "When customer 7 is deleted:",
        "  customer.orders   orders_db/public.orders  cascade  1 row  (id 3)",
        "  customer.reviews  reviews_db/reviews       nullify  2 rows  (id 0; id 1)",
    ]
    code, out, _ = run("plan", "customer", "5", "--op", "update", "--to", "9", "--json")
    found = json.loads(out)
    assert (found["op"], found["to"], found["restricted"]) == ("update", {"id": 9}, False)
    assert [(d["dependent"], d["action"], d["rows"]) for d in found["dependents"]] == [
        ("customer.orders", "cascade", 3),
        ("customer.reviews", "ignore", 0),
    ]


def test_plan_says_what_would_be_held(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "rules" / "customer.yaml").write_text(
        RULES.replace("on_delete: cascade", "on_delete: cascade, max_rows: 2")
    )
    _, out, _ = run("plan", "customer", "5")
    assert "  3 rows, held: max_rows is 2  (id 0; id 1; id 2)" in out
    _, out, _ = run("plan", "customer", "5", "--json")
    assert [dependent["held"] for dependent in json.loads(out)["dependents"]] == [True, False]


def test_why_follows_a_chain_of_key_changes_to_its_end(world: World, run: Run) -> None:
    world.events.moved((5,), (7,), 10)
    world.events.deleted((7,), 20)
    world.happened(world.orders)
    code, out, _ = run("why", "orders_db", "orders", "customer_id=5")
    assert code == 0
    assert out.splitlines() == [
        f"customer 5 became 7 at {WHEN}.010Z (event {TOPIC}/0/0, version 0:10, enforced {WHEN}.000Z, trace {TRACE}):"
        " cascade led 3 rows of orders to the new key.",
        f"customer 7 was deleted at {WHEN}.020Z (event {TOPIC}/0/1, version 0:20, enforced {WHEN}.000Z, trace {TRACE}):"
        " cascade removed 4 rows of orders.",
    ]
    code, out, _ = run("why", "orders_db", "public.orders", "customer_id=5", "--json")
    found = json.loads(out)
    assert [[step["key"] for step in path] for path in found["paths"]] == [[{"id": 5}, {"id": 7}]]
    assert len(found["told"]) == 2


def test_why_says_that_nothing_was_done_and_why(world: World, run: Run) -> None:
    world.events.deleted((7,), 20)
    world.events.deleted((8,), 21)
    world.events.alive((8,), 30)
    world.happened(world.orders, exceptions={(0, "customer.orders"): DeadLetterMark(Reason.TOO_MANY_ROWS, "e" * 32)})
    _, out, _ = run("why", "orders_db", "orders", "customer_id=7")
    assert f"the dead letter {'e' * 32} (too_many_rows) stands for what was to be done to orders." in out
    _, out, _ = run("why", "orders_db", "orders", "customer_id=8")
    assert out.endswith("customer 8 lives again: it was seen alive at version 0:30.\n")
    _, out, _ = run("why", "orders_db", "orders", "customer_id=9")
    assert out == "The ledger of orders_db knows nothing of customer 9: nothing of it was enforced there.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history", "custome", "7"], "Did you mean customer?"),
        (["history", "customer", "7.0"], "This is no key of customer: id: this text is not a whole"),
        (["history", "customer", "7,8"], "the key has 2 parts, it takes 1: id"),
        (["plan", "customer", "7", "--to", "8"], "--op update and --to KEY go together."),
        (["plan", "customer", "7", "--op", "update"], "--op update and --to KEY go together."),
        (["plan", "customer", "7", "--op", "update", "--to", "7"], "--to names the same key."),
        (["why", "orders_db", "nothing", "a=1"], "The rules know public.orders."),
        (["why", "orders_db", "orders", "id=1"], "Write customer_id=VALUE."),
        (["why", "orders_db", "orders", "customer_id"], "A reference is written COLUMN=VALUE."),
        (["why", "orders_db", "orders", "customer_id=1", "customer_id=2"], "The column customer_id is there twice."),
        (["why", "nowhere", "orders", "customer_id=1"], "no rule has a dependent or copy in that store"),
    ],
)
def test_what_is_wrongly_asked_is_wrong_usage(world: World, run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    code, out, _ = run(*arguments, "--json")
    assert code == 2 and json.loads(out)["error"]["message"]
