"""Frames of a connection: what its bytes are cut into, and what of them is kept until it can be taken. Pure.

A frame is a length of four bytes and so many bytes, which begin with API key, version and correlation id.
``FrameReader.read`` offers frames one after the other, where they were received, without a copy, and stops at the
first that isn't taken. So frames are taken in order, each once, and none is lost:

    bytes        end as                                      when
    taken        a call of ``Take`` that returned True       they are a whole frame, and it is their turn
    ``partial``  in front of what is received next           they begin a frame, short enough for the scratch buffer
    ``large``    in memory of their own, which is received   they begin a longer frame
                 into directly
    ``backlog``  read again, before anything is received     a whole frame in front of them wasn't taken
"""

from __future__ import annotations

__all__ = ("LENGTH_BYTES", "FrameReader", "ReadEnd", "Take", "other_protocol", "start_of")

import struct
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, TypeAlias

from penstock.server.large_frame import LargeFrame
from penstock.server.settings import LARGE_FRAME_BYTES, PEEK_BYTES

#: The length in front of a frame, which doesn't count itself.
LENGTH_BYTES: Final = 4
#: API key, version, correlation id, length of the client id: no request is shorter.
_HEADER_BYTES_MIN: Final = 10
_FRAME_BYTES_MIN: Final = LENGTH_BYTES + _HEADER_BYTES_MIN

_HTTP: Final = ", it begins as an HTTP request does: this port speaks Kafka's protocol only"
_PROXY: Final = ", it begins as the PROXY protocol does: have the load balancer send none"
_TLS: Final = (
    ", it begins as TLS does, which is not spoken here: set the client to security.protocol=PLAINTEXT"
)
#: How that begins which is often sent here by mistake. Read as a length, each is far above what is allowed.
_OTHER_PROTOCOLS: Final = {
    b"\x16\x03": _TLS,
    b"GET ": _HTTP,
    b"HEAD": _HTTP,
    b"POST": _HTTP,
    b"PROX": _PROXY,
    b"\r\n\r\n": _PROXY,
}

_pack_length = struct.Struct(">i").pack
_unpack_length = struct.Struct(">i").unpack_from
_unpack_header = struct.Struct(">hhi").unpack_from
_unpack_start = struct.Struct(">ihhi").unpack_from


#: ``take(frame, api_key, version, correlation_id)`` handles a frame and returns True, or returns False with nothing
#: changed. The frame is a view that is valid during the call only.
Take: TypeAlias = Callable[[memoryview, int, int, int], bool]


class ReadEnd(Enum):
    """Why reading ended."""

    #: Everything was taken, but for the beginning of a frame perhaps.
    MORE = auto()
    #: A large frame begins: ``FrameReader.large_size`` bytes, of which ``large_start`` are there.
    LARGE = auto()
    #: A frame wasn't taken.
    REFUSED = auto()
    #: As many frames, or as much time, as one turn has.
    TURN_OVER = auto()
    #: No request has such a length: ``FrameReader.bad_length``.
    MALFORMED = auto()


def other_protocol(length: int) -> str:
    """What the first length of a connection shows of a client that speaks something else; ``""``: nothing."""
    start = _pack_length(length)
    return _OTHER_PROTOCOLS.get(start) or _OTHER_PROTOCOLS.get(start[:2], "")


def start_of(frame: memoryview) -> tuple[int, int, int]:
    """API key, version and correlation id of a frame."""
    api_key, version, correlation_id = _unpack_header(frame)
    return api_key, version, correlation_id


class FrameReader:
    """The frames of one connection, of which none may be longer than ``length_max``."""

    __slots__ = (
        "_length_max",
        "backlog",
        "bad_length",
        "expects_large",
        "large",
        "large_size",
        "large_start",
        "partial",
    )

    def __init__(self, length_max: int) -> None:
        self._length_max = length_max
        #: The start of a frame that isn't whole.
        self.partial = b""
        #: Whole frames that weren't taken, and what came behind them. Empty: there are none.
        self.backlog = bytearray()
        #: The large frame that is being received, or is whole and wasn't taken.
        self.large: LargeFrame | None = None
        self.large_size = 0
        self.large_start: memoryview | bytes = b""
        self.bad_length = 0
        #: After a large frame comes another, most likely.
        self.expects_large = False

    def buffer(self, scratch: memoryview) -> memoryview:
        """The memory that the next bytes are to be received into."""
        if self.large is not None:
            return self.large.room
        partial = self.partial
        if partial:
            size = len(partial)
            scratch[:size] = partial
            return scratch[size:]
        return scratch[:PEEK_BYTES] if self.expects_large else scratch

    def joined(self, size: int) -> int:
        """``size`` bytes were received behind ``partial``; how many are to be read in the scratch buffer."""
        size += len(self.partial)
        self.partial = b""
        return size

    def read(
        self,
        view: memoryview,
        end: int,
        first: Take,
        then: Take,
        *,
        count: int,
        until: float,
        clock: Callable[[], float],
    ) -> ReadEnd:
        """Offer the frames in ``view[:end]``, each to ``first``, and ``then`` to the other if that doesn't take it.

        At most ``count`` are taken, and one at least whatever the time is, but none after that when it is ``until``.
        """
        length_max = self._length_max
        pos = 0
        while end - pos >= _FRAME_BYTES_MIN:
            size, api_key, version, correlation_id = _unpack_start(view, pos)
            stop = pos + LENGTH_BYTES + size
            if stop > end or not _HEADER_BYTES_MIN <= size <= length_max:
                break
            if count <= 0 or (pos and clock() > until):
                self.keep(view[pos:end])
                return ReadEnd.TURN_OVER
            frame = view[pos + LENGTH_BYTES : stop]
            if not first(frame, api_key, version, correlation_id) and not then(
                frame, api_key, version, correlation_id
            ):
                self.keep(view[pos:end])
                return ReadEnd.REFUSED
            count -= 1
            pos = stop
        if pos:
            self.expects_large = False
            if pos == end:
                return ReadEnd.MORE
        return self._read_last(view, pos, end)

    def _read_last(self, view: memoryview, pos: int, end: int) -> ReadEnd:
        """Keep what is left behind the whole frames."""
        left = end - pos
        if left >= LENGTH_BYTES:
            (size,) = _unpack_length(view, pos)
            if not _HEADER_BYTES_MIN <= size <= self._length_max:
                self.bad_length = size
                return ReadEnd.MALFORMED
            if size >= LARGE_FRAME_BYTES and left >= _FRAME_BYTES_MIN:
                self.large_size = size
                self.large_start = view[pos + LENGTH_BYTES : end]
                self.expects_large = True
                return ReadEnd.LARGE
        self.partial = bytes(view[pos:end])
        return ReadEnd.MORE

    def keep(self, rest: memoryview) -> None:
        """Read ``rest`` again before anything is received."""
        self.backlog = bytearray(rest)

    def take_backlog(self) -> bytearray:
        """Hand over the bytes that are to be read again; they are the caller's then."""
        backlog, self.backlog = self.backlog, bytearray()
        return backlog

    @property
    def is_stuck(self) -> bool:
        """Whether there is a whole frame that wasn't taken."""
        return bool(self.backlog) or (self.large is not None and self.large.is_whole)

    @property
    def has_begun(self) -> bool:
        """Whether there is a frame that isn't whole."""
        return bool(self.partial) or (self.large is not None and not self.large.is_whole)

    @property
    def carried_bytes(self) -> int:
        """Bytes of frames that weren't taken, outside of the allocator."""
        size = len(self.partial) + len(self.backlog)
        return size if self.large is None else size + len(self.large.start)

    @property
    def held_bytes(self) -> int:
        """Bytes in memory of frames that weren't taken."""
        size = len(self.partial) + len(self.backlog)
        if self.large is not None:
            size += self.large.granted
        return size

    @property
    def begun_bytes(self) -> int:
        """Bytes that are there of a frame that isn't whole."""
        return len(self.partial) if self.large is None else self.large.pos

    def drop(self) -> None:
        """Forget what was kept, but for the large frame, which its owner releases."""
        self.partial = b""
        self.backlog = bytearray()
