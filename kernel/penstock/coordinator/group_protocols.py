"""The topics that the members of a group want together."""

from __future__ import annotations

__all__ = ("subscription_of",)

from collections.abc import Collection
from typing import Final

from penstock.coordinator.group_member import Member
from penstock.coordinator.subscription import subscribed_count, subscribed_topics

#: They are read in one go, when a rebalance ends: each takes half a microsecond, and two bytes of what members send.
_TOPICS_MAX: Final = 50_000


def subscription_of(members: Collection[Member], protocol_name: str | None) -> frozenset[str] | None:
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
    return frozenset(topics)
