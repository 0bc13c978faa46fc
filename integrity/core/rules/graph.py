"""The reference graph of a rule set, as a value: entities, dependents, and how one leads to the other.

A *level* counts references from a parent that no rows of another stand behind; rows that are in a cycle have the level
of their first reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from integrity.core.rules.model import Dependent, Events, RuleSet, action_name

DERIVED_TOPIC_PREFIX = "integrity.events."


def derived_topic(entity: str) -> str:
    """The topic of what follows for the rows that are this entity, where they have no events of their own."""
    return DERIVED_TOPIC_PREFIX + entity


class Way(StrEnum):
    """How what happens to a parent reaches a dependent."""

    EVENTS = "events"
    """By the parent's own events."""
    TRANSACTION = "transaction"
    """In the transaction that removes or changes the parent's rows: both are in one store."""
    DERIVED = "derived"
    """By derived events: the parent's rows are in another store and have no events of their own."""


@dataclass(frozen=True, slots=True)
class Node:
    """An entity, with the store and target of its rows where a dependent says what they are."""

    entity: str
    key: tuple[str, ...]
    topics: tuple[str, ...]
    store: str | None
    target: str | None
    level: int


@dataclass(frozen=True, slots=True)
class Edge:
    """A dependent: a reference to `parent`, by rows that are `entity` (None: nothing depends on them). Or a `copy` of
    the parent's rows, with the columns that it has."""

    id: str
    parent: str
    entity: str | None
    store: str
    target: str
    columns: tuple[str, ...]
    on_delete: str
    on_update: str
    ways: tuple[Way, ...]
    copy: bool = False

    @property
    def actions(self) -> str:
        """What happens to it, in words."""
        if self.copy:
            return f"copy, on delete {self.on_delete}"
        return f"on delete {self.on_delete}, on update {self.on_update}"


@dataclass(frozen=True, slots=True)
class Graph:
    """`cycles` are entities that lead to one another through their rows, each cycle in the order of its references."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    cycles: tuple[tuple[str, ...], ...]


def _sources(events: Events) -> tuple[str, ...]:
    return events.topics if events.pattern is None else (events.pattern,)


def graph_of(rules: RuleSet) -> Graph:
    """The graph of all rule files. An entity without a file has a node too: its rows are named, nothing follows."""
    levels = _levels(rules)
    nodes = []
    for entity, level in levels.items():
        parent, named = rules.by_entity.get(entity), rules.named(entity)
        spec = named[0].key if parent is None else parent.key
        assert spec is not None
        nodes.append(
            Node(
                entity,
                tuple(f"{name}: {kind}" for name, kind in spec.fields),
                () if parent is None or parent.events is None else _sources(parent.events),
                named[0].store if named else None,
                named[0].target.name if named else None,
                level,
            )
        )
    edges = tuple(
        Edge(
            dependent.id,
            parent.entity,
            dependent.entity,
            dependent.store,
            dependent.target.name,
            dependent.columns,
            action_name(dependent.on_delete),
            action_name(dependent.on_update),
            ways(rules, parent.entity, dependent),
        )
        for parent in sorted(rules.parents, key=lambda parent: (levels[parent.entity], parent.entity))
        for dependent in parent.dependents
    )
    copies = tuple(
        Edge(
            copy.id,
            parent.entity,
            None,
            copy.store,
            copy.rows.target.name,
            tuple(copy.columns),
            copy.action,
            "cascade",
            (Way.EVENTS,),
            copy=True,
        )
        for parent in sorted(rules.parents, key=lambda parent: (levels[parent.entity], parent.entity))
        for copy in parent.copies
    )
    return Graph(tuple(nodes), (*edges, *copies), _cycles(edges))


def ways(rules: RuleSet, entity: str, dependent: Dependent) -> tuple[Way, ...]:
    """How what happens to an entity reaches one of its dependents; own events may repeat what was done already."""
    home = next((named.store for named in rules.named(entity)), None)
    own = rules.by_entity[entity].events is not None
    found = [Way.EVENTS] if own else []
    if home == dependent.store:
        found.append(Way.TRANSACTION)
    elif not own:
        found.append(Way.DERIVED)
    return tuple(found)


def _levels(rules: RuleSet) -> dict[str, int]:
    """Entity -> its level, by level and name."""
    behind = {d.entity: True for parent in rules.parents for d in parent.dependents if d.entity != parent.entity}
    waiting = sorted(parent.entity for parent in rules.parents if parent.entity not in behind)
    rest = sorted(parent.entity for parent in rules.parents)
    levels: dict[str, int] = {}
    while waiting or rest:
        # What is left is behind a cycle that nothing leads to: it begins somewhere.
        waiting = waiting or [next(entity for entity in rest)]
        level = 0
        while waiting:
            levels |= {entity: level for entity in waiting if entity not in levels}
            level += 1
            reached = {
                dependent.entity
                for entity in waiting
                if entity in rules.by_entity
                for dependent in rules.by_entity[entity].dependents
                if dependent.entity is not None
            }
            waiting = sorted(entity for entity in reached if entity not in levels)
        rest = [entity for entity in rest if entity not in levels]
    return dict(sorted(levels.items(), key=lambda item: (item[1], item[0])))


def _cycles(edges: tuple[Edge, ...]) -> tuple[tuple[str, ...], ...]:
    """One cycle for each entity that leads back to itself, the shortest; the same cycle is named once."""
    follow: dict[str, list[str]] = {}
    for edge in edges:
        if edge.entity is not None:
            follow.setdefault(edge.parent, []).append(edge.entity)
    found: dict[frozenset[str], tuple[str, ...]] = {}
    for start in sorted(follow):
        way = _way_back(start, follow)
        if way is not None:
            found.setdefault(frozenset(way), way)
    return tuple(found.values())


def _way_back(start: str, follow: dict[str, list[str]]) -> tuple[str, ...] | None:
    came: dict[str, str] = {}
    waiting = [start]
    for entity in waiting:
        for after in follow.get(entity, ()):
            if after == start:
                way = [entity]
                while way[-1] != start:
                    way.append(came[way[-1]])
                return tuple(reversed(way))
            if after not in came:
                came[after] = entity
                waiting.append(after)
    return None


# --- as text ------------------------------------------------------------------------------------------------------


def as_text(graph: Graph) -> str:
    """A tree a parent, for people. Rows whose dependents have been shown are named only."""
    nodes = {node.entity: node for node in graph.nodes}
    shown: set[str] = set()
    lines: list[str] = []
    roots = [node.entity for node in graph.nodes if node.level == 0]
    waiting = [(entity, 0) for entity in reversed([*roots, *(n.entity for n in graph.nodes if n.entity not in roots)])]
    stack: list[tuple[Edge | str, int]] = [*waiting]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            if item in shown:
                continue
            node = nodes[item]
            source = f" from {', '.join(node.topics)}" if node.topics else ""
            lines.append(f"{'  ' * depth}{item} ({', '.join(node.key)}){source}")
            shown.add(item)
            stack += [(edge, depth + 1) for edge in reversed(graph.edges) if edge.parent == item]
            continue
        lines.append("  " * depth + _line(item))
        if item.entity is not None and item.entity not in shown:
            shown.add(item.entity)
            stack += [(edge, depth + 1) for edge in reversed(graph.edges) if edge.parent == item.entity]
    lines += [f"cycle: {' -> '.join((*cycle, cycle[0]))}" for cycle in graph.cycles]
    return "\n".join(lines)


def _line(edge: Edge) -> str:
    actions = edge.actions
    rows = f", rows are {edge.entity}" if edge.entity is not None else ""
    by = f", by {' and '.join(edge.ways)}" if edge.ways != (Way.EVENTS,) else ""
    return f"{edge.id}: {edge.store}/{edge.target} ({', '.join(edge.columns)}): {actions}{rows}{by}"


def as_mermaid(graph: Graph) -> str:
    """A flowchart in Mermaid."""
    ids = _ids(graph)
    lines = ["flowchart LR"]
    lines += [f'    {ids[node.entity]}["{_mermaid(node.entity)}"]' for node in graph.nodes]
    for edge in graph.edges:
        if edge.entity is None:
            lines.append(f'    {ids[edge.id]}["{_mermaid(f"{edge.store}/{edge.target}")}"]')
        label = _mermaid(f"{edge.id}: {edge.actions}")
        arrow = "-.->" if Way.DERIVED in edge.ways else "-->"
        lines.append(f'    {ids[edge.parent]} {arrow}|"{label}"| {ids[edge.entity or edge.id]}')
    return "\n".join(lines)


def as_dot(graph: Graph) -> str:
    """A digraph for Graphviz."""
    ids = _ids(graph)
    lines = ["digraph integrity {", "    rankdir=LR;", "    node [shape=box];"]
    lines += [f"    {ids[node.entity]} [label={_dot(node.entity)}];" for node in graph.nodes]
    for edge in graph.edges:
        if edge.entity is None:
            lines.append(f"    {ids[edge.id]} [label={_dot(f'{edge.store}/{edge.target}')}];")
        label = _dot(f"{edge.id}: {edge.actions}")
        style = ", style=dashed" if Way.DERIVED in edge.ways else ""
        lines.append(f"    {ids[edge.parent]} -> {ids[edge.entity or edge.id]} [label={label}{style}];")
    return "\n".join([*lines, "}"])


def _ids(graph: Graph) -> dict[str, str]:
    """Names that are safe in both languages."""
    things = [*(node.entity for node in graph.nodes), *(edge.id for edge in graph.edges if edge.entity is None)]
    return {thing: f"n{number}" for number, thing in enumerate(things, 1)}


def _mermaid(text: str) -> str:
    return "".join(c if c.isalnum() or c in " ./_-:,()" else f"#{ord(c)};" for c in text)


def _dot(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
