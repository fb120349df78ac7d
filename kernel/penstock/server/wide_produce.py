"""A Produce of many partitions: looked at in a thread, then handed to the log some partitions at a time, in turns.

Each partition takes some microseconds to be decoded, checked and appended, and each may have a batch of 70 bytes: in
one go a request of 600 KB kept everybody waiting for a tenth of a second.
"""

from __future__ import annotations

__all__ = ("WideProduce",)

from collections.abc import Callable
from typing import Final

import anyio

from penstock.api.produce import CheckedRequest, ProduceCall, check_request
from penstock.api.produce_scan import count_parts
from penstock.errors import FullError, InvalidRequestError, PenstockError, kept
from penstock.server.channel import Channel
from penstock.server.scopes import Scopes
from penstock.server.slots import RequestCharge, Slot
from penstock.server.waiting import WaitingProduce
from penstock.spi.allocator import Allocation
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import decode_request

#: What a topic or partition takes that is decoded, until it is answered.
_PART_BYTES: Final = 640


class WideProduce:
    """See ``Waiting``. ``begin`` makes the call.

    Without an ``allocation`` it waits for memory as long as its client waits for the answer, ``timeout_ms``.
    """

    def __init__(
        self,
        channel: Channel,
        slot: Slot,
        frame: memoryview,
        body_pos: int,
        allocation: Allocation | None,
        timeout_ms: int,
        begin: Callable[[CheckedRequest, Allocation | None], ProduceCall],
    ) -> None:
        self._channel = channel
        self._slot = slot
        self._body_pos = body_pos
        self._size = len(frame)
        #: The request: in the memory that it was received into, or a copy until there is some.
        self._allocation = allocation
        self._carried = bytes(frame) if allocation is None else b""
        self._timeout_ms = timeout_ms
        self._begin = begin
        self._waiting: WaitingProduce | None = None
        self._is_running = False
        self._is_over = False
        self._has_too_many = False

    @property
    def carried_bytes(self) -> int:
        """See ``Waiting.carried_bytes``."""
        return len(self._carried)

    @property
    def is_over(self) -> bool:
        """See ``Waiting.is_over``."""
        return self._is_over or (self._waiting is not None and self._waiting.is_over)

    async def run(self, scopes: Scopes, moved: Callable[[], None]) -> None:
        """See ``Waiting.run``."""
        self._is_running = True
        try:
            with scopes.entered():
                if not self._is_over:
                    self._waiting = await self._prepare(moved)
        finally:
            self._release()
        if self._waiting is None:
            self._is_over = True
        else:
            await self._waiting.run(scopes, moved)

    async def _prepare(self, moved: Callable[[], None]) -> WaitingProduce | None:
        channel, core = self._channel, self._channel.core
        refusal = None if self._allocation is not None else await self._move(moved)
        # as many as there are, not as its bytes allow: that is ten times as much, and others waited for it
        count = await core.turns.run_in_thread(self._count, core.long_requests)
        weight = count * _PART_BYTES
        # more than half would have to wait until nobody else has a request here
        held = await core.handling.charge(min(weight, core.handling.limit // 2), channel.handling)
        if self._slot.charges is None:  # dropped meanwhile, and what it held is given back already
            held.release()
            return None
        memory = core.allocator.charge_anyway(weight, "requests")
        self._slot.charges.append(RequestCharge(held, memory))
        try:
            checked = await core.turns.run_in_thread(self._check, core.long_requests)
        except PenstockError as error:
            if self._is_over:  # dropped meanwhile, and the copy that was looked at with it
                return None
            version = self._slot.version
            self._slot.release_charges()
            channel.fault(f"request is malformed: api_key={int(ApiKey.PRODUCE)} version={version}: {error}")
            return None
        if self._is_over:  # dropped meanwhile
            return None
        allocation, self._allocation = self._allocation, None
        call = self._begin(checked, allocation)
        if refusal is not None:
            call.refuse(refusal)
        return WaitingProduce(core, call, None, is_work=True, address=channel.address, size=self._size)

    async def _move(self, moved: Callable[[], None]) -> PenstockError | None:
        """Move the request into memory of the log's; returns why there was none in time."""
        allocator, settings = self._channel.core.allocator, self._channel.core.api.settings
        wait_ms = min(max(self._timeout_ms, 0), settings.produce_wait_ms_max)
        allocation: Allocation | None = None
        try:
            try:  # whatever the client's time is: it may be 0
                allocation = allocator.allocate_nowait(self._size, "append")
            except FullError:
                with anyio.move_on_after(wait_ms / 1000):
                    allocation = await allocator.allocate(self._size, "append")
        except PenstockError as error:  # the log is closing
            return kept(error)
        if allocation is None:
            return FullError(f"no room for the records in time: waited_ms={wait_ms}")
        if self._is_over:  # dropped in the moment when it was granted
            allocation.release()
            return None
        self._allocation = allocation
        allocation.view[:] = self._carried
        self._carried = b""
        moved()
        return None

    @property
    def _view(self) -> memoryview:
        return memoryview(self._carried) if self._allocation is None else self._allocation.view

    def _count(self) -> int:
        """Topics and partitions; where there are more than may be, none of them is decoded."""
        maximum = self._channel.core.settings.produce_partitions_max
        count = count_parts(self._view, self._body_pos, self._slot.version, maximum)
        self._has_too_many = count is None
        return count or 1

    def _check(self) -> CheckedRequest:
        view, version = self._view, self._slot.version
        if self._has_too_many:
            maximum = self._channel.core.settings.produce_partitions_max
            raise InvalidRequestError(f"too many partitions in one request: partitions_max={maximum}")
        request = decode_request(ApiKey.PRODUCE, version, view, self._body_pos, lenient=True)
        assert isinstance(request, ProduceRequest)
        return check_request(request, version)

    def drop(self) -> None:
        """See ``Waiting.drop``."""
        self._is_over = True
        self._carried = b""
        if self._waiting is not None:
            self._waiting.drop()
        elif not self._is_running:  # else a thread may read it, and ``run`` gives it back
            self._release()

    def _release(self) -> None:
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            allocation.release()
