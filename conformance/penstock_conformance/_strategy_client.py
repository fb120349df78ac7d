"""A real client, librdkafka, for clauses about whole brokers. Its calls block, so they are made in threads."""

from __future__ import annotations

__all__ = (
    "EAGER",
    "Acked",
    "Fetched",
    "Writer",
    "checked",
    "commit_of",
    "create_topic",
    "fetch_all",
    "fetch_in_group",
    "make_producer",
    "produce",
)

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic

from penstock_conformance._body import check_body, make_body

#: It is asked often, so that a broker that comes back is found at once.
EAGER = {
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.ms": 20,
    "retry.backoff.max.ms": 200,
    "socket.connection.setup.timeout.ms": 2000,
    "log_level": 0,
}
_POLL_S = 0.2


class Acked(NamedTuple):
    """Where a record is, as the broker acknowledged it."""

    partition: int
    offset: int


class Fetched(NamedTuple):
    """A record as it was fetched, and checked: whole, and the one that its key says."""

    partition: int
    offset: int
    owner: int
    sequence: int


def create_topic(servers: str, topic: str, partitions: int, configs: Mapping[str, str] | None = None) -> None:
    """Create it, and return when that is done. Raises KafkaException."""
    admin = AdminClient({"bootstrap.servers": servers, **EAGER})
    made = admin.create_topics([NewTopic(topic, partitions, 1, config=dict(configs or {}))])
    made[topic].result()


def make_producer(servers: str, codec: str) -> Producer:
    """An idempotent one, which doesn't give up."""
    return Producer(
        {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": 300_000,
            "linger.ms": 2,
            "compression.type": codec,
            **EAGER,
        }
    )


def produce(
    servers: str, topic: str, owner: int, sizes: Sequence[int], *, first: int = 0, codec: str = "none"
) -> dict[int, Acked]:
    """Produce a record of each size; the acknowledgements, by sequence. Breaks the clause if one is missing."""
    with Writer(servers, topic, owner, codec) as writer:
        for sequence, size in enumerate(sizes, first):
            writer.write(sequence, size)
        writer.flush()
    assert not writer.errors, f"a record wasn't taken: {next(iter(writer.errors.items()))}"
    assert len(writer.acked) == len(sizes), "a record was never answered"
    return writer.acked


class Writer:
    """A producer that notes what was acknowledged; leaving the ``with`` ends it."""

    def __init__(self, servers: str, topic: str, owner: int, codec: str = "none") -> None:
        self.acked: dict[int, Acked] = {}
        self.errors: dict[int, str] = {}
        #: Why the producer can't go on; empty as long as it can.
        self.fault = ""
        self._topic = topic
        self._owner = owner
        self._producer = make_producer(servers, codec)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(KafkaException):  # after a fatal error it can't even forget
            self._producer.purge()
            self._producer.poll(0)

    def write(self, sequence: int, size: int) -> None:
        """Hand over one record; it goes to the partition that its sequence says."""

        def told(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.errors[sequence] = str(error)
            else:
                self.acked[sequence] = Acked(message.partition(), message.offset())

        key = f"{self._owner}/{sequence}"
        while not self._over.is_set():
            try:
                self._producer.produce(
                    self._topic, make_body(self._owner, sequence, size), key, on_delivery=told
                )
            except BufferError:
                self._producer.poll(_POLL_S)
            except (
                KafkaException
            ) as error:  # it lost track of what is there: no order can be promised any more
                self.fault = str(error)
                return
            else:
                break
        self._producer.poll(0)

    def keep_writing(self, sizes: Iterable[int], pause_s: float = 0.0005) -> None:
        """Write records of these sizes in a thread, from sequence 0 on, until :meth:`rest`."""

        def run() -> None:
            for sequence, size in enumerate(sizes):
                if self._over.is_set() or self.fault:
                    return
                self.write(sequence, size)
                self._over.wait(pause_s)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait_for_acks(self, count: int) -> None:
        """Return when so many records were acknowledged. Blocks; the clause's deadline ends it."""
        while len(self.acked) < count and not self._over.wait(0.002):
            assert not self.fault, f"an idempotent producer can't go on: {self.fault}"
            self._producer.poll(0)

    def rest(self) -> None:
        """End :meth:`keep_writing`, and wait until everything is answered."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Wait until everything is answered."""
        while self._producer.flush(_POLL_S):
            pass
        assert not self.fault, f"an idempotent producer can't go on: {self.fault}"


def _consumer(servers: str, **settings: Any) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "conformance",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
            **EAGER,
            **settings,
        }
    )


def fetch_all(servers: str, topic: str, deadline_s: float = 60.0) -> list[Fetched]:
    """Every record of the topic, partition by partition, in order of offsets without a hole; contents are checked."""
    consumer = _consumer(servers)
    try:
        partitions = sorted(consumer.list_topics(topic, 30).topics[topic].partitions)
        ends = {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), 30)
            for partition in partitions
        }
        consumer.assign([TopicPartition(topic, partition, ends[partition][0]) for partition in partitions])
        return _collect(consumer, {partition: end for partition, (_, end) in ends.items()}, deadline_s, ends)
    finally:
        consumer.close()


def _collect(
    consumer: Consumer, ends: Mapping[int, int], deadline_s: float, watermarks: Mapping[int, tuple[int, int]]
) -> list[Fetched]:
    found: dict[int, list[Fetched]] = {partition: [] for partition in ends}
    nexts = {partition: low for partition, (low, _) in watermarks.items()}
    until = time.monotonic() + deadline_s
    while any(nexts[partition] < end for partition, end in ends.items()):
        assert time.monotonic() < until, f"records don't come: positions={nexts} ends={dict(ends)}"
        for message in consumer.consume(500, _POLL_S):
            if message.error() is not None:
                continue  # it goes on by itself
            record = checked(message)
            if record.offset < ends[record.partition]:
                assert record.offset == nexts[record.partition], (
                    f"a hole or a repetition: partition={record.partition} offset={record.offset} "
                    f"expected={nexts[record.partition]}"
                )
                nexts[record.partition] = record.offset + 1
                found[record.partition].append(record)
    return [record for partition in sorted(found) for record in found[partition]]


def checked(message: Message) -> Fetched:
    """What a record says it is, if it is whole."""
    value, key = message.value(), message.key()
    assert value is not None, "a record lost its value"
    owner, sequence = check_body(value)
    assert key == f"{owner}/{sequence}".encode(), f"a record has another's key: key={key!r}"
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return Fetched(partition, offset, owner, sequence)


def fetch_in_group(
    servers: str, topic: str, group: str, count: int, deadline_s: float = 60.0
) -> list[Fetched]:
    """The next ``count`` records or more, as a member of a group, which then commits where it got to."""
    consumer = _consumer(servers, **{"group.id": group})
    try:
        consumer.subscribe([topic])
        found: list[Fetched] = []
        until = time.monotonic() + deadline_s
        while len(found) < count:
            assert time.monotonic() < until, f"the group got {len(found)} of {count} records"
            for message in consumer.consume(count - len(found), _POLL_S):
                if message.error() is None:
                    found.append(checked(message))
        consumer.commit(asynchronous=False)
        return found
    finally:
        consumer.close()


def commit_of(servers: str, topic: str, group: str, partitions: int) -> dict[int, int]:
    """What the group committed, by partition."""
    consumer = _consumer(servers, **{"group.id": group})
    try:
        asked = [TopicPartition(topic, partition) for partition in range(partitions)]
        return {
            each.partition: each.offset for each in consumer.committed(asked, timeout=30) if each.offset >= 0
        }
    except KafkaException as error:
        raise AssertionError(f"the group doesn't tell its offsets: {error}") from error
    finally:
        consumer.close()
