"""`make fuzz`: what it finds to run, and that the same order is the same cases."""

from __future__ import annotations

from tests import fuzz


def test_every_property_test_of_decoding_has_its_share() -> None:
    found = fuzz.orders(fuzz.arguments(["--cases", "1", "--seed", "1"]))
    assert {test for _, test, _ in found} == fuzz.tests().keys()
    assert len(found) == len(set(found)) > len(fuzz.tests()) > 20


def test_an_order_is_the_same_cases_each_time() -> None:
    order = (7, "test_messages_never_raise::test_any_bytes_are_decoded_to_a_value", 3)
    first = fuzz.run(order)
    assert first == fuzz.run(order)
    assert (first.cases, first.failures) == (fuzz.CHUNK, ())
