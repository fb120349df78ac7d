"""Deadlines of requests that wait for the metadata log: the store may hang, or be full."""

from __future__ import annotations

__all__ = ("REQUEST_TIMEOUT_MS", "Deadline")

from collections.abc import Awaitable
from typing import Final, TypeVar

import anyio

from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode

T = TypeVar("T")

#: For requests that carry no timeout: below the 30 s after which Java's admin client hangs up and sends it again.
REQUEST_TIMEOUT_MS: Final = 25_000


class Deadline:
    """One request's time. What isn't done by then goes on, for it can't be taken back; the client is told so."""

    __slots__ = ("_end_s", "_timeout_ms")

    def __init__(self, timeout_ms: int = REQUEST_TIMEOUT_MS) -> None:
        """``timeout_ms`` as the request says; without a positive one, the default."""
        self._timeout_ms = timeout_ms if timeout_ms > 0 else REQUEST_TIMEOUT_MS
        self._end_s = anyio.current_time() + self._timeout_ms / 1000

    async def of(self, change: Awaitable[T]) -> T:
        """The result of ``change``, which takes effect although nobody waits any more.

        Raises what it raises; KafkaError with REQUEST_TIMED_OUT when the time is over.
        """
        with anyio.CancelScope(deadline=self._end_s):
            return await change
        raise KafkaError(
            ErrorCode.REQUEST_TIMED_OUT,
            "the change isn't durable yet, the metadata log doesn't answer; it goes on, look later whether it was "
            f"made: timeout_ms={self._timeout_ms}",
        )
