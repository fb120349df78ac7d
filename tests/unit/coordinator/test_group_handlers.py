"""The group APIs over the wire: every version's request is encoded, read, handled, answered and read again."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel
import msgspec
import pytest
from tests.unit.coordinator.conftest import LedService
from tests.wire_requests import API_REQUESTS, encode

from penstock.api.context import Client, Endpoint, RequestContext
from penstock.api.dispatch import apis
from penstock.coordinator.group_service import GroupService
from penstock.coordinator.group_types import GroupSettings
from penstock.log.limiter import BytesLimiter
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.delete_groups import DeleteGroupsRequest, DeleteGroupsResponse
from penstock.wire.messages.describe_groups import DescribeGroupsRequest, DescribeGroupsResponse
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest, FindCoordinatorResponse
from penstock.wire.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from penstock.wire.messages.join_group import (
    JoinGroupRequest,
    JoinGroupRequestProtocol,
    JoinGroupResponse,
)
from penstock.wire.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberIdentity
from penstock.wire.messages.list_groups import ListGroupsRequest, ListGroupsResponse
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
    OffsetCommitResponse,
)
from penstock.wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
    OffsetDeleteResponse,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
    OffsetFetchResponse,
)
from penstock.wire.messages.sync_group import (
    SyncGroupRequest,
    SyncGroupRequestAssignment,
    SyncGroupResponse,
)
from penstock.wire.registry import (
    decode_request,
    decode_request_header,
    decode_response,
    encode_request,
    encode_response,
    supported_versions,
)

pytestmark = pytest.mark.anyio

_T = TypeVar("_T", bound=msgspec.Struct)
HANDLERS: dict[int, Any] = {key: api.handler for key, api in apis().items()}
TOPIC_ID = b"0123456789abcdef"
SUBSCRIPTION = b"\0\0\0\0\0\x01\0\x01t\xff\xff\xff\xff"


@dataclass
class FakeTopic:
    name: str = "t"
    id: bytes = TOPIC_ID
    partition_count: int = 2


class Clock(Protocol):
    def now_ms(self) -> int: ...
    async def wait(self, event: anyio.Event, delay_ms: int | None) -> None: ...
    async def advance(self, ms: int) -> None: ...


def versions(key: ApiKey) -> list[int]:
    supported = supported_versions(key)
    assert supported is not None
    return list(range(supported.low, supported.high + 1))


class Wire:
    """One client's connection to a broker that has one topic."""

    def __init__(self, service: GroupService, clock: Clock) -> None:
        self.service = service
        self.clock = clock
        topic = FakeTopic()
        logs = SimpleNamespace(
            topics=lambda: {"t": topic},
            topic_by_id=lambda topic_id: topic if topic_id == TOPIC_ID else None,
        )
        self.api: Any = SimpleNamespace(groups=service, logs=logs, authorizer=None)
        self.client = Client(
            outgoing=BytesLimiter(1, clock=float).join("", None),
            host="10.0.0.9",
            port=5,
            advertised=Endpoint(node_id=3, host="broker", port=9092),
            client_id="me",
        )

    async def call(self, key: ApiKey, version: int, request: msgspec.Struct, expect: type[_T]) -> _T:
        frame = bytearray(b"".join(encode_request(key, version, 1, "me", request))[4:])
        header = decode_request_header(frame)
        decoded = decode_request(key, version, frame, header.body_pos)
        context = RequestContext(api=self.api, client=self.client, version=version)
        response = await HANDLERS[key](decoded, context)
        frame[:] = bytes(len(frame))  # the frame's memory is reused: nothing may have kept a view
        body = b"".join(encode_response(key, version, 1, response))[4:]
        answer = decode_response(key, version, body)[1]
        assert isinstance(answer, expect)
        return answer

    async def join(self, version: int = 9, **changes: Any) -> JoinGroupResponse:
        request = JoinGroupRequest(
            group_id="g",
            session_timeout_ms=10_000,
            rebalance_timeout_ms=60_000,
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol(name="range", metadata=SUBSCRIPTION)],
        )
        for name, value in changes.items():
            setattr(request, name, value)
        answers: list[JoinGroupResponse] = []

        async def run() -> None:
            answers.append(await self.call(ApiKey.JOIN_GROUP, version, request, JoinGroupResponse))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            await self.clock.advance(3_000)
        return answers[0]

    async def sync(self, member: str, generation: int, version: int = 5) -> SyncGroupResponse:
        request = SyncGroupRequest(
            group_id="g",
            generation_id=generation,
            member_id=member,
            assignments=[SyncGroupRequestAssignment(member_id=member, assignment=b"mine")],
        )
        if version >= 5:
            request.protocol_type, request.protocol_name = "consumer", "range"
        return await self.call(ApiKey.SYNC_GROUP, version, request, SyncGroupResponse)

    async def stable(self) -> str:
        joined = await self.join(3)
        assert (await self.sync(joined.member_id, 1)).error_code == 0
        return joined.member_id

    async def commit(
        self,
        version: int,
        *,
        topic: str = "t",
        topic_id: bytes = TOPIC_ID,
        partition: int = 0,
        **changes: Any,
    ) -> list[int]:
        request = OffsetCommitRequest(
            group_id="g",
            topics=[
                OffsetCommitRequestTopic(
                    partitions=[
                        OffsetCommitRequestPartition(
                            partition_index=partition, committed_offset=7, committed_metadata="m"
                        )
                    ],
                )
            ],
        )
        if version >= 10:
            request.topics[0].topic_id = topic_id
        else:
            request.topics[0].name = topic
        if version >= 6:
            request.topics[0].partitions[0].committed_leader_epoch = 4
        for name, value in changes.items():
            setattr(request, name, value)
        response = await self.call(ApiKey.OFFSET_COMMIT, version, request, OffsetCommitResponse)
        assert (response.topics[0].name, response.topics[0].topic_id) == (
            (topic, bytes(16)) if version < 10 else ("", topic_id)
        )
        return [one.error_code for one in response.topics[0].partitions]

    async def fetch(
        self, version: int, *, everything: bool = False, group: str = "g"
    ) -> list[tuple[Any, ...]]:
        """(partition, offset, leader epoch, metadata, error) of topic t."""
        if version >= 8:
            asked = OffsetFetchRequestTopics(partition_indexes=[0, 1])
            if version >= 10:
                asked.topic_id = TOPIC_ID
            else:
                asked.name = "t"
            groups = [OffsetFetchRequestGroup(group_id=group, topics=None if everything else [asked])]
            request = OffsetFetchRequest(groups=groups)
        else:
            plain = [OffsetFetchRequestTopic(name="t", partition_indexes=[0, 1])]
            request = OffsetFetchRequest(group_id=group, topics=None if everything else plain)
        response = await self.call(ApiKey.OFFSET_FETCH, version, request, OffsetFetchResponse)
        top: Any = response.groups[0] if version >= 8 else response
        assert top.error_code == 0
        if version >= 10:
            assert all(one.topic_id == TOPIC_ID for one in top.topics)
        return [
            (
                one.partition_index,
                one.committed_offset,
                one.committed_leader_epoch,
                one.metadata,
                one.error_code,
            )
            for topic in top.topics
            for one in topic.partitions
        ]


@pytest.fixture
def wire(log: Any, clock: Clock) -> Wire:
    """The service isn't started: `async with wire.service` does that in the test's own task."""
    return Wire(LedService(log, GroupSettings(), clock), clock)


@pytest.mark.parametrize("version", versions(ApiKey.JOIN_GROUP))
async def test_join_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        joined = await wire.join(version)
        if version >= 4:
            assert joined.error_code == ErrorCode.MEMBER_ID_REQUIRED
            assert joined.protocol_name == (None if version >= 7 else "")
            joined = await wire.join(version, member_id=joined.member_id)
        assert (joined.error_code, joined.generation_id, joined.leader) == (0, 1, joined.member_id)
        assert joined.member_id.startswith("me-")
        assert joined.protocol_name == "range"
        assert joined.protocol_type == ("consumer" if version >= 7 else None)
        assert [bytes(one.metadata) for one in joined.members] == [SUBSCRIPTION]


async def test_a_session_timeout_out_of_range_is_told_before_that_there_is_no_such_member(wire: Wire) -> None:
    async with wire.service:
        joined = await wire.join(0, member_id="ghost", session_timeout_ms=1)
        assert joined.error_code == ErrorCode.INVALID_SESSION_TIMEOUT
        joined = await wire.join(0, member_id="ghost")
        assert joined.error_code == ErrorCode.UNKNOWN_MEMBER_ID


@pytest.mark.parametrize("version", versions(ApiKey.SYNC_GROUP))
async def test_sync_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        joined = await wire.join(0)
        synced = await wire.sync(joined.member_id, 1, version)
        assert (synced.error_code, bytes(synced.assignment)) == (0, b"mine")
        assert synced.protocol_name == ("range" if version >= 5 else None)
        assert (await wire.sync("ghost", 1, version)).error_code == ErrorCode.UNKNOWN_MEMBER_ID


@pytest.mark.parametrize("version", versions(ApiKey.HEARTBEAT))
async def test_heartbeat_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        member = await wire.stable()
        for generation, error in ((1, ErrorCode.NONE), (2, ErrorCode.ILLEGAL_GENERATION)):
            request = HeartbeatRequest(group_id="g", generation_id=generation, member_id=member)
            response = await wire.call(ApiKey.HEARTBEAT, version, request, HeartbeatResponse)
            assert response.error_code == error


@pytest.mark.parametrize("version", versions(ApiKey.LEAVE_GROUP))
async def test_leave_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        member = await wire.stable()
        for error in (ErrorCode.NONE, ErrorCode.UNKNOWN_MEMBER_ID):
            request = LeaveGroupRequest(group_id="g")
            if version >= 3:
                request.members = [MemberIdentity(member_id=member)]
            else:
                request.member_id = member
            response = await wire.call(ApiKey.LEAVE_GROUP, version, request, LeaveGroupResponse)
            if version >= 3:
                assert response.error_code == 0
                assert [(one.member_id, one.error_code) for one in response.members] == [(member, error)]
            else:
                assert response.error_code == error
        nobody = LeaveGroupRequest(group_id="")
        response = await wire.call(ApiKey.LEAVE_GROUP, version, nobody, LeaveGroupResponse)
        assert response.error_code == ErrorCode.INVALID_GROUP_ID


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_GROUPS))
async def test_describe_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        member = await wire.stable()
        request = DescribeGroupsRequest(groups=["g", "x"], include_authorized_operations=version >= 3)
        response = await wire.call(ApiKey.DESCRIBE_GROUPS, version, request, DescribeGroupsResponse)
        known, unknown = response.groups
        assert (known.error_code, known.group_state, known.protocol_type) == (0, "Stable", "consumer")
        assert known.protocol_data == "range"
        (shown,) = known.members
        assert (shown.member_id, shown.client_id, shown.client_host) == (member, "me", "/10.0.0.9")
        assert (bytes(shown.member_metadata), bytes(shown.member_assignment)) == (SUBSCRIPTION, b"mine")
        assert (known.authorized_operations > 0) is (version >= 3)
        assert unknown.error_code == (ErrorCode.GROUP_ID_NOT_FOUND if version >= 6 else 0)
        assert (unknown.group_state, unknown.members) == ("Dead", [])
        assert (unknown.error_message is not None) is (version >= 6)


@pytest.mark.parametrize("version", versions(ApiKey.LIST_GROUPS))
async def test_list_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        await wire.stable()
        for states, count in (([], 1), (["Stable"], 1), (["Empty"], 0))[: 3 if version >= 4 else 1]:
            request = ListGroupsRequest(states_filter=states)
            response = await wire.call(ApiKey.LIST_GROUPS, version, request, ListGroupsResponse)
            assert len(response.groups) == count
            for one in response.groups:
                assert (one.group_id, one.protocol_type) == ("g", "consumer")
                assert one.group_state == ("Stable" if version >= 4 else "")
                assert one.group_type == ("classic" if version >= 5 else "")


@pytest.mark.parametrize("version", versions(ApiKey.DELETE_GROUPS))
async def test_delete_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        await wire.commit(8)
        request = DeleteGroupsRequest(groups_names=["g", "x"])
        response = await wire.call(ApiKey.DELETE_GROUPS, version, request, DeleteGroupsResponse)
        errors = {one.group_id: one.error_code for one in response.results}
        assert errors == {"g": 0, "x": ErrorCode.GROUP_ID_NOT_FOUND}


@pytest.mark.parametrize("version", versions(ApiKey.OFFSET_COMMIT))
async def test_commit_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        assert await wire.commit(version) == [0]
        epoch = 4 if version >= 6 else -1
        assert await wire.fetch(9) == [(0, 7, epoch, "m", 0), (1, -1, -1, "", 0)]
        missing = 100 if version >= 10 else 3
        assert await wire.commit(version, topic="nope", topic_id=b"x" * 16) == [missing]
        assert await wire.commit(version, partition=2) == [ErrorCode.UNKNOWN_TOPIC_OR_PARTITION]
        changes: dict[str, Any] = {"group_id": "x", "generation_id_or_member_epoch": 1, "member_id": "m"}
        lost = ErrorCode.GROUP_ID_NOT_FOUND if version >= 9 else ErrorCode.ILLEGAL_GENERATION
        assert await wire.commit(version, **changes) == [lost]


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_the_retention_time_of_old_commits_is_honoured(wire: Wire, version: int) -> None:
    async with wire.service:
        await wire.commit(version, retention_time_ms=1_000)
        await wire.clock.advance(GroupSettings().offsets_retention_check_interval_ms)
        assert await wire.fetch(9, everything=True) == []


@pytest.mark.parametrize("retention_ms", [2**63 - 1, 2**62, -2, -(2**63)])
async def test_any_retention_time_is_taken_and_the_longest_lasts(wire: Wire, retention_ms: int) -> None:
    async with wire.service:
        assert await wire.commit(3, retention_time_ms=retention_ms) == [ErrorCode.NONE]
        await wire.clock.advance(GroupSettings().offsets_retention_check_interval_ms)
        assert await wire.fetch(9) == [(0, 7, -1, "m", 0), (1, -1, -1, "", 0)]


async def test_offsets_whose_group_and_metadata_are_not_utf8_are_committed_and_come_back(wire: Wire) -> None:
    """As in Kafka: U+FFFD stands for what is malformed, in the group's name and in what comes back."""
    asked = {"partition_index": 0, "committed_offset": 7, "committed_leader_epoch": -1}
    body = {
        "group_id": b"gr\xffup",
        "generation_id_or_member_epoch": -1,
        "member_id": "",
        "group_instance_id": None,
        "topics": [{"name": "t", "partitions": [{**asked, "committed_metadata": b"m\xfe"}]}],
    }
    frame = encode(API_REQUESTS[ApiKey.OFFSET_COMMIT], 8, body)
    async with wire.service:
        request = decode_request(ApiKey.OFFSET_COMMIT, 8, frame)
        context = RequestContext(api=wire.api, client=wire.client, version=8)
        response = await HANDLERS[ApiKey.OFFSET_COMMIT](request, context)
        assert isinstance(response, OffsetCommitResponse)
        assert response.topics[0].partitions[0].error_code == 0
        assert await wire.fetch(9, group="gr\ufffdup", everything=True) == [(0, 7, -1, "m\ufffd", 0)]


@pytest.mark.parametrize("version", versions(ApiKey.OFFSET_FETCH))
async def test_fetch_in_every_version(wire: Wire, version: int) -> None:
    async with wire.service:
        await wire.commit(9)
        epoch = 4 if version >= 5 else -1
        assert await wire.fetch(version) == [(0, 7, epoch, "m", 0), (1, -1, -1, "", 0)]
        assert await wire.fetch(version, group="unknown") == [(0, -1, -1, "", 0), (1, -1, -1, "", 0)]
        if version >= 2:
            assert await wire.fetch(version, everything=True) == [(0, 7, epoch, "m", 0)]
            assert await wire.fetch(version, everything=True, group="unknown") == []


@pytest.mark.parametrize("version", [5, 9, 10])
async def test_metadata_of_an_offset_that_is_asked_for_again_and_again_is_told_some_times_only(
    wire: Wire, version: int
) -> None:
    """A partition takes two bytes of a request, and 4 KiB of the answer: a megabyte was answered with a gigabyte."""
    asked = [0] * 5_000
    name: dict[str, Any] = {"topic_id": TOPIC_ID} if version >= 10 else {"name": "t"}
    topics = [OffsetFetchRequestTopics(partition_indexes=asked, **name)]
    if version >= 8:
        groups = [OffsetFetchRequestGroup(group_id="g", topics=topics)] * 2
        groups += [OffsetFetchRequestGroup(group_id="g", topics=None)] * 1_000
        request = OffsetFetchRequest(groups=groups)
    else:
        plain = [OffsetFetchRequestTopic(name="t", partition_indexes=asked)] * 2
        request = OffsetFetchRequest(group_id="g", topics=plain)
    async with wire.service:
        long = OffsetCommitRequestPartition(committed_offset=7, committed_metadata="m" * 4_096)
        commit = OffsetCommitRequest(
            group_id="g", topics=[OffsetCommitRequestTopic(name="t", partitions=[long])]
        )
        await wire.call(ApiKey.OFFSET_COMMIT, 9, commit, OffsetCommitResponse)
        response = await wire.call(ApiKey.OFFSET_FETCH, version, request, OffsetFetchResponse)
    answers = response.groups if version >= 8 else [response]
    told = [one for answer in answers for topic in answer.topics for one in topic.partitions]
    assert 60 <= len(told) <= 66
    assert {(one.committed_offset, len(one.metadata or "")) for one in told} == {(7, 4_096)}


async def test_fetching_an_unknown_topic_id_is_an_error_of_its_partitions(wire: Wire) -> None:
    async with wire.service:
        topics = [OffsetFetchRequestTopics(topic_id=b"x" * 16, partition_indexes=[0])]
        request = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=topics)])
        response = await wire.call(ApiKey.OFFSET_FETCH, 10, request, OffsetFetchResponse)
        (partition,) = response.groups[0].topics[0].partitions
        assert (partition.committed_offset, partition.error_code) == (-1, ErrorCode.UNKNOWN_TOPIC_ID)


@pytest.mark.parametrize("version", versions(ApiKey.OFFSET_FETCH))
async def test_a_group_error_is_where_the_version_has_it(wire: Wire, version: int) -> None:
    """The service isn't started, so it is loading."""
    topics = [OffsetFetchRequestTopic(name="t", partition_indexes=[0])]
    request = OffsetFetchRequest(group_id="g", topics=topics)
    if version >= 8:
        request = OffsetFetchRequest(groups=[OffsetFetchRequestGroup(group_id="g", topics=[])])
    response = await wire.call(ApiKey.OFFSET_FETCH, version, request, OffsetFetchResponse)
    loading = ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
    if version >= 8:
        assert response.groups[0].error_code == loading
    elif version >= 2:
        assert response.error_code == loading
    else:
        assert response.topics[0].partitions[0].error_code == loading


async def test_offsets_are_deleted_but_for_subscribed_and_unknown_topics(wire: Wire) -> None:
    async with wire.service:
        request = OffsetDeleteRequest(
            group_id="g",
            topics=[
                OffsetDeleteRequestTopic(
                    name=name, partitions=[OffsetDeleteRequestPartition(partition_index=0)]
                )
                for name in ("t", "nope")
            ],
        )
        response = await wire.call(ApiKey.OFFSET_DELETE, 0, request, OffsetDeleteResponse)
        assert (response.error_code, response.topics) == (ErrorCode.GROUP_ID_NOT_FOUND, [])
        await wire.commit(9)
        response = await wire.call(ApiKey.OFFSET_DELETE, 0, request, OffsetDeleteResponse)
        assert [topic.partitions[0].error_code for topic in response.topics] == [3, 0]
        assert await wire.fetch(9, everything=True) == []
        await wire.stable()
        response = await wire.call(ApiKey.OFFSET_DELETE, 0, request, OffsetDeleteResponse)
        assert response.topics[1].partitions[0].error_code == ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC


@pytest.mark.parametrize("version", versions(ApiKey.FIND_COORDINATOR))
async def test_find_coordinator_in_every_version(wire: Wire, version: int) -> None:
    for key_type, error in ((0, 0), (1, 0), (9, 42))[: 1 if version == 0 else 3]:
        request = FindCoordinatorRequest(key_type=key_type)
        if version >= 4:
            request.coordinator_keys = ["a", "b"]
        else:
            request.key = "a"
        response = await wire.call(ApiKey.FIND_COORDINATOR, version, request, FindCoordinatorResponse)
        found: list[Any] = list(response.coordinators) if version >= 4 else [response]
        assert [one.key for one in response.coordinators] == (["a", "b"] if version >= 4 else [])
        for one in found:
            assert one.error_code == error
            assert (one.node_id, one.host, one.port) == (-1, "", -1) if error else (3, "broker", 9092)


@pytest.mark.parametrize("key_type", [0, 9])
async def test_the_same_coordinator_is_one_object_and_words_are_told_some_times_only(
    wire: Wire, key_type: int
) -> None:
    """A request of 1 MiB has a million empty keys: 170 MiB of answers and their bytes, most of that words."""
    request = FindCoordinatorRequest(key_type=key_type, coordinator_keys=[""] * 300)
    context = RequestContext(api=wire.api, client=wire.client, version=6)
    answer = await HANDLERS[ApiKey.FIND_COORDINATOR](request, context)
    assert len(answer.coordinators) == 300
    assert len({id(one) for one in answer.coordinators}) == 2
    assert [one.error_message is None for one in answer.coordinators] == [False] * 100 + [key_type == 9] * 200


async def test_of_requests_that_wait_nothing_stays_but_what_the_group_accounts_for(
    log: Any, clock: Clock
) -> None:
    """60 followers that sent 20,000 assignments to one member each took 270 MiB for as long as their leader liked."""
    join = JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=60_000,
        protocol_type="consumer",
        protocols=[JoinGroupRequestProtocol(name="range", metadata=SUBSCRIPTION)],
    )
    sync = SyncGroupRequest(group_id="g", generation_id=1)
    sync.assignments = [SyncGroupRequestAssignment(member_id="same", assignment=b"")] * 1_000
    answers: list[Any] = []
    ids = iter("ab")
    wire = Wire(LedService(log, GroupSettings(), clock, lambda: next(ids)), clock)

    async def ask(key: ApiKey, version: int, request: Any) -> None:
        context = RequestContext(api=wire.api, client=wire.client, version=version)
        answers.append(await HANDLERS[key](request, context))

    async with wire.service, anyio.create_task_group() as tasks:
        again = msgspec.structs.replace(join)
        tasks.start_soon(ask, ApiKey.JOIN_GROUP, 3, join)
        tasks.start_soon(ask, ApiKey.JOIN_GROUP, 3, again)
        await anyio.wait_all_tasks_blocked()
        assert not answers
        assert join.protocols == again.protocols == []
        await wire.clock.advance(6_000)
        await anyio.wait_all_tasks_blocked()
        sync.member_id = next(one.member_id for one in answers if one.member_id != one.leader)
        tasks.start_soon(ask, ApiKey.SYNC_GROUP, 3, sync)
        await anyio.wait_all_tasks_blocked()
        assert len(answers) == 2, "it waits for the leader"
        assert sync.assignments == []
        tasks.cancel_scope.cancel()
