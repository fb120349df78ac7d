"""A channel before the gate: a request is let through, refused, or let through and its client throttled."""

from __future__ import annotations

__all__ = ("admit", "rest", "throttled")

import msgspec

from penstock.api.declaration import Api
from penstock.server.channel import Channel
from penstock.server.slots import Slot
from penstock.wire.registry import Message
from penstock.wire.splice import EncodedBody

#: What a response has where it can tell a client that it is throttled (KIP-219).
_THROTTLE_FIELD = "throttle_time_ms"


def admit(channel: Channel, api: Api, request: Message, slot: Slot) -> None:
    """Return when ``request`` may go to its handler; if its client is over its quota, the channel rests then.

    Raises:
        KafkaError: the gate refuses it.
    """
    slot.throttle_ms = channel.core.gate.admit(api, request, channel.client, slot.request_bytes)
    if slot.throttle_ms > 0:
        channel.rest(slot.throttle_ms)


def rest(channel: Channel, slot: Slot, rest_s: float) -> None:
    """Take nothing more of the client for so long, and say so in its answer."""
    slot.throttle_ms = max(slot.throttle_ms, int(rest_s * 1000))
    channel.rest(slot.throttle_ms)


def throttled(response: Message, throttle_ms: int) -> Message:
    """The response that also says for how long its client is throttled, where it has a place for that."""
    if type(response) is EncodedBody:
        return response.throttled(throttle_ms)
    if _THROTTLE_FIELD not in response.__struct_fields__:
        return response
    return msgspec.structs.replace(response, **{_THROTTLE_FIELD: throttle_ms})
