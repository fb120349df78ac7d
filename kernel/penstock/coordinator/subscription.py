"""Reads the topics out of the metadata that consumers send with JoinGroup (ConsumerProtocolSubscription).

    int16 version, array of strings (topics), nullable bytes (user data), and fields of later versions

The layout of the first fields is the same in all versions (0 to 3), so later ones are read as well.
"""

from __future__ import annotations

import struct

__all__ = ("subscribed_topics",)

_HEADER = struct.Struct(">hi")
_INT16 = struct.Struct(">h")


def subscribed_topics(metadata: bytes) -> frozenset[str] | None:
    """The subscribed topics, or None if `metadata` isn't a consumer subscription."""
    try:
        version, count = _HEADER.unpack_from(metadata)
        if version < 0 or not 0 <= count <= len(metadata):
            return None
        position = _HEADER.size
        topics = set()
        for _ in range(count):
            (size,) = _INT16.unpack_from(metadata, position)
            position += _INT16.size
            name = bytes(metadata[position : position + size])
            if size < 0 or len(name) != size:
                return None
            topics.add(name.decode())
            position += size
    except (struct.error, UnicodeDecodeError):
        return None
    return frozenset(topics)
