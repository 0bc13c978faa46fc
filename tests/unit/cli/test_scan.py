"""What `integrity scan` refuses before it asks anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from integrity.cli import main

RULES = """\
version: 1
parent: customer
events: {topic: shop.customers, format: debezium, key: {id: int64}, source: {store: shop_db, table: customers}}
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""


@pytest.fixture(autouse=True)
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)
    monkeypatch.setenv("INTEGRITY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("INTEGRITY_STORES__ORDERS_DB__URL", "postgresql://127.0.0.1:1/orders")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grace", "5"], "--grace 5: write 30s"),
        (["--grace", "30d"], "at most 7d"),
        (["--max-share", "5"], "--max-share 5: write 10%"),
        (["--max-share", "101%"], "at most 100%"),
        (["--repair", "--no-input"], "--repair needs --yes"),
        (["--dependent", "customer.order"], "Did you mean customer.orders?"),
        ([], "store 'shop_db' has no settings"),
    ],
)
def test_what_was_asked_for_wrongly_is_told(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_store_that_does_not_answer_is_told_and_the_command_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INTEGRITY_STORES__SHOP_DB__URL", "mongodb://127.0.0.1:1/shop")
    assert main(["scan"]) == 2, "a table is in no MongoDB"
    monkeypatch.setenv("INTEGRITY_STORES__SHOP_DB__URL", "postgresql://127.0.0.1:1/shop")
    capsys.readouterr()
    assert main(["scan"]) == 3
    assert "customer.orders failed: Store" in capsys.readouterr().err
