"""ElectLeaders v0-2, AlterPartitionReassignments v0-1, ListPartitionReassignments v0: one broker leads all there is.

Each partition's one replica is where it should be, so no election is needed and no reassignment can be under way. No
election helps a partition whose data are damaged: nobody else could lead it.
"""

from __future__ import annotations

__all__ = (
    "APIS",
    "alter_partition_reassignments_nowait",
    "elect_leaders_nowait",
    "list_partition_reassignments_nowait",
)

from typing import Final

from penstock.api.authorization import the_cluster
from penstock.api.context import RequestContext
from penstock.api.declaration import Api, one_code
from penstock.api.errors import TIMED_OUT
from penstock.api.lookup import partitions_by_topic
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.log.errors import KafkaError
from penstock.spi.authorizer import Operation
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_partition_reassignments import (
    AlterPartitionReassignmentsRequest,
    AlterPartitionReassignmentsResponse,
    ReassignablePartition,
    ReassignablePartitionResponse,
    ReassignableTopicResponse,
)
from penstock.wire.messages.elect_leaders import (
    ElectLeadersRequest,
    ElectLeadersResponse,
    PartitionResult,
    ReplicaElectionResult,
)
from penstock.wire.messages.list_partition_reassignments import (
    ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse,
)

# org.apache.kafka.common.ElectionType
_PREFERRED: Final = 0
_UNCLEAN: Final = 1


def _elect_leaders(request: ElectLeadersRequest, context: RequestContext) -> Steps[ElectLeadersResponse]:
    """ElectLeaders (KIP-183, KIP-460): ELECTION_NOT_NEEDED for each partition that is led.

    If all partitions are asked for (null), all topics are answered, with those partitions that have no leader.
    """
    if request.topic_partitions == []:  # as in Kafka, nobody looks at the time or the type then
        return ElectLeadersResponse(replica_election_results=[])
    if request.timeout_ms <= 0:
        return (yield from _refused_election(request, ErrorCode.REQUEST_TIMED_OUT, TIMED_OUT))
    if request.election_type not in {_PREFERRED, _UNCLEAN}:
        return (
            yield from _refused_election(request, ErrorCode.INVALID_REQUEST, "the election type is unknown")
        )
    results: list[ReplicaElectionResult] = []
    if request.topic_partitions is None:
        for name, indexes in partitions_by_topic(context.api.logs):
            found = []
            for index in indexes:
                yield
                result = _elect(name, index, request.election_type, context)
                if result.error_code != ErrorCode.ELECTION_NOT_NEEDED:
                    found.append(result)
            results.append(ReplicaElectionResult(topic=name, partition_result=found))
    else:
        for asked in request.topic_partitions:
            yield
            found = []
            for index in asked.partitions:
                yield
                found.append(_elect(asked.topic, index, request.election_type, context))
            results.append(ReplicaElectionResult(topic=asked.topic, partition_result=found))
    return ElectLeadersResponse(replica_election_results=results)


def _refused_election(request: ElectLeadersRequest, code: int, text: str) -> Steps[ElectLeadersResponse]:
    results: list[ReplicaElectionResult] = []
    for asked in request.topic_partitions or ():
        yield
        refused: list[PartitionResult] = []
        for index in asked.partitions:
            yield
            refused.append(PartitionResult(partition_id=index, error_code=code, error_message=text))
        results.append(ReplicaElectionResult(topic=asked.topic, partition_result=refused))
    return ElectLeadersResponse(error_code=code, replica_election_results=results)


def _elect(name: str, index: int, election_type: int, context: RequestContext) -> PartitionResult:
    try:
        _check_exists(name, index, context)
    except KafkaError as error:
        return PartitionResult(partition_id=index, error_code=error.error_code, error_message=str(error))
    partition = context.api.logs.partition(name, index)
    if partition is None:
        text = "the partition is not open on its broker"
    elif partition.unavailable is not None:
        text = partition.unavailable
    else:
        code, text = ErrorCode.ELECTION_NOT_NEEDED, "the partition's one replica leads it"
        return PartitionResult(partition_id=index, error_code=code, error_message=text)
    code = (
        ErrorCode.PREFERRED_LEADER_NOT_AVAILABLE
        if election_type == _PREFERRED
        else ErrorCode.ELIGIBLE_LEADERS_NOT_AVAILABLE
    )
    return PartitionResult(partition_id=index, error_code=code, error_message=text)


def list_partition_reassignments_nowait(
    request: ListPartitionReassignmentsRequest, context: RequestContext
) -> ListPartitionReassignmentsResponse:
    """ListPartitionReassignments (KIP-455): none is under way, whichever partitions are asked for."""
    return ListPartitionReassignmentsResponse(error_message=None, topics=[])


def _alter_partition_reassignments(
    request: AlterPartitionReassignmentsRequest, context: RequestContext
) -> Steps[AlterPartitionReassignmentsResponse]:
    """AlterPartitionReassignments (KIP-455): to where the partition is already, which changes nothing."""
    if not request.topics:  # as in Kafka, nobody looks at the time then
        return AlterPartitionReassignmentsResponse(error_message="", responses=[])
    is_late = request.timeout_ms <= 0
    responses: list[ReassignableTopicResponse] = []
    for topic in request.topics:
        yield
        partitions: list[ReassignablePartitionResponse] = []
        for asked in topic.partitions:
            yield
            response = ReassignablePartitionResponse(
                partition_index=asked.partition_index, error_message=None
            )
            try:
                if is_late:
                    raise KafkaError(ErrorCode.REQUEST_TIMED_OUT, TIMED_OUT)
                _check_reassignment(topic.name, asked, context)
            except KafkaError as error:
                response.error_code = error.error_code
                response.error_message = str(error)
            partitions.append(response)
        responses.append(ReassignableTopicResponse(name=topic.name, partitions=partitions))
    return AlterPartitionReassignmentsResponse(
        error_code=ErrorCode.REQUEST_TIMED_OUT if is_late else ErrorCode.NONE,
        # as in Kafka, what was asked for comes back where it was looked at
        allow_replication_factor_change=is_late or request.allow_replication_factor_change,
        error_message=None,
        responses=responses,
    )


def _check_reassignment(name: str, asked: ReassignablePartition, context: RequestContext) -> None:
    _check_exists(name, asked.partition_index, context)
    if asked.replicas is None:
        raise KafkaError(
            ErrorCode.NO_REASSIGNMENT_IN_PROGRESS,
            "there is nothing to cancel, no reassignment is in progress",
        )
    node_id = context.api.logs.node_id
    if list(asked.replicas) != [node_id]:
        raise KafkaError(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            f"each partition has one replica, on the one broker there is: node_id={node_id}",
        )


def _check_exists(name: str, index: int, context: RequestContext) -> None:
    topic = context.api.logs.topics().get(name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "there is no such topic")
    if not 0 <= index < topic.partition_count:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "the topic has no such partition")


elect_leaders_nowait: Final = first_portion(_elect_leaders)
alter_partition_reassignments_nowait: Final = first_portion(_alter_partition_reassignments)

APIS: Final = (
    Api(
        key=ApiKey.ELECT_LEADERS,
        needs=(the_cluster(Operation.ALTER),),
        nowait=elect_leaders_nowait,
        handler=other_portions,
        failure=one_code(ElectLeadersResponse, since=1),
        note="ELECTION_NOT_NEEDED: the one replica leads, unless the partition is damaged",
    ),
    Api(
        key=ApiKey.ALTER_PARTITION_REASSIGNMENTS,
        needs=(the_cluster(Operation.ALTER),),
        nowait=alter_partition_reassignments_nowait,
        handler=other_portions,
        failure=one_code(AlterPartitionReassignmentsResponse),
        note="to the one broker is accepted and changes nothing, anything else is INVALID_REPLICA_ASSIGNMENT, a "
        "cancellation NO_REASSIGNMENT_IN_PROGRESS",
    ),
    Api(
        key=ApiKey.LIST_PARTITION_REASSIGNMENTS,
        needs=(the_cluster(Operation.DESCRIBE),),
        nowait=list_partition_reassignments_nowait,
        failure=one_code(ListPartitionReassignmentsResponse),
        note="none is ever under way",
    ),
)
