"""The topics that the members of a group want together."""

from __future__ import annotations

__all__ = ("subscription_of",)

from collections.abc import Collection

from penstock.coordinator.group_member import Member
from penstock.coordinator.subscription import subscribed_topics


def subscription_of(members: Collection[Member], protocol_name: str | None) -> frozenset[str] | None:
    """The topics that consumers subscribe to together; None if one of them doesn't say so readably."""
    topics: frozenset[str] = frozenset()
    # of thousands nearly all say the same
    for metadata in {member.metadata_for(protocol_name) for member in members}:
        subscribed = subscribed_topics(metadata)
        if subscribed is None:
            return None
        topics |= subscribed
    return topics
