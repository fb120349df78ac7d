"""Answers to what clients ask for of transactions, which this broker doesn't have: all of their codes and texts.

Batches of transactions are refused by the book of producers (``ProducerBook.admit``), a Produce with a
transactional id by its handler, and the id itself by InitProducerId. Whoever adds transactions takes these answers
away, and finds by that all who refuse. Whole APIs of what isn't here are modules of ``penstock.api``, such as
``transactions`` and ``acls``.
"""

from __future__ import annotations

__all__ = ("TRANSACTIONAL_BATCH", "TRANSACTIONAL_ID", "TRANSACTIONAL_PRODUCE", "Refusal")

from typing import Final, NamedTuple

from penstock.wire.error_codes import ErrorCode


class Refusal(NamedTuple):
    """An error code of Kafka's, and what it is to say here."""

    code: ErrorCode
    text: str


_NO_TRANSACTIONS: Final = "this broker has no transactions"

#: This code ends all clients at once. UNSUPPORTED_VERSION says more, but librdkafka asks again twice a second, by
#: default for ever.
TRANSACTIONAL_ID: Final = Refusal(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, _NO_TRANSACTIONS)
#: Of a producer that was given no transactional id.
TRANSACTIONAL_BATCH: Final = Refusal(ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, _NO_TRANSACTIONS)
#: A Produce under a transactional id, whatever its batches are: nobody has begun a transaction of that id.
TRANSACTIONAL_PRODUCE: Final = Refusal(ErrorCode.INVALID_TXN_STATE, _NO_TRANSACTIONS)
