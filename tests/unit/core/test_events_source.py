"""`events.source`: where the parents themselves are."""

from __future__ import annotations

import jsonschema
import pytest
import yaml

from integrity.core.rules.findings import FindingCode
from integrity.core.rules.model import Source, Target, TargetKind
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.schema import rules_schema
from integrity.errors import RulesError

FILE = """\
version: 1
parent: customer
events:
  topic: shop.public.customers
  format: debezium
  key: {%s: int64}
%sdependents:
  - {store: orders_db, table: orders, references: {customer_id: %s}, on_delete: cascade}
"""


def file(source: str, key: str = "id") -> str:
    return FILE % (key, source and f"  source: {source}\n", key)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("{store: shop_db, table: public.customers}", Source("shop_db", Target(TargetKind.TABLE, "public.customers"))),
        ("{store: shop, collection: customers}", Source("shop", Target(TargetKind.COLLECTION, "customers"))),
    ],
)
def test_source_names_a_store_and_a_table_or_a_collection(text: str, source: Source) -> None:
    rules = parse_rules({"a.yaml": file(text)})
    events = rules.parents[0].events
    assert events is not None
    assert events.source == source
    assert rules.hash != parse_rules({"a.yaml": file("")}).hash
    jsonschema.validate(yaml.safe_load(file(text)), rules_schema())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("shop_db", FindingCode.WRONG_TYPE),
        ("{}", FindingCode.EMPTY),
        ("{store: shop_db}", FindingCode.ONE_OF_FIELDS),
        ("{store: shop_db, table: a, collection: b}", FindingCode.ONE_OF_FIELDS),
        ("{table: customers}", FindingCode.MISSING_FIELD),
        ("{store: Shop, table: customers}", FindingCode.BAD_NAME),
        ("{store: shop_db, table: a.b.c}", FindingCode.BAD_TARGET),
        ("{store: shop_db, topic: customers}", FindingCode.UNKNOWN_FIELD),
        ("{store: shop_db, table: customers, columns: {id: id}}", FindingCode.UNKNOWN_FIELD),
    ],
)
def test_source_that_is_none_is_refused_at_its_place(text: str, code: FindingCode) -> None:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": file(text)})
    assert code in [finding.code for finding in caught.value.findings]
    assert all(finding.line == 7 for finding in caught.value.findings)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(file(text)), rules_schema())


def test_key_field_that_is_no_column_is_refused() -> None:
    with pytest.raises(RulesError) as caught:
        parse_rules({"a.yaml": file("{store: shop_db, table: customers}", key="customer.id")})
    assert [finding.code for finding in caught.value.findings] == [FindingCode.BAD_COLUMN]
    parse_rules({"a.yaml": file("{store: shop_db, collection: customers}", key="customer.id")})
