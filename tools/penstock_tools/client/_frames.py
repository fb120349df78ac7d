"""Splitting a byte stream into Kafka frames (4-byte big-endian length, then that many bytes), without I/O."""

from __future__ import annotations

__all__ = ("FrameReader",)

from collections.abc import Iterator
from typing import Final

from penstock.wire import Buffer, DecodeError

_PREFIX_BYTES: Final = 4


class FrameReader:
    """Turns chunks of a stream into frames.

    A frame that lies wholly inside one chunk is a view of that chunk (no copy); one that spans chunks is put
    together in a buffer of its own, which grows with what arrives, not with what was announced.
    """

    __slots__ = ("_partial", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int) -> None:
        #: Limit for the next frame; may be raised at any time.
        self.frame_bytes_max = frame_bytes_max
        self._partial = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the unfinished frame, its length prefix included; 0 between frames."""
        return len(self._partial)

    def feed(self, chunk: Buffer) -> Iterator[memoryview]:
        """Yield the frames (without length prefix) that ``chunk`` completes, in order.

        Run the iterator to its end before the next call. The frames may alias ``chunk``, which must stay
        unchanged as long as they are used.

        Raises:
            DecodeError: a length is negative or above ``frame_bytes_max``, after the frames before it were
                yielded. The stream can't be resynchronised: close it.
        """
        view = chunk if type(chunk) is memoryview else memoryview(chunk)
        pos = 0
        if self._partial:
            pos = self._fill(view)
            if pos < 0:
                return
            frame = memoryview(self._partial)[_PREFIX_BYTES:]
            self._partial = bytearray()
            yield frame
        end = len(view)
        while end - pos >= _PREFIX_BYTES:
            stop = pos + _PREFIX_BYTES + self._checked_length(view[pos : pos + _PREFIX_BYTES])
            if stop > end:
                break
            yield view[pos + _PREFIX_BYTES : stop]
            pos = stop
        self._partial += view[pos:]

    def _fill(self, view: memoryview) -> int:
        """Move bytes into the unfinished frame; the position after it, or -1 if it's still unfinished."""
        partial = self._partial
        pos = 0
        if len(partial) < _PREFIX_BYTES:
            pos = min(_PREFIX_BYTES - len(partial), len(view))
            partial += view[:pos]
            if len(partial) < _PREFIX_BYTES:
                return -1
        lacking = self._checked_length(partial[:_PREFIX_BYTES]) + _PREFIX_BYTES - len(partial)
        partial += view[pos : pos + lacking]
        return pos + lacking if len(view) - pos >= lacking else -1

    def _checked_length(self, prefix: Buffer) -> int:
        length = int.from_bytes(prefix, "big", signed=True)
        if length < 0 or length > self.frame_bytes_max:
            raise DecodeError(
                f"frame length is out of bounds, close the connection: "
                f"length={length} frame_bytes_max={self.frame_bytes_max}"
            )
        return length
