"""Producers that never stop, what was acknowledged to them, and a checker that reads everything back."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tests.patience import HANG_S

TOPIC = "ledger"
PARTITIONS = 3
CODECS = ("none", "lz4", "zstd", "snappy", "gzip")
#: What values are cut from: a third of it can be compressed, so that large batches stay large.
_POOL = b"".join(
    random.Random(part).randbytes(1024) if part % 3 else b"%04d" % part * 256 for part in range(2048)
)
#: Values past this are paced: memory and disk of whoever runs this are limited.
_PACED_BYTES = 10_000
_PACE_BYTES_PER_S = 4_000_000

#: Of these, thousands in a second are enough: each costs a producer, the broker and who checks it.
_SMALL_BYTES = 100
_PAUSE_OF_SMALL_S = 0.02


def value_of(writer: int, number: int, size: int) -> bytes:
    """The value of a record, of which every byte can be checked."""
    start = (writer * 7919 + number * 104_729) % (len(_POOL) - size)
    return b"%d %d %d " % (writer, number, size) + _POOL[start : start + size]


class Ledger:
    """Producers that never stop, and a record of what was acknowledged."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        idempotent: bool,
        writers: int,
        value_bytes: int | Sequence[int] = 80,
        topic: str = TOPIC,
        codecs: Sequence[str] = CODECS,
    ) -> None:
        """``value_bytes``: one size, or several that take turns. ``codecs`` take turns over the writers."""
        self._bootstrap = bootstrap_servers
        self._idempotent = idempotent
        self._sizes = (value_bytes,) if isinstance(value_bytes, int) else tuple(value_bytes)
        self._codecs = codecs
        self.topic = topic
        self._stop = threading.Event()
        self._abandoned = False
        #: (writer, number) -> (partition, offset), as acknowledged.
        self.acked: dict[tuple[int, int], tuple[int, int]] = {}
        self.failed: dict[str, int] = defaultdict(int)
        self._produced = [0] * writers
        self._threads = [
            threading.Thread(target=self._write, args=(writer,), daemon=True) for writer in range(writers)
        ]

    def _write(self, writer: int) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self._bootstrap,
                "enable.idempotence": self._idempotent,
                "acks": "all",
                "linger.ms": 2,
                # while nothing is acknowledged, only so much may gather: it is all sent later
                "queue.buffering.max.messages": max(500, 2**20 // max(self._sizes)),
                "queue.buffering.max.kbytes": 16 * 1024,
                "message.max.bytes": 2**20,
                "message.timeout.ms": int(HANG_S * 1000),
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 100,
                "retry.backoff.ms": 20,
                "compression.type": self._codecs[writer % len(self._codecs)],
                "logger": SILENT,
            }
        )

        def acknowledged(error: KafkaError | None, message: Any) -> None:
            number = int(message.value().split(b" ", 2)[1])
            if error is None:
                self.acked[writer, number] = (message.partition(), message.offset())
            else:
                self.failed[error.name()] += 1

        number = 0
        while not self._stop.is_set():
            size = self._sizes[number % len(self._sizes)]
            try:
                producer.produce(
                    self.topic,
                    value=value_of(writer, number, size),
                    partition=number % PARTITIONS,
                    on_delivery=acknowledged,
                )
                number += 1
                self._produced[writer] = number
            except BufferError:
                producer.poll(0.05)
            producer.poll(0)
            if size > _PACED_BYTES:
                time.sleep(size / _PACE_BYTES_PER_S)
            elif number % 50 == 0:
                time.sleep(_PAUSE_OF_SMALL_S if size <= _SMALL_BYTES else 0.004)
        deadline = time.monotonic() + HANG_S
        while producer.flush(0.2) and time.monotonic() < deadline:
            if self._abandoned:
                producer.purge()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A test that failed or was interrupted may have left no broker that acknowledges the rest."""
        self.stop(abandon=kind is not None)

    @property
    def produced(self) -> int:
        """How many records the producers were given."""
        return sum(self._produced)

    def ask_to_stop(self) -> None:
        """Have nothing new produced, and don't wait."""
        self._stop.set()

    def stop(self, *, abandon: bool = False) -> None:
        """Wait until everything is acknowledged; or ``abandon`` what isn't, where no broker is left to take it."""
        self._abandoned = abandon
        self.ask_to_stop()
        for thread in self._threads:
            thread.join(HANG_S)
            assert not thread.is_alive(), "a producer hangs"


@contextlib.contextmanager
def at_work(ledgers: Iterable[Ledger]) -> Iterator[None]:
    """All of them write, until what is in here ends."""
    with contextlib.ExitStack() as stack:
        for ledger in ledgers:
            stack.enter_context(ledger)
        yield


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


SILENT = _Silent()


def create_topic(bootstrap_servers: str, topic: str = TOPIC, config: Mapping[str, str] | None = None) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1, config=dict(config or {}))]).values():
        future.result(HANG_S)


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
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=HANG_S)
            assert low == 0
            ends[partition] = high
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        deadline = time.monotonic() + HANG_S
        while any(not found[p] or found[p][-1][0] < ends[p] - 1 for p in range(PARTITIONS) if ends[p]):
            assert time.monotonic() < deadline, "the consumer gets nothing more"
            for message in consumer.consume(1000, timeout=0.05):  # it waits for as many
                assert message.error() is None, message.error()
                writer, number, size = map(int, message.value().split(b" ", 3)[:3])
                assert message.value() == value_of(writer, number, size), "a value isn't what was produced"
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                found[partition].append((offset, writer, number))
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
