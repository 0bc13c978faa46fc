"""docs/rules.md names everything a rule file may hold, and every finding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integrity.core.rules.findings import FindingCode
from integrity.core.rules.model import EventValue
from integrity.core.rules.parse import parse_rules
from integrity.core.rules.vocabulary import (
    ACTIONS,
    COPY_ACTIONS,
    COPY_FIELDS,
    DEPENDENT_FIELDS,
    DEPENDENT_LATER,
    EVENTS_FIELDS,
    EVENTS_LATER,
    FORMATS,
    KEY_TYPES,
    PARENT_FIELDS,
    PARENT_LATER,
)

DOCUMENT = Path("docs/rules.md").read_text("utf-8")
WORDS = [
    *PARENT_FIELDS, *EVENTS_FIELDS, *DEPENDENT_FIELDS, *COPY_FIELDS, *COPY_ACTIONS, *KEY_TYPES, *FORMATS, *EventValue
]  # fmt: skip
LATER = DOCUMENT.partition("## Not supported yet")[2].partition("## Findings")[0]


def test_table_of_findings_has_every_code_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ", DOCUMENT.partition("## Findings")[2], re.MULTILINE)
    assert sorted(rows) == sorted(FindingCode)


@pytest.mark.parametrize("word", WORDS)
def test_word_of_this_version_is_documented(word: str) -> None:
    assert f"`{word}`" in DOCUMENT.partition("## Not supported yet")[0]


@pytest.mark.parametrize("action", ACTIONS)
def test_action_is_documented(action: str) -> None:
    assert re.search(rf"^\| `{{?{action}", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize("word", [*PARENT_LATER, *EVENTS_LATER, *DEPENDENT_LATER])
def test_word_of_a_later_version_is_listed_as_not_supported(word: str) -> None:
    assert f"`{word}`" in LATER


def test_example_of_the_document_is_valid() -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert example is not None
    assert len(parse_rules({"example.yaml": example[1]}).parents[0].dependents) == 3
