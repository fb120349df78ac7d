"""aiokafka, unmodified and at its defaults, against a real broker process."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import (
    CODECS,
    DEADLINE_S,
    Row,
    by_partition,
    real_rows,
    serving,
    unique,
)
from tests.patience import HANG_S

COMBINATIONS = [
    pytest.param(codec, acks, idempotent, id=f"{codec}-acks_{acks}-{'idempotent' if idempotent else 'plain'}")
    for codec in CODECS
    for acks, idempotent in (("all", True), ("all", False), (1, False), (0, False))
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("aiokafka")) as broker:
        yield broker


def run(main: Coroutine[Any, Any, None]) -> None:
    """A test in an event loop of its own, with a deadline."""

    async def bounded() -> None:
        async with asyncio.timeout(HANG_S):
            await main

    asyncio.run(bounded())


@asynccontextmanager
async def started(client: Any) -> AsyncIterator[Any]:
    await client.start()
    try:
        yield client
    finally:
        await (client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())


def admin_of(broker: ServeProcess) -> Any:
    return started(AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers))


def consumer_of(broker: ServeProcess, *topics: str, **settings: Any) -> Any:
    settings = {"auto_offset_reset": "earliest", **settings}
    return started(AIOKafkaConsumer(*topics, bootstrap_servers=broker.bootstrap_servers, **settings))


async def create(
    broker: ServeProcess, prefix: str, partitions: int = 1, configs: dict[str, str] | None = None
) -> str:
    name = unique(prefix)
    async with admin_of(broker) as admin:
        response = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs or {})])
    assert [(topic, code) for topic, code, _ in response.topic_errors] == [(name, 0)]
    return name


async def produce(
    broker: ServeProcess, topic: str, rows: list[Row], **settings: Any
) -> list[tuple[int, int]]:
    """Produce all and wait; (partition, offset) of each, as acknowledged. acks=0 has no offsets: -1."""
    client = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, **settings)
    async with started(client) as producer:
        waiting = [
            await producer.send(
                topic, value=row.value, key=row.key, headers=list(row.headers), timestamp_ms=row.timestamp_ms
            )
            for row in rows
        ]
        results = await asyncio.gather(*waiting)
    return [(-1, -1) if result is None else (result.partition, result.offset) for result in results]


async def take(consumer: Any, count: int) -> list[Any]:
    """Exactly ``count`` records."""
    found: list[Any] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=500, max_records=count - len(found))).values():
                found += records
    return found


async def read(broker: ServeProcess, topic: str, count: int, partitions: int = 1) -> list[Any]:
    async with consumer_of(broker) as consumer:
        consumer.assign([TopicPartition(topic, index) for index in range(partitions)])
        return await take(consumer, count)


async def eventually(look: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = look()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.05)


def as_row(record: Any) -> Row:
    return Row(record.key, record.value, tuple(record.headers), record.timestamp)


def text(number: int) -> Row:
    return Row(None, f"record {number}".encode(), (), int(time.time() * 1000))


# -- topics and configs ----------------------------------------------------------------------------------------


def test_topics_are_created_described_grown_and_deleted(shared: ServeProcess) -> None:
    async def main() -> None:
        name = await create(shared, "life", 2)
        async with admin_of(shared) as admin:
            (described,) = await admin.describe_topics([name])
            assert (described["topic"], len(described["partitions"])) == (name, 2)
            await admin.create_partitions({name: NewPartitions(5)})
            (described,) = await admin.describe_topics([name])
            assert sorted(partition["partition"] for partition in described["partitions"]) == [0, 1, 2, 3, 4]
            again = await admin.create_topics([NewTopic(name, 1, 1)])
            assert again.topic_errors[0][1] == errors.TopicAlreadyExistsError.errno
            await admin.delete_topics([name])
            assert name not in await admin.list_topics()
            cluster = await admin.describe_cluster()
            assert cluster["cluster_id"]
            assert [broker["node_id"] for broker in cluster["brokers"]] == [cluster["controller_id"]]

    run(main())


def test_configs_are_described_and_altered(shared: ServeProcess) -> None:
    async def main() -> None:
        name = await create(shared, "configs", 1, {"retention.ms": "3600000"})
        async with admin_of(shared) as admin:

            async def values() -> dict[str, str]:
                (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
                ((code, _, _, _, entries),) = answer.resources
                assert code == 0
                return {entry[0]: entry[1] for entry in entries}

            assert (await values())["retention.ms"] == "3600000"
            change = {"max.message.bytes": "2000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=change)])
            changed = await values()
            assert changed["max.message.bytes"] == "2000"
            assert changed["retention.ms"] == "604800000", "AlterConfigs puts back what it doesn't name"

    run(main())


# -- produce and consume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "acks", "idempotent"), COMBINATIONS)
def test_what_is_produced_is_consumed(
    shared: ServeProcess, log_lines: list[str], codec: str, acks: Any, idempotent: bool
) -> None:
    """Bytes, keys, headers and timestamps come back; offsets are dense and in the order of producing."""

    async def main() -> None:
        topic = await create(shared, "codec", 3)
        rows = real_rows(log_lines, lines=300, rows=150)
        await produce(
            shared,
            topic,
            rows,
            compression_type=None if codec == "none" else codec,
            acks=acks,
            enable_idempotence=idempotent,
        )
        found = by_partition(await read(shared, topic, len(rows), 3), lambda record: record.partition)
        for records in found.values():
            assert [record.offset for record in records] == list(range(len(records)))
            positions = [rows.index(as_row(record)) for record in records]
            assert positions == sorted(positions), "order within a partition is the order of producing"
        got = sorted((as_row(record) for records in found.values() for record in records), key=repr)
        assert got == sorted(rows, key=repr)

    run(main())


def test_null_empty_and_unicode(shared: ServeProcess) -> None:
    async def main() -> None:
        topic = unique("null")  # nobody made it: producing does
        rows = [
            Row(b"tombstone", None, (), 1_700_000_000_001),
            Row(b"", b"", (), 1_700_000_000_002),
            Row(
                "ключ 鍵 🔑".encode(),
                "значение 🎁 \x00\n".encode(),
                (("é", "ü".encode()),),
                1_700_000_000_003,
            ),
        ]
        assert await produce(shared, topic, rows) == [(0, 0), (0, 1), (0, 2)]
        assert [as_row(record) for record in await read(shared, topic, 3)] == rows

    run(main())


def test_a_message_over_the_limit_is_refused_and_the_next_one_is_not(shared: ServeProcess) -> None:
    async def main() -> None:
        topic = await create(shared, "large", 1, {"max.message.bytes": "2000000"})
        client = AIOKafkaProducer(bootstrap_servers=shared.bootstrap_servers, max_request_size=10_000_000)
        async with started(client) as producer:
            assert (await producer.send_and_wait(topic, os.urandom(1_990_000))).offset == 0
            with pytest.raises(errors.MessageSizeTooLargeError):
                await producer.send_and_wait(topic, os.urandom(2_000_000))
            assert (await producer.send_and_wait(topic, b"small")).offset == 1
        assert [len(record.value) for record in await read(shared, topic, 2)] == [1_990_000, 5]

    run(main())


def test_seek_by_time_and_position(shared: ServeProcess) -> None:
    """Into the middle of a batch, and to beginning and end."""

    async def main() -> None:
        topic = await create(shared, "times")
        start_ms = 1_700_000_000_000
        rows = [Row(None, b"t%d" % n, (), start_ms + 10 * n) for n in range(300)]
        await produce(shared, topic, rows, compression_type="lz4")
        partition = TopicPartition(topic, 0)
        async with consumer_of(shared) as consumer:
            consumer.assign([partition])
            for asked_ms, expected in ((0, 0), (start_ms + 1501, 151), (start_ms + 2990, 299)):
                found = (await consumer.offsets_for_times({partition: asked_ms}))[partition]
                assert (found.offset, found.timestamp) == (expected, start_ms + 10 * expected)
            assert (await consumer.offsets_for_times({partition: start_ms + 2991}))[partition] is None
            consumer.seek(partition, 151)
            assert (await take(consumer, 1))[0].value == b"t151"
            await consumer.seek_to_end(partition)
            assert await consumer.position(partition) == 300
            await consumer.seek_to_beginning(partition)
            assert (await take(consumer, 1))[0].offset == 0
            assert await consumer.beginning_offsets([partition]) == {partition: 0}
            assert await consumer.end_offsets([partition]) == {partition: 300}

    run(main())


def test_delete_records_and_an_offset_that_is_gone(shared: ServeProcess) -> None:
    async def main() -> None:
        topic = await create(shared, "trim")
        await produce(shared, topic, [text(number) for number in range(100)])
        partition = TopicPartition(topic, 0)
        async with admin_of(shared) as admin:
            answer = await admin.delete_records({partition: RecordsToDelete(before_offset=37)})
            assert answer == {partition: 37}
        async with consumer_of(shared, auto_offset_reset="none") as consumer:
            consumer.assign([partition])
            consumer.seek(partition, 36)
            with pytest.raises(errors.OffsetOutOfRangeError):
                await consumer.getone()
            consumer.seek(partition, 37)
            assert [record.offset for record in await take(consumer, 63)] == list(range(37, 100))

    run(main())


# -- groups ----------------------------------------------------------------------------------------------------


def test_a_group_of_three_shares_out_and_rebalances(shared: ServeProcess, log_lines: list[str]) -> None:
    """One, two, three members, then two again: all partitions are owned, every record arrives."""

    async def main() -> None:
        topic = await create(shared, "shared", 6)
        group = unique("group")
        rows = [Row(str(n).encode(), log_lines[n].encode(), (), 1_700_000_000_000) for n in range(900)]
        received: set[tuple[bytes, bytes]] = set()
        members: list[Any] = []

        async def settle(shares: list[int]) -> None:
            async def settled() -> bool:
                for member in members:
                    for records in (await member.getmany(timeout_ms=50)).values():
                        received.update((record.key, record.value) for record in records)
                return sorted(len(member.assignment()) for member in members) == shares

            await eventually(settled, f"the shares are {shares}")

        async def join() -> Any:
            member = AIOKafkaConsumer(
                topic,
                bootstrap_servers=shared.bootstrap_servers,
                group_id=group,
                auto_offset_reset="earliest",
                heartbeat_interval_ms=500,
            )
            starting = asyncio.ensure_future(member.start())  # the others have to rejoin meanwhile
            while not starting.done():
                await settle_once()
            await starting
            members.append(member)
            return member

        async def settle_once() -> None:
            await asyncio.sleep(0.02)
            for member in members:
                for records in (await member.getmany(timeout_ms=20)).values():
                    received.update((record.key, record.value) for record in records)

        try:
            await join()
            await settle([6])
            await produce(shared, topic, rows[:300])
            await join()
            await settle([3, 3])
            await join()
            await settle([2, 2, 2])
            await produce(shared, topic, rows[300:600])
            await members.pop().stop()
            await settle([3, 3])
            await produce(shared, topic, rows[600:])
            wanted = {(row.key, row.value) for row in rows}

            async def arrived() -> bool:
                await settle_once()
                return received == wanted

            await eventually(arrived, "every record arrives")
        finally:
            for member in members:
                await member.stop()

    run(main())


def test_committed_offsets_outlive_clients_and_brokers(serve: ServeFactory) -> None:
    """A group goes on where it committed: after its own restart, and after broker restarts of both kinds."""
    broker = serve()
    topic, group = unique("resume"), unique("resume")

    async def fill() -> None:
        await produce(broker, topic, [text(number) for number in range(40)])

    async def read_ten(first: int) -> None:
        async with consumer_of(broker, topic, group_id=group, enable_auto_commit=False) as consumer:
            records = await take(consumer, 10)
            assert [record.offset for record in records] == list(range(first, first + 10))
            partition = TopicPartition(topic, 0)
            await consumer.commit({partition: (first + 10, "hält")})
            assert await consumer.committed(partition) == first + 10

    run(fill())
    run(read_ten(0))
    run(read_ten(10))
    broker.kill()
    broker.start()
    run(read_ten(20))
    assert broker.terminate() == 0
    broker.start()
    run(read_ten(30))


def test_groups_are_listed_and_described(shared: ServeProcess) -> None:
    async def main() -> None:
        topic = await create(shared, "admin", 2)
        group = unique("admin")
        await produce(shared, topic, [text(number) for number in range(10)])
        async with consumer_of(shared, topic, group_id=group) as consumer, admin_of(shared) as admin:
            await take(consumer, 10)
            await consumer.commit()
            assert (group, "consumer") in await admin.list_consumer_groups()
            (answer,) = await admin.describe_consumer_groups([group])
            (described,) = answer.groups
            code, name, state, protocol_type, _, members = described[:6]
            assert (code, name, state, protocol_type, len(members)) == (0, group, "Stable", "consumer", 1)
            offsets = await admin.list_consumer_group_offsets(group)
            assert sum(found.offset for found in offsets.values()) == 10

    run(main())
