"""The place of a request in the order of its connection's responses."""

from __future__ import annotations

__all__ = ("Slot",)

from typing import Any

import msgspec

from penstock.spi.allocator import Charge


class Slot(msgspec.Struct, eq=False):
    """The place of one request in the order of responses."""

    version: int
    correlation_id: int
    request_bytes: int
    #: None until the request is answered; empty when there is nothing to send.
    buffers: list[Any] | None = None
    #: What the response holds until it has left.
    charges: list[Charge] | None = None
    #: The answer is the last that the client gets.
    close: bool = False
    #: How long the client is to wait with its next request, as the response tells it (KIP-219).
    throttle_ms: int = 0

    def release_charges(self) -> None:
        """Give back what its response holds."""
        charges, self.charges = self.charges, None
        for charge in charges or ():
            charge.release()
