"""A Produce that can't go on now: it waits for what its error says, or for memory, and goes on from there."""

from __future__ import annotations

__all__ = ("Waiting", "WaitingProduce")

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import anyio

from penstock.api.produce import ProduceCall
from penstock.errors import FullError, NotNowError, PenstockError, kept
from penstock.server.core import ServerCore
from penstock.server.scopes import Scopes
from penstock.spi.allocator import Allocation
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import decode_request, decode_request_header

#: A Produce waits for work on a batch of its own at least so long, however short its own time is.
_WORK_WAIT_MS_MIN: Final = 5_000


class Waiting(Protocol):
    """A request that the later ones of its connection wait behind."""

    @property
    def carried_bytes(self) -> int:
        """Bytes that it keeps outside of the allocator."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to hand over."""

    async def run(self, scopes: Scopes, moved: Callable[[], None]) -> None:
        """Go on to the end; ``moved`` is called when it carries nothing any more.

        Whoever drops this ends ``scopes``.
        """

    def drop(self) -> None:
        """The connection is lost: what isn't handed over never will be."""


class WaitingProduce:
    """``call`` from its first refusal on, until all of it is handed over, given up or dropped.

    ``frame`` is the request where it is in the scratch buffer, which is needed for others: the call goes on from a
    copy, and from memory of the log's once there is some. None if the call has its memory already.
    """

    __slots__ = ("_address", "_call", "_carried", "_core", "_dropped", "_is_work", "_size")

    def __init__(
        self,
        core: ServerCore,
        call: ProduceCall,
        frame: memoryview | None,
        *,
        is_work: bool,
        address: str,
        size: int,
    ) -> None:
        self._core = core
        #: Who waits for room, and with how many bytes.
        self._address = address
        self._size = size
        self._call = call
        #: Whether it waits for work on a batch first, and not for room.
        self._is_work = is_work
        #: The copy that the records are views of, outside of the allocator.
        self._carried: bytearray | None = None
        self._dropped = False
        if frame is not None:
            self._carried = bytearray(frame)
            call.rebind(_decode(memoryview(self._carried)))

    @property
    def carried_bytes(self) -> int:
        """Bytes of the copy, as long as there is one."""
        return len(self._carried) if self._carried is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to hand over."""
        return self._dropped or self._call.is_handed_over

    async def run(self, scopes: Scopes, moved: Callable[[], None]) -> None:
        """Wait and try again, to the end; ``moved`` is called when the copy is in the log's memory.

        Whoever drops this ends ``scopes``.
        """
        core, call = self._core, self._call
        core.waiting_for_room += 1
        wait_ms_min = _WORK_WAIT_MS_MIN if self._is_work else 0
        wait_ms = min(max(call.timeout_ms, wait_ms_min), core.api.settings.produce_wait_ms_max)
        scope = anyio.move_on_after(wait_ms / 1000)
        try:
            with scopes.entered(scope):
                if self._dropped:
                    return  # before this task began
                if self._carried is not None:
                    # Waiting for memory and allocating are one step: who only waits finds it taken by others.
                    self._adopt(await core.allocator.allocate(len(self._carried), "append"))
                    moved()
                while (not_now := self._advance()) is not None:
                    await self._wait(*not_now)
            if scope.cancelled_caught:
                await self._give_up(
                    FullError(f"no room for the records in time: waited_ms={wait_ms}"), scopes
                )
        except PenstockError as error:  # the log is closing
            await self._give_up(kept(error), scopes)
        finally:
            core.waiting_for_room -= 1
        self._drop_carried()

    async def _give_up(self, error: PenstockError, scopes: Scopes) -> None:
        """Refuse what isn't handed over, some at a time: there may be fifty thousand partitions."""
        with scopes.entered():
            self._call.refuse(error)
            while self._advance() is not None:
                await anyio.lowlevel.checkpoint()
        self._call.drop()

    async def _wait(self, wait: Callable[[], Coroutine[Any, Any, None]], is_work: bool) -> None:
        """Wait for what the call waits for, and count it as that."""
        core = self._core
        if not is_work:
            await core.room_turns.wait(self._address, self._size, wait)
            return
        core.waiting_for_room -= 1
        core.preparing += 1
        try:
            if self._call.has_work:
                await core.work_turns.wait(self._address, 1, wait)
            else:
                await wait()
        finally:
            core.preparing -= 1
            core.waiting_for_room += 1

    def _adopt(self, allocation: Allocation) -> None:
        """Move the copy into memory of the log's."""
        if self._carried is None:
            allocation.release()  # dropped meanwhile
            return
        view = allocation.view
        view[:] = self._carried
        self._call.adopt(_decode(view), allocation)
        self._drop_carried()

    def _advance(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], bool] | None:
        """Try again; None when there is nothing left to try, else what to wait for, and whether that is work."""
        if not self._dropped:
            try:
                self._call.advance()
            except NotNowError as not_now:
                return not_now.wait, not_now.is_work
        return None

    def drop(self) -> None:
        """The connection is lost: what isn't handed over never will be."""
        self._dropped = True
        self._call.drop()
        self._drop_carried()

    def _drop_carried(self) -> None:
        self._carried = None


def _decode(frame: memoryview) -> ProduceRequest:
    header = decode_request_header(frame)
    request = decode_request(ApiKey.PRODUCE, header.api_version, frame, header.body_pos, lenient=True)
    assert isinstance(request, ProduceRequest)
    return request
