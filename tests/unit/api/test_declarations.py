"""One declaration per Kafka API, from which everything else follows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.unit.api.fakes import any_request

import penstock.api
from penstock.api.authorization import operation_bits, the_cluster, the_transactional_id
from penstock.api.context import EVERYTHING
from penstock.api.declaration import Api, Frame, one_code
from penstock.api.dispatch import advertised, apis
from penstock.spi.authorizer import CLUSTER_NAME, OPERATIONS, Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.heartbeat import HeartbeatResponse
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.registry import Message, encode_response

ROOM = Path(penstock.api.__path__[0])

#: An independent copy of the table "Operations and Resources on Protocols" of Kafka's documentation, for the APIs
#: that are here, without what followers and deprecated permissions need.
NEEDS = {
    "Produce": "Write TransactionalId, Write Topic",
    "Fetch": "Read Topic",
    "ListOffsets": "Describe Topic",
    "Metadata": "Describe Topic, Create Cluster, Create Topic",
    "OffsetCommit": "Read Group, Read Topic",
    "OffsetFetch": "Describe Group, Describe Topic",
    "FindCoordinator": "Describe Group, Describe TransactionalId",
    "JoinGroup": "Read Group",
    "Heartbeat": "Read Group",
    "LeaveGroup": "Read Group",
    "SyncGroup": "Read Group",
    "DescribeGroups": "Describe Group",
    "ListGroups": "Describe Cluster, Describe Group",
    "SaslHandshake": "",
    "ApiVersions": "",
    "CreateTopics": "Create Cluster, Create Topic, DescribeConfigs Topic",
    "DeleteTopics": "Delete Topic, Describe Topic",
    "DeleteRecords": "Delete Topic",
    "InitProducerId": "Write TransactionalId, IdempotentWrite Cluster",
    "OffsetForLeaderEpoch": "Describe Topic",
    "DescribeAcls": "Describe Cluster",
    "CreateAcls": "Alter Cluster",
    "DeleteAcls": "Alter Cluster",
    "DescribeConfigs": "DescribeConfigs Cluster, DescribeConfigs Topic",
    "AlterConfigs": "AlterConfigs Cluster, AlterConfigs Topic",
    "DescribeLogDirs": "Describe Cluster",
    "CreatePartitions": "Alter Topic",
    "DeleteGroups": "Delete Group",
    "ElectLeaders": "Alter Cluster",
    "IncrementalAlterConfigs": "AlterConfigs Cluster, AlterConfigs Topic",
    "AlterPartitionReassignments": "Alter Cluster",
    "ListPartitionReassignments": "Describe Cluster",
    "OffsetDelete": "Delete Group, Read Topic",
    "DescribeClientQuotas": "DescribeConfigs Cluster",
    "DescribeUserScramCredentials": "Describe Cluster",
    "DescribeCluster": "",
    "DescribeProducers": "Read Topic",
    "DescribeTransactions": "Describe TransactionalId",
    "ListTransactions": "",
    "ConsumerGroupHeartbeat": "Read Group, Describe Topic",
    "ListConfigResources": "DescribeConfigs Cluster",
    "DescribeTopicPartitions": "Describe Topic",
}


def test_every_api_needs_what_kafka_wants_for_it() -> None:
    declared = {api.name: ", ".join(map(str, api.needs)) for api in apis().values()}
    rows = [f'"{name}": "{needs}",' for name, needs in declared.items() if name not in NEEDS]
    assert not rows, f"add a row to NEEDS, if Kafka's table says the same: {' '.join(rows)}"
    assert declared == NEEDS


def test_an_operation_that_an_api_needs_exists_on_that_resource() -> None:
    for api in apis().values():
        assert all(need.operation in OPERATIONS[need.resource] for need in api.needs), api.name


def test_operations_are_told_as_the_bits_that_kafka_tells() -> None:
    assert EVERYTHING[ResourceType.TOPIC] == 0b1101_1111_1000
    assert EVERYTHING[ResourceType.GROUP] == 0b1101_0100_1000
    assert EVERYTHING[ResourceType.CLUSTER] == 0b1_1111_1010_0000
    assert operation_bits((Operation.READ, Operation.WRITE)) == 0b1_1000


def test_only_produce_is_pipelined_and_only_it_carries_records() -> None:
    assert [api.key for api in apis().values() if api.is_pipelined] == [ApiKey.PRODUCE]
    assert [api.key for api in apis().values() if api.frame is Frame.RECORDS] == [ApiKey.PRODUCE]


def test_what_carries_the_metadata_of_a_group_may_be_longer() -> None:
    wide = {api.key for api in apis().values() if api.frame is Frame.GROUP}
    assert wide == {ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP, ApiKey.OFFSET_COMMIT}


def test_who_waits_for_others_is_given_up_with_its_client() -> None:
    waiting = {api.key for api in apis().values() if api.cancellable}
    assert waiting == {ApiKey.FETCH, ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP}


def test_what_is_served_before_clients_authenticate_needs_no_permission() -> None:
    with pytest.raises(ValueError, match="before clients authenticate can't need permissions"):
        Api(key=ApiKey.HEARTBEAT, needs=(the_cluster(Operation.ALTER),), before_identity=True)


def test_a_client_that_has_not_authenticated_asks_for_versions_only() -> None:
    assert [api.key for api in apis().values() if api.before_identity] == [ApiKey.API_VERSIONS]


#: Where a version has no error code for all of a request: the connection is closed.
WITHOUT_A_PLACE = {ApiKey.PRODUCE, ApiKey.DESCRIBE_LOG_DIRS, ApiKey.ELECT_LEADERS}


def test_a_permission_of_the_whole_request_can_be_refused_in_every_version() -> None:
    for api in apis().values():
        if all(need.name_of is None for need in api.needs) or api.key in WITHOUT_A_PLACE:
            continue
        request = any_request(api.key)
        for version in range(api.low, api.high + 1):
            response = api.failure_response(request, version, 31)
            assert response is not None, (api.name, version)
            assert encode_response(api.key, version, 1, response)


def test_a_name_is_asked_for_only_where_the_request_has_one() -> None:
    need = the_transactional_id(Operation.WRITE)
    assert need.name_of is not None
    assert need.name_of(InitProducerIdRequest(transactional_id=None)) is None
    assert need.name_of(InitProducerIdRequest(transactional_id="t")) == "t"
    cluster = the_cluster(Operation.ALTER)
    assert cluster.name_of is not None
    assert cluster.name_of(object()) == CLUSTER_NAME


def test_a_failure_is_told_in_the_versions_that_have_a_place_for_it_only() -> None:
    failure = one_code(HeartbeatResponse, since=2, until=3)
    answers: list[Message | None] = [failure(None, version, 5) for version in range(1, 5)]
    assert answers == [None, HeartbeatResponse(error_code=5), HeartbeatResponse(error_code=5), None]


def test_versions_are_those_of_the_codec_unless_said_otherwise() -> None:
    api = Api(key=ApiKey.HEARTBEAT, needs=())
    assert (api.low, api.high, api.low_advertised, api.versions) == (0, 4, 0, "0-4")
    api = Api(key=ApiKey.HEARTBEAT, needs=(), low=1, high=3, low_advertised=0)
    assert advertised({12: api}) == ((12, 0, 3),)
    with pytest.raises(ValueError, match="versions that have no codec"):
        Api(key=ApiKey.HEARTBEAT, needs=(), high=5)


def test_an_api_is_declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from penstock.api import acls, quotas

    monkeypatch.setattr(quotas, "APIS", acls.APIS)
    with pytest.raises(ValueError, match="declared twice"):
        apis()


def test_a_new_module_with_a_declaration_is_all_that_a_new_api_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.api import quotas

    (declared,) = quotas.APIS
    key = ApiKey(declared.key)
    monkeypatch.setattr(quotas, "APIS", ())
    assert key not in apis()
    (tmp_path / "extra_for_a_test.py").write_text(
        "from penstock.api.declaration import Api\n"
        "from penstock.wire.api_keys import ApiKey\n"
        f"APIS = (Api(key=ApiKey.{key.name}, needs=(), nowait=lambda request, context: None),)\n"
    )
    monkeypatch.setattr(penstock.api, "__path__", [*penstock.api.__path__, str(tmp_path)])
    assert key in apis()
    assert key in {each for each, _, _ in advertised(apis())}


def test_no_api_is_named_in_a_table_beside_its_declaration() -> None:
    """Two keys of APIs in one display, of a module that declares none, is a second table."""
    found = []
    for path in sorted([*ROOM.glob("*.py"), *ROOM.parent.glob("server/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict | ast.Set | ast.Tuple | ast.List):
                parts = [*node.keys] if isinstance(node, ast.Dict) else node.elts
                keys = [part for part in parts if part and re.match(r"ApiKey\.[A-Z_]+$", ast.unparse(part))]
                if len(keys) > 1:
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []
