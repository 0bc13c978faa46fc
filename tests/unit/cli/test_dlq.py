"""What `integrity dlq` understands, before it asks Kafka anything."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest

from integrity.cli import dlq
from integrity.cli.shell import main
from integrity.kafka.dead_letters import Status
from integrity.kafka.letters import Filter


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("retry",), "Say which"),
        (("discard", "--yes"), "Say which"),
        (("retry", "--reason", "too_many_row"), "no such reason code"),
        (("list", "--since", "yesterday"), "neither a time"),
        (("list", "--since", "2026-03-01T12:00:00"), "needs a zone"),
        (("list", "--status", "closed"), "closed"),
        (("list", "--max", "0"), "0"),
    ],
)
def test_what_is_not_understood_is_refused_with_exit_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dlq", *arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert said in json.loads(out)["error"]["message"]


def test_since_is_a_time_or_so_long_ago() -> None:
    assert dlq._since("2026-03-01T13:00:00+01:00") == "2026-03-01T12:00:00.000Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", dlq._since("2h"))
    assert dlq._since("2h") > dlq._since("1d")


class _Counts:
    def __init__(self, counts: dict[tuple[Status, str, str], int]) -> None:
        self.counts = counts

    def count(self, chosen: Filter) -> Any:
        return self.counts


def test_nothing_is_changed_unless_somebody_says_yes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Any = _Counts({(Status.OPEN, "bad_json", "*"): 3})
    with pytest.raises(click.UsageError, match="--yes"):
        dlq._agreed(index, "retry", Filter(), None, yes=False, no_input=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[bool] = [False, True]
    monkeypatch.setattr(click, "confirm", lambda *_, **__: asked.pop())
    assert dlq._agreed(index, "retry", Filter(), 2, yes=False, no_input=False)
    assert not dlq._agreed(index, "discard", Filter(), None, yes=False, no_input=False)
    assert dlq._agreed(index, "retry", Filter(), None, yes=True, no_input=True)
    err = capsys.readouterr().err
    assert "Send back to the lanes: 2 dead letters" in err and "Give up for good: 3 dead letters" in err


def test_text_of_others_moves_no_cursor() -> None:
    assert dlq._shown(b"a\x1b[2Jb\n\xff") == r"a?[2Jb?\xff"
    assert dlq._bytes(b"\xff") == {"base64": "/w=="}
    assert (dlq._bytes(b"{}"), dlq._bytes(None)) == ({"text": "{}"}, None)
