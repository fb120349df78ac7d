"""confluent-kafka (librdkafka), unmodified and at its defaults, against a real broker process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.kafka_clients import (
    CODECS,
    DEADLINE_S,
    Row,
    by_partition,
    eventually,
    real_rows,
    serving,
    unique,
)

COMBINATIONS = [
    pytest.param(codec, acks, idempotent, id=f"{codec}-acks_{acks}-{'idempotent' if idempotent else 'plain'}")
    for codec in CODECS
    for acks, idempotent in (("all", True), ("all", False), ("1", False), ("0", False))
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("confluent")) as broker:
        yield broker


@pytest.fixture(scope="module")
def admin(shared: ServeProcess) -> AdminClient:
    return admin_of(shared)


def admin_of(broker: ServeProcess) -> AdminClient:
    # Clients that outlive a broker say so on the console: not part of what is tested.
    return AdminClient({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})


def create(
    admin: AdminClient, prefix: str, partitions: int = 1, configs: dict[str, str] | None = None
) -> str:
    name = unique(prefix)
    for future in admin.create_topics([NewTopic(name, partitions, 1, config=configs or {})]).values():
        future.result(DEADLINE_S)
    return name


def produce(broker: ServeProcess, topic: str, rows: list[Row], **settings: Any) -> list[tuple[int, int]]:
    """Produce all and wait; (partition, offset) of each, as acknowledged."""
    settings = {name.replace("_", "."): value for name, value in settings.items()}
    places: dict[int, tuple[int, int]] = {}

    def acknowledged(number: int) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            places[number] = (message.partition(), message.offset())

        return note

    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0, **settings})
    for number, row in enumerate(rows):
        producer.produce(
            topic,
            key=row.key,
            value=row.value,
            headers=list(row.headers),
            timestamp=row.timestamp_ms,
            on_delivery=acknowledged(number),
        )
        producer.poll(0)
    assert producer.flush(DEADLINE_S) == 0
    return [places[number] for number in range(len(rows))]


def consumer_of(broker: ServeProcess, group: str | None = None, **settings: Any) -> Consumer:
    settings = {name.replace("_", "."): value for name, value in settings.items()}
    return Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": group or unique("reader"),
            "auto.offset.reset": "earliest",
            "log_level": 0,
            **settings,
        }
    )


def take(consumer: Consumer, count: int) -> list[Message]:
    """Exactly ``count`` messages."""
    found: list[Message] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"got {len(found)} of {count}"
        for message in consumer.consume(count - len(found), 0.5):
            assert message.error() is None, message.error()
            found.append(message)
    return found


def read(broker: ServeProcess, topic: str, count: int, partitions: int = 1, offset: int = 0) -> list[Message]:
    with closing(consumer_of(broker)) as consumer:
        consumer.assign([TopicPartition(topic, index, offset) for index in range(partitions)])
        return take(consumer, count)


def as_row(message: Message) -> Row:
    kind, timestamp_ms = message.timestamp()
    assert kind == TIMESTAMP_CREATE_TIME
    return Row(message.key(), message.value(), tuple(message.headers() or ()), timestamp_ms)


def code_of(call: Callable[[], Any]) -> int:
    """The Kafka error code that ``call`` fails with."""
    with pytest.raises(KafkaException) as failure:
        call()
    error = failure.value.args[0]
    assert isinstance(error, KafkaError)
    assert error.str()
    return int(error.code())


def text(number: int, timestamp_ms: int = 0) -> Row:
    return Row(None, f"record {number}".encode(), (), timestamp_ms or int(time.time() * 1000))


# -- topics and configs ----------------------------------------------------------------------------------------


def test_topics_are_created_described_grown_and_deleted(admin: AdminClient) -> None:
    name = create(admin, "life", 2)
    topic = admin.list_topics(name, timeout=DEADLINE_S).topics[name]
    assert sorted(topic.partitions) == [0, 1]
    described = admin.describe_topics(TopicCollection([name]))[name].result(DEADLINE_S)
    assert (described.name, described.is_internal, len(described.partitions)) == (name, False, 2)
    assert described.topic_id is not None
    for future in admin.create_partitions([NewPartitions(name, 5)]).values():
        future.result(DEADLINE_S)
    assert sorted(admin.list_topics(name, timeout=DEADLINE_S).topics[name].partitions) == [0, 1, 2, 3, 4]
    for future in admin.delete_topics([name]).values():
        future.result(DEADLINE_S)
    assert name not in admin.list_topics(timeout=DEADLINE_S).topics


def test_a_topic_of_the_same_name_is_another_topic(shared: ServeProcess, admin: AdminClient) -> None:
    """Delete and create again: another id, and nothing of the old data."""
    name = create(admin, "phoenix")
    produce(shared, name, [text(number) for number in range(10)])
    before = admin.describe_topics(TopicCollection([name]))[name].result(DEADLINE_S).topic_id
    admin.delete_topics([name])[name].result(DEADLINE_S)
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(DEADLINE_S)
    after = admin.describe_topics(TopicCollection([name]))[name].result(DEADLINE_S).topic_id
    assert str(before) != str(after)
    assert produce(shared, name, [text(77)]) == [(0, 0)]
    assert [message.value() for message in read(shared, name, 1)] == [b"record 77"]


@pytest.mark.parametrize(
    ("topic", "code"),
    [
        (NewTopic("no/slash", 1, 1), KafkaError.TOPIC_EXCEPTION),
        (NewTopic("x" * 250, 1, 1), KafkaError.TOPIC_EXCEPTION),
        (NewTopic("three-replicas", 1, 3), KafkaError.INVALID_REPLICATION_FACTOR),
        (NewTopic("bad-key", 1, 1, config={"no.such.config": "1"}), KafkaError.INVALID_CONFIG),
        (NewTopic("bad-value", 1, 1, config={"retention.ms": "soon"}), KafkaError.INVALID_CONFIG),
    ],
    ids=lambda value: value.topic[:20] if isinstance(value, NewTopic) else "",
)
def test_an_impossible_topic_is_refused(admin: AdminClient, topic: NewTopic, code: int) -> None:
    (future,) = admin.create_topics([topic]).values()
    assert code_of(lambda: future.result(DEADLINE_S)) == code


def test_errors_about_topics_have_their_codes(admin: AdminClient) -> None:
    name = create(admin, "errors", 2)
    again = admin.create_topics([NewTopic(name, 2, 1)])[name]
    assert code_of(lambda: again.result(DEADLINE_S)) == KafkaError.TOPIC_ALREADY_EXISTS
    fewer = admin.create_partitions([NewPartitions(name, 1)])[name]
    assert code_of(lambda: fewer.result(DEADLINE_S)) == KafkaError.INVALID_PARTITIONS
    gone = admin.delete_topics(["nobody-made-this"])["nobody-made-this"]
    assert code_of(lambda: gone.result(DEADLINE_S)) == KafkaError.UNKNOWN_TOPIC_OR_PART
    dry = admin.create_topics([NewTopic("only-checked", 1, 1)], validate_only=True)["only-checked"]
    dry.result(DEADLINE_S)
    assert "only-checked" not in admin.list_topics(timeout=DEADLINE_S).topics


def test_configs_are_described_and_altered(admin: AdminClient) -> None:
    name = create(admin, "configs", 1, {"retention.ms": "3600000"})
    resource = ConfigResource(ResourceType.TOPIC, name)

    def described() -> dict[str, ConfigEntry]:
        (future,) = admin.describe_configs([resource]).values()
        entries: dict[str, ConfigEntry] = future.result(DEADLINE_S)
        return entries

    entries = described()
    assert len(entries) > 20
    assert (entries["retention.ms"].value, entries["retention.ms"].is_default) == ("3600000", False)
    assert (entries["max.message.bytes"].value, entries["max.message.bytes"].is_default) == ("1048588", True)

    change = ConfigResource(ResourceType.TOPIC, name)
    change.add_incremental_config(
        ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    )
    change.add_incremental_config(
        ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)
    )
    for future in admin.incremental_alter_configs([change]).values():
        future.result(DEADLINE_S)
    entries = described()
    assert entries["max.message.bytes"].value == "2000"
    assert (entries["retention.ms"].value, entries["retention.ms"].is_default) == ("604800000", True)

    wrong = ConfigResource(ResourceType.TOPIC, name)
    wrong.add_incremental_config(
        ConfigEntry("retention.bytes", "much", incremental_operation=AlterConfigOpType.SET)
    )
    (future,) = admin.incremental_alter_configs([wrong]).values()
    assert code_of(lambda: future.result(DEADLINE_S)) == KafkaError.INVALID_CONFIG
    assert described()["max.message.bytes"].value == "2000"


def test_the_cluster_and_the_broker_describe_themselves(admin: AdminClient) -> None:
    cluster = admin.describe_cluster(request_timeout=DEADLINE_S).result(DEADLINE_S)
    assert cluster.cluster_id
    assert [node.id for node in cluster.nodes] == [cluster.controller.id]
    resource = ConfigResource(ResourceType.BROKER, str(cluster.controller.id))
    (future,) = admin.describe_configs([resource]).values()
    assert "message.max.bytes" in future.result(DEADLINE_S)


def test_two_hundred_partitions_and_many_topics(shared: ServeProcess, admin: AdminClient) -> None:
    wide = create(admin, "wide", 200)
    names = [unique("many") for _ in range(50)]
    for future in admin.create_topics([NewTopic(name, 2, 1) for name in names]).values():
        future.result(DEADLINE_S)
    assert set(names) < set(admin.list_topics(timeout=DEADLINE_S).topics)
    rows = [Row(str(number).encode(), b"w%d" % number, (), 1_700_000_000_000) for number in range(4000)]
    places = produce(shared, wide, rows)
    assert len({partition for partition, _ in places}) == 200
    found = read(shared, wide, len(rows), 200)
    assert sorted((m.partition(), m.offset(), m.value()) for m in found) == sorted(
        (partition, offset, row.value) for (partition, offset), row in zip(places, rows, strict=True)
    )
    for future in admin.delete_topics(names).values():
        future.result(DEADLINE_S)
    assert not set(names) & set(admin.list_topics(timeout=DEADLINE_S).topics)


def test_what_an_admin_was_told_is_done_outlives_a_kill(serve: ServeFactory) -> None:
    """Created, grown, altered, trimmed and deleted: killed right after the answer, all of it holds."""
    broker = serve()
    admin = admin_of(broker)
    kept, gone = create(admin, "kept"), create(admin, "gone")
    produce(broker, kept, [text(number) for number in range(10)])
    admin.create_partitions([NewPartitions(kept, 3)])[kept].result(DEADLINE_S)
    broker.kill()
    broker.start()
    change = ConfigResource(ResourceType.TOPIC, kept)
    change.add_incremental_config(
        ConfigEntry("max.message.bytes", "2000", incremental_operation=AlterConfigOpType.SET)
    )
    (altered,) = admin.incremental_alter_configs([change]).values()
    altered.result(DEADLINE_S)
    broker.kill()
    broker.start()
    partition = TopicPartition(kept, 0, 4)
    assert admin.delete_records([partition])[partition].result(DEADLINE_S).low_watermark == 4
    broker.kill()
    broker.start()
    admin.delete_topics([gone])[gone].result(DEADLINE_S)
    broker.kill()
    broker.start()
    topics = admin.list_topics(timeout=DEADLINE_S).topics
    assert gone not in topics
    assert sorted(topics[kept].partitions) == [0, 1, 2]
    (future,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, kept)]).values()
    assert future.result(DEADLINE_S)["max.message.bytes"].value == "2000"
    with closing(consumer_of(broker)) as consumer:
        assert consumer.get_watermark_offsets(TopicPartition(kept, 0), timeout=DEADLINE_S) == (4, 10)


# -- produce and consume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "acks", "idempotent"), COMBINATIONS)
def test_what_is_produced_is_consumed(
    shared: ServeProcess, admin: AdminClient, log_lines: list[str], codec: str, acks: str, idempotent: bool
) -> None:
    """Bytes, keys, headers and timestamps come back; offsets are dense and in the order of producing."""
    topic = create(admin, "codec", 3)
    rows = real_rows(log_lines)
    produce(shared, topic, rows, compression_type=codec, acks=acks, enable_idempotence=idempotent)
    found = by_partition(read(shared, topic, len(rows), 3), lambda message: message.partition())
    for messages in found.values():
        assert [message.offset() for message in messages] == list(range(len(messages)))
        positions = [rows.index(as_row(message)) for message in messages]
        assert positions == sorted(positions), "order within a partition is the order of producing"
    got = sorted((as_row(message) for messages in found.values() for message in messages), key=repr)
    assert got == sorted(rows, key=repr)


def test_null_empty_and_unicode(shared: ServeProcess, admin: AdminClient) -> None:
    """Tombstones, empty values and keys, headers without a value, text of many scripts."""
    topic = create(admin, "null")
    rows = [
        Row(None, None, (), 1_700_000_000_000),
        Row(b"tombstone", None, (), 1_700_000_000_001),
        Row(b"", b"", (), 1_700_000_000_002),
        Row(
            "ключ 鍵 🔑".encode(), "значение 値 🎁 \x00\n".encode(), (("é", "ü".encode()),), 1_700_000_000_003
        ),
        Row(None, b"header", (("none", None), ("empty", b"")), 1_700_000_000_004),  # type: ignore[arg-type]
    ]
    places = produce(shared, topic, rows)
    assert places == [(0, number) for number in range(len(rows))]
    assert [as_row(message) for message in read(shared, topic, len(rows))] == rows


def test_an_unknown_topic_is_created_by_producing(shared: ServeProcess, admin: AdminClient) -> None:
    topic = unique("auto")
    assert produce(shared, topic, [text(1)]) == [(0, 0)]
    assert sorted(admin.list_topics(timeout=DEADLINE_S).topics[topic].partitions) == [0]


def test_unknown_partitions_and_names_are_told(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "unknown")
    producer = Producer({"bootstrap.servers": shared.bootstrap_servers})
    errors: list[int] = []
    producer.produce(topic, b"fine", on_delivery=lambda error, _: errors.append(error.code() if error else 0))
    assert producer.flush(DEADLINE_S) == 0
    with pytest.raises(KafkaException) as failure:
        producer.produce(topic, b"x", partition=7)
    assert failure.value.args[0].code() == KafkaError._UNKNOWN_PARTITION
    try:
        producer.produce("bad name!", b"x", on_delivery=lambda error, _: errors.append(error.code()))
    except KafkaException as at_once:  # the client knew before it had put the record anywhere
        errors.append(at_once.args[0].code())
    assert producer.flush(DEADLINE_S) == 0
    assert errors[0] == 0
    assert errors[1] in (KafkaError.TOPIC_EXCEPTION, KafkaError._UNKNOWN_TOPIC)

    with closing(consumer_of(shared, allow_auto_create_topics=False)) as consumer:
        consumer.subscribe(["nobody-has-this-topic"])
        message = eventually(lambda: consumer.poll(0.5), "the consumer is told")
        assert message.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    assert "nobody-has-this-topic" not in admin.list_topics(timeout=DEADLINE_S).topics


def test_a_transactional_producer_is_told_that_there_are_no_transactions(shared: ServeProcess) -> None:
    settings = {"bootstrap.servers": shared.bootstrap_servers, "transactional.id": "any", "log_level": 0}
    producer = Producer(settings)
    error = code_of(lambda: producer.init_transactions(DEADLINE_S))
    assert error == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED


def test_large_messages_up_to_the_limit_and_beyond(shared: ServeProcess, admin: AdminClient) -> None:
    """What fits into max.message.bytes gets through; one byte more is MSG_SIZE_TOO_LARGE, and nothing else breaks."""
    topic = create(admin, "large", 1, {"max.message.bytes": "3000000"})
    producer = Producer(
        {"bootstrap.servers": shared.bootstrap_servers, "message.max.bytes": 20_000_000, "linger.ms": 0}
    )
    results: list[tuple[int, int]] = []

    def note(error: KafkaError | None, message: Message) -> None:
        results.append((error.code() if error else 0, message.offset() if not error else -1))

    # 61 bytes of batch header, then the record: length and value length as varints, attributes, two deltas, no
    # key, no headers.
    overhead = 61 + 4 + 1 + 1 + 1 + 1 + 4 + 1
    for size in (3_000_000 - overhead, 3_000_001 - overhead, 5_000_000, 10):
        producer.produce(topic, os.urandom(8) + bytes(size - 8), on_delivery=note)
        assert producer.flush(DEADLINE_S) == 0
    too_large = (KafkaError.MSG_SIZE_TOO_LARGE, -1)
    assert results == [(0, 0), too_large, too_large, (0, 1)]
    found = read(shared, topic, 2)
    assert [len(message.value()) for message in found] == [3_000_000 - overhead, 10]


def test_log_append_time_is_the_brokers(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "stamped", 1, {"message.timestamp.type": "LogAppendTime"})
    before_ms = int(time.time() * 1000)
    produce(
        shared, topic, [Row(None, b"x%d" % n, (), 1_000_000 + n) for n in range(20)], compression_type="lz4"
    )
    after_ms = int(time.time() * 1000)
    for message in read(shared, topic, 20):
        kind, timestamp_ms = message.timestamp()
        assert kind == TIMESTAMP_LOG_APPEND_TIME
        assert before_ms <= timestamp_ms <= after_ms
    with closing(consumer_of(shared)) as consumer:
        (at,) = consumer.offsets_for_times([TopicPartition(topic, 0, before_ms)], timeout=DEADLINE_S)
        assert at.offset == 0
        (at,) = consumer.offsets_for_times([TopicPartition(topic, 0, after_ms + 1)], timeout=DEADLINE_S)
        assert at.offset == -1


@pytest.mark.parametrize("codec", CODECS)
def test_seek_by_time_finds_the_record_inside_a_batch(
    shared: ServeProcess, admin: AdminClient, codec: str
) -> None:
    """One batch of 500 records, times 10 ms apart: the first record at or after the time asked, to the record."""
    topic = create(admin, "times")
    start_ms = 1_700_000_000_000
    rows = [Row(None, b"t%d" % n, (), start_ms + 10 * n) for n in range(500)]
    produce(shared, topic, rows, compression_type=codec, linger_ms=500)
    with closing(consumer_of(shared)) as consumer:
        for asked_ms, expected in (
            (0, 0),
            (start_ms, 0),
            (start_ms + 1, 1),
            (start_ms + 2500, 250),
            (start_ms + 2501, 251),
            (start_ms + 4990, 499),
            (start_ms + 4991, -1),
        ):
            (at,) = consumer.offsets_for_times([TopicPartition(topic, 0, asked_ms)], timeout=DEADLINE_S)
            assert (at.error, at.offset) == (None, expected), asked_ms
        consumer.assign([TopicPartition(topic, 0, 251)])
        (message,) = take(consumer, 1)
        assert (message.offset(), message.value()) == (251, b"t251"), (
            "the client skips to the middle of a batch"
        )
        consumer.seek(TopicPartition(topic, 0, 499))
        assert take(consumer, 1)[0].value() == b"t499"


def test_reading_starts_at_the_beginning_or_the_end(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "ends")
    produce(shared, topic, [text(number) for number in range(5)])
    with (
        closing(consumer_of(shared)) as first,
        closing(consumer_of(shared, auto_offset_reset="latest")) as last,
    ):
        assert first.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S) == (0, 5)
        first.subscribe([topic])
        assert [message.offset() for message in take(first, 5)] == [0, 1, 2, 3, 4]
        last.subscribe([topic])
        eventually(lambda: last.poll(0.1) or last.assignment(), "it gets the partition")
        # The position is known only once the offset lookup is done: before, what is produced might be missed.
        eventually(
            lambda: (
                last.poll(0.1) or last.get_watermark_offsets(TopicPartition(topic, 0), cached=True)[1] == 5
            ),
            "it knows the end",
        )
        produce(shared, topic, [text(5)])
        assert [message.offset() for message in take(last, 1)] == [5]


def test_fetch_waits_for_what_was_asked(shared: ServeProcess, admin: AdminClient) -> None:
    """fetch.min.bytes is waited for, but no longer than fetch.wait.max.ms; tiny fetch limits still get on."""
    topic = create(admin, "limits")
    rows = [Row(None, os.urandom(3000), (), 1_700_000_000_000 + n) for n in range(100)]
    produce(shared, topic, rows, linger_ms=0, batch_num_messages=3)
    with closing(
        consumer_of(shared, fetch_message_max_bytes=1000, max_partition_fetch_bytes=1000)
    ) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        assert [message.value() for message in take(consumer, 100)] == [row.value for row in rows]
    with closing(consumer_of(shared, fetch_min_bytes=10_000_000, fetch_wait_max_ms=300)) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        assert len(take(consumer, 100)) == 100


# -- offsets and deletion --------------------------------------------------------------------------------------


def test_list_offsets_with_all_specs(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "specs")
    base_ms = 1_700_000_000_000
    times = [base_ms + 100, base_ms + 900, base_ms + 300, base_ms + 500]
    produce(shared, topic, [Row(None, b"x", (), time_ms) for time_ms in times], linger_ms=500)
    partition = TopicPartition(topic, 0)

    def ask(spec: OffsetSpec) -> tuple[int, int]:
        for isolation in (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED):
            future = admin.list_offsets({partition: spec}, isolation_level=isolation)[partition]
            result = future.result(DEADLINE_S)
        return result.offset, result.timestamp

    assert ask(OffsetSpec.earliest()) == (0, -1)
    assert ask(OffsetSpec.latest()) == (4, -1)
    assert ask(OffsetSpec.max_timestamp()) == (1, base_ms + 900)
    assert ask(OffsetSpec.for_timestamp(base_ms)) == (0, base_ms + 100)
    assert ask(OffsetSpec.for_timestamp(base_ms + 200)) == (1, base_ms + 900)
    assert ask(OffsetSpec.for_timestamp(base_ms + 901)) == (-1, -1)


def test_delete_records_moves_the_beginning(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "trim")
    produce(shared, topic, [text(number) for number in range(100)], linger_ms=200)
    partition = TopicPartition(topic, 0, 37)
    result = admin.delete_records([partition])[partition].result(DEADLINE_S)
    assert result.low_watermark == 37
    with closing(consumer_of(shared)) as consumer:
        assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S) == (37, 100)
        consumer.assign([TopicPartition(topic, 0, 5)])  # out of range: the reset policy takes it to the start
        assert [message.offset() for message in take(consumer, 63)] == list(range(37, 100))
    beyond = TopicPartition(topic, 0, 101)
    assert code_of(lambda: admin.delete_records([beyond])[beyond].result(DEADLINE_S)) == (
        KafkaError.OFFSET_OUT_OF_RANGE
    )
    end = TopicPartition(topic, 0, -1)
    assert admin.delete_records([end])[end].result(DEADLINE_S).low_watermark == 100
    assert produce(shared, topic, [text(100)]) == [(0, 100)]


def test_retention_by_time_and_by_size_acts(serve: ServeFactory) -> None:
    broker = serve("stream.retention_interval=200ms", "stream.upload_interval=300ms")
    admin = admin_of(broker)
    by_time = create(admin, "old", 1, {"retention.ms": "60000"})
    by_size = create(admin, "big", 1, {"retention.bytes": "100000"})
    now_ms = int(time.time() * 1000)
    with closing(consumer_of(broker)) as consumer:

        def bounds(topic: str) -> tuple[int, int]:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S)
            return low, high

        def grown() -> (
            bool
        ):  # uploads make the ranges that retention deletes, so write until there are several
            produce(broker, by_size, [Row(None, os.urandom(1000), (), now_ms) for _ in range(40)])
            return bounds(by_size)[0] > 0

        produce(broker, by_time, [text(number, now_ms - 3_600_000) for number in range(10)])
        eventually(lambda: bounds(by_time) == (10, 10), "the old half is gone")
        produce(broker, by_time, [text(number) for number in range(10, 20)])
        eventually(grown, "what is over the size is gone")
        low, high = bounds(by_size)
        assert high - low >= 90, "as much as retention.bytes is kept"
        assert bounds(by_time) == (10, 20), "the new half stays"
        consumer.assign([TopicPartition(by_time, 0, 10)])
        assert [message.value() for message in take(consumer, 10)] == [
            b"record %d" % n for n in range(10, 20)
        ]


# -- groups ----------------------------------------------------------------------------------------------------


#: A member that may be slow to come back, on a busy machine too.
SESSION_MS = int(DEADLINE_S * 1000)


class Group:
    """Consumers of one group, all polled from here."""

    def __init__(self, broker: ServeProcess, topics: list[str], **settings: Any) -> None:
        self.name = unique("group")
        self._broker = broker
        self._topics = topics
        self._settings = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 500, **settings}
        self.members: list[Consumer] = []
        #: How many partitions each member had to give up, by the member's position in the order of joining.
        self.revoked: list[int] = []
        self.received: list[Message] = []

    def join(self, **settings: Any) -> Consumer:
        consumer = consumer_of(self._broker, self.name, **{**self._settings, **settings})
        at = len(self.revoked)
        self.members.append(consumer)
        self.revoked.append(0)

        def on_revoke(_: Consumer, partitions: list[TopicPartition]) -> None:
            self.revoked[at] += len(partitions)

        consumer.subscribe(self._topics, on_revoke=on_revoke)
        return consumer

    def leave(self, consumer: Consumer) -> None:
        self.members.remove(consumer)
        consumer.close()

    def poll(self) -> list[Message]:
        """Let every member do its work; all that the group ever received.

        One message at a time: of a batch librdkafka throws away what a rebalance has overtaken, and may have
        committed it (librdkafka 2.0.0, known issues of the batch consume API).
        """
        for consumer in self.members:
            wait_s = 0.05
            while (message := consumer.poll(wait_s)) is not None:
                wait_s = 0
                if message.error() is None:
                    self.received.append(message)
        return self.received

    def shares(self) -> list[int]:
        self.poll()
        return sorted(len(consumer.assignment()) for consumer in self.members)

    def settle(self, shares: list[int]) -> None:
        eventually(lambda: self.shares() == shares, f"the shares are {shares}, not {self.shares()}")

    def close(self) -> None:
        while self.members:
            self.leave(self.members[-1])


@pytest.mark.parametrize("strategy", ["range,roundrobin", "cooperative-sticky"])
def test_a_group_of_three_shares_out_and_rebalances(
    shared: ServeProcess, admin: AdminClient, log_lines: list[str], strategy: str
) -> None:
    """One, two, three members, then two again: all partitions are owned, every record arrives."""
    topic = create(admin, "shared", 6)
    rows = [Row(str(n).encode(), log_lines[n].encode(), (), 1_700_000_000_000) for n in range(1200)]
    with closing(Group(shared, [topic], partition_assignment_strategy=strategy)) as group:
        group.join()
        group.settle([6])
        produce(shared, topic, rows[:400])
        group.join()
        group.settle([3, 3])
        third = group.join()
        group.settle([2, 2, 2])
        produce(shared, topic, rows[400:800])
        eventually(
            lambda: len({(m.partition(), m.offset()) for m in group.poll()}) >= 800,
            "800 arrive",
        )
        before = list(group.revoked)
        group.leave(third)
        group.settle([3, 3])
        if strategy == "cooperative-sticky":
            assert group.revoked[:2] == before[:2], "who stays keeps what it has"
        produce(shared, topic, rows[800:])

        def arrived() -> bool:
            return len({(m.partition(), m.offset()) for m in group.poll()}) == len(rows)

        eventually(arrived, "every record arrives")
        assert sorted({(m.key(), m.value()) for m in group.received}) == sorted(
            (r.key, r.value) for r in rows
        )


_MEMBER = """
import sys
from confluent_kafka import Consumer
consumer = Consumer({"bootstrap.servers": sys.argv[1], "group.id": sys.argv[2], "session.timeout.ms": 6000,
                     "heartbeat.interval.ms": 500, "auto.offset.reset": "earliest"})
consumer.subscribe([sys.argv[3]])
said = -1
while True:
    consumer.poll(0.1)
    count = len(consumer.assignment())
    if count != said:
        said = count
        print(count, flush=True)
"""


def test_a_killed_member_loses_its_partitions_after_the_session_timeout(
    shared: ServeProcess, admin: AdminClient
) -> None:
    topic = create(admin, "victim", 4)
    with closing(Group(shared, [topic])) as group:
        group.join()
        group.settle([4])
        with subprocess.Popen(
            [sys.executable, "-c", _MEMBER, shared.bootstrap_servers, group.name, topic],
            stdout=subprocess.PIPE,
        ) as child:
            group.settle([2])
            child.send_signal(signal.SIGKILL)
            child.wait()
        group.settle([4])


def test_a_static_member_comes_back_without_a_rebalance(shared: ServeProcess, admin: AdminClient) -> None:
    """KIP-345: the same group.instance.id gets the same partitions; the others notice nothing."""
    topic = create(admin, "static", 4)
    with closing(Group(shared, [topic], session_timeout_ms=SESSION_MS)) as group:
        group.join(group_instance_id="one")
        second = group.join(group_instance_id="two")
        group.settle([2, 2])
        owned = sorted(partition.partition for partition in second.assignment())
        revoked = group.revoked[0]
        group.leave(second)  # a static member doesn't leave the group when it closes
        again = group.join(group_instance_id="two")
        group.settle([2, 2])
        assert sorted(partition.partition for partition in again.assignment()) == owned
        assert group.revoked[0] == revoked, "the first member was not disturbed"


def test_a_pattern_follows_topics_that_come_and_go(shared: ServeProcess, admin: AdminClient) -> None:
    prefix = unique("pattern")
    first, second = f"{prefix}.first", f"{prefix}.second"
    admin.create_topics([NewTopic(first, 1, 1)])[first].result(DEADLINE_S)
    with closing(Group(shared, [f"^{prefix}\\..*"], topic_metadata_refresh_interval_ms=300)) as group:
        (member,) = [group.join()]

        def topics() -> set[str]:
            group.poll()
            return {partition.topic for partition in member.assignment()}

        eventually(lambda: topics() == {first}, "the topic that is there")
        admin.create_topics([NewTopic(second, 2, 1)])[second].result(DEADLINE_S)
        eventually(lambda: topics() == {first, second}, "the new topic too")
        admin.delete_topics([first])[first].result(DEADLINE_S)
        eventually(lambda: topics() == {second}, "the deleted topic no more")


def test_committed_offsets_outlive_clients_and_brokers(serve: ServeFactory) -> None:
    """A group goes on where it committed: after its own restart, and after broker restarts of both kinds."""
    broker = serve()
    admin = admin_of(broker)
    topic, group = create(admin, "resume"), unique("resume")
    produce(broker, topic, [text(number) for number in range(40)])

    def read_ten() -> list[int]:
        with closing(consumer_of(broker, group, enable_auto_commit=False)) as consumer:
            consumer.subscribe([topic])
            messages = take(consumer, 10)
            (committed,) = consumer.commit(message=messages[-1], asynchronous=False)
            assert committed.error is None
            return [message.offset() for message in messages]

    assert read_ten() == list(range(10))
    assert read_ten() == list(range(10, 20))
    broker.kill()
    broker.start()
    assert read_ten() == list(range(20, 30))
    assert broker.terminate() == 0
    broker.start()
    assert read_ten() == list(range(30, 40))


def test_clients_live_through_a_broker_restart(serve: ServeFactory) -> None:
    """Producer and group member keep working while the broker is killed and comes back."""
    broker = serve()
    admin = admin_of(broker)
    topic = create(admin, "through", 2)
    failures: list[KafkaError] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "reconnect.backoff.max.ms": 200})
    with closing(Group(broker, [topic], reconnect_backoff_max_ms=200)) as group:
        group.join()
        group.settle([2])
        for number in range(300):
            if number in (100, 200):
                broker.kill()
                broker.start()
            producer.produce(
                topic,
                str(number).encode(),
                partition=number % 2,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
            producer.poll(0.001)
        assert producer.flush(DEADLINE_S) == 0
        assert not failures

        def values() -> set[bytes]:
            return {message.value() for message in group.poll()}

        eventually(lambda: len(values()) == 300, "all values arrive")


def test_groups_are_listed_described_and_deleted(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "admin", 2)
    produce(shared, topic, [text(number) for number in range(10)])
    with closing(Group(shared, [topic])) as group:
        member = group.join()
        group.settle([2])
        eventually(lambda: len(group.poll()) == 10, "all arrive")
        member.commit(asynchronous=False)
        listed = admin.list_consumer_groups(request_timeout=DEADLINE_S).result(DEADLINE_S)
        assert not listed.errors
        states = {found.group_id: found.state for found in listed.valid}
        assert states[group.name] == ConsumerGroupState.STABLE
        only_empty = admin.list_consumer_groups(states={ConsumerGroupState.EMPTY}).result(DEADLINE_S)
        assert group.name not in {found.group_id for found in only_empty.valid}

        described = admin.describe_consumer_groups([group.name])[group.name].result(DEADLINE_S)
        assert described.state == ConsumerGroupState.STABLE
        (seen,) = described.members
        assert seen.client_id == "rdkafka"
        assert "127.0.0.1" in seen.host
        assert len(seen.assignment.topic_partitions) == 2
        busy = admin.delete_consumer_groups([group.name])[group.name]
        assert code_of(lambda: busy.result(DEADLINE_S)) == KafkaError.NON_EMPTY_GROUP

        name = group.name
    ask = ConsumerGroupTopicPartitions(name)
    offsets = admin.list_consumer_group_offsets([ask])[name].result(DEADLINE_S)
    assert sum(partition.offset for partition in offsets.topic_partitions) == 10
    wanted = ConsumerGroupTopicPartitions(name, [TopicPartition(topic, 0, 1), TopicPartition(topic, 1, 2)])
    changed = admin.alter_consumer_group_offsets([wanted])[name].result(DEADLINE_S)
    assert [partition.error for partition in changed.topic_partitions] == [None, None]
    offsets = admin.list_consumer_group_offsets([ask])[name].result(DEADLINE_S)
    assert sorted((p.partition, p.offset) for p in offsets.topic_partitions) == [(0, 1), (1, 2)]
    admin.delete_consumer_groups([name])[name].result(DEADLINE_S)
    gone = admin.delete_consumer_groups([name])[name]
    assert code_of(lambda: gone.result(DEADLINE_S)) == KafkaError.GROUP_ID_NOT_FOUND
    listed = admin.list_consumer_groups(request_timeout=DEADLINE_S).result(DEADLINE_S)
    assert name not in {found.group_id for found in listed.valid}


def test_metadata_of_a_commit_comes_back(shared: ServeProcess, admin: AdminClient) -> None:
    topic = create(admin, "note")
    group = unique("note")
    with closing(consumer_of(shared, group)) as consumer:
        (none,) = consumer.committed([TopicPartition(topic, 0)], timeout=DEADLINE_S)
        assert none.offset == -1001, "a group that nobody knows has no offsets, and that is no error"
        wanted = TopicPartition(topic, 0, 7, metadata="übrigens", leader_epoch=0)
        consumer.commit(offsets=[wanted], asynchronous=False)
        (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=DEADLINE_S)
        assert (found.offset, found.metadata) == (7, "übrigens")
