"""Who frees the memory of a request: whoever owns it, and it has one owner at a time.

    connection      receives the frame into it, and owns it until the request is handed over
    ProduceCall     the request in its slot; gives it back if no partition takes records, or the connection is lost
    partition       once ``Partition.append`` has returned True: until then the caller owns it, also when append
                    raises. It passes it on to the stream engine in the same call
    engine          while the append is in flight; releases it if the append fails, or its stream was deleted
    log cache       with the entry (``StreamEntry.charge``), until the entry is dropped

What is owned is an ``Allocation``, and is handed on as such; a bare memoryview is borrowed for the length of a call,
as records are that lie in a receive buffer (``charge=None``): who wants to keep them copies them.

A frame with records of several partitions is a ``SharedFrame``: each partition owns a ``FramePart`` of it, and the
frame goes back with the last of its owners.
"""

from __future__ import annotations

__all__ = ("FramePart", "SharedFrame", "release_part")

from penstock.spi.allocator import Allocation, Charge


class SharedFrame:
    """A frame whose memory several partitions own together; an ``Allocation``. Made with one owner, who makes it."""

    __slots__ = ("_allocation", "_owners")

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation
        self._owners = 1

    @property
    def size(self) -> int:
        """Of the whole frame."""
        return self._allocation.size

    @property
    def view(self) -> memoryview:
        """The whole frame."""
        return self._allocation.view

    def share(self, size: int) -> FramePart:
        """One more owner, of ``size`` bytes."""
        self._owners += 1
        return FramePart(self, size)

    def release(self) -> None:
        """One owner less."""
        self._owners -= 1
        if self._owners == 0:
            self._allocation.release()


class FramePart:
    """One partition's part of a frame, an ``Allocation``; ``size`` is that of its records."""

    __slots__ = ("_frame", "size")

    def __init__(self, frame: SharedFrame, size: int) -> None:
        self._frame: SharedFrame | None = frame
        self.size = size

    @property
    def view(self) -> memoryview:
        """The whole frame, of which the part is where its records are."""
        assert self._frame is not None
        return self._frame.view

    def release(self) -> None:
        """The part isn't needed any more. Once."""
        frame = self._frame
        assert frame is not None, "released twice"
        self._frame = None
        frame.release()


def release_part(charge: Charge | None, whole: Charge | None) -> None:
    """Give back what ``whole`` was shared into for a partition that didn't take it; ``whole`` keeps its owner."""
    if charge is not None and charge is not whole:
        charge.release()
