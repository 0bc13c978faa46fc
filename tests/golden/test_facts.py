"""Each fact of what the captured bytes say is a named test, `test_fact_N_...`; and each captured file is read."""

from __future__ import annotations

import ast
import re

from tests.golden import document_histories, flat_histories, histories, histories_relational, records
from tests.golden import test_decode_captured_cloudevents as cloudevents
from tests.golden import test_decode_captured_outbox as outbox
from tests.golden.records import EVENTS

TESTS = EVENTS.parent.parent
FACT = re.compile(r"test_fact_([0-9]+)_(?:and_([0-9]+)_)?")


def facts() -> set[int]:
    """The numbers under "What the bytes say"."""
    _, _, section = (EVENTS / "README.md").read_text().partition("\n## What the bytes say")
    return {int(number) for number in re.findall(r"^([0-9]+)\. ", section.partition("\n## ")[0], re.MULTILINE)}


def named() -> set[int]:
    """The numbers in names of tests, over all kinds of tests."""
    names = (
        node.name
        for file in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return {int(number) for name in names if (found := FACT.match(name)) for number in found.groups() if number}


def test_every_fact_is_a_named_test_and_no_other() -> None:
    assert facts() == set(range(1, 38))
    assert named() == facts()


def test_every_captured_file_is_read_record_by_record() -> None:
    """By the statements that are noted of it, which these tables hold. Those of the last two stand in their tests."""
    read = {
        *[*records.FILES, *histories.HISTORIES, *histories_relational.HISTORIES],
        *[*document_histories.FILES, *document_histories.FLAT_FILES],
        *(topic.file for topic in flat_histories.TOPICS),
        *(file for file, _ in [*cloudevents.HISTORIES, *outbox.TYPED]),
        *outbox.UNTYPED,
        *("mdb_outbox", "mks_bson"),
    }
    assert {file.stem for file in EVENTS.glob("*.jsonl")} == read
