"""Reads the topics out of the metadata that consumers send with JoinGroup (ConsumerProtocolSubscription)."""

from __future__ import annotations

__all__ = ("subscribed_count", "subscribed_topics")

import struct
from typing import Final

from penstock.wire import DecodeError
from penstock.wire.messages.consumer_protocol_subscription import DECODERS

#: Version, and number of topics.
_START: Final = struct.Struct(">hi")
_VERSION_BYTES: Final = 2


def subscribed_count(metadata: bytes) -> int:
    """How many topics are to be read: so many strings, however short."""
    return max(_START.unpack_from(metadata)[1], 0) if len(metadata) >= _START.size else 0


def subscribed_topics(metadata: bytes) -> frozenset[str] | None:
    """The subscribed topics, or None if `metadata` isn't a consumer subscription.

    Other clients wrote it. All versions begin as the first does, and nothing else is read, as in Kafka.
    """
    if len(metadata) < _START.size or _START.unpack_from(metadata)[0] < 0:
        return None
    try:
        subscription, _ = DECODERS[0](memoryview(metadata), _VERSION_BYTES, len(metadata))
    except DecodeError:
        return None
    return frozenset(subscription.topics)
