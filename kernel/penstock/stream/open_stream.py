"""A stream that this broker owns, as those see it who append to it and read it."""

from __future__ import annotations

__all__ = ("Stream",)

from collections.abc import Callable


class Stream:
    """An open stream: offsets [start_offset, confirmed_offset) are durable, up to next_offset on their way."""

    __slots__ = (
        "_generation",
        "confirmed_offset",
        "epoch",
        "leader_epoch",
        "next_offset",
        "on_reset",
        "start_offset",
        "stream_id",
    )

    def __init__(
        self, stream_id: int, epoch: int, leader_epoch: int, start_offset: int, end_offset: int
    ) -> None:
        self.stream_id = stream_id
        self.epoch = epoch
        self.leader_epoch = leader_epoch
        self.start_offset = start_offset
        self.confirmed_offset = end_offset
        self.next_offset = end_offset
        #: Grows when appends fail: those of an older generation took offsets that are given again.
        self._generation = 0
        #: Told the offset where the stream goes on after failed appends, once per failure.
        self.on_reset: Callable[[int], None] | None = None
