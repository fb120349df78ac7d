"""The outcome of an append, and the Kafka error for it."""

from __future__ import annotations

__all__ = ("AppendOutcome", "append_error_code", "doubtful_error_code")

from collections.abc import Sequence

import msgspec

from penstock.errors import ClosedError, FencedError, InvalidRequestError
from penstock.wire.error_codes import ErrorCode


class AppendOutcome(msgspec.Struct, frozen=True, eq=False):
    """The outcome of one append: what a partition's entry of a ProduceResponse says.

    ``record_errors`` has (index in the batch, message) of each bad record (KIP-467). ``base_offset`` is that of the
    first record, for a duplicate the one that it got the first time; ``log_append_time_ms`` is -1 for CreateTime. On
    error they are -1, and so is ``log_start_offset``, but for batches whose records or sequence are at fault.
    """

    #: 0: the records are durable. Else a Kafka error code.
    error_code: int = 0
    #: A sentence for the client (Produce v8+).
    error_message: str | None = None
    record_errors: Sequence[tuple[int, str | None]] = ()
    base_offset: int = -1
    log_append_time_ms: int = -1
    log_start_offset: int = -1


def append_error_code(error: Exception) -> int:
    """The error code for an append that failed: retriable unless it never will work here."""
    if isinstance(error, (FencedError, ClosedError)):
        return ErrorCode.NOT_LEADER_OR_FOLLOWER
    if isinstance(error, InvalidRequestError):  # an entry that the WAL never takes, whatever the topic allows
        return ErrorCode.MESSAGE_TOO_LARGE
    return ErrorCode.KAFKA_STORAGE_ERROR


def doubtful_error_code(error: Exception) -> int:
    """The error code for an append that the WAL took, and then failed.

    The batch may be on the medium, and come back at the next recovery. So the code is one after which idempotent
    clients send the very same batch again, which is then recognised; after "not stored", librdkafka may batch its
    records in another way, and they would be stored twice.
    """
    code = append_error_code(error)
    return code if code == ErrorCode.MESSAGE_TOO_LARGE else ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND
