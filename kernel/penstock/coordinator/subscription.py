"""Reads the topics out of the metadata that consumers send with JoinGroup (ConsumerProtocolSubscription)."""

from __future__ import annotations

__all__ = ("subscribed_topics",)

from penstock.wire import DecodeError
from penstock.wire.messages.consumer_protocol_subscription import ConsumerProtocolSubscription
from penstock.wire.registry import decode_data


def subscribed_topics(metadata: bytes) -> frozenset[str] | None:
    """The subscribed topics, or None if `metadata` isn't a consumer subscription.

    Other clients wrote it: versions later than the known ones are read as the last of these, as Kafka does.
    """
    try:
        _, subscription = decode_data(ConsumerProtocolSubscription, metadata, lenient=True)
    except DecodeError:
        return None
    return frozenset(subscription.topics)
