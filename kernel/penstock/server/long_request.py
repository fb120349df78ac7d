"""Requests of other kinds than Produce that take memory and time for their length."""

from __future__ import annotations

__all__ = ("COUNTED_BYTES", "DECODED_PARTS", "admit_and_decode", "admit_nowait")

from collections.abc import Callable
from functools import partial
from typing import Final

from penstock.api.context import RequestContext
from penstock.api.declaration import Api
from penstock.errors import FullError
from penstock.server.core import ServerCore
from penstock.server.large_frame import HeldFrame
from penstock.server.slots import RequestCharge
from penstock.shares import Member
from penstock.wire.elements import count_elements
from penstock.wire.registry import Message, decode_request

#: A request is counted from this size on while it's handled, as so many times its size: what lists of short strings
#: take once they are decoded; or then, if that is more, as ``Api.element_bytes`` for each of its elements.
COUNTED_BYTES: Final = 2 * 1024
DECODED_PARTS: Final = 16


def admit_nowait(core: ServerCore, member: Member, context: RequestContext, size: int) -> bool:
    """Count a request; False if it has to wait for its share."""
    weight = size * DECODED_PARTS
    try:
        place = core.handling.charge_nowait(weight, member)
    except FullError:
        return False
    context.charges.append(RequestCharge(place, core.allocator.charge_anyway(weight, "requests")))
    return True


async def admit_and_decode(
    core: ServerCore,
    member: Member,
    context: RequestContext,
    api: Api,
    frame: HeldFrame,
    moved: Callable[[], None],
) -> Message:
    """Count a request as soon as there is a share for it, then decode it; ``moved`` is called in between, when
    ``frame`` keeps nothing any more.

    Raises PenstockError if it's malformed.
    """
    # more than half, whatever it takes, would have to wait until nobody else has a request here
    half = core.handling.limit // 2
    weight = max(len(frame) * DECODED_PARTS, min(len(frame) * api.answer_parts, half))
    place = await core.handling.charge(min(weight, half), member)
    context.charges.append(RequestCharge(place, core.allocator.charge_anyway(weight, "requests")))
    decode = partial(_decode, api.key, context.version, frame.take(), frame.body_pos)
    moved()
    message, elements = await core.turns.run_in_thread(decode, core.long_requests)
    more = min(elements * api.element_bytes, half) - weight
    if more > 0:  # room or not: one is decoded at a time
        place = core.handling.charge_anyway(more, member)
        context.charges.append(RequestCharge(place, core.allocator.charge_anyway(more, "requests")))
    return message


def _decode(api_key: int, version: int, frame: bytes, body_pos: int) -> tuple[Message, int]:
    message = decode_request(api_key, version, frame, body_pos, lenient=True)
    return message, count_elements(message)
