"""The metadata image: the state that every broker holds, and the fold that makes it from commands.

Rule 1: what changes the image are the commands (:mod:`penstock.metadata.commands`), and they depend on nothing but
themselves, the entry's index and time, and the image itself. Folding never fails half-way: a command is refused with
an error (the image is unchanged) or applied whole.

Others ask the tables (``nodes``, ``topics``, ``streams``, ``objects``) by their named queries, and hear of changes by
the deltas that folding gives.
"""

from __future__ import annotations

__all__ = ("Folded", "Image")

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.errors import PenstockError, kept
from penstock.metadata.commands import Entry
from penstock.metadata.deltas import Delta, NodesChanged
from penstock.metadata.snapshot import Cut, decode_snapshot
from penstock.metadata.state import Moment, State
from penstock.metadata.stored import ImageData


class Folded(msgspec.Struct, frozen=True):
    """The outcome of folding an entry."""

    index: int
    #: One per command: its value, or the error that refused it.
    results: Sequence[Any]
    #: What changed, in order.
    deltas: Sequence[Delta]


class Image(State):
    """The state after the entry ``index``; ask it freely, change it only through :meth:`fold`."""

    def __init__(self, data: ImageData | None = None) -> None:
        super().__init__(data or ImageData())

    def cut(self) -> Cut:
        """Begin a snapshot of the image as it is now; use it in a ``with`` statement."""
        return Cut(self)

    def to_snapshot(self) -> bytes:
        """The whole image as bytes; equal images give equal bytes."""
        with self.cut() as cut:
            return b"".join(cut.pieces())

    @classmethod
    def from_snapshot(cls, data: bytes) -> Image:
        """The image of a snapshot. Raises CorruptError if it can't be read."""
        return cls(decode_snapshot(data))

    def fold(self, index: int, entry: Entry) -> Folded:
        """Apply the entry ``index``; synchronous, and deterministic (I7)."""
        assert index == self.index + 1, f"entries fold in order: index={index} image={self.index}"
        at = Moment(index, entry.now_ms, entry.version)
        results: list[Any] = []
        for command in entry.commands:
            try:
                results.append(command.fold(self, at))
            except PenstockError as error:
                results.append(kept(error))
        if entry.wal_end:
            changed = self.nodes.note_wal_end(entry.writer, entry.wal_end)
            if changed:
                at.tell(NodesChanged(changed))
        self.index = index
        return Folded(index, results, at.deltas)
