"""A client for a random life: it does as it is told, and holds what it is answered against the model."""

from __future__ import annotations

__all__ = ("Session",)

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
)

from penstock_conformance._body import make_body
from penstock_conformance._strategy_kafka import (
    EAGER,
    REQUEST_S,
    checked,
    eager,
    give_up,
    make_admin,
    make_producer,
)
from penstock_conformance._strategy_model import ClusterModel, PartitionModel, TopicModel

_POLL_S = 0.1
_COUNT = 500
#: So old is the first record of each partition: not so old that it is dropped.
_AGE_MS = 86_400_000


class Session:
    """Everything a client wants of a cluster whose brokers come and go at one address. Its methods block.

    Producers are idempotent, one for each life of a topic, so that none mistakes a topic for the one before it.
    A call ends when the broker has answered.
    """

    def __init__(self, servers: str) -> None:
        self._model = ClusterModel(int(time.time() * 1000) - _AGE_MS)
        self._producers: dict[int, Producer] = {}
        #: Why a record was refused; empty as long as none was.
        self._refused = ""
        self._connect(servers)

    def _connect(self, servers: str) -> None:
        self._servers = servers
        self._admin = make_admin(servers)
        self._consumer = _make_consumer(servers)

    def move_to(self, servers: str) -> None:
        """Go on at another address; records on their way are given up."""
        self.give_up()
        self._consumer.close()
        self._connect(servers)

    # -- records

    def write(self, topic: str, partition: int, sizes: Sequence[int]) -> None:
        """Hand over a record of each size; nobody waits for answers."""
        of_topic = self._model.topics[topic]
        producer = self._producers.get(of_topic.owner)
        if producer is None:
            producer = self._producers[of_topic.owner] = make_producer(self._servers, "none")
        place = of_topic.partitions[partition]
        for size in sizes:
            sequence = place.hand_over(size)
            producer.produce(
                topic,
                make_body(self._owner(of_topic, partition), sequence, size),
                f"{self._owner(of_topic, partition)}/{sequence}",
                partition,
                on_delivery=partial(self._told, place, sequence),
                timestamp=place.time_of(sequence),
            )
        producer.poll(0)

    def write_and_flush(self, topic: str, partition: int, sizes: Sequence[int]) -> None:
        """Hand over a record of each size, and wait until every record is answered."""
        self.write(topic, partition, sizes)
        self.flush()

    def _told(self, place: PartitionModel, sequence: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            offset = message.offset()
            assert offset is not None
            place.acknowledge(sequence, offset)
        elif error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):  # so they are called
            self._refused = str(error)

    @staticmethod
    def _owner(topic: TopicModel, partition: int) -> int:
        """Who a record says that it is from: no other partition's records say so."""
        return topic.owner * 1000 + partition

    def flush(self) -> None:
        """Wait until every record is answered."""
        for producer in list(self._producers.values()):
            while producer.flush(_POLL_S):
                pass
        assert not self._refused, f"a record wasn't taken: {self._refused}"

    def give_up(self) -> None:
        """Forget the records that are on their way: they may be there or not."""
        for producer in list(self._producers.values()):
            give_up(producer)
        self._producers.clear()

    def read_all(self) -> None:
        """Ends and records of every partition."""
        self._read([(topic, number, 0, 0) for topic, number, _ in self._model.partitions()])

    def read(self, topic: str, partition: int, where: float, count: int) -> None:
        """Some records of one partition, from a part ``where`` (0 to 1) of it on."""
        self._read([(topic, partition, where, count)])

    def _read(self, wanted: Sequence[tuple[str, int, float, int]]) -> None:
        left: dict[tuple[str, int], int] = {}
        starts: dict[tuple[str, int], int] = {}
        eager(partial(self._consumer.list_topics, timeout=REQUEST_S))  # it learns of what is new
        for topic, number, where, count in wanted:
            low, end = eager(
                partial(self._consumer.get_watermark_offsets, TopicPartition(topic, number), REQUEST_S)
            )
            self._model.topics[topic].partitions[number].check_ends(low, end)
            start = low + int((end - low) * where)
            if start < end:
                starts[topic, number] = start
                left[topic, number] = min(end, start + count) if count else end
        self._consumer.assign([TopicPartition(*place, start) for place, start in starts.items()])
        found: dict[tuple[str, int], list[tuple[int, int]]] = {place: [] for place in starts}
        while left:
            missing = sum(left[place] - starts[place] - len(found[place]) for place in left)
            for message in self._consumer.consume(max(1, min(missing, _COUNT)), _POLL_S):
                error = message.error()
                place = message.topic() or "", message.partition() or 0
                if error is not None:
                    assert error.code() != KafkaError.INVALID_MSG, f"the broker can't read it: {error}"
                    assert error.code() != KafkaError._PARTITION_EOF or place not in left, (
                        f"records are missing at the end: {place=} end={message.offset()} told={left[place]}"
                    )
                    assert error.code() != KafkaError._AUTO_OFFSET_RESET or self._reset(place, left), (
                        f"an offset between the ends isn't there: {error}"
                    )
                    continue
                record = checked(message)
                if place in left and record.offset < left[place]:
                    owner = self._owner(self._model.topics[place[0]], place[1])
                    assert record.owner == owner, f"a record of another stream: {place=} {record=} {owner=}"
                    found[place].append((record.offset, record.sequence))
                if place in left and record.offset >= left[place] - 1:
                    del left[place]
        self._consumer.unassign()
        for place, records in found.items():
            self._model.topics[place[0]].partitions[place[1]].check_records(starts[place], records)

    def look_at_times(self) -> None:
        """Which records are told for the times of some."""
        for where in (0.3, 0.9):
            asked: dict[tuple[str, int], int] = {}
            for topic, number, place in self._model.partitions():
                sequence = place.known.get(place.low + int((place.end - place.low) * where))
                if sequence is not None:
                    asked[topic, number] = place.time_of(sequence)
            wanted = [TopicPartition(*place, time_ms) for place, time_ms in asked.items()]
            found = eager(partial(self._find_times, wanted)) if wanted else []
            for each in found:
                at = each.topic, each.partition
                self._model.topics[each.topic].partitions[each.partition].check_lookup(asked[at], each.offset)

    def _find_times(self, wanted: Sequence[TopicPartition]) -> Sequence[TopicPartition]:
        """Offsets by time. Raises KafkaException for one that can't be told."""
        found: Sequence[TopicPartition] = self._consumer.offsets_for_times(list(wanted), timeout=REQUEST_S)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
        return found

    def _reset(self, place: tuple[str, int], left: dict[tuple[str, int], int]) -> bool:
        """Whether what is missing may have been dropped meanwhile; it is read another time then."""
        if place[0] not in self._model.topics:
            return True  # a word about what was assigned before
        kept = self._model.topics[place[0]].partitions[place[1]].bytes_kept
        left.pop(place, None)
        return kept >= 0

    def trim(self, topic: str, partition: int, where: float) -> None:
        """DeleteRecords up to a part of the partition."""
        place = self._model.topics[topic].partitions[partition]
        offset = place.low + int((place.end - place.low) * where)
        place.trim(offset, acknowledged=False)
        wanted = TopicPartition(topic, partition, offset)
        self._change("delete_records", wanted, wanted)
        place.trim(offset)

    # -- groups

    def commit(self, group: str, topic: str, partition: int, where: float) -> None:
        """Commit a part of the partition."""
        offset = int(self._model.topics[topic].partitions[partition].end * where)
        self._model.commit(group, topic, partition, offset, acknowledged=False)
        asked = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition, offset)])
        told = self._of_group(asked, "alter_consumer_group_offsets")
        errors = [str(each.error) for each in told.topic_partitions if each.error is not None]
        assert not errors, f"a commit wasn't taken: {errors[0]}"
        self._model.commit(group, topic, partition, offset)

    def look_at_commits(self) -> None:
        """What every group has committed."""
        for group in sorted({group for group, _, _ in self._model.commits}):
            told = self._of_group(ConsumerGroupTopicPartitions(group), "list_consumer_group_offsets")
            self._model.check_commits(
                group, {(each.topic, each.partition): each.offset for each in told.topic_partitions}
            )

    def _of_group(self, asked: ConsumerGroupTopicPartitions, request: str) -> ConsumerGroupTopicPartitions:
        """Ask with a client made for it: one that knew the coordinator of before waits for that."""

        def once() -> ConsumerGroupTopicPartitions:
            admin = make_admin(self._servers)
            told: ConsumerGroupTopicPartitions = getattr(admin, request)([asked])[asked.group_id].result()
            return told

        return eager(once)

    # -- topics

    def create(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        """A topic."""
        made = NewTopic(topic, partitions, 1, config=dict(configs))
        self._change("create_topics", made, topic, KafkaError.TOPIC_ALREADY_EXISTS)
        self._model.create(topic, partitions, configs)

    def delete(self, topic: str) -> None:
        """Delete it, with all that it holds."""
        self._change("delete_topics", topic, topic, KafkaError.UNKNOWN_TOPIC_OR_PART)
        give_up(self._producers.pop(self._model.topics[topic].owner, None))
        self._consumer.close()  # it would take the next topic of the name for this one
        self._consumer = _make_consumer(self._servers)
        self._model.delete(topic)

    def add_partitions(self, topic: str) -> None:
        """One more; a producer that is made anew knows it at once."""
        self.flush()
        give_up(self._producers.pop(self._model.topics[topic].owner, None))
        count = len(self._model.topics[topic].partitions) + 1
        wanted = NewPartitions(topic, count)
        self._change("create_partitions", wanted, topic, KafkaError.INVALID_PARTITIONS)
        self._model.add_partitions(topic, count)

    def configure(self, topic: str, key: str, value: str) -> None:
        """Set a config."""
        resource = ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)],
        )
        self._change("incremental_alter_configs", resource, resource)
        self._model.topics[topic].configs[key] = value

    def look_at_topics(self) -> None:
        """Topics, partitions and configs."""
        listed = eager(partial(self._admin.list_topics, timeout=REQUEST_S)).topics
        ours = {name: len(each.partitions) for name, each in listed.items() if not name.startswith("__")}
        self._model.check_topics(ours)
        for topic in self._model.topics:
            resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
            told = eager(partial(self._describe, resource))
            self._model.check_configs(topic, {key: entry.value for key, entry in told.items()})

    def _describe(self, resource: ConfigResource) -> Mapping[str, Any]:
        told: Mapping[str, Any] = self._admin.describe_configs([resource])[resource].result()
        return told

    def _change(self, request: str, wanted: object, key: object, done: int | None = None) -> None:
        """Make a request for one thing, which is answered under ``key``."""

        def once() -> object:
            try:
                return getattr(self._admin, request)([wanted])[key].result()
            except KafkaException:
                self._admin = make_admin(self._servers)  # it may know a topic of before
                raise

        eager(once, done)


def _make_consumer(servers: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "life",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            **EAGER,
        }
    )
