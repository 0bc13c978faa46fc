"""The one table of what Kafka's errors mean for a batch; no error of the client passes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aiokafka import errors

from integrity.core.outcome import ApplyResult, Broken, Diverged, Rejected, Retry
from integrity.errors import Reason

CLIENT_ERRORS: Final = (
    errors.KafkaError,
    errors.IllegalOperation,
    errors.ConsumerStoppedError,
    TimeoutError,
    OSError,
)
# The client asserts its own state, which is wrong once a producer has failed for good.
PRODUCER_ERRORS: Final = (*CLIENT_ERRORS, AssertionError)


class Unsent(Exception):
    """A record was not taken; `dependent` is whose it is, None for the ledger's. The cause is the client's error."""

    def __init__(self, dependent: str | None) -> None:
        super().__init__()
        self.dependent = dependent


Meaning = Callable[[str | None], ApplyResult]
"""What an error means, given whose record it hit (None: the ledger's, or nobody's)."""


def _fenced(_: str | None) -> ApplyResult:
    return Diverged("Another process has taken over this store.")


def _unreachable(_: str | None) -> ApplyResult:
    return Retry("Kafka does not answer.", unreachable=True)


def _unsure(_: str | None) -> ApplyResult:
    return Retry("The transaction ended in an error; whether it took effect is read from the ledger.")


def _forbidden(dependent: str | None) -> ApplyResult:
    return Broken(dependent, Reason.PRIVILEGE, "Kafka does not allow this client to use the topic or the transaction.")


def _missing(dependent: str | None) -> ApplyResult:
    return Broken(dependent, Reason.SCHEMA_MISMATCH, "The topic does not exist any more.")


def _refused(reason: Reason, message: str) -> Meaning:
    def result(dependent: str | None) -> ApplyResult:
        if dependent is None:
            return Broken(None, Reason.STORE_REJECTED, "Kafka refused a record of the ledger.")
        return Rejected(dependent, reason, message)

    return result


_too_large = _refused(Reason.VALUE_REJECTED, "The rewritten record is larger than its topic allows.")
_rejected = _refused(Reason.STORE_REJECTED, "Kafka refused the record.")

# Most specific class first.
_TABLE: Final[tuple[tuple[type[BaseException], Meaning], ...]] = (
    (errors.ProducerFenced, _fenced),
    (errors.InvalidProducerEpoch, _fenced),
    (errors.MessageSizeTooLargeError, _too_large),
    (errors.RecordTooLargeError, _too_large),
    (errors.RecordListTooLargeError, _too_large),
    (errors.InvalidMessageError, _rejected),
    (errors.InvalidTimestampError, _rejected),
    (errors.PolicyViolationError, _rejected),
    (errors.TopicAuthorizationFailedError, _forbidden),
    (errors.ClusterAuthorizationFailedError, _forbidden),
    (errors.TransactionalIdAuthorizationFailed, _forbidden),
    (errors.SaslAuthenticationFailed, _forbidden),
    (errors.AuthenticationFailedError, _forbidden),
    (errors.InvalidTopicError, _missing),
    (errors.KafkaTimeoutError, _unreachable),
    (errors.KafkaConnectionError, _unreachable),
    (TimeoutError, _unreachable),
    (OSError, _unreachable),
)


def meaning(exc: BaseException, dependent: str | None = None) -> ApplyResult:
    """What an error of the client means. What is not in the table is unsure when it may pass, else unclassified."""
    if isinstance(exc, Unsent):
        cause = exc.__cause__
        assert cause is not None, "Unsent is raised from the client's error"
        # The broker has a code for what breaks a topic's rules that the client does not know (87).
        if type(cause) is errors.UnknownError:
            return _rejected(exc.dependent)
        return meaning(cause, exc.dependent)
    for kind, found in _TABLE:
        if isinstance(exc, kind):
            return found(dependent)
    if isinstance(exc, errors.KafkaError) and exc.retriable:
        return _unreachable(dependent)
    return _unsure(dependent)
