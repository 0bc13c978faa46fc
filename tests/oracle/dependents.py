"""The dependents of the oracle's world, told once: as rule files, as tables with native foreign keys, as our tables.

Two parents, one with a single and one with a composite key; every pair of actions that composes differently; three
kinds of stores. Natively everything is a table of one PostgreSQL database. What no foreign key can do (marking a row,
ignoring one of the two, parts of a reference on update) is a trigger there that does to each row at once what the rule
says. A rule with `where` is two native tables: a row is in the one with the foreign key while it has the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

Store = Literal["main", "docs", "cards"]
"""PostgreSQL, MongoDB, compacted topics."""
STORES: tuple[Store, ...] = ("main", "docs", "cards")

Action = Literal["cascade", "nullify", "nullify_part", "default", "default_part", "tombstone", "ignore"]

Row = tuple[Any, ...]
"""The values of a target's columns, without its id."""


@dataclass(frozen=True, eq=False)
class Parent:
    """A parent table. `columns` is how a dependent names the key; `part` the columns that the actions on a part change;
    `default` the parent that is always there."""

    entity: str
    table: str
    key: dict[str, str]
    columns: tuple[str, ...]
    part: tuple[str, ...]
    default: tuple[Any, ...]
    partitions: int

    @property
    def fields(self) -> str:
        return ", ".join(self.key)

    def row(self, which: str) -> str:
        """`old` or `new` as a row of its key, in a trigger."""
        return f"row({', '.join(f'{which}.{name}' for name in self.key)})"


CUSTOMER = Parent("customer", "customers", {"id": "int64"}, ("customer_id",), ("customer_id",), (0,), 4)
ACCOUNT = Parent(
    "account", "accounts", {"tenant": "string", "code": "int64"}, ("tenant", "code"), ("code",), ("none", 0), 3
)
PARENTS = (CUSTOMER, ACCOUNT)
ORDER, ITEM, PART = (
    Parent(name, f"main_{name}s", {"id": "int64"}, (f"{name}_id",), (f"{name}_id",), (0,), 0)
    for name in ("order", "item", "part")
)
LEVELS = (ORDER, ITEM, PART)
"""Rows that are parents themselves: what happens to them is what is done to them."""
_SQL_TYPES = {"string": "text", "int64": "bigint"}


@dataclass(frozen=True)
class Reference:
    columns: tuple[str, ...]
    on_delete: Action
    on_update: Action


@dataclass(frozen=True, eq=False)
class Target:
    """A table, collection or topic."""

    name: str
    store: Store
    parent: Parent
    references: tuple[Reference, ...]
    where: bool = False
    lists: bool = False
    """A document holds a list of keys."""
    entity: str | None = None
    """What the rows are to those that depend on them."""

    @property
    def root(self) -> Parent:
        """The parent at the top of the graph."""
        above = next((target for target in TARGETS if target.entity == self.parent.entity), None)
        return self.parent if above is None else above.root

    @property
    def marks(self) -> bool:
        return self.store != "cards" and any(each.on_delete == "tombstone" for each in self.references)

    @property
    def columns(self) -> tuple[str, ...]:
        more = ("deleted_at", "deleted_by") * self.marks + ("kind", "region", "archived_at") * self.where
        return (*(column for each in self.references for column in each.columns), *more)

    def is_within(self, row: Row) -> bool:
        """Whether the rule's `where` takes the row in."""
        if not self.where:
            return True
        kind, region, archived_at = row[-3:]
        return kind == "Customer" and region in ("eu", "uk") and archived_at is None


def _target(store: Store, parent: Parent, on_delete: Action, on_update: Action, *, where: bool = False) -> Target:
    name = f"{store}_{parent.entity}_{on_delete}_{on_update}{'_where' * where}"
    return Target(name, store, parent, (Reference(parent.columns, on_delete, on_update),), where)


def _level(parent: Parent, name: str, on_delete: Action, entity: str | None = None) -> Target:
    return Target(f"main_{name}", "main", parent, (Reference(parent.columns, on_delete, "cascade"),), entity=entity)


def _list(on_delete: Action, on_update: Action) -> Target:
    reference = Reference(CUSTOMER.columns, on_delete, on_update)
    return Target(f"docs_list_{on_delete}_{on_update}", "docs", CUSTOMER, (reference,), lists=True)


def _targets() -> tuple[Target, ...]:
    pairs: dict[tuple[Store, str], tuple[tuple[Action, Action], ...]] = {
        ("main", "customer"): (
            ("cascade", "cascade"),
            ("cascade", "nullify"),
            ("cascade", "default"),
            ("cascade", "ignore"),
            ("nullify", "cascade"),
            ("nullify", "nullify"),
            ("nullify", "default"),
            ("default", "cascade"),
            ("default", "default"),
            ("tombstone", "cascade"),
            ("tombstone", "nullify"),
            ("tombstone", "default"),
            ("tombstone", "ignore"),
            ("ignore", "cascade"),
            ("ignore", "ignore"),
        ),
        ("docs", "customer"): (
            ("cascade", "cascade"),
            ("cascade", "ignore"),
            ("nullify", "cascade"),
            ("default", "default"),
            ("tombstone", "cascade"),
            ("ignore", "cascade"),
        ),
        ("cards", "customer"): (
            ("cascade", "cascade"),
            ("nullify", "cascade"),
            ("default", "default"),
            ("tombstone", "nullify"),
        ),
        ("main", "account"): (
            ("cascade", "cascade"),
            ("cascade", "nullify_part"),
            ("nullify", "cascade"),
            ("nullify_part", "cascade"),
            ("default", "default"),
            ("default_part", "cascade"),
            ("default_part", "nullify"),
            ("tombstone", "cascade"),
            ("tombstone", "default_part"),
            ("ignore", "cascade"),
        ),
        ("docs", "account"): (("cascade", "cascade"), ("nullify_part", "cascade"), ("default_part", "default")),
        ("cards", "account"): (("cascade", "cascade"), ("nullify_part", "cascade")),
    }
    parents = {parent.entity: parent for parent in PARENTS}
    return (
        *(_target(store, parents[entity], *pair) for (store, entity), those in pairs.items() for pair in those),
        _target("main", CUSTOMER, "cascade", "cascade", where=True),
        _target("docs", CUSTOMER, "nullify", "cascade", where=True),
        _list("cascade", "cascade"),
        _list("default", "nullify"),
        # Four levels.
        _level(CUSTOMER, "orders", "cascade", entity="order"),
        _level(ORDER, "items", "cascade", entity="item"),
        _level(ITEM, "parts", "cascade", entity="part"),
        _level(ORDER, "labels", "nullify"),
        _level(PART, "tags", "nullify"),
        _level(PART, "pins", "cascade"),
        # Two references of one row to the same parent.
        Target(
            "main_links",
            "main",
            CUSTOMER,
            (
                Reference(("customer_id",), "cascade", "cascade"),
                Reference(("other_id",), "nullify", "cascade"),
            ),
        ),
    )


TARGETS = _targets()


# --- rules --------------------------------------------------------------------------------------------------------


def rules(parent: Parent, stores: Sequence[Store], topic: str | None, prefix: str) -> str:
    """The rule file of a parent, over the dependents in those stores; `prefix` begins every topic's name. Without a
    topic the parent is rows of another file."""
    dependents = [
        _rule(target, reference, number, prefix)
        for target in TARGETS
        if target.parent is parent and target.store in stores
        for number, reference in enumerate(target.references)
    ]
    events = {} if topic is None else {"events": {"topic": topic, "format": "debezium", "key": parent.key}}
    return json.dumps({"version": 1, "parent": parent.entity, **events, "dependents": dependents}, indent=1)


def _rule(target: Target, reference: Reference, number: int, prefix: str) -> dict[str, Any]:
    place = {"main": "table", "docs": "collection", "cards": "topic"}[target.store]
    name = {"main": f"public.{target.name}", "docs": target.name, "cards": f"{prefix}.{target.name}"}[target.store]
    rule = {
        "name": f"{target.name}.{number}" if number else target.name,
        "store": target.store,
        place: name,
        "references": {path(target, c): f for c, f in zip(reference.columns, target.parent.key, strict=True)},
        "on_delete": _action(target, reference, reference.on_delete),
        "on_update": _action(target, reference, reference.on_update),
    }
    if target.where:
        rule["where"] = {"kind": "Customer", "region": ["eu", "uk"], "archived_at": None}
    if target.lists:
        rule["array"] = True
    if target.entity is not None:
        rule |= {"entity": target.entity, "key": {"id": "int64"}}
    return rule


def _action(target: Target, reference: Reference, action: Action) -> Any:
    parent = target.parent
    defaults = dict(zip(parent.columns, parent.default, strict=True))
    match action:
        case "nullify_part":
            return {"nullify": {"columns": [path(target, column) for column in parent.part]}}
        case "default":
            return {"set_default": {path(target, column): value for column, value in defaults.items()}}
        case "default_part":
            return {"set_default": {path(target, column): defaults[column] for column in parent.part}}
        case "tombstone" if target.marks:
            return {"tombstone": {"set": {"deleted_at": "$event.time", "deleted_by": "parent deleted"}}}
        case _:
            return action


def path(target: Target, column: str) -> str:
    """Where a column's value is in a document or a record's value: a composite reference lies one level down."""
    if target.lists:
        return f"{column}s"
    is_nested = target.store != "main" and target.parent is ACCOUNT and column in ACCOUNT.columns
    return f"owner.{column}" if is_nested else column


# --- tables -------------------------------------------------------------------------------------------------------


def _table(target: Target, name: str, constraints: Sequence[str] = (), *, defaults: bool = False) -> str:
    kinds = dict(zip(target.parent.columns, (_SQL_TYPES[kind] for kind in target.parent.key.values()), strict=True))
    kinds |= {"other_id": "bigint", "deleted_at": "timestamptz", "archived_at": "timestamptz"}
    values = dict(zip(target.parent.columns, target.parent.default, strict=True)) if defaults else {}
    own = "id bigint, place int, primary key(id, place)" if target.lists else "id bigint primary key"
    columns = [
        f"{column} {kinds.get(column, 'text')}" + (f" default {values[column]!r}" if column in values else "")
        for column in target.columns
    ]
    indexes = "".join(f"create index on {name}({', '.join(each.columns)});\n" for each in target.references)
    return f"create table {name}({own}, {', '.join((*columns, *constraints))});\n{indexes}"


def our_tables() -> str:
    """The tables of the store `main`, without a constraint."""
    return "".join(_table(target, target.name) for target in TARGETS if target.store == "main")


_FK_DELETE = {
    "cascade": "cascade",
    "nullify": "set null",
    "nullify_part": "set null ({part})",
    "default": "set default",
    "default_part": "set default ({part})",
}
_FK_UPDATE = {"cascade": "cascade", "nullify": "set null", "default": "set default"}


def native_database() -> str:
    """The parents' tables, and every dependent with native foreign keys or the triggers in their place."""
    parts: list[str] = []
    for parent in PARENTS:
        columns = ", ".join(f"{name} {_SQL_TYPES[kind]}" for name, kind in parent.key.items())
        default = ", ".join(map(repr, parent.default))
        parts.append(f"create table {parent.table}({columns}, email text, primary key({parent.fields}));\n")
        parts.append(f"insert into {parent.table} values ({default}, 'default');\n")
    for target in TARGETS:
        foreign = [_foreign_key(target, each) for each in target.references if _is_native(target, each)]
        parts.append(_table(target, target.name, foreign, defaults=True))
        if target.where:
            parts.append(_table(target, f"{target.name}_out"))
        if target.lists:
            parts.append(f"create table {target.name}_docs(id bigint primary key);\n")
    parts += [_trigger(parent, what) for parent in PARENTS for what in ("delete", "update")]
    return "".join(parts)


def _native_delete(target: Target, reference: Reference) -> Action:
    """On a topic a tombstone is the end of the record."""
    is_end = reference.on_delete == "tombstone" and not target.marks
    return "cascade" if is_end else reference.on_delete


def _is_native(target: Target, reference: Reference) -> bool:
    return _native_delete(target, reference) in _FK_DELETE and reference.on_update in _FK_UPDATE


def _foreign_key(target: Target, reference: Reference) -> str:
    part = ", ".join(target.parent.part)
    on_delete = _FK_DELETE[_native_delete(target, reference)].format(part=part)
    return (
        f"foreign key ({', '.join(reference.columns)}) references {target.parent.table} "
        f"on delete {on_delete} on update {_FK_UPDATE[reference.on_update]}"
    )


def _trigger(parent: Parent, what: str) -> str:
    statements = [
        _statement(target, reference, what)
        for target in TARGETS
        if target.parent is parent
        for reference in target.references
        if not _is_native(target, reference)
    ]
    name = f"{parent.entity}_{what}"
    fields = f" of {parent.fields}" if what == "update" else ""
    return f"""
        create function {name}() returns trigger language plpgsql as $$ begin
            {" ".join(filter(None, statements))} return null;
        end $$;
        create trigger {name} after {what}{fields} on {parent.table} for each row execute function {name}();
    """


def _statement(target: Target, reference: Reference, what: str) -> str:
    parent, columns = target.parent, ", ".join(reference.columns)
    action = _native_delete(target, reference) if what == "delete" else reference.on_update
    reach = f"where row({columns}) = {parent.row('old')}" + " and deleted_at is null" * target.marks
    defaults = dict(zip(parent.columns, parent.default, strict=True))

    def update(values: dict[str, str]) -> str:
        return f"update {target.name} set {', '.join(f'{c} = {v}' for c, v in values.items())} {reach};"

    match action:
        case "ignore":
            return ""
        case "cascade" if what == "delete":
            return f"delete from {target.name} {reach};"
        case "cascade":
            return update({c: f"new.{f}" for c, f in zip(reference.columns, parent.key, strict=True)})
        case "nullify" | "nullify_part":
            return update(dict.fromkeys(reference.columns if action == "nullify" else parent.part, "null"))
        case "default" | "default_part":
            chosen = reference.columns if action == "default" else parent.part
            return update({column: repr(defaults[column]) for column in chosen})
        case "tombstone":
            at = "to_timestamp(current_setting('oracle.at')::bigint / 1000.0)"
            return update({"deleted_at": at, "deleted_by": "'parent deleted'"})


def native_tables(target: Target) -> tuple[str, ...]:
    """A rule with `where` has a table for the rows without its values; a list of keys is a table of links."""
    return (target.name, *([f"{target.name}_out"] * target.where), *([f"{target.name}_docs"] * target.lists))


def native_records(target: Target, id_: int, row: Row) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A row as records of the native tables."""
    if target.lists:
        yield f"{target.name}_docs", (id_,)
        yield from ((target.name, (id_, place, key)) for place, key in enumerate(row[0]))
    else:
        yield target.name if target.is_within(row) else f"{target.name}_out", (id_, *row)


def native_query(target: Target) -> str:
    """The rows with ids from $1 up to $2: the id, then the columns."""
    if target.lists:
        (column,) = target.columns
        keys = f"select {column} from {target.name} l where l.id = d.id and {column} is not null"
        return f"select id, array({keys}) from {target.name}_docs d where id >= $1 and id < $2"
    return " union all ".join(
        f"select id, {', '.join(target.columns)} from {table} where id >= $1 and id < $2"
        for table in native_tables(target)
    )


# --- rows as a document or a record's value -----------------------------------------------------------------------


def document(target: Target, row: Row) -> dict[str, Any]:
    """The row as a document, or as the value of a record."""
    found: dict[str, Any] = {}
    for column, value in zip(target.columns, row, strict=True):
        at, _, name = path(target, column).rpartition(".")
        (found.setdefault(at, {}) if at else found)[name] = value
    return found


def row_of(target: Target, found: dict[str, Any]) -> Row:
    """The row in a document or value."""
    values = []
    for column in target.columns:
        at, _, name = path(target, column).rpartition(".")
        values.append((found[at] if at else found)[name])
    return comparable(values)


def comparable(values: Sequence[Any]) -> Row:
    """The same values from whatever store. A list of keys is a bag: of two equal keys in it nobody can tell which one
    came by a key change, so which of them an older event takes is not laid down."""

    def alike(value: Any) -> Any:
        match value:
            case datetime():
                return value.astimezone(UTC)
            case list():
                return tuple(sorted(value))
            case _:
                return value

    return tuple(map(alike, values))
