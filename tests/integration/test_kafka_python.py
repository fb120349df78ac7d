"""kafka-python 3, unmodified and at its defaults, against a real broker process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python uses what newer Pythons will drop
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetSpec, TopicPartition, errors
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.codec import has_snappy
    from kafka.structs import OffsetAndMetadata

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:kafka")

HAS_SNAPPY: bool = has_snappy()
NEEDS_SNAPPY = pytest.mark.skipif(not HAS_SNAPPY, reason="kafka-python has snappy only with python-snappy")
COMBINATIONS = [
    pytest.param(
        codec,
        acks,
        idempotent,
        id=f"{codec}-acks_{acks}-{'idempotent' if idempotent else 'plain'}",
        marks=[NEEDS_SNAPPY] if codec == "snappy" else [],
    )
    for codec in CODECS
    for acks, idempotent in (("all", True), ("all", False), (1, False), (0, False))
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """One broker for all tests of this module that need nothing special."""
    with serving(tmp_path_factory.mktemp("kafka-python")) as broker:
        yield broker


@pytest.fixture(scope="module")
def admin(shared: ServeProcess) -> Iterator[Any]:
    with closing(KafkaAdminClient(bootstrap_servers=shared.bootstrap_servers)) as client:
        yield client


def create(admin: Any, prefix: str, partitions: int = 1, configs: dict[str, str] | None = None) -> str:
    name = unique(prefix)
    admin.create_topics({name: {"num_partitions": partitions, "configs": configs or {}}})
    return name


def produce(broker: ServeProcess, topic: str, rows: list[Row], **settings: Any) -> list[tuple[int, int]]:
    """Produce all and wait; (partition, offset) of each, as acknowledged."""
    with closing(KafkaProducer(bootstrap_servers=broker.bootstrap_servers, **settings)) as producer:
        futures = [
            producer.send(
                topic, value=row.value, key=row.key, headers=list(row.headers), timestamp_ms=row.timestamp_ms
            )
            for row in rows
        ]
        results = [future.get(DEADLINE_S) for future in futures]
    return [(result.partition, result.offset) for result in results]


def consumer_of(broker: ServeProcess, group: str | None = None, **settings: Any) -> Any:
    """A consumer that looks for its topics often: a member that assigns before it knows them assigns nothing."""
    return KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        metadata_max_age_ms=1000,
        **settings,
    )


def take(consumer: Any, count: int) -> list[Any]:
    """Exactly ``count`` records."""
    found: list[Any] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline, f"got {len(found)} of {count}"
        for records in consumer.poll(timeout_ms=500, max_records=count - len(found)).values():
            found += records
    return found


def read(broker: ServeProcess, topic: str, count: int, partitions: int = 1) -> list[Any]:
    with closing(consumer_of(broker)) as consumer:
        consumer.assign([TopicPartition(topic, index) for index in range(partitions)])
        return take(consumer, count)


def as_row(record: Any) -> Row:
    return Row(record.key, record.value, tuple(record.headers), record.timestamp)


def text(number: int, timestamp_ms: int = 0) -> Row:
    return Row(None, f"record {number}".encode(), (), timestamp_ms or int(time.time() * 1000))


# -- topics and configs ----------------------------------------------------------------------------------------


def test_topics_are_created_described_grown_and_deleted(admin: Any) -> None:
    name = create(admin, "life", 2)
    (described,) = admin.describe_topics([name])
    assert (described["name"], described["is_internal"], len(described["partitions"])) == (name, False, 2)
    admin.create_partitions({name: 5})
    (described,) = admin.describe_topics([name])
    assert sorted(partition["partition_index"] for partition in described["partitions"]) == [0, 1, 2, 3, 4]
    with pytest.raises(errors.TopicAlreadyExistsError):
        admin.create_topics({name: {"num_partitions": 1}})
    with pytest.raises(errors.InvalidPartitionsError):
        admin.create_partitions({name: 3})
    admin.delete_topics([name])
    assert name not in admin.list_topics()
    with pytest.raises(errors.UnknownTopicOrPartitionError):
        admin.delete_topics([name])


def test_configs_are_described_and_altered(admin: Any) -> None:
    name = create(admin, "configs", 1, {"retention.ms": "3600000"})

    def value(key: str) -> Any:
        resource = ConfigResource(ConfigResourceType.TOPIC, name)
        return admin.describe_configs([resource], config_filter="all")["topic"][name][key]["value"]

    assert value("retention.ms") == "3600000"
    for incremental in (True, False):
        wanted = "2000" if incremental else "3000"
        resource = ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": wanted})
        admin.alter_configs([resource], incremental=incremental)
        assert value("max.message.bytes") == wanted
    wrong = ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "soon"})
    answer = admin.alter_configs([wrong])  # this client returns what other calls raise
    assert "not an integer" in str(answer["topic"][name])
    assert value("retention.ms") == "3600000"
    with pytest.raises(errors.InvalidConfigurationError):
        create(admin, "wrong", 1, {"no.such.config": "1"})


def test_the_cluster_describes_itself(admin: Any) -> None:
    cluster = admin.describe_cluster()
    assert cluster["cluster_id"]
    assert [broker["broker_id"] for broker in cluster["brokers"]] == [cluster["controller_id"]]


# -- produce and consume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "acks", "idempotent"), COMBINATIONS)
def test_what_is_produced_is_consumed(
    shared: ServeProcess, admin: Any, log_lines: list[str], codec: str, acks: Any, idempotent: bool
) -> None:
    """Bytes, keys, headers and timestamps come back; offsets are dense and in the order of producing."""
    topic = create(admin, "codec", 3)
    rows = real_rows(log_lines, lines=300, rows=150)
    produce(
        shared,
        topic,
        rows,
        compression_type=None if codec == "none" else codec,
        acks=acks,
        enable_idempotence=idempotent,
        linger_ms=20,
    )
    found = by_partition(read(shared, topic, len(rows), 3), lambda record: record.partition)
    for records in found.values():
        assert [record.offset for record in records] == list(range(len(records)))
        positions = [rows.index(as_row(record)) for record in records]
        assert positions == sorted(positions), "order within a partition is the order of producing"
    got = sorted((as_row(record) for records in found.values() for record in records), key=repr)
    assert got == sorted(rows, key=repr)


def test_null_empty_and_unicode(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "null")
    rows = [
        Row(b"tombstone", None, (), 1_700_000_000_001),
        Row(b"", b"", (), 1_700_000_000_002),
        Row(
            "ключ 鍵 🔑".encode(), "значение 値 🎁 \x00\n".encode(), (("é", "ü".encode()),), 1_700_000_000_003
        ),
    ]
    assert produce(shared, topic, rows) == [(0, 0), (0, 1), (0, 2)]
    assert [as_row(record) for record in read(shared, topic, 3)] == rows


def test_an_unknown_topic_is_created_by_producing(shared: ServeProcess, admin: Any) -> None:
    topic = unique("auto")
    assert produce(shared, topic, [text(1)]) == [(0, 0)]
    assert topic in admin.list_topics()


def test_a_message_over_the_limit_is_refused_and_the_next_one_is_not(
    shared: ServeProcess, admin: Any
) -> None:
    topic = create(admin, "large", 1, {"max.message.bytes": "2000000"})
    settings = {"bootstrap_servers": shared.bootstrap_servers, "max_request_size": 10_000_000, "linger_ms": 0}
    with closing(KafkaProducer(**settings)) as producer:
        assert producer.send(topic, os.urandom(1_990_000)).get(DEADLINE_S).offset == 0
        with pytest.raises(errors.MessageSizeTooLargeError):
            producer.send(topic, os.urandom(2_000_000)).get(DEADLINE_S)
    # An idempotent producer of this client takes nothing more after a batch that was refused for good.
    assert produce(shared, topic, [text(1)]) == [(0, 1)]
    assert [len(record.value) for record in read(shared, topic, 2)] == [1_990_000, 8]


def test_a_transactional_producer_is_told_that_there_are_no_transactions(shared: ServeProcess) -> None:
    settings = {"bootstrap_servers": shared.bootstrap_servers, "transactional_id": "any"}
    with (
        closing(KafkaProducer(**settings)) as producer,
        pytest.raises(errors.TransactionalIdAuthorizationFailedError),
    ):
        producer.init_transactions()


def test_log_append_time_is_the_brokers(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "stamped", 1, {"message.timestamp.type": "LogAppendTime"})
    before_ms = int(time.time() * 1000)
    produce(shared, topic, [Row(None, b"x", (), 1_000_000)] * 10, compression_type="gzip")
    for record in read(shared, topic, 10):
        assert record.timestamp_type == 1
        assert before_ms <= record.timestamp <= int(time.time() * 1000)


def test_seek_by_time_and_position(shared: ServeProcess, admin: Any) -> None:
    """Into the middle of a batch, and to beginning and end."""
    topic = create(admin, "times")
    start_ms = 1_700_000_000_000
    rows = [Row(None, b"t%d" % n, (), start_ms + 10 * n) for n in range(300)]
    produce(shared, topic, rows, compression_type="gzip", linger_ms=200)
    partition = TopicPartition(topic, 0)
    with closing(consumer_of(shared)) as consumer:
        consumer.assign([partition])
        for asked_ms, expected in ((0, 0), (start_ms + 1501, 151), (start_ms + 2990, 299)):
            found = consumer.offsets_for_times({partition: asked_ms})[partition]
            assert (found.offset, found.timestamp) == (expected, start_ms + 10 * expected)
        assert consumer.offsets_for_times({partition: start_ms + 2991})[partition] is None
        consumer.seek(partition, 151)
        assert take(consumer, 1)[0].value == b"t151"
        consumer.seek_to_end(partition)
        assert consumer.position(partition) == 300
        consumer.seek_to_beginning(partition)
        assert take(consumer, 1)[0].offset == 0
        assert consumer.beginning_offsets([partition]) == {partition: 0}
        assert consumer.end_offsets([partition]) == {partition: 300}


def test_list_offsets_with_all_specs(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "specs")
    base_ms = 1_700_000_000_000
    rows = [Row(None, b"x", (), base_ms + more) for more in (100, 900, 300, 500)]
    produce(shared, topic, rows, linger_ms=200)
    partition = TopicPartition(topic, 0)

    def ask(spec: Any) -> tuple[int, int]:
        found = admin.list_partition_offsets({partition: spec})[partition]
        return found.offset, found.timestamp

    assert ask(OffsetSpec.EARLIEST) == (0, -1)
    assert ask(OffsetSpec.EARLIEST_LOCAL) == (0, -1)
    assert ask(OffsetSpec.LATEST) == (4, -1)
    assert ask(OffsetSpec.MAX_TIMESTAMP) == (1, base_ms + 900)
    assert ask(OffsetSpec.LATEST_TIERED) == (-1, -1)
    assert ask(base_ms + 200) == (1, base_ms + 900)


def test_delete_records_moves_the_beginning(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "trim")
    produce(shared, topic, [text(number) for number in range(100)], linger_ms=200)
    partition = TopicPartition(topic, 0)
    assert admin.delete_records({partition: 37})[partition]["low_watermark"] == 37
    with closing(consumer_of(shared)) as consumer:
        consumer.assign([partition])
        assert consumer.beginning_offsets([partition]) == {partition: 37}
        assert [record.offset for record in take(consumer, 63)] == list(range(37, 100))
    with pytest.raises(errors.OffsetOutOfRangeError):
        admin.delete_records({partition: 101})


# -- groups ----------------------------------------------------------------------------------------------------


#: A member that may be slow to come back, on a busy machine too.
SESSION_MS = int(DEADLINE_S * 1000)


class Group:
    """Consumers of one group, each polled by a thread of its own, as applications do.

    This client forgets a rebalance that completes between two polls and joins anew: members that share a thread
    and poll for a moment each may take very long to come together.
    """

    def __init__(self, broker: ServeProcess, topic: str, **settings: Any) -> None:
        self.name = unique("group")
        self._broker = broker
        self._topic = topic
        self._settings = {"session_timeout_ms": 6000, "heartbeat_interval_ms": 500, **settings}
        self.members: list[Member] = []
        self.received: list[Any] = []

    def join(self, **settings: Any) -> Member:
        consumer = consumer_of(self._broker, self.name, **self._settings, **settings)
        consumer.subscribe([self._topic])
        member = Member(consumer, self.received)
        self.members.append(member)
        member.start()
        return member

    def leave(self, member: Member) -> None:
        self.members.remove(member)
        member.stop()

    def shares(self) -> list[int]:
        return sorted(len(member.assignment) for member in self.members)

    def settle(self, shares: list[int]) -> None:
        eventually(lambda: self.shares() == shares, f"the shares are {shares}")

    def close(self) -> None:
        for member in self.members:
            member.ending.set()
        while self.members:
            self.leave(self.members[-1])


class Member(threading.Thread):
    """A member of a group; everything that it does with its consumer it does in its own thread."""

    def __init__(self, consumer: Any, received: list[Any]) -> None:
        super().__init__()
        self.ending = threading.Event()
        self.assignment: frozenset[Any] = frozenset()
        self.generation = -1
        self.failure: BaseException | None = None
        self._consumer = consumer
        self._received = received

    def run(self) -> None:
        try:
            with closing(self._consumer) as consumer:
                while not self.ending.is_set():
                    for records in consumer.poll(timeout_ms=500).values():
                        self._received += records
                    self.assignment = frozenset(consumer.assignment())
                    self.generation = consumer.group_metadata().generation_id
                if self._received and consumer.assignment():
                    consumer.commit()
        except BaseException as error:
            self.failure = error
            raise

    def stop(self) -> None:
        self.ending.set()
        self.join(DEADLINE_S)
        assert not self.is_alive(), "a consumer doesn't close"
        assert self.failure is None, self.failure


def test_a_group_of_three_shares_out_and_rebalances(
    shared: ServeProcess, admin: Any, log_lines: list[str]
) -> None:
    """One, two, three members, then two again: all partitions are owned, every record arrives."""
    topic = create(admin, "shared", 6)
    rows = [Row(str(n).encode(), log_lines[n].encode(), (), 1_700_000_000_000) for n in range(900)]
    with closing(Group(shared, topic)) as group:
        group.join()
        group.settle([6])
        produce(shared, topic, rows[:300])
        group.join()
        group.settle([3, 3])
        third = group.join()
        group.settle([2, 2, 2])
        produce(shared, topic, rows[300:600])
        group.leave(third)
        group.settle([3, 3])
        produce(shared, topic, rows[600:])
        wanted = {(row.key, row.value) for row in rows}
        eventually(lambda: {(r.key, r.value) for r in group.received} == wanted, "every record arrives")


_MEMBER = """
import sys, warnings
warnings.simplefilter("ignore")
from kafka import KafkaConsumer
consumer = KafkaConsumer(sys.argv[3], bootstrap_servers=sys.argv[1], group_id=sys.argv[2],
                         session_timeout_ms=6000, heartbeat_interval_ms=500, metadata_max_age_ms=1000)
while True:
    consumer.poll(timeout_ms=100)
"""


def test_a_killed_member_loses_its_partitions_after_the_session_timeout(
    shared: ServeProcess, admin: Any
) -> None:
    topic = create(admin, "victim", 4)
    with closing(Group(shared, topic)) as group:
        group.join()
        group.settle([4])
        with subprocess.Popen(
            [sys.executable, "-c", _MEMBER, shared.bootstrap_servers, group.name, topic]
        ) as child:
            group.settle([2])
            child.kill()
            child.wait()
        group.settle([4])


def test_a_static_member_comes_back_with_what_it_had(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "static", 4)
    with closing(Group(shared, topic, session_timeout_ms=SESSION_MS)) as group:
        group.join(group_instance_id="one")
        second = group.join(group_instance_id="two")
        group.settle([2, 2])
        owned = second.assignment
        generation = group.members[0].generation
        group.leave(second)
        again = group.join(group_instance_id="two")
        group.settle([2, 2])
        assert again.assignment == owned
        assert group.members[0].generation == generation, "nobody else was disturbed"


def test_committed_offsets_outlive_clients_and_brokers(serve: ServeFactory) -> None:
    """A group goes on where it committed: after its own restart, and after broker restarts of both kinds."""
    broker = serve()
    topic, group = unique("resume"), unique("resume")
    produce(broker, topic, [text(number) for number in range(40)])

    def read_ten() -> list[int]:
        with closing(consumer_of(broker, group, enable_auto_commit=False)) as consumer:
            consumer.subscribe([topic])
            records = take(consumer, 10)
            partition = TopicPartition(topic, 0)
            consumer.commit({partition: OffsetAndMetadata(records[-1].offset + 1, "hält", -1)})
            assert consumer.committed(partition) == records[-1].offset + 1
            return [record.offset for record in records]

    assert read_ten() == list(range(10))
    assert read_ten() == list(range(10, 20))
    broker.kill()
    broker.start()
    assert read_ten() == list(range(20, 30))
    assert broker.terminate() == 0
    broker.start()
    assert read_ten() == list(range(30, 40))


def test_groups_are_listed_described_and_deleted(shared: ServeProcess, admin: Any) -> None:
    topic = create(admin, "admin", 2)
    produce(shared, topic, [text(number) for number in range(10)])
    partitions = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    with closing(Group(shared, topic)) as group:
        name = group.name
        group.join()
        group.settle([2])
        eventually(lambda: len(group.received) == 10, "all arrive")
        listed = {found["group_id"]: found for found in admin.list_groups()}
        assert (listed[name]["protocol_type"], listed[name]["group_state"]) == ("consumer", "Stable")
        described = admin.describe_groups([name])[name]
        assert described["group_state"] == "Stable"
        assert len(described["members"]) == 1
        subscribed = admin.delete_group_offsets(name, partitions[:1])
        assert subscribed[partitions[0]] is errors.GroupSubscribedToTopicError
        assert admin.delete_groups([name])[name] != "OK"

    offsets = admin.list_group_offsets({name: None})[name]
    assert sum(found.offset for found in offsets.values()) == 10
    wanted = {partitions[0]: OffsetAndMetadata(1, "", -1), partitions[1]: OffsetAndMetadata(2, "", -1)}
    assert set(admin.alter_group_offsets(name, wanted).values()) == {errors.NoError}
    assert admin.delete_group_offsets(name, partitions[:1]) == {partitions[0]: errors.NoError}
    offsets = admin.list_group_offsets({name: None})[name]
    assert {partition: found.offset for partition, found in offsets.items()} == {partitions[1]: 2}
    admin.delete_groups([name])
    assert name not in {found["group_id"] for found in admin.list_groups()}
