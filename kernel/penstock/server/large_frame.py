"""A frame that is received into memory of its own, which it gets as its bytes come, and keeps until it is decoded."""

from __future__ import annotations

__all__ = ("HeldFrame", "LargeFrame", "length_fault")

from collections.abc import Mapping
from typing import Final

from penstock.api.client import Client
from penstock.api.declaration import Api, Frame
from penstock.errors import FullError
from penstock.log.limiter import BytesLimiter
from penstock.server.settings import ServerSettings
from penstock.shares import Member
from penstock.spi.allocator import Allocation, Allocator, Reservation

_PURPOSE: Final = "network"
#: A frame may be so far ahead of its bytes, and as far again as it has bytes, up to the second. What it gets it may
#: receive in one go: these are fresh pages, a megabyte of which takes the loop a millisecond.
_AHEAD_BYTES_MIN: Final = 16 * 1024
_AHEAD_BYTES_MAX: Final = 256 * 1024


class LargeFrame:
    """``size`` bytes are announced, ``start`` have come, ``granted`` may be received so far.

    With ``at_once`` it gets its memory in one piece that was used before, which spares a page fault for each page.
    """

    __slots__ = (
        "_at_once",
        "_memory",
        "_reservation",
        "granted",
        "pos",
        "size",
        "start",
        "takes_fresh_memory",
    )

    def __init__(self, size: int, start: bytes | memoryview, *, at_once: bool) -> None:
        self.size = size
        self.pos = len(start)
        self.granted = 0
        #: What came before there was memory.
        self.start: bytes | memoryview = start
        self._at_once = at_once
        #: Whether its bytes come into pages that nobody used before, which takes the system several times as long.
        self.takes_fresh_memory = not at_once
        self._memory: Allocation | None = None
        self._reservation: Reservation | None = None

    @property
    def memory(self) -> Allocation:
        """The memory of the frame; whoever takes the frame releases it."""
        assert self._memory is not None
        return self._memory

    @property
    def room(self) -> memoryview:
        """The memory that the next bytes are to be received into."""
        return self.memory.view[self.pos : self.granted]

    @property
    def is_whole(self) -> bool:
        """All of it has come."""
        return self.pos == self.size

    def next_grant(self) -> int:
        """Bytes of the frame, from its start, for which there should be memory next."""
        if self._at_once:
            return self.size
        ahead = min(max(self.pos, _AHEAD_BYTES_MIN), _AHEAD_BYTES_MAX)
        return min(self.size, self.pos + ahead)

    def try_grant(self, allocator: Allocator, limiter: BytesLimiter, member: Member) -> bool:
        """Let the next piece be received if ``member`` has a share of ``limiter`` for it, and memory is there."""
        upto = self.next_grant()
        more = upto - self.granted
        if not limiter.try_take(member, more, self.size - upto):
            return False
        try:
            self.grant_nowait(allocator, upto)
        except FullError:
            limiter.give(member, more)
            return False
        return True

    async def wait_for_grant(self, allocator: Allocator, limiter: BytesLimiter, member: Member) -> None:
        """``try_grant``, but wait for a share and for memory in turn; a cancelled wait leaves nothing behind."""
        upto = self.next_grant()
        more = upto - self.granted
        await limiter.wait_and_take(member, more, self.size - upto)
        try:
            await self.grant(allocator, upto)
        except BaseException:
            limiter.give(member, more)
            raise

    def grant_nowait(self, allocator: Allocator, upto: int) -> None:
        """Get memory for the first ``upto`` bytes. Raises FullError, then nothing has changed."""
        if self._reservation is not None:
            self._reservation.grant_nowait(upto)
        elif upto == self.size:
            self._memory = allocator.allocate_nowait(upto, _PURPOSE)
        else:
            reservation = allocator.reserve(self.size, _PURPOSE)
            try:
                reservation.grant_nowait(upto)
            except BaseException:
                reservation.release()
                raise
            self._memory = self._reservation = reservation
        self._granted(upto)

    async def grant(self, allocator: Allocator, upto: int) -> None:
        """Get memory for the first ``upto`` bytes; waits in the allocator's queue."""
        if self._reservation is not None:
            await self._reservation.grant(upto)
        elif upto == self.size:
            self._memory = await allocator.allocate(upto, _PURPOSE)
        else:
            reservation = allocator.reserve(self.size, _PURPOSE)
            try:
                await reservation.grant(upto)
            except BaseException:
                reservation.release()
                raise
            self._memory = self._reservation = reservation
        self._granted(upto)

    def _granted(self, upto: int) -> None:
        self.granted = upto
        if self.start:
            self.memory.view[: self.pos] = self.start
            self.start = b""

    def release(self) -> None:
        """Give its memory back, if it has any."""
        memory, self._memory, self._reservation = self._memory, None, None
        self.granted = 0
        if memory is not None:
            memory.release()


class HeldFrame:
    """A long request while it waits for its share: in the accounted memory that it was received into, if any.

    Its ``with`` block gives that memory back, whatever comes. A copy outside of the account for each request that
    waits would add up: 250 of a megabyte each did.
    """

    __slots__ = ("_allocation", "_frame", "body_pos")

    def __init__(self, frame: memoryview, allocation: Allocation | None, body_pos: int) -> None:
        self.body_pos = body_pos
        self._allocation = allocation
        self._frame: memoryview | bytes | None = frame if allocation is not None else bytes(frame)

    def __len__(self) -> int:
        return len(self._frame or b"")

    @property
    def allocated_bytes(self) -> int:
        """Bytes of accounted memory that it keeps."""
        return 0 if self._allocation is None else len(self)

    def take(self) -> bytes:
        """The request in memory of its own, of which handlers may keep views; once."""
        assert self._frame is not None
        frame = bytes(self._frame)
        self._drop()
        return frame

    def __enter__(self) -> HeldFrame:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._drop()

    def _drop(self) -> None:
        allocation, self._allocation, self._frame = self._allocation, None, None
        if allocation is not None:
            allocation.release()


def length_fault(
    api_key: int, size: int, apis: Mapping[int, Api], settings: ServerSettings, client: Client
) -> str | None:
    """Why a request of this API can't be so long, or None. Who hasn't authenticated may send short ones only."""
    api = apis.get(api_key)
    if api is None:
        return f"api is not supported: api_key={api_key} length={size}"
    if client.principal is None or api.frame is Frame.CONTROL:
        size_max = settings.control_request_bytes_max
    elif api.frame is Frame.GROUP:
        size_max = settings.group_request_bytes_max
    else:
        size_max = settings.request_bytes_max
    if size > size_max:
        return f"frame is too long for its api: api_key={api_key} length={size} length_max={size_max}"
    return None
