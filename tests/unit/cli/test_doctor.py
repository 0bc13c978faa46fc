"""`integrity doctor` on what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity.cli import main
from integrity.core.rules.parse import parse_rules
from integrity.errors import Finding, UnreachableError
from integrity.kafka.acls import Operation, Resource
from integrity.service.doctor import Examination
from integrity.settings import Settings
from integrity.wiring import doctor as wiring

RULES = """\
version: 1
parent: customer
events: {topic: customers, format: debezium, key: {id: int64}}
dependents:
  - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}
"""
WARNING = Finding("clock_skew", "the clock is away", "Set it.", severity="warning")
ERROR = Finding("table_missing", "there is no table orders", "Create it.", "rules/customer.yaml", 5, 5)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("rules").mkdir()
    Path("rules/customer.yaml").write_text(RULES)

    def run(found: Examination, *arguments: str) -> tuple[int, str, str]:
        async def examined(*_: Any) -> Examination:
            return found

        monkeypatch.setattr(wiring, "examined", examined)
        code = main(["doctor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_error_ends_with_1_and_shows_its_line(run: Run) -> None:
    code, out, _ = run(Examination([ERROR, WARNING], {}))
    assert code == 1
    assert out.splitlines() == [
        "error: rules/customer.yaml:5:5: there is no table orders [table_missing]",
        "    - {store: orders_db, table: orders, references: {customer_id: id}, on_delete: cascade}",
        "      ^",
        "    Create it.",
        "warning: the clock is away [clock_skew]",
        "    Set it.",
        "1 error, 1 warning.",
    ]


def test_warnings_alone_are_fine(run: Run) -> None:
    assert run(Examination([WARNING], {}))[0] == 0
    assert run(Examination([], {})) == (0, "Everything fits.\n", "")


def test_silence_is_no_health(run: Run) -> None:
    silent = {"kafka": UnreachableError("Kafka does not answer.", hint="Start it.")}
    code, out, err = run(Examination([], silent))
    assert (code, out) == (3, "Nothing was found in what answered.\n")
    assert err == "kafka did not answer: Kafka does not answer. Start it.\n"
    code, out, _ = run(Examination([ERROR], silent), "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["unanswered"][0]["name"]) == (3, False, "kafka")


@pytest.mark.parametrize("output", ["json", "github", "sarif"])
def test_formats_are_those_of_validate(run: Run, output: str) -> None:
    code, out, _ = run(Examination([ERROR, WARNING], {}), "--format", output)
    assert code == 1
    match output:
        case "json":
            assert [each["code"] for each in json.loads(out)["findings"]] == ["table_missing", "clock_skew"]
        case "github":
            first, second = out.splitlines()
            assert first.startswith("::error file=rules/customer.yaml") and second.startswith("::warning ")
        case "sarif":
            results = json.loads(out)["runs"][0]["results"]
            assert [each["level"] for each in results] == ["error", "warning"]


def test_unknown_store_is_wrong_usage(capsys: pytest.CaptureFixture[str], run: Run, monkeypatch: Any) -> None:
    monkeypatch.undo()
    assert main(["doctor", "--rules", "nowhere"]) == 2


def test_every_topic_of_ours_is_among_what_the_user_of_the_lanes_has_to_be_allowed() -> None:
    """That of the scans is only read: whoever scans writes it."""
    rules = parse_rules({"customer.yaml": Path("rules/customer.yaml").read_text()})
    settings = Settings(group="shop")
    needs = wiring._needs(settings, rules, ["orders_db", "carts"])
    found = {(need.operation, need.name) for need in needs if need.resource is Resource.TOPIC}
    ours = {name for _, name in found} - {"shop.public.customers", "carts"}
    assert ours == {"shop.redrive", "shop.scans", "integrity.dlq", "integrity.dlq.status", "integrity.audit"}
    assert (Operation.READ, "shop.scans") in found and (Operation.WRITE, "shop.scans") not in found
