"""Directories of views, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from integrity.stores.topic.scratch import Scratch

LEAVES_ONE = "import os; from integrity.stores.topic.scratch import Scratch; print(Scratch().path); os._exit(9)"


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_closed_directory_is_gone(tmp_path: Path) -> None:
    scratch = Scratch()
    (scratch.path / "view.sqlite").write_text("rows")
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = subprocess.run(
        [sys.executable, "-c", LEAVES_ONE], env=os.environ, capture_output=True, text=True, check=False
    )
    path = Path(left.stdout.strip())
    assert path.parent == tmp_path
    assert path.exists()
    scratch = Scratch()
    assert [each.name for each in tmp_path.iterdir()] == [scratch.path.name]
    scratch.close()


def test_a_living_process_keeps_its_directory() -> None:
    one = Scratch()
    two = Scratch()
    assert one.path.exists()
    one.close()
    assert two.path.exists()
    two.close()
