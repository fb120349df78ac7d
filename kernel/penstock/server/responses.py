"""Responses that take memory of their own: what handlers describe, as bytes on their way to a client.

Fetch has its own account. Others are small mostly, but a group's members or all offsets are megabytes, and a client
that asks again and again and takes nothing would hold them as often. So a large one is counted among the bytes that
its client has in its hands, and on the account of memory; where there is no room it is made again when there is.
"""

from __future__ import annotations

__all__ = ("count_response", "encode_in_turn")

from functools import partial
from typing import Final

from penstock.api.context import Client
from penstock.errors import FullError, PenstockError
from penstock.server.core import ServerCore
from penstock.server.slots import Slot
from penstock.spi.allocator import Charge
from penstock.spi.buffers import Buffer
from penstock.wire.registry import Message, encode_response

#: Responses up to this size aren't counted; a client has one of them at a time.
_SMALL_BYTES: Final = 16 * 1024


class _Charges:
    """A response's place among what clients hold, and its memory."""

    __slots__ = ("_parts", "size")

    def __init__(self, size: int, *parts: Charge) -> None:
        self.size = size
        self._parts = parts

    def release(self) -> None:
        for part in self._parts:
            part.release()


async def encode_in_turn(
    core: ServerCore,
    client: Client,
    slot: Slot,
    api_key: int,
    over: list[Message],
    *,
    in_thread: bool = False,
) -> list[Buffer] | None:
    """The bytes of the last of ``over``; a large one waits until its client may hold as much. Cancellable.

    One that takes long is encoded ``in_thread``, which refers to ``over`` for a moment longer, not to what is in it.
    None if it can't be encoded, or is short and has its charges: the caller goes on as with a small one.
    """
    charges = slot.charges
    if charges is None or (slot.is_counted and not in_thread):
        return None
    work = partial(_encode, api_key, slot.version, slot.correlation_id, over)
    try:
        buffers: list[Buffer] = (
            await core.turns.run_in_thread(work, core.long_requests) if in_thread else work()
        )
    except PenstockError:
        return None
    size = sum(map(len, buffers))
    if size <= _SMALL_BYTES or slot.is_counted:
        return buffers
    memory = core.api.logs.fetch_memory
    # more would have to wait until no other client has anything in its hands
    counted = min(size, memory.limit // 2)
    try:
        place = memory.charge_nowait(counted, client.outgoing)
    except FullError:
        del buffers  # what waits is the values, which share what they say with the state that they are of
        place = await memory.charge(counted, client.outgoing)
        buffers = await core.turns.run_in_thread(work, core.long_requests) if in_thread else work()
    charges.append(_Charges(size, place, core.allocator.charge_anyway(size, "responses")))
    return buffers


def _encode(api_key: int, version: int, correlation_id: int, over: list[Message]) -> list[Buffer]:
    return encode_response(api_key, version, correlation_id, over[-1])


def count_response(core: ServerCore, client: Client, slot: Slot) -> None:
    """Count a large response that didn't wait: that of a handler that answers at once.

    From now on nothing is counted for its request.
    """
    slot.handled()
    if not slot.buffers or slot.charges is None or slot.is_counted:
        return
    size = sum(map(len, slot.buffers))
    if size > _SMALL_BYTES:
        taken = core.api.logs.fetch_memory.charge_anyway(size, client.outgoing)
        slot.charges.append(_Charges(size, taken, core.allocator.charge_anyway(size, "responses")))
