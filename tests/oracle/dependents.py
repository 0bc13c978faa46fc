"""The dependents of the oracle's world, told once: as rule files, as tables with native foreign keys, as our tables.

Two parents with events, one with a single and one with a composite key; every pair of actions that composes
differently; three kinds of stores; graphs of rows that are parents, in each store and across all three. Natively
everything is a table of one PostgreSQL database. What no foreign key can do (marking a row, ignoring one of the two,
counting what a restriction would have refused, sparing young rows, parts of a reference on update) is a trigger there
that does to each row at once what the rule says. A rule with `where` is two native tables: a row is in the one with the
foreign key while it has the values.
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

Action = Literal["cascade", "nullify", "nullify_part", "default", "default_part", "tombstone", "restrict", "ignore"]

Row = tuple[Any, ...]
"""The values of a target's columns, without its id."""


@dataclass(frozen=True, eq=False)
class Parent:
    """What others refer to: a table with events, or the rows of a target (`store`). `columns` is how a dependent names
    the key; `part` the columns that the actions on a part change; `default` the parent that is always there."""

    entity: str
    table: str
    key: dict[str, str]
    columns: tuple[str, ...]
    part: tuple[str, ...]
    default: tuple[Any, ...]
    partitions: int = 0
    store: Store | None = None

    @property
    def fields(self) -> str:
        return ", ".join(self.key)

    def row(self, which: str) -> str:
        """`old` or `new` as a row of its key, in a trigger."""
        return f"row({', '.join(f'{which}.{name}' for name in self.key)})"

    def name(self, prefix: str) -> str:
        """The entity in the rule files of a side: its derived events are in a topic of that name."""
        return self.entity if self.store is None else f"{self.entity}_{prefix}"


CUSTOMER = Parent("customer", "customers", {"id": "int64"}, ("customer_id",), ("customer_id",), (0,), 4)
ACCOUNT = Parent(
    "account", "accounts", {"tenant": "string", "code": "int64"}, ("tenant", "code"), ("code",), ("none", 0), 3
)
CLIENT = Parent("client", "clients", {"id": "int64"}, ("client_id",), ("client_id",), (0,), 4)
PARENTS = (CUSTOMER, CLIENT, ACCOUNT)
"""Those with events. The graphs of single keys are below the client, so that an event of either costs little."""


def _rows(store: Store, name: str, above: Parent | None = None) -> Parent:
    """Rows that are parents: what happens to them is what is done to them. With `above` their key holds its key, so
    that a key change goes on down."""
    key = {} if above is None else dict(zip(above.columns, above.key.values(), strict=True))
    own, default = f"{name}_id", () if above is None else above.default
    return Parent(
        f"{store}_{name}",
        f"{store}_{name}s",
        {**key, "id": "int64"},
        (*key, own),
        (own,),
        (*default, 0),
        store=store,
    )


@dataclass(frozen=True)
class Reference:
    parent: Parent
    columns: tuple[str, ...]
    on_delete: Action
    on_update: Action
    full: bool = False
    """MATCH FULL."""


@dataclass(frozen=True, eq=False)
class Target:
    """A table, collection or topic."""

    name: str
    store: Store
    references: tuple[Reference, ...]
    where: bool = False
    lists: bool = False
    """A document holds a list of keys."""
    aged: bool = False
    """The rule has `as_of`."""
    rows: Parent | None = None
    """What the rows are to those that depend on them."""

    @property
    def parents(self) -> set[Parent]:
        return {each.parent for each in self.references} - {self.rows}

    @property
    def root(self) -> Parent:
        """The parent at the top of the graph."""
        above = self.references[0].parent
        return next((target.root for target in TARGETS if target.rows is above), above)

    @property
    def marks(self) -> bool:
        return self.store != "cards" and any(each.on_delete == "tombstone" for each in self.references)

    @property
    def columns(self) -> tuple[str, ...]:
        more = ("deleted_at", "deleted_by") * self.marks + ("born_at",) * self.aged
        more += ("kind", "region", "archived_at") * self.where
        return (*(column for each in self.references for column in each.columns), *more)

    def is_within(self, row: Row) -> bool:
        """Whether the rule's `where` takes the row in."""
        if not self.where:
            return True
        kind, region, archived_at = row[-3:]
        return kind == "Customer" and region in ("eu", "uk") and archived_at is None

    def key_of(self, id_: int, row: Row) -> tuple[Any, ...]:
        """What names a row to those that depend on it."""
        assert self.rows is not None
        held = dict(zip(self.columns, row, strict=True)) | {"id": id_}
        return tuple(held[name] for name in self.rows.key)

    @property
    def is_identified(self) -> bool:
        """Its rows' own key holds their reference."""
        return self.rows is not None and len(self.rows.key) > 1


Pair = tuple[Action, Action]
CASCADE: Pair = ("cascade", "cascade")


def _target(
    store: Store, parent: Parent, pair: Pair, *, where: bool = False, full: bool = False, aged: bool = False
) -> Target:
    name = f"{store}_of_{parent.entity}_{'_'.join(pair)}{'_where' * where}{'_full' * full}{'_aged' * aged}"
    return Target(name, store, (Reference(parent, parent.columns, *pair, full),), where, aged=aged)


def _level(rows: Parent, parent: Parent, pair: Pair = CASCADE, *more: Reference) -> Target:
    assert rows.store is not None
    return Target(rows.table, rows.store, (Reference(parent, parent.columns, *pair), *more), rows=rows)


def _list(pair: Pair) -> Target:
    return Target(f"docs_list_{'_'.join(pair)}", "docs", (Reference(CUSTOMER, CUSTOMER.columns, *pair),), lists=True)


def _flat() -> Iterator[Target]:
    """What refers to parents with events, and nothing below."""
    pairs: dict[tuple[Store, Parent], tuple[Pair, ...]] = {
        ("main", CUSTOMER): (
            CASCADE,
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
            ("restrict", "cascade"),
            ("restrict", "restrict"),
            ("cascade", "restrict"),
        ),
        ("docs", CUSTOMER): (
            CASCADE,
            ("cascade", "ignore"),
            ("nullify", "cascade"),
            ("default", "default"),
            ("tombstone", "cascade"),
            ("ignore", "cascade"),
            ("restrict", "cascade"),
            ("nullify", "restrict"),
        ),
        ("cards", CUSTOMER): (
            CASCADE,
            ("nullify", "cascade"),
            ("default", "default"),
            ("tombstone", "nullify"),
            ("restrict", "cascade"),
        ),
        ("main", ACCOUNT): (
            CASCADE,
            ("cascade", "nullify_part"),
            ("nullify", "cascade"),
            ("nullify_part", "cascade"),
            ("default", "default"),
            ("default_part", "cascade"),
            ("default_part", "nullify"),
            ("tombstone", "cascade"),
            ("tombstone", "default_part"),
            ("ignore", "cascade"),
            ("restrict", "nullify"),
        ),
        ("docs", ACCOUNT): (CASCADE, ("nullify_part", "cascade"), ("default_part", "default")),
        ("cards", ACCOUNT): (CASCADE, ("nullify_part", "cascade")),
    }
    for (store, parent), those in pairs.items():
        yield from (_target(store, parent, pair) for pair in those)
    yield _target("main", CUSTOMER, CASCADE, where=True)
    yield _target("docs", CUSTOMER, ("nullify", "cascade"), where=True)
    yield _list(CASCADE)
    yield _list(("default", "nullify"))
    for pair in (CASCADE, ("nullify", "cascade"), ("default", "nullify")):
        yield _target("main", ACCOUNT, pair, full=True)
    yield _target("docs", ACCOUNT, ("nullify", "cascade"), full=True)
    yield _target("cards", ACCOUNT, ("nullify", "cascade"), full=True)
    for pair in (CASCADE, ("nullify", "default"), ("tombstone", "cascade"), ("default", "ignore")):
        yield _target("main", CUSTOMER, pair, aged=True)
    yield _target("main", ACCOUNT, ("cascade", "nullify_part"), aged=True)
    yield _target("docs", CUSTOMER, CASCADE, aged=True)
    yield _target("docs", CUSTOMER, ("tombstone", "nullify"), aged=True)
    yield _target("cards", CUSTOMER, CASCADE, aged=True)
    # Two references of one row to the same parent.
    other = Reference(CUSTOMER, ("other_id",), "nullify", "cascade")
    yield Target("main_links", "main", (Reference(CUSTOMER, ("customer_id",), *CASCADE), other))


def _within(store: Store) -> Iterator[Target]:
    """Four levels of one store, below them every action; and rows whose own keys hold their references."""
    order, item, part = (_rows(store, name) for name in ("order", "item", "part"))
    line = _rows(store, "line", CLIENT)
    stop = _rows(store, "stop", line)
    yield from (_level(order, CLIENT), _level(item, order), _level(part, item))
    yield from (_level(line, CLIENT), _level(stop, line))
    yield _target(store, order, ("nullify", "cascade"))
    yield _target(store, part, CASCADE)
    yield _target(store, line, ("cascade", "nullify"))
    yield _target(store, stop, ("nullify_part", "cascade"))
    if store == "cards":
        return
    yield _target(store, order, ("default", "cascade"))
    yield _target(store, order, ("tombstone", "cascade"))
    yield _target(store, part, ("nullify", "cascade"))
    yield _target(store, line, ("default", "default"))
    yield _target(store, line, ("tombstone", "cascade"))
    yield _target(store, stop, CASCADE)
    # What stays takes nothing along.
    folder = _rows(store, "folder")
    yield _level(folder, CLIENT, ("nullify", "cascade"))
    yield _target(store, folder, CASCADE)


def _targets() -> tuple[Target, ...]:
    within = {store: list(_within(store)) for store in STORES}
    of = {target.rows.entity: target.rows for each in within.values() for target in each if target.rows is not None}
    comment, site = _rows("main", "comment"), _rows("main", "site", ACCOUNT)
    hall = _rows("docs", "hall", ACCOUNT)
    note, sticker = _rows("docs", "note"), _rows("cards", "sticker")
    seal = _rows("docs", "seal", of["main_line"])
    return (
        *_flat(),
        *(target for each in within.values() for target in each),
        # A row that refers to a row of its own table, to itself at times.
        _level(comment, CLIENT, CASCADE, Reference(comment, ("answers_id",), *CASCADE)),
        # A row that its parent reaches by two ways.
        Target(
            "main_deliveries",
            "main",
            (
                Reference(of["main_order"], ("order_id",), *CASCADE),
                # Not nullify: a row that one transaction moves and then sets to null is checked once more against its
                # order, which the same deletion has taken: PostgreSQL refuses its own cascade.
                Reference(CLIENT, ("client_id",), *CASCADE),
            ),
        ),
        _level(site, ACCOUNT),
        _level(hall, ACCOUNT),
        _target("main", site, ("cascade", "nullify_part")),
        _target("docs", hall, ("nullify_part", "cascade")),
        # From store to store.
        _level(note, of["main_order"]),
        _level(sticker, note),
        *(_target("main", sticker, pair) for pair in (CASCADE, ("nullify", "cascade"), ("tombstone", "cascade"))),
        _level(seal, of["main_line"]),
        *(_target("cards", seal, pair) for pair in (CASCADE, ("nullify_part", "cascade"))),
        _target("main", seal, ("default", "default")),
        _target("main", of["docs_stop"], ("cascade", "nullify")),
        _target("cards", of["docs_part"], ("nullify", "cascade")),
        _target("docs", of["cards_line"], ("tombstone", "cascade")),
        _target("main", of["cards_part"], ("default", "cascade")),
        _target("docs", site, CASCADE),
        _target("cards", hall, CASCADE),
    )


TARGETS = _targets()
LEVELS = tuple(target.rows for target in TARGETS if target.rows is not None)
EVENTS_BETWEEN: dict[Parent, frozenset[Store]] = {
    parent: frozenset(target.store for target in TARGETS if parent in target.parents and target.store != parent.store)
    for parent in LEVELS
}
"""Rows that are parents -> the stores that are told of them by derived events."""


# --- rules --------------------------------------------------------------------------------------------------------


def rules(
    parent: Parent, stores: Sequence[Store], topic: str | None, prefix: str, *, copies: bool = False
) -> str | None:
    """The rule file of a parent, over the dependents in those stores; None when there are none. `prefix` begins every
    topic's name. Without a topic the parent is rows of another file. `copies`: it has a copy in the store `main`."""
    dependents = [
        _rule(target, reference, number, prefix)
        for target in TARGETS
        if target.store in stores
        for number, reference in enumerate(target.references)
        if reference.parent is parent
    ]
    if not dependents or parent.store not in (None, *stores):
        return None
    events: dict[str, Any] = (
        {} if topic is None else {"events": {"topic": topic, "format": "debezium", "key": parent.key}}
    )
    if parent in (CUSTOMER, CLIENT):
        # Sweeps find nothing here, and look at every key again; that they harm nothing one parent is enough for.
        events |= {"late_children": {"sweeps": []}}
    if copies:
        columns = {name: name for name in (*parent.key, "email")}
        events |= {"copies": [{"store": "main", "table": copy_table(parent), "columns": columns}]}
    return json.dumps({"version": 1, "parent": parent.name(prefix), **events, "dependents": dependents}, indent=1)


def copy_table(parent: Parent) -> str:
    """The copy of a parent with events."""
    return f"copy_of_{parent.table}"


def dependent_name(target: Target, number: int) -> str:
    """What a rule calls the reference of that number."""
    return f"{target.name}.{number}" if number else target.name


def _rule(target: Target, reference: Reference, number: int, prefix: str) -> dict[str, Any]:
    place = {"main": "table", "docs": "collection", "cards": "topic"}[target.store]
    name = {"main": f"public.{target.name}", "docs": target.name, "cards": f"{prefix}.{target.name}"}[target.store]
    rule = {
        "name": dependent_name(target, number),
        "store": target.store,
        place: name,
        "references": dict(zip((path(target, c) for c in reference.columns), key_names(reference.parent), strict=True)),
        "on_delete": _action(target, reference, reference.on_delete),
        "on_update": _action(target, reference, reference.on_update),
    }
    if target.where:
        rule["where"] = {"kind": "Customer", "region": ["eu", "uk"], "archived_at": None}
    if target.lists:
        rule["array"] = True
    if target.aged:
        rule["as_of"] = "born_at"
    if reference.full:
        rule["match"] = "full"
    if target.rows is not None:
        key = dict(zip(key_names(target.rows), target.rows.key.values(), strict=True))
        rule |= {"entity": target.rows.name(prefix), "key": key}
    return rule


def key_names(parent: Parent) -> list[str]:
    """What the fields of a parent's key are called in its store."""
    home = next((target for target in TARGETS if target.rows is parent), None)
    if home is None:
        return list(parent.key)
    return ["_id" if name == "id" and home.store == "docs" else path(home, name) for name in parent.key]


def _action(target: Target, reference: Reference, action: Action) -> Any:
    parent = reference.parent
    defaults = dict(zip(reference.columns, parent.default, strict=True))
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
    is_nested = target.store != "main" and ACCOUNT in target.parents and column in ACCOUNT.columns
    return f"owner.{column}" if is_nested else column


# --- tables -------------------------------------------------------------------------------------------------------


def _type(column: str) -> str:
    if column.endswith("_at"):
        return "timestamptz"
    return "text" if column in ("tenant", "kind", "region", "deleted_by") else "bigint"


def _table(target: Target, name: str, more: Sequence[str] = (), *, defaults: bool = False) -> str:
    values = {
        column: value
        for each in target.references
        for column, value in zip(each.columns, each.parent.default, strict=True)
        if defaults and "default" in f"{each.on_delete} {each.on_update}"
    }
    columns = [
        f"{column} {_type(column)}" + (f" default {values[column]!r}" if column in values else "")
        for column in target.columns
    ]
    own = "id, place" if target.lists else "id" if target.rows is None else target.rows.fields
    columns += ["place int"] * target.lists + [f"primary key ({own})", *more]
    indexes = "".join(f"create index on {name}({', '.join(each.columns)});\n" for each in target.references)
    return f"create table {name}(id bigint, {', '.join(columns)});\n{indexes}"


def our_tables() -> str:
    """The tables of the store `main`, without a constraint."""
    return "".join(
        [
            *(_table(target, target.name) for target in TARGETS if target.store == "main"),
            *(_parents_table(parent, copy_table(parent)) for parent in PARENTS),
        ]
    )


def _parents_table(parent: Parent, name: str) -> str:
    columns = ", ".join(f"{field} {_type(field)}" for field in parent.key)
    return f"create table {name}({columns}, email text, primary key({parent.fields}));\n"


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
    parts = ["create table restricted(dependent text, key jsonb, at bigint, there bigint, held bigint);\n"]
    parts.append("create index on restricted (key);\n")
    for parent in PARENTS:
        parts.append(_parents_table(parent, parent.table))
    for target in TARGETS:
        foreign = [_foreign_key(target, each) for each in target.references if _is_native(target, each)]
        # Where a row is held back, since when it is at its key.
        parts.append(_table(target, target.name, [*["came bigint"] * _restricts(target), *foreign], defaults=True))
        if target.where:
            parts.append(_table(target, f"{target.name}_out"))
        if target.lists:
            parts.append(f"create table {target.name}_docs(id bigint primary key);\n")
    for parent in (*PARENTS, *LEVELS):
        default = ", ".join(map(repr, parent.default))
        parts.append(f"insert into {parent.table} ({parent.fields}) values ({default});\n")
        parts += [_trigger(parent, what) for what in ("delete", "update")]
    return "".join(parts)


def _restricts(target: Target) -> bool:
    return any("restrict" in (each.on_delete, each.on_update) for each in target.references)


def _native_delete(target: Target, reference: Reference) -> Action:
    """On a topic a tombstone is the end of the record."""
    is_end = reference.on_delete == "tombstone" and not target.marks
    return "cascade" if is_end else reference.on_delete


def _is_native(target: Target, reference: Reference) -> bool:
    by_key = _native_delete(target, reference) in _FK_DELETE and reference.on_update in _FK_UPDATE
    return by_key and not target.aged


def _foreign_key(target: Target, reference: Reference) -> str:
    parent = reference.parent
    on_delete = _FK_DELETE[_native_delete(target, reference)].format(part=", ".join(parent.part))
    return (
        f"foreign key ({', '.join(reference.columns)}) references {parent.table} ({parent.fields})"
        f"{' match full' * reference.full} on delete {on_delete} on update {_FK_UPDATE[reference.on_update]}"
    )


def _trigger(parent: Parent, what: str) -> str:
    statements = [
        _statement(target, reference, dependent_name(target, number), what)
        for target in TARGETS
        for number, reference in enumerate(target.references)
        if reference.parent is parent and not _is_native(target, reference)
    ]
    if not any(statements):
        return ""
    name = f"{parent.table}_{what}"
    fields = f" of {parent.fields}" if what == "update" else ""
    return f"""
        create function {name}() returns trigger language plpgsql as $$ begin
            {" ".join(filter(None, statements))} return null;
        end $$;
        create trigger {name} after {what}{fields} on {parent.table} for each row execute function {name}();
    """


_AT = "current_setting('oracle.at')::bigint"
"""When the statement on a parent took place, in milliseconds since 1970."""
_SINCE = "current_setting('oracle.since')::bigint"
"""The same of the first statement of its round."""


def _statement(target: Target, reference: Reference, dependent: str, what: str) -> str:
    parent, columns = reference.parent, ", ".join(reference.columns)
    action = _native_delete(target, reference) if what == "delete" else reference.on_update
    reach = f"where row({columns}) = {parent.row('old')}" + " and deleted_at is null" * target.marks
    reach += f" and born_at <= to_timestamp({_AT} / 1000.0)" * target.aged
    defaults = dict(zip(reference.columns, parent.default, strict=True))

    def update(values: dict[str, str]) -> str:
        return f"update {target.name} set {', '.join(f'{c} = {v}' for c, v in values.items())} {reach};"

    match action:
        case "ignore":
            return ""
        case "restrict":
            key = f"jsonb_build_array({', '.join(f'old.{name}' for name in parent.key)})"
            there = f"count(*) filter (where came is null or came < {_SINCE})"
            return (
                f"insert into restricted select '{parent.entity}.{dependent}', {key}, {_AT}, {there}, count(*) "
                f"from {target.name} {reach} having count(*) > 0;"
            )
        case "cascade" if what == "delete":
            return f"delete from {target.name} {reach};"
        case "cascade":
            came = {"came": _AT} if _restricts(target) else {}
            return update({c: f"new.{f}" for c, f in zip(reference.columns, parent.key, strict=True)} | came)
        case "nullify" | "nullify_part":
            return update(dict.fromkeys(reference.columns if action == "nullify" else parent.part, "null"))
        case "default" | "default_part":
            chosen = reference.columns if action == "default" else parent.part
            return update({column: repr(defaults[column]) for column in chosen})
        case "tombstone":
            return update({"deleted_at": f"to_timestamp({_AT} / 1000.0)", "deleted_by": "'parent deleted'"})


def native_tables(target: Target) -> tuple[str, ...]:
    """A rule with `where` has a table for the rows without its values; a list of keys is a table of links."""
    return (target.name, *([f"{target.name}_out"] * target.where), *([f"{target.name}_docs"] * target.lists))


def native_records(target: Target, id_: int, row: Row) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """A row as records of the native tables, each with its first columns."""
    if target.lists:
        yield f"{target.name}_docs", (id_,)
        yield from ((target.name, (id_, key, place)) for place, key in enumerate(row[0]))
    else:
        yield target.name if target.is_within(row) else f"{target.name}_out", (id_, *row)


def native_columns(target: Target, table: str) -> tuple[str, ...]:
    """The columns of those records."""
    if target.lists:
        return ("id",) if table.endswith("_docs") else ("id", *target.columns, "place")
    return ("id", *target.columns)


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
    """The row as a document, or as the value of a record: that one is JSON, in which a time is text."""
    found: dict[str, Any] = {}
    for column, value in zip(target.columns, row, strict=True):
        at, _, name = path(target, column).rpartition(".")
        if target.store == "cards" and isinstance(value, datetime):
            value = value.isoformat()
        (found.setdefault(at, {}) if at else found)[name] = value
    return found


def row_of(target: Target, found: dict[str, Any]) -> Row:
    """The row in a document or value."""
    values = []
    for column in target.columns:
        at, _, name = path(target, column).rpartition(".")
        value = (found[at] if at else found)[name]
        is_text = target.store == "cards" and column.endswith("_at") and value is not None
        values.append(datetime.fromisoformat(value) if is_text else value)
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
