"""`integrity version`."""

from __future__ import annotations

import json
import platform
import tomllib
from pathlib import Path

import pytest

from integrity.cli import main

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"integrity {PROJECT['version']} (Python {platform.python_version()})\n"


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": PROJECT["version"], "python": platform.python_version()}
