"""Requests of other kinds than Produce that take memory and time for their length."""

from __future__ import annotations

__all__ = ("COUNTED_BYTES", "admit_nowait", "admit_and_decode", "encode")

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from penstock.api.context import Client, RequestContext
from penstock.errors import FullError, PenstockError
from penstock.server.slots import Slot
from penstock.shares import Member
from penstock.threads import run_in_thread
from penstock.wire.registry import Message, decode_request, encode_response

if TYPE_CHECKING:
    from penstock.server.server import Server

#: A request is counted from this size on while it's handled, as so many times its size: what lists of short strings
#: take once they are decoded.
COUNTED_BYTES: Final = 2 * 1024
_DECODED_PARTS: Final = 16
#: A request of this size is decoded, and its response encoded, in a thread: others get their turns meanwhile.
_LONG_BYTES: Final = 16 * 1024


def admit_nowait(server: Server, member: Member, context: RequestContext, size: int) -> bool:
    """Count a request; False if it's long, or has to wait for its share."""
    if size >= _LONG_BYTES:
        return False
    try:
        context.charges.append(server.handling.charge_nowait(size * _DECODED_PARTS, member))
    except FullError:
        return False
    context.charges.append(server.allocator.charge_anyway(size * _DECODED_PARTS, "requests"))
    return True


async def admit_and_decode(
    server: Server, member: Member, context: RequestContext, api_key: int, frame: bytes, body_pos: int
) -> Message:
    """Count a request as soon as there is a share for it, then decode it. Raises PenstockError if it's malformed."""
    weight = len(frame) * _DECODED_PARTS
    context.charges.append(await server.handling.charge(weight, member))
    context.charges.append(server.allocator.charge_anyway(weight, "requests"))
    decode = partial(decode_request, api_key, context.version, frame, body_pos, lenient=True)
    return await run_in_thread(decode, limiter=server.long_requests)


async def encode(
    server: Server, client: Client, slot: Slot, api_key: int, response: Message
) -> list[Any] | None:
    """The bytes of the response to a long request, which counts as part of that; None if it can't be encoded."""
    work = partial(encode_response, api_key, slot.version, slot.correlation_id, response)
    try:
        return await run_in_thread(work, limiter=server.long_requests)
    except PenstockError:
        return None
