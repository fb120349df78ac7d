"""Refusals of what clients may ask for and this broker doesn't have, all in one place.

Transactions: their batches are refused by the book of producers (``ProducerBook.admit``), a Produce with a
transactional id by its handler, and the id itself by InitProducerId.
"""

from __future__ import annotations

__all__ = ("NO_TRANSACTIONS",)

from typing import Final

NO_TRANSACTIONS: Final = "this broker has no transactions"
