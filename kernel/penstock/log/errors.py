"""The error that carries a Kafka error code from the partition up to the API that answers it."""

from __future__ import annotations

__all__ = ("KafkaError",)

from penstock.errors import PenstockError


class KafkaError(PenstockError):
    """A request can't be done, and the protocol has a code for why: the API answers with ``error_code``."""

    def __init__(self, error_code: int, message: str | None = None) -> None:
        super().__init__(message or f"request refused: error_code={error_code}")
        self.error_code = int(error_code)
        #: What the client is shown, where the response has a place for it.
        self.message = message
