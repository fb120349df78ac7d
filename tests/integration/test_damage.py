"""Damaged objects between two lives of a broker: only what needs them is unavailable, and there are ways out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tests.integration.conftest import ServeFactory, ServeProcess, penstock
from tests.integration.ledger import SILENT
from tests.integration.test_faults import damage
from tests.patience import HANG_S

from penstock.coordinator.placement import partition_for
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.find_coordinator import FindCoordinatorRequest
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.records import build_batch
from penstock_tools.client import ClientSettings, Cluster

RECORDS = 60
OFFSETS_PARTITIONS = 4


def config(broker: ServeProcess, **more: Any) -> dict[str, Any]:
    return {
        "bootstrap.servers": broker.bootstrap_servers,
        "logger": SILENT,
        **{key.replace("_", "."): value for key, value in more.items()},
    }


def produce(
    broker: ServeProcess, topic: str, partition: int, values: Sequence[str], timeout_s: float = HANG_S
) -> list[Any]:
    """One batch a record; the errors met."""
    errors: list[Any] = []
    producer = Producer(
        config(broker, message_timeout_ms=int(timeout_s * 1000), linger_ms=0, batch_num_messages=1)
    )
    for value in values:
        producer.produce(
            topic,
            value,
            partition=partition,
            on_delivery=lambda error, _: errors.append(error) if error else None,
        )
    assert producer.flush(HANG_S) == 0
    return errors


def consume(broker: ServeProcess, topic: str, partition: int, count: int, offset: int = 0) -> list[str]:
    consumer = Consumer(config(broker, group_id="reader"))
    found: list[str] = []
    deadline = time.monotonic() + HANG_S
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        while len(found) < count:
            assert time.monotonic() < deadline, f"only {len(found)} of {count} came"
            message = consumer.poll(0.2)
            if message is not None:
                assert message.error() is None, message.error()
                found.append(message.value().decode())
    finally:
        consumer.close()
    return found


def value(topic: str, partition: int, number: int) -> str:
    return f"<{topic}-{partition}-{number}>" + "." * 100


def values(topic: str, partition: int, numbers: Sequence[int] = range(RECORDS)) -> list[str]:
    return [value(topic, partition, number) for number in numbers]


def object_with(broker: ServeProcess, text: bytes) -> tuple[Path, int]:
    """The object that has these bytes, and where."""
    for path in (broker.data_dir / "objects" / "objects").iterdir():
        data = path.read_bytes()
        if text in data:
            return path, data.index(text)
    raise AssertionError(f"no object has {text!r}")


async def codes(broker: ServeProcess, topic: str, partition: int) -> dict[str, int]:
    """What the broker answers to requests of a client that doesn't look at Metadata first."""
    async with Cluster.open(ClientSettings(bootstrap_servers=broker.bootstrap_servers)) as cluster:
        node = await cluster.any_node()
        (info,) = await cluster.topics([topic])

        async def ask(api_key: int, request: Any) -> Any:
            return await cluster.ask(node, api_key, request)

        batch = memoryview(build_batch([(None, b"x", (), 1)]))
        produced = await ask(
            ApiKey.PRODUCE,
            ProduceRequest(
                acks=-1,
                timeout_ms=1000,
                topic_data=[
                    TopicProduceData(
                        name=topic,
                        topic_id=info.topic_id,
                        partition_data=[PartitionProduceData(index=partition, records=batch)],
                    )
                ],
            ),
        )
        fetched = await ask(
            ApiKey.FETCH,
            FetchRequest(
                max_wait_ms=100,
                min_bytes=1,
                topics=[
                    FetchTopic(
                        topic=topic,
                        topic_id=info.topic_id,
                        partitions=[
                            FetchPartition(partition=partition, fetch_offset=0, partition_max_bytes=1000)
                        ],
                    )
                ],
                forgotten_topics_data=[],
            ),
        )
        listed = await ask(
            ApiKey.LIST_OFFSETS,
            ListOffsetsRequest(
                replica_id=-1,
                topics=[
                    ListOffsetsTopic(
                        name=topic,
                        partitions=[ListOffsetsPartition(partition_index=partition, timestamp=-1)],
                    )
                ],
                timeout_ms=1000,
            ),
        )
        epochs = await ask(
            ApiKey.OFFSET_FOR_LEADER_EPOCH,
            OffsetForLeaderEpochRequest(
                topics=[
                    OffsetForLeaderTopic(
                        topic=topic,
                        partitions=[OffsetForLeaderPartition(partition=partition, leader_epoch=0)],
                    )
                ]
            ),
        )
        return {
            "produce": produced.responses[0].partition_responses[0].error_code,
            "fetch": fetched.responses[0].partitions[0].error_code,
            "list offsets": listed.topics[0].partitions[0].error_code,
            "offset for leader epoch": epochs.topics[0].partitions[0].error_code,
        }


async def coordinator_code(broker: ServeProcess, group: str) -> int:
    async with Cluster.open(ClientSettings(bootstrap_servers=broker.bootstrap_servers)) as cluster:
        answer: Any = await cluster.ask(
            await cluster.any_node(), ApiKey.FIND_COORDINATOR, FindCoordinatorRequest(key=group)
        )
        found = answer.coordinators[0] if answer.coordinators else answer
        return int(found.error_code)


def commit(broker: ServeProcess, group: str, offset: int) -> None:
    consumer = Consumer(config(broker, group_id=group))
    try:
        consumer.commit(offsets=[TopicPartition("fine", 0, offset)], asynchronous=False)
    finally:
        consumer.close()


def committed(broker: ServeProcess, group: str, timeout_s: float = HANG_S) -> int:
    consumer = Consumer(config(broker, group_id=group))
    try:
        (found,) = consumer.committed([TopicPartition("fine", 0)], timeout=timeout_s)
        assert found.error is None, found.error
        return int(found.offset)
    finally:
        consumer.close()


def fails(call: Callable[[], object]) -> bool:
    try:
        call()
    except KafkaException:
        return True
    return False


def output_of(*arguments: str) -> str:
    done = penstock(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_damaged_objects_make_only_what_needs_them_unavailable(serve: ServeFactory) -> None:
    broker = serve(
        "stream.object_split_bytes=1KiB",
        "stream.block_bytes=1KiB",
        f"groups.offsets_partitions={OFFSETS_PARTITIONS}",
    )
    admin = AdminClient(config(broker))
    topics = {"broken": 2, "doomed": 1, "fine": 1}
    for future in admin.create_topics([NewTopic(name, count) for name, count in topics.items()]).values():
        future.result(HANG_S)
    for topic, count in topics.items():
        for partition in range(count):
            assert produce(broker, topic, partition, values(topic, partition)) == []
    groups = [f"group-{i}" for i in range(20)]
    bad_group = groups[0]
    good_group = next(
        g for g in groups if partition_for(g, OFFSETS_PARTITIONS) != partition_for(bad_group, 4)
    )
    commit(broker, bad_group, 7)
    commit(broker, good_group, 8)
    assert broker.terminate() == 0

    hurt = object_with(broker, b"<broken-0-20>")
    gone, _ = object_with(broker, b"<doomed-0-20>")
    groups_object = object_with(broker, bad_group.encode())
    assert len({hurt[0], gone, groups_object[0]}) == 3
    damage(*hurt)
    gone.unlink()
    damage(*groups_object)
    broker.start()
    broker.wait_for_output("broken-0 is unavailable")
    broker.wait_for_output("doomed-0 is unavailable")
    broker.wait_for_output("groups have no coordinator")

    # Metadata, as Kafka shows a partition without a living replica
    admin = AdminClient(config(broker))
    described = admin.list_topics(timeout=HANG_S).topics["broken"].partitions
    assert described[0].leader == -1
    assert described[0].error.code() == ErrorCode.LEADER_NOT_AVAILABLE
    assert (described[1].leader >= 0, described[1].error) == (True, None)
    assert set(anyio.run(codes, broker, "broken", 0).values()) == {int(ErrorCode.KAFKA_STORAGE_ERROR)}
    assert set(anyio.run(codes, broker, "fine", 0).values()) == {0}

    # real clients: nothing is accepted where it hurts, all else goes on
    assert len(produce(broker, "broken", 0, ["lost?"], timeout_s=3)) == 1
    assert produce(broker, "broken", 1, ["more"]) == []
    assert consume(broker, "broken", 1, RECORDS + 1) == [*values("broken", 1), "more"]
    assert consume(broker, "fine", 0, RECORDS) == values("fine", 0)
    assert committed(broker, good_group) == 8
    commit(broker, good_group, 9)
    assert committed(broker, good_group) == 9
    assert anyio.run(coordinator_code, broker, bad_group) == ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert fails(lambda: committed(broker, bad_group, timeout_s=4))

    # ways out: deleting the topic, giving up the damaged records, putting an object back
    admin.delete_topics(["doomed"])["doomed"].result(HANG_S)
    said = broker.wait_for_output("penstock topic delete-records broken ")
    before = int(
        said.partition("penstock topic delete-records broken ")[2].partition("--before ")[2].partition(")")[0]
    )
    assert 20 < before < 40
    told = output_of(
        "topic", "delete-records", "broken", "--partition", "0", "--before", str(before),
        "--bootstrap-server", broker.bootstrap_servers,
    )  # fmt: skip
    assert f"starts at offset {before}" in told
    assert produce(broker, "broken", 0, ["again"]) == []
    left = [*values("broken", 0, range(before, RECORDS)), "again"]
    assert consume(broker, "broken", 0, len(left), before) == left
    assert broker.terminate() == 0

    damage(*groups_object)  # turned back
    broker.start()
    assert committed(broker, bad_group) == 7
    assert committed(broker, good_group) == 9
    assert consume(broker, "broken", 0, len(left), before) == left
    assert broker.terminate() == 0
    assert "ERROR" not in broker.output[broker.printed_before :]
