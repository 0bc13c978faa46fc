"""What a MongoStore knows without a server: its URL, its commands, its filters."""

from __future__ import annotations

import pytest

from integrity.core.rules.model import Cascade
from integrity.errors import SettingsError
from integrity.stores.mongo import MongoStore
from integrity.stores.mongo.ledger import chunks
from integrity.stores.mongo.query import referencing
from tests.contract.world import rule, rules_of


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://app:s3cret@db.example:27017",
        "mongodb://app:s3cret@db.example:27017/",
        "mongodb://app:s3cret@db.example:27017/a/b",
        "mongodb://app:s3cret@db.example:27017/a.b",
        "mongodb://app:s3cret@db.example:port/shop",
        "mongodb://app:s3c:r@et@db.example/shop",
        "mongodb:///shop",
        "postgresql://app:s3cret@db.example/shop",
    ],
)
def test_wrong_url_is_a_settings_error_without_its_credentials(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        MongoStore("reviews_db", url, {}, lane="integrity.reviews_db")
    assert "reviews_db" in str(raised.value) and "s3c" not in str(raised.value)


def test_commands_are_for_the_database_and_schema_of_the_settings() -> None:
    url = "mongodb://a.example:1,b.example:2/my%2Dshop?replicaSet=rs0"
    store = MongoStore("s", url, rules_of(rule(Cascade())), lane="integrity.s", schema="guard")
    lines = store.ddl().splitlines()
    assert lines[0] == 'use("my-shop");'
    assert 'db.createCollection("guard.keys");' in lines
    assert all(line.endswith(";") for line in lines)


def test_composite_keys_share_a_branch_for_all_parts_but_the_last() -> None:
    keys = {("a", 1): ("a", 1), ("a", 2): ("a", 2), ("b", 2): ("b", 2)}
    assert referencing(("t", "c"), keys) == {
        "$or": [{"t": {"$in": ["a"]}, "c": {"$in": [1, 2]}}, {"t": {"$in": ["b"]}, "c": {"$in": [2]}}]
    }
    assert referencing(("c",), {(1,): (1,), (2,): (2,)}) == {"c": {"$in": [1, 2]}}


def test_chunks_hold_everything_once() -> None:
    assert [list(chunk) for chunk in chunks([1, 2, 3, 4, 5], 2)] == [[1, 2], [3, 4], [5]]
    assert list(chunks([], 2)) == []
