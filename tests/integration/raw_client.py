"""Single requests to a real broker, as bytes on a socket: what no client library would send."""

from __future__ import annotations

__all__ = ("connect", "create", "produce", "produce_request")

import anyio
from tests.unit.server.harness import Client

from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData


async def connect(bootstrap_servers: str) -> Client:
    """A connection that speaks frames."""
    host, _, port = bootstrap_servers.rpartition(":")
    return Client(await anyio.connect_tcp(host, int(port)))


async def create(client: Client, name: str, **config: str) -> int:
    """Make a topic of one partition; the error code."""
    configs = [CreatableTopicConfig(name=key.replace("_", "."), value=value) for key, value in config.items()]
    topic = CreatableTopic(name=name, num_partitions=1, replication_factor=1, configs=configs, assignments=[])
    answer = await client.call(
        ApiKey.CREATE_TOPICS, 5, CreateTopicsRequest(topics=[topic], timeout_ms=20_000)
    )
    code: int = answer.topics[0].error_code
    return code


def produce_request(topic: str, batch: bytes | bytearray, acks: int = -1) -> ProduceRequest:
    """One batch for partition 0."""
    data = PartitionProduceData(index=0, records=memoryview(batch))
    return ProduceRequest(
        transactional_id=None,
        acks=acks,
        timeout_ms=5_000,
        topic_data=[TopicProduceData(name=topic, partition_data=[data])],
    )


async def produce(client: Client, topic: str, batch: bytes | bytearray) -> int:
    """Produce one batch to partition 0; the error code."""
    answer = await client.call(ApiKey.PRODUCE, 9, produce_request(topic, batch))
    code: int = answer.responses[0].partition_responses[0].error_code
    return code
