"""What is counted of the statuses of dead letters."""

from __future__ import annotations

from integrity.kafka.open_letters import OpenLetters, Waiting

AT_MS = 1_772_366_400_000


def said(status: str, *, reason: str = "bad_json", dependent: str = "*", second: int = 0) -> bytes:
    at = f"2026-03-01T12:00:0{second}.000Z"
    return f'{{"status":"{status}","at":"{at}","reason":"{reason}","dependent":"{dependent}"}}'.encode()


def test_open_and_held_letters_are_counted_until_something_is_done_about_them() -> None:
    letters = OpenLetters({}, "dlq", lambda _: None)
    assert letters.waiting() == Waiting({}, {}, None)
    letters.take(b"1", said("open", second=1))
    letters.take(b"2", said("open", second=2))
    letters.take(b"3", said("held", reason="too_many_rows", dependent="customer.orders"))
    letters.take(b"1", said("open", second=1))  # read again
    assert letters.waiting() == Waiting({("bad_json", "*"): 2}, {"customer.orders": 1}, AT_MS + 1000)
    letters.take(b"1", said("retried"))
    letters.take(b"3", said("resolved"))
    assert letters.waiting() == Waiting({("bad_json", "*"): 1}, {"customer.orders": 0}, AT_MS + 2000)
    letters.take(b"2", None)
    letters.take(b"4", b"{")
    letters.take(None, said("open"))
    assert letters.waiting() == Waiting({("bad_json", "*"): 0}, {"customer.orders": 0}, None)


def test_parked_letters_are_counted_by_store_until_what_was_sent_back_is_answered() -> None:
    """Whoever sent it back may have been killed before it was sent."""
    letters = OpenLetters({}, "dlq", lambda _: None)

    def of_acme(status: str) -> bytes:
        return said(status, reason="store_rejected").replace(b"}", b',"store":"shop_db","parked":"acme"}')

    parked = of_acme("open")
    letters.take(b"1", parked)
    letters.take(b"2", parked)
    letters.take(b"3", said("open").replace(b"}", b',"store":"shop_db"}'))
    assert letters.waiting().parked == {"shop_db": 2}
    letters.take(b"1", of_acme("retried"))
    assert letters.waiting().parked == {"shop_db": 2}
    assert letters.waiting().open == {("store_rejected", "*"): 1, ("bad_json", "*"): 1}
    letters.take(b"1", said("resolved"))
    assert letters.waiting().parked == {"shop_db": 1}
    assert letters.waiting().open == {("store_rejected", "*"): 1, ("bad_json", "*"): 1}
