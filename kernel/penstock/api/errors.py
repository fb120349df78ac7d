"""The one table from Penstock's errors to Kafka's error codes."""

from __future__ import annotations

__all__ = (
    "OPERATING_ERRORS",
    "TIMED_OUT",
    "controller_code_of",
    "error_code_of",
    "error_message_of",
    "is_expected",
    "quoted",
)

from typing import Final

from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    ConflictError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import BatchError

#: First match wins. Retryable errors map to codes that all clients retry; FullError to one that says
#: "not stored", so that an idempotent producer may send the same sequence again.
_TABLE: Final[tuple[tuple[type[PenstockError], ErrorCode], ...]] = (
    (FullError, ErrorCode.NOT_ENOUGH_REPLICAS),
    (FencedError, ErrorCode.NOT_LEADER_OR_FOLLOWER),
    (ClosedError, ErrorCode.NOT_LEADER_OR_FOLLOWER),
    (UnavailableError, ErrorCode.KAFKA_STORAGE_ERROR),
    (NotFoundError, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
    (AlreadyExistsError, ErrorCode.TOPIC_ALREADY_EXISTS),
    (ConflictError, ErrorCode.REQUEST_TIMED_OUT),
    (InvalidRequestError, ErrorCode.INVALID_REQUEST),
    (NewerVersionError, ErrorCode.KAFKA_STORAGE_ERROR),
    (CorruptError, ErrorCode.UNKNOWN_SERVER_ERROR),
)

#: Errors with a code of their own, which handlers answer. Any other is a bug to be shown, and no answer for a client.
OPERATING_ERRORS: Final[tuple[type[Exception], ...]] = (
    KafkaError,
    BatchError,
    *(kind for kind, _ in _TABLE if kind is not CorruptError),
)

#: Said where a request allowed no time at all (``timeout_ms`` of 0 or less): as in Kafka, nothing is done then.
TIMED_OUT: Final = "the request's time was up before anything was done"

_TEXT_MAX: Final = 100


def error_code_of(error: BaseException) -> int:
    """The code to answer ``error`` with; UNKNOWN_SERVER_ERROR for what isn't in the table."""
    if isinstance(error, KafkaError | BatchError):
        return error.error_code
    for kind, code in _TABLE:
        if isinstance(error, kind):
            return int(code)
    return int(ErrorCode.UNKNOWN_SERVER_ERROR)


def controller_code_of(error: BaseException) -> int:
    """The code to answer ``error`` with in requests to the controller, which create, grow and delete topics.

    A broker that stops isn't the controller any more; clients look for the next one then, and take
    NOT_LEADER_OR_FOLLOWER for final in these APIs.
    """
    if isinstance(error, FencedError | ClosedError):
        return int(ErrorCode.NOT_CONTROLLER)
    return error_code_of(error)


def error_message_of(error: BaseException) -> str:
    """The error text for the client: that of our own errors, and nothing of a bug's."""
    return str(error) if isinstance(error, PenstockError) else ErrorCode.UNKNOWN_SERVER_ERROR.message


def is_expected(error: BaseException) -> bool:
    """Whether ``error`` is an operating error with a code of its own, so that no traceback is due."""
    return isinstance(error, OPERATING_ERRORS)


def quoted(text: str) -> str:
    """A stranger's text for a message or a log line: quoted, escaped and of bounded length."""
    return repr(text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "...")
