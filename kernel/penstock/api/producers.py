"""DescribeProducers v0: what partitions remember of their idempotent producers."""

from __future__ import annotations

__all__ = ("APIS", "describe_producers_nowait")

from typing import Final

from penstock.api.authorization import DENIED, each
from penstock.api.context import RequestContext
from penstock.api.declaration import Api
from penstock.api.names import absent_topic_code
from penstock.api.portions import Steps, first_portion, other_portions
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.describe_producers import (
    DescribeProducersRequest,
    DescribeProducersResponse,
    PartitionResponse,
    ProducerState,
    TopicResponse,
)

#: There are no transactions, hence no coordinator that wrote a marker and no open transaction.
_NO_COORDINATOR: Final = -1
_NO_TRANSACTION: Final = -1


def _describe_producers(
    request: DescribeProducersRequest, context: RequestContext
) -> Steps[DescribeProducersResponse]:
    """DescribeProducers (KIP-664): the producers of each partition that may still send a duplicate."""
    # Each partition once, however often it is asked for: a short request must not make a response of any length.
    wanted: dict[str, dict[int, None]] = {}
    for topic in request.topics:
        yield
        wanted.setdefault(topic.name, {}).update(dict.fromkeys(topic.partition_indexes))
    denied = context.denied(Operation.READ, ResourceType.TOPIC, wanted)
    topics: list[TopicResponse] = []
    for name, indexes in wanted.items():
        yield
        partitions: list[PartitionResponse] = []
        for index in indexes:
            yield
            partitions.append(
                _refused(index) if name in denied else (yield from _partition(name, index, context))
            )
        topics.append(TopicResponse(name=name, partitions=partitions))
    return DescribeProducersResponse(topics=topics)


def _refused(index: int) -> PartitionResponse:
    return PartitionResponse(
        partition_index=index, error_code=DENIED[ResourceType.TOPIC], error_message=None, active_producers=[]
    )


def _partition(name: str, index: int, context: RequestContext) -> Steps[PartitionResponse]:
    logs = context.api.logs
    response = PartitionResponse(partition_index=index, active_producers=[])
    partition = logs.partition(name, index)
    if partition is None:
        topic = logs.topics().get(name)
        if topic is not None and 0 <= index < topic.partition_count:
            response.error_code = ErrorCode.NOT_LEADER_OR_FOLLOWER
            response.error_message = "the partition is not open on this broker"
        else:
            response.error_code = absent_topic_code(name)
            response.error_message = "there is no such partition"
        return response
    if partition.unavailable is not None:
        response.error_code = ErrorCode.KAFKA_STORAGE_ERROR
        response.error_message = partition.unavailable
        return response
    for producer in partition.active_producers(context.api.now_ms()):
        yield
        response.active_producers.append(
            ProducerState(
                producer_id=producer.producer_id,
                producer_epoch=producer.epoch,
                last_sequence=producer.last_sequence,
                last_timestamp=producer.last_write_ms,
                coordinator_epoch=_NO_COORDINATOR,
                current_txn_start_offset=_NO_TRANSACTION,
            )
        )
    return response


describe_producers_nowait: Final = first_portion(_describe_producers)

APIS: Final = (
    Api(
        key=ApiKey.DESCRIBE_PRODUCERS,
        needs=(each(Operation.READ, ResourceType.TOPIC),),
        nowait=describe_producers_nowait,
        handler=other_portions,
        note="idempotent producers with their last sequence; the last timestamp is the broker's clock at their last "
        "batch",
    ),
)
