"""All checks of a produced batch, one after the other, as the partition makes them in parts."""

from __future__ import annotations

__all__ = ("validate_produce_batch",)

from penstock.wire.records import INFLATED_BYTES_MAX, BatchHeader, plain_records
from penstock.wire.validation import BatchRules, amend_batch, check_batch, check_records, check_sum


def validate_produce_batch(
    records: memoryview,
    rules: BatchRules,
    *,
    produce_version: int,
    now_ms: int,
    inflated_bytes_max: int = INFLATED_BYTES_MAX,
) -> BatchHeader:
    """Check the batch that a client sent for one partition, in one go however long it takes; return its header.

    A wrong timestamp or attribute in the header is put right in place, and the returned header is the new one.

    Raises:
        BatchError: the batch is refused; nothing was changed.
        InvalidRequestError: ``records`` isn't writable and something has to be put right.
    """
    header = check_batch(records, rules, produce_version, now_ms)
    check_sum(records, header, rules)
    max_timestamp = header.max_timestamp
    if rules.full:
        plain = plain_records(records, header, inflated_bytes_max, from_client=True)
        max_timestamp = check_records(plain, 0, header, rules, now_ms)
    return amend_batch(records, header, max_timestamp)
