"""What each error of the driver and server means, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from integrity.core.outcome import Broken, Rejected, Retry
from integrity.errors import Reason
from integrity.stores.mongo.verdict import verdict_of

SECRET = "E11000 dup key: { email: 'ada@example.org' }"
DEPENDENT = "customer.reviews"


def labelled(exc: PyMongoError, label: str) -> PyMongoError:
    exc._add_error_label(label)
    return exc


def bulk(code: int) -> BulkWriteError:
    return BulkWriteError({"writeErrors": [{"index": 0, "code": code, "errmsg": SECRET, "op": {"q": SECRET}}]})


@pytest.mark.parametrize(
    "exc",
    [
        AutoReconnect(SECRET),
        NetworkTimeout(SECRET),
        NotPrimaryError(SECRET),
        ServerSelectionTimeoutError(SECRET),
        WaitQueueTimeoutError(SECRET),
        OperationFailure(SECRET, 91),
        labelled(OperationFailure(SECRET, 11600), "TransientTransactionError"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dependent", [None, DEPENDENT])
def test_server_that_is_away_is_retried_as_unreachable(exc: PyMongoError, dependent: str | None) -> None:
    result = verdict_of(exc, dependent)
    assert isinstance(result, Retry) and result.unreachable
    assert "ada" not in result.message


@pytest.mark.parametrize(
    "exc",
    [
        OperationFailure(SECRET, 112),
        bulk(112),
        labelled(OperationFailure(SECRET, 4242), "TransientTransactionError"),
        labelled(OperationFailure(SECRET, 4242), "UnknownTransactionCommitResult"),
        ExecutionTimeout(SECRET, 50),
        OperationFailure(SECRET, 251),
        OperationFailure(SECRET, 24),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dependent", [None, DEPENDENT])
def test_transient_error_is_retried(exc: PyMongoError, dependent: str | None) -> None:
    result = verdict_of(exc, dependent)
    assert isinstance(result, Retry) and not result.unreachable and not result.contended
    assert "ada" not in result.message


def test_duplicate_key_in_the_ledger_is_another_process_and_in_a_collection_a_constraint() -> None:
    assert isinstance(verdict_of(DuplicateKeyError(SECRET, 11000), None), Retry)
    assert isinstance(verdict_of(bulk(11000), None), Retry)
    result = verdict_of(bulk(11000), DEPENDENT)
    assert isinstance(result, Rejected) and result.reason is Reason.CONSTRAINT_VIOLATION


@pytest.mark.parametrize(
    ("exc", "reason"),
    [
        (bulk(121), Reason.CONSTRAINT_VIOLATION),
        (bulk(66), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 2), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 15), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 53), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 56), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 17280), Reason.VALUE_REJECTED),
        (DocumentTooLarge(SECRET), Reason.VALUE_REJECTED),
        (InvalidDocument(SECRET), Reason.VALUE_REJECTED),
        (OverflowError(SECRET), Reason.VALUE_REJECTED),
        (OperationFailure(SECRET, 257), Reason.TOO_MANY_ROWS),
        (OperationFailure(SECRET, 4242), Reason.UNCLASSIFIED),
        (BulkWriteError({}), Reason.UNCLASSIFIED),
        (PyMongoError(SECRET), Reason.UNCLASSIFIED),
    ],
    ids=str,
)
def test_permanent_error_rejects_the_dependent_it_came_from(exc: Exception, reason: Reason) -> None:
    result = verdict_of(exc, DEPENDENT)
    assert isinstance(result, Rejected)
    assert (result.dependent, result.reason) == (DEPENDENT, reason)
    assert "ada" not in result.message


@pytest.mark.parametrize(
    ("exc", "dependent", "reason"),
    [
        (OperationFailure(SECRET, 13), DEPENDENT, Reason.PRIVILEGE),
        (OperationFailure(SECRET, 18), None, Reason.PRIVILEGE),
        (OperationFailure(SECRET, 26), DEPENDENT, Reason.SCHEMA_MISMATCH),
        (OperationFailure(SECRET, 20), None, Reason.SCHEMA_MISMATCH),
        (ConfigurationError(SECRET), None, Reason.STORE_REJECTED),
        (OperationFailure(SECRET, 4242), None, Reason.UNCLASSIFIED),
        (OverflowError(SECRET), None, Reason.UNCLASSIFIED),
    ],
    ids=str,
)
def test_error_of_a_rule_or_the_ledger_blames_no_event(exc: Exception, dependent: str | None, reason: Reason) -> None:
    result: Any = verdict_of(exc, dependent)
    assert isinstance(result, Broken)
    assert (result.dependent, result.reason) == (dependent, reason)
    assert "ada" not in result.message


def test_fault_of_the_program_is_raised() -> None:
    with pytest.raises(KeyError):
        verdict_of(KeyError("x"), DEPENDENT)
