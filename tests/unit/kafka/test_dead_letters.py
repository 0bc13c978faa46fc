"""Ids and times of dead letters."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

from integrity.core.decode.record import Record
from integrity.errors import Reason
from integrity.kafka.dead_letters import DeadLetter, DeadLetters, Stage, dead_letter_id, rfc3339
from integrity.kafka.letters import Filter, LetterIndex


def test_the_id_is_the_same_for_ever() -> None:
    """Tools keep ids; a change of how they are made would orphan every dead letter there is."""
    # printf 'shop.public.customers\n3\n41\ncustomer.orders\norders_db' | b2sum -l 128
    assert dead_letter_id("shop.public.customers", 3, 41, "customer.orders", "orders_db") == (
        "20dd710114cc41c944cdbca0faf55cad"
    )


def test_ids_differ_in_every_part() -> None:
    coordinates = [("t", 0, 1, "d", "s"), ("t", 0, 1, "d", "r"), ("t", 0, 1, "e", "s"), ("t", 0, 2, "d", "s")]
    coordinates += [("t", 1, 1, "d", "s"), ("u", 0, 1, "d", "s"), ("t", 0, 11, "d", "s"), ("t", 0, 1, "*", "s")]
    ids = [dead_letter_id(*each) for each in coordinates]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert all(one != other for one, other in combinations(ids, 2))


def test_a_dead_letter_keeps_its_id_whatever_the_failure() -> None:
    record = Record("t", 0, 7, 1, b"k", b"v", ())
    first = DeadLetter(record, Reason.BAD_JSON, "m", "customer", "*", "s", 1, Stage.VALUE, "r", 5)
    again = DeadLetter(record, Reason.TOO_DEEP, "n", "customer", "*", "s", 9, Stage.KEY, "q", 6, retries=3)
    assert first.id == again.id == dead_letter_id("t", 0, 7, "*", "s")


def test_times_are_utc_with_milliseconds() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(1_772_366_400_123) == "2026-03-01T12:00:00.123Z"


def test_a_parked_letter_names_its_tenant_until_it_fails_otherwise() -> None:
    """It comes back by itself only as long as its tenant's database is what it waits for."""
    letters, index = DeadLetters({}, topic="dlq", group="integrity"), LetterIndex()

    def read(letter: DeadLetter, offset: int) -> list[tuple[str, str]]:
        sent = letters._as_it_came(letter)
        index.take_letter(
            SimpleNamespace(key=sent.key, value=sent.value, headers=sent.headers, partition=0, offset=offset)
        )
        return [(found.reason, found.parked) for found in index.find(Filter(store="shop_db", parked=True))]

    record = Record("customers", 0, 7, 1_700_000_000_000, b"1", None, (("integrity.parked", b"of another time"),))
    parked = DeadLetter(
        record, Reason.STORE_REJECTED, "away", "customer", "*", "shop_db", 1, Stage.STORE, "hash", 1_772_366_400_000
    )
    assert read(parked, 0) == []
    assert read(replace(parked, parked="acme"), 1) == [("store_rejected", "acme")]
    refused = replace(parked, reason=Reason.CONSTRAINT_VIOLATION, failed_at_ms=parked.failed_at_ms + 1)
    assert read(refused, 2) == []
    status = letters._status_of(replace(parked, parked="acme"))
    assert b'"parked":"acme"' in (status.value or b"")
    index.close()
