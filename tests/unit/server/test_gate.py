"""Every request passes the gate before its handler: identify, authorize, throttle, dispatch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

import pytest
from tests.unit.api.fakes import FakeLogs, make_api, make_batch, make_context
from tests.unit.server.harness import offsets, produce, serving, until

from penstock.api.client import Client
from penstock.api.context import EVERYTHING
from penstock.api.declaration import Api
from penstock.api.dispatch import apis
from penstock.api.gate import Gate, UnidentifiedError
from penstock.api.metadata import describe_topic_partitions_nowait, handle_metadata, metadata_nowait
from penstock.api.metadata_topics import PARTITIONS_INLINE_MAX
from penstock.log.errors import KafkaError
from penstock.server.large_frame import length_fault
from penstock.server.settings import ServerSettings
from penstock.spi.authorizer import ANONYMOUS, CLUSTER_NAME, Operation, Principal, Requester, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.create_acls import AclCreation, CreateAclsRequest
from penstock.wire.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from penstock.wire.messages.describe_topic_partitions import DescribeTopicPartitionsRequest, TopicRequest
from penstock.wire.messages.heartbeat import HeartbeatRequest
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.list_partition_reassignments import ListPartitionReassignmentsRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from penstock.wire.messages.produce import ProduceRequest
from penstock.wire.registry import Message

pytestmark = pytest.mark.anyio

CLUSTER_DENIED = ErrorCode.CLUSTER_AUTHORIZATION_FAILED


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


class Denying:
    """An authorizer that permits what isn't on its list, and remembers what it was asked."""

    permits_all = False

    def __init__(self, *denied: str) -> None:
        self.denied = denied
        self.asked: list[tuple[str, Operation, ResourceType, tuple[str, ...]]] = []

    def allowed(
        self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        self.asked.append((str(requester.principal), operation, resource, tuple(names)))
        return [name for name in names if name not in self.denied]


class PermittingAll(Denying):
    """An authorizer that says so."""

    permits_all = True


class Throttling:
    """Quotas that say the same of every request."""

    def __init__(self, *delays_ms: int) -> None:
        self.delays_ms = list(delays_ms)
        self.counted: list[tuple[int, int]] = []

    def throttle_ms(self, client: Client, api: Api, request_bytes: int) -> int:
        self.counted.append((api.key, request_bytes))
        return self.delays_ms.pop(0) if self.delays_ms else 0


def admit(gate: Gate, key: ApiKey, request: Message, **facts: Any) -> int:
    client = make_context(FakeLogs(), 0).client
    for name, value in facts.items():
        setattr(client, name, value)
    return gate.admit(apis()[key], request, client, 100)


# -- the gate -----------------------------------------------------------------------------------------------


def test_everybody_is_let_through_without_being_asked_where_nobody_decides() -> None:
    assert Gate().is_open
    assert admit(Gate(), ApiKey.HEARTBEAT, HeartbeatRequest(group_id="g")) == 0


@pytest.mark.parametrize(
    "facts", [{"authorizer": Denying()}, {"quotas": Throttling()}, {"authenticates": True}]
)
def test_the_hot_path_asks_as_soon_as_somebody_decides(facts: dict[str, Any]) -> None:
    assert not Gate(**facts).is_open


def test_an_authorizer_that_permits_everything_is_not_asked_and_leaves_the_gate_open() -> None:
    authorizer = PermittingAll("g")
    gate = Gate(authorizer=authorizer)
    assert gate.is_open
    assert admit(gate, ApiKey.HEARTBEAT, HeartbeatRequest(group_id="g")) == 0
    api = make_api(FakeLogs(), authorizer=authorizer)
    assert api.authorizer is None, "handlers have their short ways too"
    assert authorizer.asked == []
    assert not Gate(authorizer=authorizer, quotas=Throttling()).is_open


def test_an_authorizer_is_told_who_asks_from_where_and_of_nothing_else() -> None:
    client = make_context(FakeLogs(), 0).client
    assert client.requester == Requester(principal=ANONYMOUS, host="127.0.0.1", listener="PLAINTEXT")
    assert {client.requester: "kept"}[client.requester] == "kept", "can be the key of a cache"
    assert [each.name for each in fields(Requester)] == ["principal", "host", "listener"]


def test_a_connection_without_authentication_is_kafkas_anonymous_user() -> None:
    client = make_context(FakeLogs(), 0).client
    assert client.principal is ANONYMOUS
    assert str(ANONYMOUS) == "User:ANONYMOUS"


def test_who_is_not_identified_may_ask_for_versions_only() -> None:
    gate = Gate(authenticates=True)
    assert admit(gate, ApiKey.API_VERSIONS, ApiVersionsRequest(), principal=None) == 0
    with pytest.raises(UnidentifiedError, match="must authenticate first"):
        admit(gate, ApiKey.METADATA, MetadataRequest(), principal=None)


def test_the_one_resource_of_a_request_is_authorized_before_its_handler() -> None:
    authorizer = Denying("g")
    gate = Gate(authorizer=authorizer)
    alice = Principal("User", "alice")
    with pytest.raises(KafkaError, match="principal=User:alice needs=Read Group") as caught:
        admit(gate, ApiKey.HEARTBEAT, HeartbeatRequest(group_id="g"), principal=alice)
    assert caught.value.error_code == ErrorCode.GROUP_AUTHORIZATION_FAILED
    assert admit(gate, ApiKey.HEARTBEAT, HeartbeatRequest(group_id="h")) == 0
    assert authorizer.asked[0] == ("User:alice", Operation.READ, ResourceType.GROUP, ("g",))


def test_what_a_request_does_not_name_is_not_asked_for() -> None:
    authorizer = Denying("t")
    gate = Gate(authorizer=authorizer)
    assert admit(gate, ApiKey.INIT_PRODUCER_ID, InitProducerIdRequest(transactional_id=None)) == 0
    assert authorizer.asked == []
    with pytest.raises(KafkaError) as caught:
        admit(gate, ApiKey.INIT_PRODUCER_ID, InitProducerIdRequest(transactional_id="t"))
    assert caught.value.error_code == ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


def test_who_is_refused_is_not_counted_by_quotas() -> None:
    quotas = Throttling(5)
    gate = Gate(authorizer=Denying(CLUSTER_NAME), quotas=quotas)
    with pytest.raises(KafkaError):
        admit(gate, ApiKey.LIST_PARTITION_REASSIGNMENTS, ListPartitionReassignmentsRequest())
    assert quotas.counted == []
    assert admit(gate, ApiKey.METADATA, MetadataRequest()) == 5
    assert quotas.counted == [(ApiKey.METADATA, 100)]


# -- what handlers ask ----------------------------------------------------------------------------------------


def test_a_handler_is_given_the_names_themselves_where_nobody_decides(logs: FakeLogs) -> None:
    names = ["t", "u"]
    context = make_context(logs, 0)
    assert context.allowed(Operation.DESCRIBE, ResourceType.TOPIC, names) is names
    for resource in ResourceType:
        assert context.authorized_operations(resource, "x") == EVERYTHING[resource]


def test_a_handler_is_given_the_names_that_its_client_may_use(logs: FakeLogs) -> None:
    context = make_context(logs, 0)
    context.api.authorizer = Denying("u")
    assert context.allowed(Operation.DESCRIBE, ResourceType.TOPIC, ["t", "u"]) == ["t"]
    assert context.authorized_operations(ResourceType.TOPIC, "u") == 0
    assert context.authorized_operations(ResourceType.TOPIC, "t") == EVERYTHING[ResourceType.TOPIC]


def test_metadata_of_all_topics_leaves_out_what_the_client_may_not_describe(logs: FakeLogs) -> None:
    logs.add("u", 1)
    context = make_context(logs, 12)
    context.api.authorizer = Denying("u")
    response = metadata_nowait(MetadataRequest(topics=None), context)
    assert response is not None
    assert [topic.name for topic in response.topics] == ["t"]
    request = DescribeTopicPartitionsRequest(topics=[])
    described = describe_topic_partitions_nowait(request, context)
    assert [topic.name for topic in described.topics] == ["t"]


def test_metadata_of_a_topic_that_may_not_be_described_does_not_tell_whether_it_is_there(
    logs: FakeLogs,
) -> None:
    there = logs.add("u", 1)
    context = make_context(logs, 12)
    context.api.authorizer = Denying("u", "v")
    denied = ErrorCode.TOPIC_AUTHORIZATION_FAILED

    def told(*topics: MetadataRequestTopic) -> list[tuple[str | None, int, bool]]:
        response = metadata_nowait(MetadataRequest(topics=list(topics)), context)
        assert response is not None, "nothing is created or waited for"
        return [(topic.name, topic.error_code, bool(any(topic.topic_id))) for topic in response.topics]

    assert told(*(MetadataRequestTopic(name=name) for name in ("t", "u", "v"))) == [
        ("t", 0, True),
        ("u", denied, False),
        ("v", denied, False),
    ]
    assert told(MetadataRequestTopic(name=None, topic_id=there.id)) == [(None, denied, True)]
    request = DescribeTopicPartitionsRequest(topics=[TopicRequest(name=name) for name in ("t", "u", "v")])
    described = describe_topic_partitions_nowait(request, context)
    assert [(topic.name, topic.error_code) for topic in described.topics] == [
        ("t", 0),
        ("u", denied),
        ("v", denied),
    ]


class DenyingCreation(Denying):
    """Whoever may see everything and create nothing."""

    def allowed(
        self, requester: Requester, operation: Operation, resource: ResourceType, names: Collection[str]
    ) -> Collection[str]:
        super().allowed(requester, operation, resource, names)
        return () if operation == Operation.CREATE else names


async def test_metadata_creates_no_topic_for_a_client_that_may_not(logs: FakeLogs) -> None:
    context = make_context(logs, 12)
    context.api.authorizer = DenyingCreation()
    request = MetadataRequest(topics=[MetadataRequestTopic(name="new")], allow_auto_topic_creation=True)
    response = await handle_metadata(request, context)
    assert isinstance(response, MetadataResponse)
    assert [topic.error_code for topic in response.topics] == [ErrorCode.TOPIC_AUTHORIZATION_FAILED]
    assert "new" not in logs.topics()


# -- the server -----------------------------------------------------------------------------------------------


async def test_gate_and_handlers_go_by_the_authorizer_of_the_brokers_context(logs: FakeLogs) -> None:
    authorizer = Denying("t", "tx")
    async with serving(logs, authorizer=authorizer) as harness, await harness.connect() as client:
        assert not harness.server.core.gate.is_open
        for request in (transactional("tx", make_batch()), produce(make_batch())):
            response = await client.call(ApiKey.PRODUCE, 9, request)
            assert response.responses[0].partition_responses[0].error_code
        assert logs.at("t").high_watermark == 0
        assert [names for _, _, _, names in authorizer.asked if names != ("t",)] == [("tx",)]
        assert ("User:ANONYMOUS", Operation.WRITE, ResourceType.TOPIC, ("t",)) in authorizer.asked


async def test_produce_keeps_its_short_way_with_an_authorizer_that_permits_everything(logs: FakeLogs) -> None:
    authorizer = PermittingAll("t")
    async with serving(logs, authorizer=authorizer) as harness, await harness.connect() as client:
        assert harness.server.core.gate.is_open
        assert offsets(await client.call(ApiKey.PRODUCE, 9, produce(make_batch()))) == [(0, 0)]
        assert authorizer.asked == []


async def test_a_request_that_is_refused_is_answered_in_the_shape_of_its_api() -> None:
    gate = Gate(authorizer=Denying(CLUSTER_NAME))
    async with serving(gate=gate) as harness, await harness.connect() as client:
        listed = await client.call(
            ApiKey.LIST_PARTITION_REASSIGNMENTS, 0, ListPartitionReassignmentsRequest()
        )
        assert listed.error_code == CLUSTER_DENIED
        creation = AclCreation(resource_name="r", principal="p", host="h")
        created = await client.call(ApiKey.CREATE_ACLS, 3, CreateAclsRequest(creations=[creation] * 2))
        assert [result.error_code for result in created.results] == [CLUSTER_DENIED] * 2
        assert harness.server.statistics().handler_errors == 0


async def test_a_produce_that_is_refused_stores_nothing_and_says_so_of_each_partition(logs: FakeLogs) -> None:
    gate = Gate(authorizer=Denying("tx"))
    async with serving(logs, gate=gate) as harness, await harness.connect() as client:
        request = transactional("tx", make_batch())
        response = await client.call(ApiKey.PRODUCE, 9, request)
        (partition,) = response.responses[0].partition_responses
        assert partition.error_code == ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        assert logs.at("t").high_watermark == 0
        assert offsets(await client.call(ApiKey.PRODUCE, 9, produce(make_batch()))) == [(0, 0)]


@pytest.mark.parametrize("key", [ApiKey.METADATA, ApiKey.PRODUCE])
async def test_who_asks_before_authenticating_is_closed(logs: FakeLogs, key: ApiKey) -> None:
    gate = Gate(authenticates=True)
    async with serving(logs, gate=gate) as harness, await harness.connect() as client:
        await client.call(ApiKey.API_VERSIONS, 3, software())
        (connection,) = harness.server.connections
        connection.client.principal = None
        await client.call(ApiKey.API_VERSIONS, 3, software())
        request = MetadataRequest(topics=[]) if key == ApiKey.METADATA else produce(make_batch())
        await client.send(key, 9, request)
        await until(lambda: not harness.server.statistics().connections)
        assert logs.at("t").high_watermark == 0


def test_who_has_not_authenticated_gets_no_memory_for_long_requests() -> None:
    client = make_context(FakeLogs(), 0).client
    settings = ServerSettings()
    assert length_fault(ApiKey.PRODUCE, 2 << 20, apis(), settings, client) is None
    client.principal = None
    assert "too long" in (length_fault(ApiKey.PRODUCE, 2 << 20, apis(), settings, client) or "")


@pytest.mark.parametrize("key", [ApiKey.API_VERSIONS, ApiKey.PRODUCE])
async def test_who_is_throttled_is_answered_and_then_not_read_until_it_has_rested(
    logs: FakeLogs, key: ApiKey
) -> None:
    """KIP-219."""
    quotas = Throttling(7_000)
    async with serving(logs, gate=Gate(quotas=quotas)) as harness, await harness.connect() as client:
        timers = Timers()
        harness.server.core.call_later = timers  # type: ignore[method-assign, assignment]
        request = software() if key == ApiKey.API_VERSIONS else produce(make_batch())
        await client.call(key, 3, request)
        assert timers.delays_s == [7.0]
        await client.send(ApiKey.API_VERSIONS, 3, software())
        await until(lambda: harness.server.core.carried_bytes > 0)
        assert len(quotas.counted) == 1
        timers.fire()
        await client.receive()
        assert len(quotas.counted) == 2


@pytest.mark.parametrize("key", [ApiKey.METADATA, ApiKey.DESCRIBE_CONFIGS])
async def test_who_is_throttled_gets_a_long_answer_that_says_so(logs: FakeLogs, key: ApiKey) -> None:
    """One that handlers encode was taken apart first, and then looked at again: its client got nothing."""
    logs.add("many", PARTITIONS_INLINE_MAX + 1)
    names = ["t", "many", *[f"no-{number:0>200}" for number in range(200)]]
    request: Message = MetadataRequest(
        topics=[MetadataRequestTopic(name=name) for name in names], allow_auto_topic_creation=False
    )
    if key is ApiKey.DESCRIBE_CONFIGS:
        resources = [DescribeConfigsResource(resource_type=2, resource_name=name) for name in names]
        request = DescribeConfigsRequest(resources=resources)
    quotas = Throttling(7_000)
    async with serving(logs, gate=Gate(quotas=quotas)) as harness, await harness.connect() as client:
        answer = await client.call(key, 4, request)
        assert answer.throttle_time_ms == 7_000
        assert len(answer.topics if key is ApiKey.METADATA else answer.results) == len(names)


async def test_a_long_request_passes_the_gate_too() -> None:
    authorizer = Denying(CLUSTER_NAME)
    creation = AclCreation(resource_name="r" * 200, principal="p", host="h")
    async with serving(gate=Gate(authorizer=authorizer)) as harness, await harness.connect() as client:
        created = await client.call(ApiKey.CREATE_ACLS, 3, CreateAclsRequest(creations=[creation] * 200))
        assert {result.error_code for result in created.results} == {CLUSTER_DENIED}


def test_every_api_that_is_replaced_keeps_its_permissions() -> None:
    """So that a handler can be exchanged in a test, or wrapped, without a hole in the gate."""
    api = apis()[ApiKey.HEARTBEAT]
    assert replace(api, handler=None, nowait=lambda request, context: None).needs == api.needs


class Timers:
    """Stands in for the server's clock."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self._functions: list[Callable[[], None]] = []

    def __call__(self, delay_s: float, function: Callable[[], None]) -> Timers:
        self.delays_s.append(delay_s)
        self._functions.append(function)
        return self

    def fire(self) -> None:
        """The time has come."""
        for function in self._functions:
            function()

    def cancel(self) -> None:
        """As a handle's."""


def software() -> ApiVersionsRequest:
    return ApiVersionsRequest(client_software_name="lib", client_software_version="1")


def transactional(transactional_id: str, *batches: bytearray) -> ProduceRequest:
    request = produce(*batches)
    request.transactional_id = transactional_id
    return request
