"""A stream that this broker owns, as those see it who append to it and read it."""

from __future__ import annotations

__all__ = ("Stream",)

from collections.abc import Callable
from functools import partial

from penstock.stream.entry import ENTRY_VERSION, pack_header


class Stream:
    """An open stream: offsets [start_offset, confirmed_offset) are durable, up to next_offset on their way."""

    __slots__ = (
        "confirmed_offset",
        "epoch",
        "generation",
        "is_forgotten",
        "leader_epoch",
        "next_offset",
        "on_reset",
        "pack_header",
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
        self.generation = 0
        #: Whether it was deleted: what is still on its way isn't kept.
        self.is_forgotten = False
        #: The header of an entry, of (base offset, next offset, time in ms).
        self.pack_header = partial(pack_header, ENTRY_VERSION, stream_id, epoch)
        #: Told the offset where the stream goes on after failed appends, once per failure.
        self.on_reset: Callable[[int], None] | None = None
