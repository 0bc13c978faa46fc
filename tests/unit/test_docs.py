"""The documentation says what the program does: every name in it exists, and every name that must be in it is."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

from integrity import errors
from integrity.cli import shell
from integrity.core.outcome import Outcome
from integrity.errors import IntegrityError, Reason
from integrity.rules_files import load_rules
from integrity.settings import Settings, StoreSettings, load_settings, setting_names
from integrity.settings_sources import SettingsCode

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

SETTING = re.compile(r"INTEGRITY_[A-Z0-9_]*(?:<NAME>[A-Z0-9_]*)?[A-Z0-9>]")


def rows(page: Path, columns: int) -> list[list[str]]:
    """The rows of the page's tables of that many columns, heads and rules left out."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if len(row) == columns and not set(row[0]) <= set("-")]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([a-z0-9_]+)`", cell)


# --- settings --------------------------------------------------------------------------------------------------


def documented_settings() -> dict[str, str]:
    return {row[0].strip("`"): row[1] for row in rows(DOCS / "settings.md", 3) if row[0].startswith("`INTEGRITY_")}


def test_every_setting_is_documented_and_no_other() -> None:
    assert sorted(documented_settings()) == sorted(setting_names())


def test_documented_defaults_are_the_defaults() -> None:
    values = Settings()
    store = StoreSettings.model_validate({"url": "kafka:"})
    documented = documented_settings()
    for name in setting_names():
        value: object = values
        path = [part.lower() for part in name.removeprefix("INTEGRITY_").split("__")]
        if path[0] == "stores":
            value, path = store, [{"schema": "schema_"}.get(path[2], path[2])]
        for part in path:
            value = getattr(value, part)
        if name.endswith("__URL") or hasattr(value, "get_secret_value") or value in ("", None):
            assert documented[name] in ("", "required", "the system's"), name
        else:
            text = f"{value:g}s" if isinstance(value, float) else str(value).lower() if value is False else str(value)
            assert documented[name] == f"`{text}`", name


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    known = [re.escape(name).replace("<NAME>", r"(?:<NAME>|[A-Z0-9]+(?:_[A-Z0-9]+)*)") for name in setting_names()]
    later = ["INTEGRITY_HTTP__PREFIX"]
    groups = "|".join({re.escape(name.rpartition("__")[0]) for name in setting_names() if "__" in name})
    for name in SETTING.findall(page.read_text()):
        assert re.fullmatch("|".join([*known, *later, groups]), name), name


def test_yaml_example_of_the_settings_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "settings.md").read_text(), re.DOTALL)
    Path("settings.yaml").write_text(example)
    settings = load_settings(Path("settings.yaml"))
    assert set(settings.stores) == {"orders_db", "carts"}


# --- codes -----------------------------------------------------------------------------------------------------


def section(page: Path, heading: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    level = heading.partition(" ")[0]
    return re.split(rf"(?m)^#{{1,{len(level)}}} ", page.read_text().split(f"\n{heading}\n")[1])[0]


def first_cells(text: str) -> list[str]:
    return [
        code for line in text.splitlines() if line.startswith("| `") for code in codes(line.strip("|").split("|")[0])
    ]


def test_every_reason_code_is_documented_once_and_no_other() -> None:
    documented = first_cells(section(DOCS / "errors.md", "## Reason codes of dead letters"))
    assert sorted(documented) == sorted(reason.value for reason in Reason)


def test_every_error_code_is_documented_with_its_exit_code() -> None:
    table = {codes(row[0])[0]: row[1] for row in rows(DOCS / "errors.md", 4) if codes(row[0])}
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, IntegrityError)
    ]
    known = {cls.code: str(cls.exit_code) for cls in classes if cls is not IntegrityError}
    assert table == {**known, "unexpected": str(shell.EXIT_FAULT)}


def test_every_finding_about_settings_is_documented_and_no_other() -> None:
    assert sorted(first_cells(section(DOCS / "errors.md", "### In the settings"))) == sorted(SettingsCode)


def finding_codes(*files: Path) -> set[str]:
    """The codes that are written out where findings are made."""
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Finding", "add", "_at"):
                constants = [c.value for a in node.args[:2] for c in ast.walk(a) if isinstance(c, ast.Constant)]
                found.update(c for c in constants if isinstance(c, str) and re.fullmatch("[a-z]+(_[a-z]+)+", c))
    return found


def test_every_finding_about_live_stores_is_documented_and_no_other() -> None:
    documented = first_cells(section(DOCS / "errors.md", "### In the live stores"))
    assert sorted(documented) == sorted(finding_codes(*(ROOT / "integrity" / "stores").rglob("*.py")))


def test_every_outcome_is_documented_and_no_other() -> None:
    assert sorted(first_cells(section(DOCS / "semantics.md", "## Outcomes"))) == sorted(Outcome)


def test_metrics_that_a_page_names_are_in_the_list_of_metrics() -> None:
    known = {row[0].strip("`") for row in rows(DOCS / "telemetry.md", 4)}
    for page in PAGES:
        for name in re.findall(r"`?(?:increase\()?(integrity_[a-z_]+)[{`\[ ]", page.read_text()):
            assert name in known, f"{page.name}: {name}"


# --- commands, rules, links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_a_page_names_are_in_this_version(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"(?m)(?:`|^|&& )integrity ([a-z]+)", text)
    for sentence in re.findall(r"[^.]*(?:not in this version|COMMAND)[^.]*", text):
        for command in re.findall(r"`integrity ([a-z]+)", sentence):
            named.remove(command)
    assert set(named) <= set(shell.COMMANDS)


def test_every_command_is_in_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    for command in shell.COMMANDS:
        assert f"`integrity {command}" in text, command


def test_rule_file_of_the_readme_is_the_one_that_ships(tmp_path: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "rules" / "customer.yaml").read_text())
    (tmp_path / "customer.yaml").write_text(shown)
    assert set(load_rules(tmp_path).stores) == {"orders_db", "reviews_db", "carts"}


def test_settings_of_the_readme_are_all_that_its_rule_file_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"(?m)^export (.*)$", (ROOT / "README.md").read_text()):
        for word in shlex.split(line):
            monkeypatch.setenv(*word.split("=", 1))
    settings = load_settings()
    assert settings.kafka.client["bootstrap_servers"] == "kafka:9092"
    kinds = {name: store.kind.value for name, store in settings.stores.items()}
    assert kinds == {"orders_db": "postgresql", "reviews_db": "mongodb", "carts": "kafka"}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    for path in re.findall(r"(?<![\w./-])((?:docs|integrity|tests)/[\w/.-]*\w)", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in listed, page.name


# --- promises --------------------------------------------------------------------------------------------------


def test_every_test_that_a_page_names_exists() -> None:
    for page in PAGES:
        for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
            tree = ast.parse((ROOT / file).read_text())
            functions = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert name in functions, f"{page.name}: {file}::{name}"


def test_every_promise_names_a_test() -> None:
    promises = re.split(r"(?m)^\d+\. ", section(DOCS / "semantics.md", "## Promised"))[1:]
    assert len(promises) >= 10
    for promise in promises:
        assert "::test_" in promise, promise.splitlines()[0]
