"""The place of a request in the order of its connection's responses."""

from __future__ import annotations

__all__ = ("RequestCharge", "Slot")

from typing import Any, Final

import msgspec

from penstock.spi.allocator import Charge
from penstock.spi.buffers import Buffer
from penstock.wire.api_keys import ApiKey

#: Fields of requests that say how long they may wait.
_TIMES: Final = ("max_wait_ms", "rebalance_timeout_ms", "timeout_ms")
#: A member waits for the one that makes the assignments; it has said in JoinGroup for how long, mostly so long.
_SYNC_MS: Final = 300_000


class RequestCharge:
    """What a request takes while it is handled: its share, and its memory."""

    __slots__ = ("_parts", "size")

    def __init__(self, share: Charge, memory: Charge) -> None:
        self.size = memory.size
        self._parts: tuple[Charge, ...] = (share, memory)

    def release(self) -> None:
        """Give the memory back; harmless if that was done before."""
        parts, self._parts = self._parts, ()
        for part in parts:
            part.release()


class Slot(msgspec.Struct, eq=False):
    """The place of one request in the order of responses."""

    version: int
    correlation_id: int
    request_bytes: int
    #: None until the request is answered; empty when there is nothing to send.
    buffers: list[Buffer] | None = None
    #: What the response holds until it has left.
    charges: list[Charge] | None = None
    #: The answer is the last that the client gets.
    close: bool = False
    #: How long the client is to wait with its next request, as the response tells it (KIP-219).
    throttle_ms: int = 0
    #: What kind of request it is (the default is Produce), and the request while a task answers it.
    api_key: int = 0
    message: Any = None
    #: What the request said of its time when nothing else is kept of it.
    waits_ms: int = 0

    @property
    def asked_ms(self) -> int:
        """For how long the request says that it may wait."""
        if self.api_key == ApiKey.SYNC_GROUP:
            return _SYNC_MS
        return next(
            (getattr(self.message, name) for name in _TIMES if hasattr(self.message, name)), self.waits_ms
        )

    def forget_request(self) -> None:
        """Keep nothing of it but for how long it may wait."""
        self.waits_ms = self.asked_ms
        self.message = None

    @property
    def is_counted(self) -> bool:
        """Whether its response has its charges already; or nobody takes it."""
        return self.charges is None or any(not isinstance(one, RequestCharge) for one in self.charges)

    def handled(self) -> None:
        """Give back what its request holds: its response may wait for long to be read."""
        for charge in self.charges or ():
            if isinstance(charge, RequestCharge):
                charge.release()

    def lose(self) -> None:
        """The connection is gone: nobody takes the answer, if there ever is one."""
        self.release_charges()

    def release_charges(self) -> None:
        """Give back what its response holds."""
        charges, self.charges = self.charges, None
        for charge in charges or ():
            charge.release()
