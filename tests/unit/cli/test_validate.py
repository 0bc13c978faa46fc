"""`integrity validate` and `integrity schema`, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from integrity.cli.schema import command as schema
from integrity.cli.validate import command as validate
from integrity.core.rules.document import BYTES_MAX
from integrity.core.rules.schema import rules_schema

VALID = Path("rules/customer.yaml").read_text("utf-8")
WRONG = VALID.replace("on_delete: nullify", "on_delete: nulify").replace("version: 1", "version: yes")
LINE = WRONG[: WRONG.index("nulify")].count("\n") + 1


def _run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(validate, list(arguments), env=env)


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    file = tmp_path / "shop.yaml"
    file.write_text(WRONG, "utf-8")
    return file


def test_valid_rules_are_summed_up_in_one_line() -> None:
    result = _run("rules")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("The rules are valid: 5 files, 5 parents, 11 dependents, hash ")
    assert result.stdout.count("\n") == 1


def test_rules_are_looked_for_where_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "one.yml").write_text(VALID, "utf-8")
    assert _run(env={"INTEGRITY_RULES": str(tmp_path)}).stdout.startswith("The rules are valid: 1 file, 1 parent,")
    assert _run(env={"INTEGRITY_RULES": ""}).stdout.startswith("The rules are valid: 5 files")


def test_every_fault_is_printed_with_its_place_caret_and_hint(wrong: Path) -> None:
    result = _run(str(wrong))
    assert result.exit_code == 2
    assert result.stdout == (
        f'{wrong}:3:10: "yes" is a boolean in YAML 1.1 and text in YAML 1.2: quote it [ambiguous_scalar]\n'
        "    version: yes\n"
        "             ^\n"
        '    Write "yes" if it is text.\n'
        f"{wrong}:{LINE}:16: on_delete must be cascade, nullify, set_default, tombstone, restrict or ignore, "
        'not "nulify" [unknown_value]\n'
        "    on_delete: nulify\n"
        "               ^\n"
        "    Did you mean nullify?\n"
    )
    assert result.stderr == "The rules have 2 faults in 1 file: mend them, nothing starts before.\n"


def test_caret_stands_under_its_character_after_wide_ones(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(VALID.replace("references: {customerId: id}", "references: {顧客: id, b: no}"), "utf-8")
    _, line, caret, *_ = _run(str(file)).stdout.splitlines()
    # Each of the two characters is two columns wide.
    assert caret.index("^") == line.index("no}") + 2


@pytest.mark.parametrize("arguments", [("--json",), ("--format", "json")])
def test_json_is_one_document_on_failure_too(wrong: Path, arguments: tuple[str, ...]) -> None:
    result = _run(*arguments, str(wrong))
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["ok"] is False
    assert document["error"]["code"] == "rules"
    assert document["findings"][1] == {
        "code": "unknown_value",
        "severity": "error",
        "message": 'on_delete must be cascade, nullify, set_default, tombstone, restrict or ignore, not "nulify"',
        "hint": "Did you mean nullify?",
        "file": str(wrong),
        "line": LINE,
        "column": 16,
    }


def test_json_of_valid_rules_has_their_counts_and_hash() -> None:
    document = json.loads(_run("--json", "rules").stdout)
    assert len(document.pop("rules")) == 12
    assert document == {"ok": True, "findings": [], "files": 5, "parents": 5, "dependents": 11, "copies": 0}


def test_github_format_is_an_annotation_a_finding(tmp_path: Path) -> None:
    file = tmp_path / "a,b:c%.yaml"
    file.write_text(WRONG, "utf-8")
    result = _run("--format", "github", str(file))
    annotations = result.stdout.splitlines()
    assert len(annotations) == 2
    name = str(file).replace("%", "%25").replace(",", "%2C").replace(":", "%3A")
    assert annotations[1] == (
        f"::error file={name},title=integrity unknown_value,line={LINE},col=16::on_delete must be cascade, nullify, "
        'set_default, tombstone, restrict or ignore, not "nulify"%0ADid you mean nullify?'
    )


def test_sarif_names_every_rule_and_place(wrong: Path) -> None:
    document = json.loads(_run("--format", "sarif", str(wrong)).stdout)
    [run] = document["runs"]
    assert document["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["ambiguous_scalar", "unknown_value"]
    assert run["results"][1]["locations"][0]["physicalLocation"]["region"] == {"startLine": LINE, "startColumn": 16}


def test_sarif_of_valid_rules_has_no_result() -> None:
    assert json.loads(_run("--format", "sarif", "rules").stdout)["runs"][0]["results"] == []


def test_all_files_of_a_directory_are_read_in_order_and_others_are_not(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml"):
        (tmp_path / name).write_text("version: 2\n", "utf-8")
    for name in ("c.txt", ".hidden.yaml"):
        (tmp_path / name).write_text("{", "utf-8")
    findings = json.loads(_run("--json", str(tmp_path)).stdout)["findings"]
    assert [Path(finding["file"]).name for finding in findings] == ["a.yml"] * 3 + ["b.yaml"] * 3


def test_missing_path_is_a_finding(tmp_path: Path) -> None:
    result = _run(str(tmp_path / "nowhere"))
    assert result.exit_code == 2
    assert "nowhere: cannot be read: no such file or directory [unreadable_file]" in result.stdout


def test_directory_without_rules_is_a_finding(tmp_path: Path) -> None:
    result = _run(str(tmp_path))
    assert (result.exit_code, "[no_rules]" in result.stdout) == (2, True)


def test_unreadable_file_does_not_hide_the_faults_of_others(tmp_path: Path, wrong: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    findings = json.loads(_run("--json", str(tmp_path)).stdout)["findings"]
    assert [(Path(finding["file"]).name, finding["code"]) for finding in findings] == [
        ("folder.yaml", "unreadable_file"),
        ("gone.yaml", "unreadable_file"),
        ("shop.yaml", "ambiguous_scalar"),
        ("shop.yaml", "unknown_value"),
    ]


def test_file_above_a_mebibyte_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("#" * (BYTES_MAX + 1), "utf-8")
    result = _run(str(tmp_path))
    assert (result.exit_code, "[yaml_too_large]" in result.stdout) == (2, True)


def test_output_carries_no_control_character_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m.yaml").write_text('version: 1\nparent: "\\e]0;title\\a"\n"a\\eb": 1\n', "utf-8")
    result = _run(str(tmp_path))
    assert all(character.isprintable() or character == "\n" for character in result.stdout)


def test_schema_command_prints_the_schema() -> None:
    result = CliRunner().invoke(schema)
    assert (result.exit_code, json.loads(result.stdout)) == (0, rules_schema())


def test_validate_loads_no_driver() -> None:
    """A check of files in a pipeline must not wait for, or fail on, what only the service needs."""
    code = (
        "import sys; from integrity.cli.validate import command; command(['rules'], standalone_mode=False);"
        "print(sorted({'asyncpg','pymongo','aiokafka','pydantic','opentelemetry'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
