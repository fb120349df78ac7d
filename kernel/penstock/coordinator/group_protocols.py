"""What the members of a group have in common: the assignment protocol they agree on, the topics they want."""

from __future__ import annotations

__all__ = ("selected_protocol", "shares_a_protocol", "subscription_of")

from collections import Counter
from collections.abc import Collection

from penstock.coordinator.group_member import Member
from penstock.coordinator.group_types import JoinRequest
from penstock.coordinator.subscription import subscribed_topics


def shares_a_protocol(members: Collection[Member], request: JoinRequest) -> bool:
    """Whether one of the request's protocols is spoken by all members."""
    return any(all(member.supports(name) for member in members) for name, _ in request.protocols)


def selected_protocol(members: Collection[Member]) -> str:
    """The protocol with the most votes; every member votes for its first one that all speak."""
    spoken = Counter(name for member in members for name in dict(member.protocols))
    common = {name for name, count in spoken.items() if count == len(members)}
    votes = Counter(member.vote(common) for member in members)
    return votes.most_common(1)[0][0]


def subscription_of(members: Collection[Member], protocol_name: str | None) -> frozenset[str] | None:
    """The topics that consumers subscribe to together; None if one of them doesn't say so readably."""
    topics: frozenset[str] = frozenset()
    for member in members:
        subscribed = subscribed_topics(member.metadata_for(protocol_name))
        if subscribed is None:
            return None
        topics |= subscribed
    return topics
