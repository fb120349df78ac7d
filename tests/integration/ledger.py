"""Producers that never stop, what was acknowledged to them, and a checker that reads everything back."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC = "ledger"
PARTITIONS = 3


class Ledger:
    """Producers that never stop, and a record of what was acknowledged."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        idempotent: bool,
        writers: int,
        value_bytes: int = 80,
        topic: str = TOPIC,
    ) -> None:
        self._bootstrap = bootstrap_servers
        self._idempotent = idempotent
        self._value_bytes = value_bytes
        self._topic = topic
        self._stop = threading.Event()
        #: (writer, number) -> (partition, offset), as acknowledged.
        self.acked: dict[tuple[int, int], tuple[int, int]] = {}
        self.failed: dict[str, int] = defaultdict(int)
        self._threads = [threading.Thread(target=self._write, args=(writer,)) for writer in range(writers)]

    def _write(self, writer: int) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": self._idempotent,
                "acks": "all",
                "linger.ms": 2,
                # while nothing is acknowledged, only so much may gather: it is all sent later
                "queue.buffering.max.messages": max(500, 2**20 // self._value_bytes),
                "message.timeout.ms": 120_000,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "retry.backoff.ms": 20,
                "compression.type": ["none", "lz4", "zstd", "snappy", "gzip"][writer % 5],
                "logger": SILENT,
            }
        )

        def acknowledged(error: KafkaError | None, message: Any) -> None:
            number = int(message.value().split(b" ")[1])
            if error is None:
                self.acked[writer, number] = (message.partition(), message.offset())
            else:
                self.failed[error.name()] += 1

        number = 0
        while not self._stop.is_set():
            try:
                producer.produce(
                    self._topic,
                    value=b"%d %d " % (writer, number) + b"." * self._value_bytes,
                    partition=number % PARTITIONS,
                    on_delivery=acknowledged,
                )
                number += 1
            except BufferError:
                producer.poll(0.05)
            producer.poll(0)
            if number % 50 == 0:
                time.sleep(0.002)
        producer.flush(60)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive(), "a producer hangs"


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


SILENT = _Silent()


def create_topic(bootstrap_servers: str, topic: str = TOPIC) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        future.result(10)


def read_all(bootstrap_servers: str, topic: str = TOPIC) -> dict[int, list[tuple[int, int, int]]]:
    """Everything in the topic: partition -> (offset, writer, number) in the order of reading."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "checker",
            "enable.auto.commit": False,
            "logger": SILENT,
        }
    )
    found: dict[int, list[tuple[int, int, int]]] = {p: [] for p in range(PARTITIONS)}
    try:
        ends = {}
        for partition in range(PARTITIONS):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=20)
            assert low == 0
            ends[partition] = high
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        deadline = time.monotonic() + 60
        while any(not found[p] or found[p][-1][0] < ends[p] - 1 for p in range(PARTITIONS) if ends[p]):
            assert time.monotonic() < deadline, "the consumer gets nothing more"
            for message in consumer.consume(1000, timeout=1.0):
                assert message.error() is None, message.error()
                writer, number, _ = message.value().split(b" ")
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                found[partition].append((offset, int(writer), int(number)))
    finally:
        consumer.close()
    return found


def check(found: dict[int, list[tuple[int, int, int]]], ledger: Ledger, *, idempotent: bool) -> None:
    """What must hold of everything that can be read."""
    where: dict[tuple[int, int], tuple[int, int]] = {}
    for partition, records in found.items():
        assert [offset for offset, _, _ in records] == list(range(len(records))), "offsets are dense"
        last: dict[int, int] = defaultdict(lambda: -1)
        for offset, writer, number in records:
            if (writer, number) in where:
                assert not idempotent, f"duplicate of writer {writer} number {number} at {partition}/{offset}"
                continue
            where[writer, number] = (partition, offset)
            if idempotent:
                assert number > last[writer], "order per partition holds"
                last[writer] = number
    missing = [key for key in ledger.acked if key not in where]
    assert not missing, f"{len(missing)} acknowledged records are missing, first: {sorted(missing)[:5]}"
    if idempotent:
        moved = [key for key, place in ledger.acked.items() if where[key] != place]
        assert not moved, f"acknowledged at another offset: {moved[:5]}"
