"""Every kind of fault of PostgreSQL and its driver has one answer, and no answer tells a row's values."""

from __future__ import annotations

import asyncpg
import pytest

from integrity.core.outcome import Broken, Rejected, Retry
from integrity.errors import Reason
from integrity.stores.postgres.faults import Kind, fault_of, result_of

TABLE = {
    "40001": Kind.CONTENDED,
    "40P01": Kind.CONTENDED,
    "55P03": Kind.CONTENDED,
    "55006": Kind.CONTENDED,
    "57014": Kind.CONTENDED,
    "40003": Kind.AGAIN,
    "25P03": Kind.AGAIN,
    "25006": Kind.SERVER,
    "08006": Kind.SERVER,
    "53100": Kind.SERVER,
    "53300": Kind.SERVER,
    "57P01": Kind.SERVER,
    "57P03": Kind.SERVER,
    "58030": Kind.SERVER,
    "22003": Kind.EVENT,
    "22021": Kind.EVENT,
    "23502": Kind.EVENT,
    "23503": Kind.EVENT,
    "23505": Kind.EVENT,
    "23514": Kind.EVENT,
    "23P01": Kind.EVENT,
    "44000": Kind.EVENT,
    "54000": Kind.EVENT,
    "21000": Kind.EVENT,
    "P0001": Kind.EVENT,
    "42P01": Kind.RULE,
    "42703": Kind.RULE,
    "42501": Kind.RULE,
    "28P01": Kind.RULE,
    "3D000": Kind.RULE,
    "3F000": Kind.RULE,
    "XX001": Kind.RULE,
    "F0000": Kind.UNKNOWN,
    "ZZ999": Kind.UNKNOWN,
}


def error(state: str, **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new(
        {"S": "ERROR", "C": state, "M": "row of jane@example.org", "D": "Key (email)=(jane@example.org)", **fields}
    )


@pytest.mark.parametrize(("state", "kind"), TABLE.items())
def test_sqlstate_is_of_its_kind(state: str, kind: Kind) -> None:
    assert fault_of(error(state)).kind is kind


@pytest.mark.parametrize("state", [state for state in TABLE if state[:2] not in ("28", "3D", "3F", "42")])
def test_message_tells_the_code_and_names_but_no_values(state: str) -> None:
    message = fault_of(error(state, n="orders_customer", c="customer_id", t="orders")).message
    assert state in message and "orders_customer" in message
    assert "jane" not in message


@pytest.mark.parametrize("state", ["42501", "42P01", "53100", "57P01", "XX000", "ZZ999", "P0001"])
def test_code_that_a_trigger_raises_concerns_its_event_only_and_its_words_stay_untold(state: str) -> None:
    fault = fault_of(error(state, R="exec_stmt_raise"))
    assert (fault.kind, fault.reason) == (Kind.EVENT, Reason.STORE_REJECTED)
    assert state in fault.message and "jane" not in fault.message


def test_contention_that_a_trigger_raises_is_tried_again() -> None:
    assert fault_of(error("40001", R="exec_stmt_raise")).kind is Kind.CONTENDED


def test_what_the_driver_refuses_to_encode_is_a_rejected_value() -> None:
    fault = fault_of(asyncpg.exceptions.DataError("invalid input for query argument $1: jane@example.org"))
    assert (fault.kind, fault.reason) == (Kind.EVENT, Reason.VALUE_REJECTED)
    assert "jane" not in fault.message


@pytest.mark.parametrize(
    "exc",
    [
        TimeoutError(),
        ConnectionRefusedError(111, "refused"),
        ConnectionResetError(),
        EOFError(),
        OSError(113, "no route"),
    ],
)
def test_broken_connection_is_the_servers_fault(exc: BaseException) -> None:
    assert fault_of(exc).kind is Kind.SERVER


def test_interface_error_is_the_servers_fault_only_when_the_connection_was_closed() -> None:
    assert fault_of(asyncpg.InterfaceError("connection is closed"), closed=True).kind is Kind.SERVER
    assert fault_of(asyncpg.InterfaceError("another operation is in progress")).kind is Kind.UNKNOWN


def test_stale_prepared_statement_is_tried_again() -> None:
    exc = asyncpg.PostgresError.new({"S": "ERROR", "C": "0A000", "M": "cached plan must not change result type"})
    stale = asyncpg.exceptions.InvalidCachedStatementError("cached plan must not change result type")
    assert fault_of(stale).kind is Kind.AGAIN
    assert fault_of(exc).kind is Kind.RULE


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("55P03", Retry("", contended=True, dependent="customer.orders")),
        ("40003", Retry("")),
        ("57P03", Retry("", unreachable=True)),
        ("23503", Rejected("customer.orders", Reason.CONSTRAINT_VIOLATION, "")),
        ("22003", Rejected("customer.orders", Reason.VALUE_REJECTED, "")),
        ("P0001", Rejected("customer.orders", Reason.STORE_REJECTED, "")),
        ("ZZ999", Rejected("customer.orders", Reason.UNCLASSIFIED, "")),
        ("42703", Broken("customer.orders", Reason.SCHEMA_MISMATCH, "")),
        ("42501", Broken("customer.orders", Reason.PRIVILEGE, "")),
    ],
)
def test_answer_names_the_dependent_whose_statement_failed(state: str, expected: object) -> None:
    fault = fault_of(error(state))._replace(message="")
    assert result_of(fault, "customer.orders") == expected


@pytest.mark.parametrize("state", ["23505", "22003", "ZZ999", "42P01"])
def test_no_event_is_blamed_for_the_ledgers_own_statements(state: str) -> None:
    result = result_of(fault_of(error(state)), None)
    assert isinstance(result, Broken) and result.dependent is None
