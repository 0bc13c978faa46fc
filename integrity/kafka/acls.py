"""What a role of Kafka may do by the ACLs of the cluster, judged as the broker does: a denial wins, and a right to do
more is one to describe. Whether somebody is a super user is not in the ACLs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple


class Resource(IntEnum):
    TOPIC = 2
    GROUP = 3
    TRANSACTIONAL_ID = 5


class Pattern(IntEnum):
    LITERAL = 3
    PREFIXED = 4


class Operation(IntEnum):
    ALL = 2
    READ = 3
    WRITE = 4
    CREATE = 5
    DELETE = 6
    ALTER = 7
    DESCRIBE = 8
    DESCRIBE_CONFIGS = 10


class Acl(NamedTuple):
    """One entry; the numbers are those of the protocol."""

    resource: int
    name: str
    pattern: int
    principal: str
    operation: int
    allows: bool


class Need(NamedTuple):
    """What is to be done with a resource."""

    resource: Resource
    name: str
    operation: Operation


_DESCRIBING = (Operation.READ, Operation.WRITE, Operation.DELETE, Operation.ALTER)
"""Whoever may do one of these may describe as well."""


def lacking(acls: Sequence[Acl], principal: str, needs: Iterable[Need]) -> list[Need]:
    """The needs that no entry allows, or one denies."""
    return [need for need in needs if not _is_allowed(acls, principal, need)]


def command(need: Need, principal: str) -> str:
    """What grants it."""
    thing = {Resource.TOPIC: "--topic", Resource.GROUP: "--group", Resource.TRANSACTIONAL_ID: "--transactional-id"}
    operation = need.operation.name.replace("_", " ").title().replace(" ", "")
    return (
        f"kafka-acls.sh --add --allow-principal {principal} --operation {operation} {thing[need.resource]} {need.name}"
    )


def _is_allowed(acls: Sequence[Acl], principal: str, need: Need) -> bool:
    mine = [
        acl
        for acl in acls
        if acl.resource == need.resource
        and acl.principal in (principal, "User:*")
        and (acl.name in (need.name, "*") if acl.pattern == Pattern.LITERAL else need.name.startswith(acl.name))
    ]
    if any(not acl.allows and acl.operation in (Operation.ALL, need.operation) for acl in mine):
        return False
    serving = {Operation.ALL, need.operation}
    if need.operation is Operation.DESCRIBE:
        serving.update(_DESCRIBING)
    return any(acl.allows and acl.operation in serving for acl in mine)
