"""Membership in a consumer group: the classic protocol, eager rebalancing, range assignment.

The group's leader, which any member may be, deals out all members' topics; so this works beside members of
other clients that know ``range``.
"""

from __future__ import annotations

__all__ = ("Membership", "MembershipSettings", "range_assignment")

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from penstock.errors import FencedError, UnavailableError
from penstock.wire import ApiKey, ErrorCode, decode_data, encode_data
from penstock.wire.messages.consumer_protocol_assignment import (
    ConsumerProtocolAssignment,
)
from penstock.wire.messages.consumer_protocol_assignment import (
    TopicPartition as AssignedTopic,
)
from penstock.wire.messages.consumer_protocol_subscription import ConsumerProtocolSubscription
from penstock.wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from penstock.wire.messages.join_group import (
    JoinGroupRequest,
    JoinGroupRequestProtocol,
    JoinGroupResponse,
    JoinGroupResponseMember,
)
from penstock.wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberIdentity
from penstock.wire.messages.sync_group import (
    SyncGroupRequest,
    SyncGroupRequestAssignment,
    SyncGroupResponse,
)
from penstock_tools.client.admin import Admin, TopicPartition
from penstock_tools.client.cluster import Cluster
from penstock_tools.client.errors import check, is_retriable

_PROTOCOL_TYPE: Final = "consumer"
_ASSIGNOR: Final = "range"
_VERSION: Final = 1  # of subscription and assignment: the newest without fields that only cooperation needs
_REJOIN: Final = frozenset({ErrorCode.REBALANCE_IN_PROGRESS, ErrorCode.ILLEGAL_GENERATION})


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipSettings:
    """Which group, which topics, and how patient the coordinator is to be with us."""

    group: str
    topics: Sequence[str]
    session_timeout_ms: int = 45_000
    rebalance_timeout_ms: int = 60_000
    heartbeat_interval_ms: int = 3_000


class Membership:
    """One member: :meth:`join`, read while :meth:`watch` waits, commit, and join again; at the end :meth:`leave`."""

    def __init__(self, cluster: Cluster, settings: MembershipSettings) -> None:
        self.settings = settings
        self.member_id = ""
        self.generation = -1
        self._cluster = cluster
        self._admin = Admin(cluster)

    async def join(self) -> list[TopicPartition]:
        """Join, or join again after a rebalance; returns when the partitions are dealt out: those that are ours.

        Raises:
            InvalidRequestError: the coordinator refuses: other protocols in the group, a bad group id.
            UnavailableError: no coordinator within the retry timeout.
        """
        while True:
            assigned = await self._cluster.retry(self._join_once, group=self.settings.group)
            if assigned is not None:
                return assigned

    async def watch(self) -> None:
        """Send heartbeats until the group rebalances, or goes on without us: time to commit and join again.

        Raises:
            FencedError: another member with our instance id took over.
        """
        settings = self.settings
        last_heard_s = anyio.current_time()
        request = HeartbeatRequest(
            group_id=settings.group, generation_id=self.generation, member_id=self.member_id
        )
        while anyio.current_time() - last_heard_s < settings.session_timeout_ms / 1000:
            await anyio.sleep(settings.heartbeat_interval_ms / 1000)
            try:
                connection = await self._cluster.coordinator(settings.group)
                answer = await self._cluster.ask(connection, ApiKey.HEARTBEAT, request)
            except UnavailableError:
                self._cluster.forget_coordinator(settings.group)
                continue
            assert isinstance(answer, HeartbeatResponse)
            if self._is_over(answer.error_code):
                return
            if is_retriable(answer.error_code):
                self._cluster.forget_coordinator(settings.group)
                continue
            check(answer.error_code, f"heartbeat was refused group={settings.group}")
            last_heard_s = anyio.current_time()

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the offsets to go on from.

        Raises:
            FencedError: the group went on without this member; somebody else reads from the last commit.
        """
        if offsets:
            await self._admin.commit_offsets(
                self.settings.group, offsets, member_id=self.member_id, generation=self.generation
            )

    async def leave(self) -> None:
        """Leave, so that the others needn't wait for the session timeout. Errors that may pass are let pass."""
        if not self.member_id:
            return
        group, member_id = self.settings.group, self.member_id
        self.member_id = ""
        request = LeaveGroupRequest(
            group_id=group, member_id=member_id, members=[MemberIdentity(member_id=member_id)]
        )
        try:
            answer = await self._cluster.ask(
                await self._cluster.coordinator(group), ApiKey.LEAVE_GROUP, request
            )
            assert isinstance(answer, LeaveGroupResponse)
            check(answer.error_code, f"member can't leave group={group}")
        except (UnavailableError, FencedError):
            return  # then the session timeout ends the membership

    def _is_over(self, code: int) -> bool:
        """Whether ``code`` says to join again."""
        if code == ErrorCode.UNKNOWN_MEMBER_ID:
            self.member_id = ""
            return True
        return code in _REJOIN

    async def _join_once(self) -> list[TopicPartition] | None:
        """One turn of JoinGroup and SyncGroup; None: it has to be taken again."""
        settings = self.settings
        subscription = ConsumerProtocolSubscription(topics=sorted(set(settings.topics)))
        protocol = JoinGroupRequestProtocol(name=_ASSIGNOR, metadata=encode_data(_VERSION, subscription))
        connection = await self._cluster.coordinator(settings.group)
        joined = await connection.request(
            ApiKey.JOIN_GROUP,
            JoinGroupRequest(
                group_id=settings.group,
                session_timeout_ms=settings.session_timeout_ms,
                rebalance_timeout_ms=settings.rebalance_timeout_ms,
                member_id=self.member_id,
                protocol_type=_PROTOCOL_TYPE,
                protocols=[protocol],
            ),
            # the coordinator answers when all members have joined, or their time is over
            timeout_s=settings.rebalance_timeout_ms / 1000 + self._cluster.settings.request_timeout_s,
        )
        assert isinstance(joined, JoinGroupResponse)
        if joined.error_code == ErrorCode.MEMBER_ID_REQUIRED:  # KIP-394
            self.member_id = joined.member_id
            return None
        if self._is_over(joined.error_code):
            return None
        check(joined.error_code, f"group can't be joined group={settings.group}")
        self.member_id, self.generation = joined.member_id, joined.generation_id
        assignments = await self._deal(joined.members) if joined.leader == joined.member_id else []
        synced = await self._cluster.ask(
            connection,
            ApiKey.SYNC_GROUP,
            SyncGroupRequest(
                group_id=settings.group,
                generation_id=self.generation,
                member_id=self.member_id,
                protocol_type=_PROTOCOL_TYPE,
                protocol_name=_ASSIGNOR,
                assignments=assignments,
            ),
        )
        assert isinstance(synced, SyncGroupResponse)
        if self._is_over(synced.error_code):
            return None
        check(synced.error_code, f"group can't be joined group={settings.group}")
        if not synced.assignment:
            return []
        _, assignment = decode_data(ConsumerProtocolAssignment, synced.assignment, lenient=True)
        return sorted(
            (each.topic, partition)
            for each in assignment.assigned_partitions
            for partition in each.partitions
        )

    async def _deal(self, members: Sequence[JoinGroupResponseMember]) -> list[SyncGroupRequestAssignment]:
        """As the group's leader: who gets what."""
        subscriptions = {}
        for member in members:
            _, subscription = decode_data(ConsumerProtocolSubscription, member.metadata, lenient=True)
            subscriptions[member.member_id] = subscription.topics
        counts = {topic.name: len(topic.partitions) for topic in await self._cluster.topics()}
        dealt = range_assignment(subscriptions, counts)
        return [
            SyncGroupRequestAssignment(
                member_id=member_id,
                assignment=encode_data(
                    _VERSION,
                    ConsumerProtocolAssignment(
                        assigned_partitions=[
                            AssignedTopic(topic=topic, partitions=partitions)
                            for topic, partitions in topics.items()
                        ]
                    ),
                ),
            )
            for member_id, topics in dealt.items()
        ]


def range_assignment(
    subscriptions: Mapping[str, Sequence[str]], partition_counts: Mapping[str, int]
) -> dict[str, dict[str, list[int]]]:
    """Kafka's range assignor: per topic, each of its members in order of id gets one contiguous range.

    The first members get one partition more when they don't divide evenly. Every member is in the result;
    topics that aren't there are left out.
    """
    dealt: dict[str, dict[str, list[int]]] = {member: {} for member in subscriptions}
    for topic in sorted({topic for topics in subscriptions.values() for topic in topics}):
        count = partition_counts.get(topic, 0)
        members = sorted(member for member, topics in subscriptions.items() if topic in topics)
        each, more = divmod(count, len(members))
        first = 0
        for index, member in enumerate(members):
            size = each + (index < more)
            if size:
                dealt[member][topic] = list(range(first, first + size))
            first += size
    return dealt
