"""An authorizer that permits nothing, and every API in every version: nothing is told or done, and all have asked.

The broker is a real one; that it has an authorizer is all that is different, as a plugin would give it one.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import msgspec
import pytest
from tests.integration.raw_client import connect, create, produce, produce_request
from tests.patience import HANG_S
from tests.unit.api.fakes import make_batch
from tests.unit.server.harness import Client

from penstock import Broker
from penstock.api.authorization import DENIED, Need
from penstock.api.declaration import Api
from penstock.api.dispatch import apis
from penstock.api.gate import Gate
from penstock.spi.authorizer import Operation, Requester, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_configs import AlterableConfig, AlterConfigsRequest, AlterConfigsResource
from penstock.wire.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    ReassignablePartition,
    ReassignableTopic,
)
from penstock.wire.messages.consumer_group_heartbeat import ConsumerGroupHeartbeatRequest
from penstock.wire.messages.create_acls import AclCreation, CreateAclsRequest
from penstock.wire.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from penstock.wire.messages.create_topics import CreatableTopic, CreateTopicsRequest
from penstock.wire.messages.delete_acls import DeleteAclsFilter, DeleteAclsRequest
from penstock.wire.messages.delete_groups import DeleteGroupsRequest
from penstock.wire.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from penstock.wire.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from penstock.wire.messages.describe_acls import DescribeAclsRequest
from penstock.wire.messages.describe_client_quotas import DescribeClientQuotasRequest
from penstock.wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from penstock.wire.messages.describe_groups import DescribeGroupsRequest
from penstock.wire.messages.describe_log_dirs import DescribeLogDirsRequest
from penstock.wire.messages.describe_producers import DescribeProducersRequest, TopicRequest
from penstock.wire.messages.describe_topic_partitions import (
    DescribeTopicPartitionsRequest,
)
from penstock.wire.messages.describe_topic_partitions import TopicRequest as PartitionsOf
from penstock.wire.messages.describe_transactions import DescribeTransactionsRequest
from penstock.wire.messages.describe_user_scram_credentials import DescribeUserScramCredentialsRequest
from penstock.wire.messages.elect_leaders import ElectLeadersRequest, TopicPartitions
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.heartbeat import HeartbeatRequest
from penstock.wire.messages.incremental_alter_configs import (
    AlterableConfig as IncrementalConfig,
)
from penstock.wire.messages.incremental_alter_configs import (
    AlterConfigsResource as IncrementalResource,
)
from penstock.wire.messages.incremental_alter_configs import IncrementalAlterConfigsRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from penstock.wire.messages.leave_group import LeaveGroupRequest, MemberIdentity
from penstock.wire.messages.list_config_resources import ListConfigResourcesRequest
from penstock.wire.messages.list_groups import ListGroupsRequest
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.list_partition_reassignments import ListPartitionReassignmentsRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from penstock.wire.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from penstock.wire.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from penstock.wire.messages.sync_group import SyncGroupRequest
from penstock.wire.registry import Message

TOPIC, GROUP = "secret-topic", "secret-group"
#: What nobody may learn: numbers and texts that nothing else has.
RECORDS, COMMITTED, VALUE, METADATA, RETENTION = (
    7331,
    424_242,
    b"secret-value",
    "secret-metadata",
    "987654321",
)
FORBIDDEN = frozenset(DENIED.values())


class Authorizer:
    """Permits everything but what concerns resources of some types; remembers what was asked."""

    permits_all = False

    def __init__(
        self, *denied: ResourceType, operations: Collection[Operation] = frozenset(Operation)
    ) -> None:
        self.denied = denied
        self.operations = operations
        self.asked: set[tuple[Operation, ResourceType]] = set()

    def allowed(
        self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        self.asked.add((operation, resource))
        return () if resource in self.denied and operation in self.operations else names


def how_to_try(api: Api) -> str:
    """What to add for a new API."""
    return (
        f"nobody tries {api.name} without its permissions ({', '.join(map(str, api.needs))}). Add here a function "
        f"@of(ApiKey.{ApiKey(api.key).name}) that makes requests which name TOPIC, GROUP or all there are; "
        f"and a row of NEEDS in tests/unit/api/test_declarations.py, if it has none"
    )


def how_to_ask(api: Api, need: Need) -> str:
    """What to do where a handler doesn't ask for what its API is declared to need."""
    where = f"context.denied(Operation.{need.operation.name}, ResourceType.{need.resource.name}, names)"
    return (
        f"{api.name} never asks for {need}. Call {where} in its handler; or have its requests in this file name what "
        f"that is about; or, if Kafka wants no such permission, take it out of the API's needs and its row of NEEDS"
    )


# -- requests that want to know, or to change, everything -----------------------------------------------------


#: Requests of an API in a version, about the topic of an id, or the group.
Make: TypeAlias = Callable[[int, bytes], Iterable[Message]]
MAKERS: dict[int, Make] = {}


def of(key: ApiKey) -> Callable[[Make], Make]:
    """A function makes the requests of this API."""

    def register(make: Make) -> Make:
        MAKERS[key] = make
        return make

    return register


def all_requests(api: Api, version: int, topic_id: bytes) -> Iterable[Message]:
    """Of this API, about the topic and the group."""
    assert api.key in MAKERS, how_to_try(api)
    return MAKERS[api.key](version, topic_id)


@of(ApiKey.PRODUCE)
def produce_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    for transactional_id in (None, "secret-id"):
        request = produce_request(TOPIC, make_batch(1))
        request.topic_data[0].topic_id = topic_id
        request.transactional_id = transactional_id
        yield request


@of(ApiKey.FETCH)
def fetch_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    place = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=1 << 20)
    topics = [FetchTopic(topic=TOPIC, topic_id=topic_id, partitions=[place])]
    yield FetchRequest(max_wait_ms=0, min_bytes=1, session_epoch=-1, topics=topics)


@of(ApiKey.LIST_OFFSETS)
def list_offsets_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    for timestamp in (-1, -2, 0):
        asked = ListOffsetsPartition(partition_index=0, timestamp=timestamp)
        yield ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=TOPIC, partitions=[asked])])


@of(ApiKey.METADATA)
def metadata_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    names = [MetadataRequestTopic(name=TOPIC), MetadataRequestTopic(name="new")]
    yield MetadataRequest(topics=names, allow_auto_topic_creation=True)
    yield MetadataRequest(topics=None if version else [])
    if version >= 12:
        yield MetadataRequest(topics=[MetadataRequestTopic(name=None, topic_id=topic_id)])


@of(ApiKey.DESCRIBE_TOPIC_PARTITIONS)
def describe_topic_partitions_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeTopicPartitionsRequest(topics=[PartitionsOf(name=TOPIC)])
    yield DescribeTopicPartitionsRequest(topics=[])


@of(ApiKey.OFFSET_COMMIT)
def offset_commit_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    commit = OffsetCommitRequestPartition(partition_index=0, committed_offset=1)
    topic = OffsetCommitRequestTopic(name=TOPIC, topic_id=topic_id, partitions=[commit])
    yield OffsetCommitRequest(group_id=GROUP, generation_id_or_member_epoch=-1, topics=[topic])


@of(ApiKey.OFFSET_FETCH)
def offset_fetch_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    wanted = OffsetFetchRequestTopics(name=TOPIC, topic_id=topic_id, partition_indexes=[0])
    one = OffsetFetchRequestTopic(name=TOPIC, partition_indexes=[0])
    yield OffsetFetchRequest(
        group_id=GROUP,
        topics=[one],
        groups=[OffsetFetchRequestGroup(group_id=GROUP, topics=[wanted])],
    )
    if version >= 2:
        group = OffsetFetchRequestGroup(group_id=GROUP, topics=None)
        yield OffsetFetchRequest(group_id=GROUP, topics=None, groups=[group])


@of(ApiKey.FIND_COORDINATOR)
def find_coordinator_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    for kind in (0, 1) if version else (0,):
        yield FindCoordinatorRequest(key=GROUP, key_type=kind, coordinator_keys=[GROUP])


@of(ApiKey.JOIN_GROUP)
def join_group_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    protocols = [JoinGroupRequestProtocol(name="range", metadata=b"")]
    yield JoinGroupRequest(
        group_id=GROUP,
        session_timeout_ms=10_000,
        rebalance_timeout_ms=1,
        protocol_type="consumer",
        protocols=protocols,
    )


@of(ApiKey.HEARTBEAT)
def heartbeat_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield HeartbeatRequest(group_id=GROUP)


@of(ApiKey.LEAVE_GROUP)
def leave_group_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield LeaveGroupRequest(group_id=GROUP, members=[MemberIdentity(member_id="m")])


@of(ApiKey.SYNC_GROUP)
def sync_group_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield SyncGroupRequest(group_id=GROUP, protocol_type="consumer", protocol_name="range")


@of(ApiKey.DESCRIBE_GROUPS)
def describe_groups_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeGroupsRequest(groups=[GROUP])


@of(ApiKey.LIST_GROUPS)
def list_groups_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield ListGroupsRequest()


@of(ApiKey.DELETE_GROUPS)
def delete_groups_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DeleteGroupsRequest(groups_names=[GROUP])


@of(ApiKey.CREATE_TOPICS)
def create_topics_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    new = CreatableTopic(name="new", num_partitions=1, replication_factor=1)
    old = CreatableTopic(name=TOPIC, num_partitions=1, replication_factor=1)
    yield CreateTopicsRequest(topics=[new, old], timeout_ms=20_000)


@of(ApiKey.DELETE_TOPICS)
def delete_topics_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DeleteTopicsRequest(topics=[DeleteTopicState(name=TOPIC)], topic_names=[TOPIC], timeout_ms=20_000)
    if version >= 6:
        state = DeleteTopicState(name=None, topic_id=topic_id)
        yield DeleteTopicsRequest(topics=[state], timeout_ms=20_000)


@of(ApiKey.DELETE_RECORDS)
def delete_records_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    upto = DeleteRecordsPartition(partition_index=0, offset=-1)
    topic_of = DeleteRecordsTopic(name=TOPIC, partitions=[upto])
    yield DeleteRecordsRequest(topics=[topic_of], timeout_ms=20_000)


@of(ApiKey.INIT_PRODUCER_ID)
def init_producer_id_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield InitProducerIdRequest(transactional_id=None)
    yield InitProducerIdRequest(transactional_id="secret-id")


@of(ApiKey.OFFSET_FOR_LEADER_EPOCH)
def offset_for_leader_epoch_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    epoch = OffsetForLeaderPartition(partition=0, leader_epoch=0)
    topics_of = [OffsetForLeaderTopic(topic=TOPIC, partitions=[epoch])]
    yield OffsetForLeaderEpochRequest(topics=topics_of)


@of(ApiKey.DESCRIBE_ACLS)
def describe_acls_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeAclsRequest()


@of(ApiKey.CREATE_ACLS)
def create_acls_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield CreateAclsRequest(creations=[AclCreation(resource_name="r", principal="p", host="h")])


@of(ApiKey.DELETE_ACLS)
def delete_acls_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DeleteAclsRequest(filters=[DeleteAclsFilter()])


@of(ApiKey.DESCRIBE_CONFIGS)
def describe_configs_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    resources = [DescribeConfigsResource(resource_type=2, resource_name=TOPIC, configuration_keys=None)]
    resources.append(DescribeConfigsResource(resource_type=4, resource_name="1", configuration_keys=None))
    yield DescribeConfigsRequest(resources=resources)


@of(ApiKey.ALTER_CONFIGS)
def alter_configs_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    config = AlterableConfig(name="retention.ms", value="1")
    yield AlterConfigsRequest(
        resources=[
            AlterConfigsResource(resource_type=2, resource_name=TOPIC, configs=[config]),
            AlterConfigsResource(resource_type=4, resource_name="1", configs=[config]),
        ]
    )


@of(ApiKey.INCREMENTAL_ALTER_CONFIGS)
def incremental_alter_configs_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    change = IncrementalConfig(name="retention.ms", value="1")
    yield IncrementalAlterConfigsRequest(
        resources=[
            IncrementalResource(resource_type=2, resource_name=TOPIC, configs=[change]),
            IncrementalResource(resource_type=4, resource_name="1", configs=[change]),
        ]
    )


@of(ApiKey.DESCRIBE_LOG_DIRS)
def describe_log_dirs_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeLogDirsRequest(topics=None)


@of(ApiKey.CREATE_PARTITIONS)
def create_partitions_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    more = CreatePartitionsTopic(name=TOPIC, count=9, assignments=None)
    yield CreatePartitionsRequest(topics=[more], timeout_ms=20_000)


@of(ApiKey.ELECT_LEADERS)
def elect_leaders_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    some = [TopicPartitions(topic=TOPIC, partitions=[0])]
    yield ElectLeadersRequest(topic_partitions=some, timeout_ms=20_000)
    yield ElectLeadersRequest(topic_partitions=None, timeout_ms=20_000)


@of(ApiKey.ALTER_PARTITION_REASSIGNMENTS)
def alter_partition_reassignments_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    move = ReassignablePartition(partition_index=0, replicas=[1])
    topics_to = [ReassignableTopic(name=TOPIC, partitions=[move])]
    yield AlterPartitionReassignmentsRequest(topics=topics_to, timeout_ms=20_000)


@of(ApiKey.LIST_PARTITION_REASSIGNMENTS)
def list_partition_reassignments_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield ListPartitionReassignmentsRequest(topics=None, timeout_ms=20_000)


@of(ApiKey.OFFSET_DELETE)
def offset_delete_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    at = OffsetDeleteRequestPartition(partition_index=0)
    deleted = [OffsetDeleteRequestTopic(name=TOPIC, partitions=[at])]
    yield OffsetDeleteRequest(group_id=GROUP, topics=deleted)


@of(ApiKey.DESCRIBE_CLIENT_QUOTAS)
def describe_client_quotas_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeClientQuotasRequest()


@of(ApiKey.DESCRIBE_PRODUCERS)
def describe_producers_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeProducersRequest(topics=[TopicRequest(name=TOPIC, partition_indexes=[0])])


@of(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS)
def describe_user_scram_credentials_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeUserScramCredentialsRequest(users=None)


@of(ApiKey.DESCRIBE_TRANSACTIONS)
def describe_transactions_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield DescribeTransactionsRequest(transactional_ids=["transactional"])


@of(ApiKey.CONSUMER_GROUP_HEARTBEAT)
def consumer_group_heartbeat_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield ConsumerGroupHeartbeatRequest(group_id=GROUP, subscribed_topic_names=[TOPIC])


@of(ApiKey.LIST_CONFIG_RESOURCES)
def list_config_resources_requests(version: int, topic_id: bytes) -> Iterator[Message]:
    yield ListConfigResourcesRequest()


# -- answers --------------------------------------------------------------------------------------------------


def leaves(value: Any) -> Iterator[Any]:
    """All texts, bytes and numbers in a message."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from leaves(getattr(value, name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, memoryview):
        yield bytes(value)
    elif value is not None:
        yield value


def told(response: Message, topic_id: bytes, request: Message) -> list[Any]:
    """What of the secrets is in a response; a topic's id and name may be there if they were in the request."""
    known = set(leaves(request))
    found: list[Any] = []
    for leaf in leaves(response):
        if leaf in {RECORDS, COMMITTED, METADATA, RETENTION} or (
            isinstance(leaf, bytes) and (VALUE in leaf or (topic_id in leaf and topic_id not in known))
        ):
            found.append(leaf)
        if leaf in {TOPIC, GROUP} and leaf not in known:
            found.append(leaf)
    return found


def codes(response: Message) -> set[int]:
    """All error codes in a message."""
    found: set[int] = set()
    if isinstance(response, msgspec.Struct):
        for name in response.__struct_fields__:
            value = getattr(response, name)
            if name.endswith("error_code"):
                found.add(int(value))
            elif isinstance(value, list):
                for one in value:
                    found |= codes(one)
    return found


# -- the broker -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def broker_with_secrets(tmp_path: Path) -> AsyncIterator[tuple[Broker, bytes]]:
    overrides = {
        "broker.data_dir": str(tmp_path),
        "listener.bind": "127.0.0.1:0",
        "wal.capacity": "64MiB",
    }
    with anyio.fail_after(HANG_S):
        async with Broker(overrides=overrides) as broker:
            async with await connect(broker.bootstrap_servers) as client:
                assert await create(client, TOPIC, retention_ms=RETENTION) == 0
                assert await produce(client, TOPIC, make_batch(RECORDS, VALUE)) == 0
                commit = OffsetCommitRequestPartition(
                    partition_index=0, committed_offset=COMMITTED, committed_metadata=METADATA
                )
                topic = OffsetCommitRequestTopic(name=TOPIC, partitions=[commit])
                request = OffsetCommitRequest(
                    group_id=GROUP, generation_id_or_member_epoch=-1, topics=[topic]
                )
                answer = await client.call(ApiKey.OFFSET_COMMIT, 8, request)
                assert codes(answer) == {0}
            topic_id = broker._running.server.core.api.logs.topics()[TOPIC].id
            yield broker, topic_id


def authorize(broker: Broker, authorizer: Authorizer | None) -> None:
    """What a plugin would do at the start; new connections see it."""
    core = broker._running.server.core
    core.api.authorizer = authorizer
    core.gate = Gate(authorizer=authorizer)


async def ask(client: Client, api: Api, version: int, request: Message) -> Message | None:
    """The answer; None where the version has no place for a refusal, and the connection is closed."""
    try:
        answer: Message = await client.call(api.key, version, request)
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return None
    return answer


async def nothing_has_changed(broker: Broker) -> None:
    logs = broker._running.server.core.api.logs
    assert sorted(name for name in logs.topics() if not name.startswith("__")) == [TOPIC]
    topic = logs.topics()[TOPIC]
    assert (topic.partition_count, dict(topic.configs)) == (1, {"retention.ms": RETENTION})
    partition = logs.partition(TOPIC, 0)
    assert partition is not None
    assert (partition.log_start_offset, partition.high_watermark) == (0, RECORDS)
    async with await connect(broker.bootstrap_servers) as client:
        group = OffsetFetchRequestGroup(group_id=GROUP, topics=None)
        answer = await client.call(ApiKey.OFFSET_FETCH, 8, OffsetFetchRequest(groups=[group]))
        (offset,) = answer.groups[0].topics[0].partitions
        assert (offset.committed_offset, offset.metadata) == (COMMITTED, METADATA)


DENYING = {
    "everything": tuple(ResourceType),
    "topics": (ResourceType.TOPIC,),
    "groups": (ResourceType.GROUP,),
    "cluster": (ResourceType.CLUSTER,),
    "cluster and topics": (ResourceType.CLUSTER, ResourceType.TOPIC),
    "cluster and groups": (ResourceType.CLUSTER, ResourceType.GROUP),
    "ids": (ResourceType.TRANSACTIONAL_ID,),
}


def concerns(api: Api, denied: Collection[ResourceType]) -> bool:
    """Whether the API needs something of what is denied whatever else is permitted."""
    return all(need.resource in denied for need in api.needs) and bool(api.needs)


async def is_switched_off(broker: Broker, api: Api, topic_id: bytes) -> bool:
    """Whether an API answers nothing but UNSUPPORTED_VERSION, whoever asks: then there is nothing to ask for."""
    for request in all_requests(api, api.high, topic_id):
        async with await connect(broker.bootstrap_servers) as client:
            answer = await ask(client, api, api.high, request)
        if answer is None or codes(answer) != {ErrorCode.UNSUPPORTED_VERSION}:
            return False
    return True


def test_every_api_that_needs_a_permission_is_tried_without_it_and_no_other_one() -> None:
    untried = [how_to_try(api) for api in apis().values() if api.needs and api.key not in MAKERS]
    assert not untried, "\n".join(untried)
    idle = [ApiKey(key).name for key in MAKERS if not apis()[key].needs]
    assert not idle, f"they need no permission, so take out their requests, which are never sent: {idle}"


@pytest.mark.parametrize("what", ["everything", "cluster and topics", "cluster and groups"])
def test_nothing_is_told_and_nothing_is_done_of_what_is_not_permitted(tmp_path: Path, what: str) -> None:
    denied = DENYING[what]

    async def main() -> None:
        async with broker_with_secrets(tmp_path) as (broker, topic_id):
            authorize(broker, Authorizer(*denied))
            faults: list[tuple[str, int, str, Any]] = []
            for api in apis().values():
                if not concerns(api, denied):
                    continue
                for version in range(api.low, api.high + 1):
                    for request in all_requests(api, version, topic_id):
                        async with await connect(broker.bootstrap_servers) as client:
                            answer = await ask(client, api, version, request)
                        if answer is None:
                            if api.failure is not None:
                                assert api.failure(request, version, 1) is None, api.name
                            continue
                        secrets = told(answer, topic_id, request)
                        if secrets:
                            faults.append((api.name, version, "told", secrets))
                        named = TOPIC in set(leaves(request)) or GROUP in set(leaves(request))
                        if named and not codes(answer) & FORBIDDEN:
                            faults.append((api.name, version, "not refused", codes(answer)))
            assert faults == [], (
                "each is (api, version, what, found). told: the handler leaves out what context.denied names; "
                "not refused: it answers that with authorization.DENIED"
            )
            authorize(broker, None)
            await nothing_has_changed(broker)
            assert broker._running.server.statistics().handler_errors == 0

    anyio.run(main)


def test_every_handler_asks_for_what_its_api_needs(tmp_path: Path) -> None:
    async def main() -> None:
        asked: dict[int, set[tuple[Operation, ResourceType]]] = {key: set() for key in apis()}
        async with broker_with_secrets(tmp_path) as (broker, topic_id):
            for denied, operations in itertools.product(
                DENYING.values(), (frozenset(Operation), {Operation.CREATE, Operation.READ})
            ):
                for api in apis().values():
                    authorizer = Authorizer(*denied, operations=operations)
                    if not any(n.resource in denied and n.operation in operations for n in api.needs):
                        continue  # it would be done
                    authorize(broker, authorizer)
                    for request in all_requests(api, api.high, topic_id):
                        async with await connect(broker.bootstrap_servers) as client:
                            await ask(client, api, api.high, request)
                    asked[api.key] |= authorizer.asked
            authorize(broker, None)
            missing = [
                how_to_ask(api, need)
                for api in apis().values()
                for need in api.needs
                if (need.operation, need.resource) not in asked[api.key]
                and not await is_switched_off(broker, api, topic_id)
            ]
        assert not missing, "\n".join(missing)

    anyio.run(main)


def test_who_may_do_everything_is_served_as_without_an_authorizer(tmp_path: Path) -> None:
    """The same answers, for what changes nothing."""
    reading = [
        ApiKey.FETCH,
        ApiKey.LIST_OFFSETS,
        ApiKey.METADATA,
        ApiKey.DESCRIBE_TOPIC_PARTITIONS,
        ApiKey.OFFSET_FETCH,
        ApiKey.FIND_COORDINATOR,
        ApiKey.DESCRIBE_GROUPS,
        ApiKey.LIST_GROUPS,
        ApiKey.OFFSET_FOR_LEADER_EPOCH,
        ApiKey.DESCRIBE_CONFIGS,
        ApiKey.DESCRIBE_PRODUCERS,
        ApiKey.LIST_CONFIG_RESOURCES,
    ]

    async def main() -> None:
        async with broker_with_secrets(tmp_path) as (broker, topic_id):
            answers: list[list[Message | None]] = []
            for authorizer in (None, Authorizer()):
                authorize(broker, authorizer)
                async with await connect(broker.bootstrap_servers) as client:
                    answers.append(
                        [
                            await ask(client, api, api.high, request)
                            for api in apis().values()
                            if api.key in reading
                            for request in all_requests(api, api.high, topic_id)
                            if not (isinstance(request, MetadataRequest) and request.topics)
                        ]
                    )
            assert answers[0] == answers[1]
            assert all(answer is not None and not codes(answer) & FORBIDDEN for answer in answers[1])

    anyio.run(main)


def test_a_permitted_topic_is_served_beside_one_that_is_not(tmp_path: Path) -> None:
    class OnlyOpen(Authorizer):
        def allowed(
            self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
        ) -> Collection[str]:
            return [name for name in names if name != TOPIC]

    async def main() -> None:
        async with broker_with_secrets(tmp_path) as (broker, _):
            async with await connect(broker.bootstrap_servers) as client:
                assert await create(client, "open") == 0
            authorize(broker, OnlyOpen())
            async with await connect(broker.bootstrap_servers) as client:
                assert await produce(client, "open", make_batch(2)) == 0
                assert await produce(client, TOPIC, make_batch(2)) == ErrorCode.TOPIC_AUTHORIZATION_FAILED
                places = [
                    FetchTopic(topic=name, partitions=[FetchPartition(partition=0, partition_max_bytes=1000)])
                    for name in ("open", TOPIC)
                ]
                request = FetchRequest(max_wait_ms=0, min_bytes=1, session_epoch=-1, topics=places)
                fetched = await client.call(ApiKey.FETCH, 11, request)
                assert [topic.partitions[0].error_code for topic in fetched.responses] == [
                    0,
                    ErrorCode.TOPIC_AUTHORIZATION_FAILED,
                ]
                assert fetched.responses[0].partitions[0].high_watermark == 2
                commits = [
                    OffsetCommitRequestTopic(
                        name=name,
                        partitions=[OffsetCommitRequestPartition(partition_index=0, committed_offset=1)],
                    )
                    for name in ("open", TOPIC)
                ]
                committed = await client.call(
                    ApiKey.OFFSET_COMMIT,
                    8,
                    OffsetCommitRequest(group_id="g", generation_id_or_member_epoch=-1, topics=commits),
                )
                assert [(topic.name, topic.partitions[0].error_code) for topic in committed.topics] == [
                    (TOPIC, ErrorCode.TOPIC_AUTHORIZATION_FAILED),  # Kafka tells first what it refused
                    ("open", 0),
                ]

    anyio.run(main)
