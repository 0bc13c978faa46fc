"""Headers of dead letters: what came stays, what is ours replaces its namesakes."""

from __future__ import annotations

from integrity.kafka.headers import Header, last_text, merged


def test_headers_of_other_names_stay_as_they_came_in_order_and_number() -> None:
    came = [("a", b"1"), ("b", None), ("a", b"\xff")]
    assert merged(came, {"c": "x"}) == [*came, ("c", b"x")]


def test_every_header_of_our_names_is_replaced_once() -> None:
    came = [("integrity.id", b"old"), ("x", b""), ("integrity.id", b"older")]
    assert merged(came, {Header.ID: "new"}) == [("x", b""), ("integrity.id", b"new")]
    assert {type(name) for name, _ in merged(came, {Header.ID: "new"})} == {str}


def test_a_lone_surrogate_in_a_message_is_written_as_an_escape() -> None:
    assert merged((), {"m": "bad \ud800 text"}) == [("m", b"bad \\ud800 text")]


def test_the_last_header_of_a_name_counts() -> None:
    headers = [("t", b"first"), ("t", b"last"), ("u", None), ("v", b"\xff")]
    assert last_text(headers, "t") == "last"
    assert last_text(headers, "u") is None
    assert last_text(headers, "v") is None
    assert last_text(headers, "w") is None
