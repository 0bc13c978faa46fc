"""Rows that are parents themselves: what rule files may say of them, and the graph that they make."""

from __future__ import annotations

import pytest

from integrity.core.keys import KeySpec, KeyType
from integrity.core.rules.graph import Edge, Graph, Node, Way, as_dot, as_mermaid, as_text, graph_of
from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding, RulesError

CUSTOMER = """\
version: 1
parent: customer
events: {topic: shop.customers, format: debezium, key: {id: int64}}
dependents:
  - {store: a, table: orders, references: {customer_id: id}, on_delete: cascade, entity: order, key: {id: int64}}
"""
ORDER = """\
version: 1
parent: order
dependents:
  - {store: a, table: items, references: {order_id: id}, on_delete: cascade,
     entity: item, key: {order_id: int64, nr: int32}}
"""
ITEM = """\
version: 1
parent: item
dependents:
  - {store: a, table: parts, references: {o: order_id, l: nr},
     on_delete: {nullify: {columns: [l]}}, on_update: ignore}
"""
OWN = "events: {topic: shop.orders, format: debezium, key: {number: int64}}\ndependents:"
AGED = "on_delete: cascade, as_of: created_at"


def _rules(*texts: str):  # type: ignore[no-untyped-def]
    return parse_rules({f"{'abcdef'[n]}.yaml": text for n, text in enumerate(texts)})


def _findings(*texts: str) -> list[Finding]:
    with pytest.raises(RulesError) as caught:
        _rules(*texts)
    return list(caught.value.findings)


def _found(*texts: str) -> list[tuple[str, str, int]]:
    return [(str(finding.code), finding.file, finding.line) for finding in _findings(*texts)]


def test_file_without_events_has_the_key_that_dependents_give_its_rows() -> None:
    rules = _rules(ITEM, ORDER, CUSTOMER)
    order = rules.by_entity["order"]
    assert order.events is None
    assert order.key == KeySpec((("id", KeyType.INT64),))
    assert rules.by_entity["item"].key == KeySpec((("order_id", KeyType.INT64), ("nr", KeyType.INT32)))
    [items] = order.dependents
    assert (items.entity, items.key) == ("item", rules.by_entity["item"].key)
    assert rules.named("order") == rules.by_entity["customer"].dependents


def test_file_with_events_keeps_its_own_key_for_rows_that_others_name() -> None:
    own = ORDER.replace("dependents:", OWN).replace("order_id: id", "order_id: number")
    assert _rules(CUSTOMER, own).by_entity["order"].key.names == ("number",)


def test_entity_without_a_file_names_the_rows_and_nothing_else() -> None:
    assert graph_of(_rules(CUSTOMER)).nodes[-1] == Node("order", ("id: int64",), (), "a", "orders", 1)


def test_graph_is_a_value() -> None:
    both = (Way.TRANSACTION,)
    assert graph_of(_rules(ORDER, ITEM, CUSTOMER)) == Graph(
        nodes=(
            Node("customer", ("id: int64",), ("shop.customers",), None, None, 0),
            Node("order", ("id: int64",), (), "a", "orders", 1),
            Node("item", ("order_id: int64", "nr: int32"), (), "a", "items", 2),
        ),
        edges=(
            Edge(
                "customer.orders",
                "customer",
                "order",
                "a",
                "orders",
                ("customer_id",),
                "cascade",
                "cascade",
                (Way.EVENTS,),
            ),
            Edge("order.items", "order", "item", "a", "items", ("order_id",), "cascade", "cascade", both),
            Edge("item.parts", "item", None, "a", "parts", ("o", "l"), "nullify", "ignore", both),
        ),
        cycles=(),
    )


def test_graph_as_text_is_a_tree() -> None:
    assert as_text(graph_of(_rules(ORDER, ITEM, CUSTOMER))).splitlines() == [
        "customer (id: int64) from shop.customers",
        "  customer.orders: a/orders (customer_id): on delete cascade, on update cascade, rows are order",
        "    order.items: a/items (order_id): on delete cascade, on update cascade, rows are item, by transaction",
        "      item.parts: a/parts (o, l): on delete nullify, on update ignore, by transaction",
    ]


def test_graph_as_mermaid_and_dot_names_every_node_and_edge_and_escapes() -> None:
    graph = graph_of(_rules(CUSTOMER.replace("table: orders", 'name: orders, table: "or#de\'rs"'), ORDER, ITEM))
    assert as_mermaid(graph).splitlines() == [
        "flowchart LR",
        '    n1["customer"]',
        '    n2["order"]',
        '    n3["item"]',
        '    n1 -->|"customer.orders: on delete cascade, on update cascade"| n2',
        '    n2 -->|"order.items: on delete cascade, on update cascade"| n3',
        '    n4["a/parts"]',
        '    n3 -->|"item.parts: on delete nullify, on update ignore"| n4',
    ]
    dot = as_dot(graph)
    assert dot.startswith("digraph integrity {") and dot.endswith("}")
    assert '    n2 -> n3 [label="order.items: on delete cascade, on update cascade"];' in dot.splitlines()


def test_rows_that_refer_to_their_own_table_are_a_cycle_that_ends() -> None:
    answers = """\
version: 1
parent: order
dependents:
  - {name: splits, store: a, table: orders, references: {split_of: id}, on_delete: cascade,
     entity: order, key: {id: int64}}
"""
    graph = graph_of(_rules(CUSTOMER, answers))
    assert graph.cycles == (("order",),)
    assert as_text(graph).endswith("cycle: order -> order")


def test_cycle_over_two_tables_is_named_once() -> None:
    back = ORDER + (
        "  - {name: main, store: a, table: orders, references: {main_id: id}, on_delete: cascade,"
        " entity: order, key: {id: int64}}\n"
    )
    item = ITEM.replace("table: parts", "name: of_item, table: orders").replace(
        "on_delete: {nullify: {columns: [l]}}, on_update: ignore", "on_delete: ignore, entity: order, key: {id: int64}"
    )
    assert graph_of(_rules(CUSTOMER, back, item)).cycles == (("item", "order"), ("order",))


def test_file_without_events_that_nobody_names_is_refused() -> None:
    assert _found(ORDER) == [("unnamed_entity", "a.yaml", 1)]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((", key: {id: int64}", ""), "missing_field"),
        ((", entity: order", ""), "missing_field"),
        (("key: {id: int64}}\n", "key: {id: int}}\n"), "unknown_value"),
        (("key: {id: int64}}\n", "key: {customer_id: int32}}\n"), "key_clash"),
        (("key: {id: int64}}\n", 'key: {"a.b": int64}}\n'), "bad_column"),
        (
            ("on_delete: cascade", "on_delete: nullify"),
            "key_column",
        ),
        (
            (
                "on_delete: cascade, entity: order",
                "on_delete: cascade, on_update: {set_default: {customer_id: null}}, entity: order",
            ),
            "key_column",
        ),
        (
            ("on_delete: cascade, entity", "on_delete: {tombstone: {set: {id: gone}}}, entity"),
            "key_column",
        ),
    ],
)
def test_fault_in_what_rows_are_is_found(change: tuple[str, str], code: str) -> None:
    head, _, dependent = CUSTOMER.partition("dependents:")
    if code == "key_column":
        dependent = dependent.replace("key: {id: int64}", "key: {id: int64, customer_id: int64}")
    text = f"{head}dependents:{dependent.replace(*change)}"
    assert text != CUSTOMER
    assert [str(finding.code) for finding in _findings(text)] == [code]


@pytest.mark.parametrize(
    ("second", "codes"),
    [
        ("table: orders, references: {payer_id: id}, entity: order, key: {num: int64}", ["entity_clash"]),
        ("table: orders2, references: {payer_id: id}, entity: order, key: {id: int64}", ["entity_clash"]),
        ("table: orders, references: {payer_id: id}, entity: bill, key: {id: int64}", ["entity_clash"]),
        ("table: orders, references: {payer_id: id}", ["unnamed_entity"]),
    ],
)
def test_dependents_of_one_target_say_the_same_of_its_rows(second: str, codes: list[str]) -> None:
    text = CUSTOMER + f"  - {{name: second, store: a, on_delete: cascade, {second}}}\n"
    found = _found(text, ORDER)
    assert [(code, file, line) for code, file, line in found if file == "a.yaml"] == [(codes[0], "a.yaml", 6)]


def test_own_events_with_a_key_of_other_types_are_refused() -> None:
    own = ORDER.replace("dependents:", OWN.replace("int64", "string")).replace("order_id: id", "order_id: number")
    own = own.replace("entity: item, key: {order_id: int64, nr: int32}", "entity: item, key: {nr: int32}")
    assert _found(CUSTOMER, own) == [("key_clash", "a.yaml", 5)]


def test_cycle_that_goes_through_rows_and_a_topic_never_ends() -> None:
    order = """\
version: 1
parent: order
events: {topic: shop.orders, format: debezium, key: {id: int64}}
dependents:
  - {store: c, topic: shop.customers, references: {order_id: id}, on_delete: cascade}
"""
    assert _found(CUSTOMER, order) == [("cycle", "b.yaml", 5)]


def test_dependents_in_another_store_than_rows_without_events_follow_by_derived_events() -> None:
    rules = _rules(CUSTOMER, ORDER.replace("store: a", "store: b"))
    [items] = [edge for edge in graph_of(rules).edges if edge.id == "order.items"]
    assert items.ways == (Way.DERIVED,)
    assert [parent.entity for parent in rules.derived("a")] == ["order"]
    assert [parent.entity for parent in rules.follows_derived("b")] == ["order"]
    assert (rules.derived("b"), rules.follows_derived("a")) == ((), ())


@pytest.mark.parametrize("change", ["on_delete: restrict", "on_delete: cascade, on_update: restrict", AGED])
def test_restrict_and_as_of_go_with_rows_that_are_parents(change: str) -> None:
    below = ORDER.split(",\n")[0].replace("on_delete: cascade", change) + "}\n"
    _rules(CUSTOMER.replace("on_delete: cascade", change), below)


def test_list_goes_with_documents_that_are_parents_but_is_no_part_of_their_key() -> None:
    group = (
        "version: 1\nparent: customer\nevents: {topic: t, format: debezium, key: {id: int64}}\ndependents:\n"
        "  - {store: b, collection: groups, references: {memberIds: id}, array: true, on_delete: cascade,\n"
        "     entity: group, key: {_id: int64}}\n"
    )
    assert _rules(group).named("group")[0].array
    assert _found(group.replace("{_id: int64}", "{memberIds: int64}")) == [("bad_array", "a.yaml", 6)]


def test_branch_of_a_dependent_is_all_that_depends_on_its_rows_in_its_store() -> None:
    rules = _rules(CUSTOMER, ORDER)
    [orders, *_] = rules.by_entity["customer"].dependents
    assert rules.branch(orders)[0] is orders
    assert {each.store for each in rules.branch(orders)} == {orders.store}
    assert {each.id for each in rules.branch(orders)} >= {
        each.id for each in rules.by_entity["order"].dependents if each.store == orders.store
    }
