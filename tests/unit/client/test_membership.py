"""Range assignment, and a member's turns with a scripted coordinator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.client.fake_broker import FakeBroker

from penstock.errors import FencedError, InvalidRequestError
from penstock.wire import ApiKey, ErrorCode, decode_data, encode_data
from penstock.wire.messages.consumer_protocol_assignment import ConsumerProtocolAssignment
from penstock.wire.messages.consumer_protocol_subscription import ConsumerProtocolSubscription
from penstock.wire.messages.find_coordinator import FindCoordinatorResponse
from penstock.wire.messages.heartbeat import HeartbeatResponse
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember
from penstock.wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
)
from penstock.wire.messages.sync_group import SyncGroupRequest, SyncGroupResponse
from penstock_tools.client import ClientSettings, Cluster, Membership, MembershipSettings
from penstock_tools.client.membership import range_assignment

TOPICS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=3)
SUBSCRIPTIONS = st.dictionaries(
    st.text(max_size=3), st.lists(st.sampled_from("abcd"), unique=True), max_size=5
)


@given(SUBSCRIPTIONS, TOPICS)
def test_every_partition_goes_to_one_subscriber_in_even_contiguous_ranges(
    subscriptions: dict[str, list[str]], counts: dict[str, int]
) -> None:
    dealt = range_assignment(subscriptions, counts)
    assert dealt.keys() == subscriptions.keys()
    for topic, count in counts.items():
        members = sorted(member for member, topics in subscriptions.items() if topic in topics)
        ranges = [dealt[member].get(topic, []) for member in members]
        assert [partition for each in ranges for partition in each] == list(range(count if members else 0))
        sizes = [len(each) for each in ranges]
        assert sizes == sorted(sizes, reverse=True)
        assert not sizes or max(sizes) - min(sizes) <= 1
    for member, topics in dealt.items():
        assert topics.keys() <= set(subscriptions[member]) & counts.keys()


class Coordinator(FakeBroker):
    """A broker with a group of one or two; ``join_errors`` and ``sync_errors`` are given out first."""

    def __init__(self) -> None:
        super().__init__({"t": 3})
        self.join_errors: list[int] = []
        self.sync_errors: list[int] = []
        self.heartbeats: list[int] = []
        self.other_member = ""
        self.dealt: dict[str, list[int]] = {}
        self.generation = 0
        for key in (
            ApiKey.FIND_COORDINATOR,
            ApiKey.JOIN_GROUP,
            ApiKey.SYNC_GROUP,
            ApiKey.HEARTBEAT,
            ApiKey.LEAVE_GROUP,
            ApiKey.OFFSET_COMMIT,
        ):
            self.versions[key] = (0, 3) if key != ApiKey.OFFSET_COMMIT else (2, 7)
        self.override[ApiKey.FIND_COORDINATOR] = lambda request: FindCoordinatorResponse(
            node_id=1, host="127.0.0.1", port=self.port
        )
        self.override[ApiKey.JOIN_GROUP] = self.join
        self.override[ApiKey.SYNC_GROUP] = self.sync
        self.override[ApiKey.HEARTBEAT] = lambda request: HeartbeatResponse(error_code=self.heartbeats.pop(0))
        self.override[ApiKey.LEAVE_GROUP] = lambda request: LeaveGroupResponse()

    def join(self, request: JoinGroupRequest) -> JoinGroupResponse:
        if self.join_errors:
            return JoinGroupResponse(error_code=self.join_errors.pop(0), member_id="given")
        self.generation += 1
        member_id = request.member_id or "me"
        metadata = request.protocols[0].metadata
        members = [JoinGroupResponseMember(member_id=member_id, metadata=metadata)]
        if self.other_member:
            subscription = encode_data(0, ConsumerProtocolSubscription(topics=["t", "missing"]))
            members.append(JoinGroupResponseMember(member_id=self.other_member, metadata=subscription))
        return JoinGroupResponse(
            generation_id=self.generation,
            protocol_name="range",
            leader=member_id,
            member_id=member_id,
            members=members,
        )

    def sync(self, request: SyncGroupRequest) -> SyncGroupResponse:
        if self.sync_errors:
            return SyncGroupResponse(error_code=self.sync_errors.pop(0))
        for each in request.assignments:
            _, decoded = decode_data(ConsumerProtocolAssignment, each.assignment)
            self.dealt[each.member_id] = [
                partition for topic in decoded.assigned_partitions for partition in topic.partitions
            ]
        mine = next(each for each in request.assignments if each.member_id == request.member_id)
        return SyncGroupResponse(assignment=mine.assignment)

    def refuse_commits(self, code: int) -> None:
        def commit(request: OffsetCommitRequest) -> OffsetCommitResponse:
            (topic,) = request.topics
            partitions = [
                OffsetCommitResponsePartition(partition_index=each.partition_index, error_code=code)
                for each in topic.partitions
            ]
            return OffsetCommitResponse(
                topics=[OffsetCommitResponseTopic(name=topic.name, partitions=partitions)]
            )

        self.override[ApiKey.OFFSET_COMMIT] = commit

    def requests(self, api_key: int) -> list[Any]:
        return [message for key, _, message in self.seen if key == api_key]


@asynccontextmanager
async def member_of(broker: Coordinator) -> AsyncIterator[Membership]:
    async with broker.serving():
        client = ClientSettings(bootstrap_servers=broker.address, retry_backoff_s=0.001)
        async with Cluster.open(client) as cluster:
            await cluster.topics()
            settings = MembershipSettings(group="g", topics=["t"], heartbeat_interval_ms=1)
            yield Membership(cluster, settings)


@pytest.mark.anyio
async def test_the_leader_deals_out_to_all_members_and_gets_its_part() -> None:
    broker = Coordinator()
    broker.other_member = "you"
    async with member_of(broker) as member:
        assert await member.join() == [("t", 0), ("t", 1)]
        assert broker.dealt == {"me": [0, 1], "you": [2]}


@pytest.mark.anyio
async def test_joining_goes_on_until_it_works() -> None:
    broker = Coordinator()
    broker.join_errors = [
        int(ErrorCode.MEMBER_ID_REQUIRED),
        int(ErrorCode.COORDINATOR_LOAD_IN_PROGRESS),
        int(ErrorCode.UNKNOWN_MEMBER_ID),
    ]
    broker.sync_errors = [int(ErrorCode.REBALANCE_IN_PROGRESS)]
    async with member_of(broker) as member:
        assert len(await member.join()) == 3
        assert member.generation == 2
        asked = [request.member_id for request in broker.requests(ApiKey.JOIN_GROUP)]
        assert asked == ["", "given", "given", "", "me"]


@pytest.mark.anyio
async def test_a_refusal_for_good_is_raised() -> None:
    broker = Coordinator()
    broker.join_errors = [int(ErrorCode.INCONSISTENT_GROUP_PROTOCOL)]
    async with member_of(broker) as member:
        with pytest.raises(InvalidRequestError, match="group=g.*INCONSISTENT_GROUP_PROTOCOL"):  # noqa: RUF043
            await member.join()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("last", "member_id"), [(ErrorCode.REBALANCE_IN_PROGRESS, "me"), (ErrorCode.UNKNOWN_MEMBER_ID, "")]
)
async def test_watching_ends_when_the_group_goes_on_without_us(last: ErrorCode, member_id: str) -> None:
    broker = Coordinator()
    broker.heartbeats = [0, int(ErrorCode.NOT_COORDINATOR), 0, int(last)]
    async with member_of(broker) as member:
        await member.join()
        await member.watch()
        assert member.member_id == member_id
        assert broker.heartbeats == []


@pytest.mark.anyio
async def test_a_commit_names_member_and_generation_and_is_fenced_when_they_are_old() -> None:
    broker = Coordinator()
    broker.refuse_commits(ErrorCode.NONE)
    async with member_of(broker) as member:
        await member.join()
        await member.commit({("t", 1): 5})
        (request,) = broker.requests(ApiKey.OFFSET_COMMIT)
        assert (request.member_id, request.generation_id_or_member_epoch) == ("me", 1)
        broker.refuse_commits(ErrorCode.ILLEGAL_GENERATION)
        with pytest.raises(FencedError, match="ILLEGAL_GENERATION"):
            await member.commit({("t", 1): 6})


@pytest.mark.anyio
async def test_leaving_names_the_member_once() -> None:
    broker = Coordinator()
    async with member_of(broker) as member:
        await member.join()
        await member.leave()
        await member.leave()
        (request,) = broker.requests(ApiKey.LEAVE_GROUP)
        assert isinstance(request, LeaveGroupRequest)
        assert [each.member_id for each in request.members] == ["me"]
