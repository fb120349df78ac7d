"""The topics that the members of a group want together."""

from __future__ import annotations

__all__ = ("Subscription", "subscription_of")

from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable
from typing import Final

from penstock.coordinator.group_member import Member
from penstock.coordinator.subscription import subscribed_count, subscribed_topics

#: They are read in one go, when a rebalance ends: each takes half a microsecond, and two bytes of what members send.
_TOPICS_MAX: Final = 50_000


class Subscription:
    """Names of topics to be asked after, by their hashes: as names they take thirty times what members send for them.

    Two names have the same hash once in 2**64, and differently in each process.
    """

    __slots__ = ("_hashes",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._hashes = array("q", sorted({hash(name) for name in names}))

    def __contains__(self, name: object) -> bool:
        hashes, sought = self._hashes, hash(name)
        at = bisect_left(hashes, sought)
        return at < len(hashes) and hashes[at] == sought

    @property
    def size_bytes(self) -> int:
        """What they take in memory."""
        return len(self._hashes) * self._hashes.itemsize


def subscription_of(members: Collection[Member], protocol_name: str | None) -> Subscription | None:
    """The topics that consumers subscribe to together; None if one of them doesn't say so readably, or they are more
    than are read.
    """
    topics: set[str] = set()
    # of thousands nearly all say the same
    different = {member.metadata_for(protocol_name) for member in members}
    if sum(map(subscribed_count, different)) > _TOPICS_MAX:
        return None
    for metadata in different:
        subscribed = subscribed_topics(metadata)
        if subscribed is None:
            return None
        topics |= subscribed
    return Subscription(topics)
