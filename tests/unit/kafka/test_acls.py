"""What a user may do by the ACLs of a cluster."""

from __future__ import annotations

import pytest

from integrity.kafka.acls import Acl, Need, Operation, Pattern, Resource, command, lacking

READ = Need(Resource.TOPIC, "shop.customers", Operation.READ)
DESCRIBE = READ._replace(operation=Operation.DESCRIBE)
ALLOW = Acl(Resource.TOPIC, "shop.customers", Pattern.LITERAL, "User:i", Operation.READ, True)


@pytest.mark.parametrize(
    ("acls", "is_allowed"),
    [
        ([], False),
        ([ALLOW], True),
        ([ALLOW._replace(operation=Operation.ALL)], True),
        ([ALLOW._replace(operation=Operation.WRITE)], False),
        ([ALLOW._replace(principal="User:*")], True),
        ([ALLOW._replace(principal="User:j")], False),
        ([ALLOW._replace(name="*")], True),
        ([ALLOW._replace(name="shop.")], False),
        ([ALLOW._replace(name="shop.", pattern=Pattern.PREFIXED)], True),
        ([ALLOW._replace(resource=Resource.GROUP)], False),
        ([ALLOW, ALLOW._replace(allows=False, operation=Operation.ALL, principal="User:*")], False),
        ([ALLOW, ALLOW._replace(allows=False, operation=Operation.WRITE)], True),
    ],
)
def test_reading_is_allowed_as_the_broker_allows_it(acls: list[Acl], is_allowed: bool) -> None:
    assert lacking(acls, "User:i", [READ]) == ([] if is_allowed else [READ])


def test_who_may_read_may_describe() -> None:
    assert lacking([ALLOW], "User:i", [DESCRIBE]) == []
    assert lacking([ALLOW._replace(operation=Operation.CREATE)], "User:i", [DESCRIBE]) == [DESCRIBE]


def test_what_is_lacking_is_granted_by_a_command() -> None:
    assert command(READ, "User:i") == (
        "kafka-acls.sh --add --allow-principal User:i --operation Read --topic shop.customers"
    )
