"""A real client, librdkafka, for clauses about whole brokers. Its calls block; it runs in a process of its own.

Nothing here has a deadline: a clause has one, and who misses it proves nothing. What breaks a clause is what a
broker answered.
"""

from __future__ import annotations

__all__ = (
    "Acked",
    "Fetched",
    "Records",
    "Writer",
    "checked",
    "compare",
    "eager",
    "give_up",
    "in_order",
    "make_admin",
    "make_producer",
)

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import cycle
from typing import NamedTuple, TypeVar, cast

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
from penstock_conformance._patience import has_come

T = TypeVar("T")

#: A broker is asked often, so that one that comes back is found at once.
EAGER = {
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.ms": 20,
    "retry.backoff.max.ms": 200,
    "socket.connection.setup.timeout.ms": 2000,
    "log_level": 0,
}
_POLL_S = 0.1
#: So often a request is made again whose partition the broker could not read.
_TRIES_MAX = 50
#: A client hears at once that its broker has ended.
_LOSS_S = 10.0
#: A request without an answer is made again.
REQUEST_S = 2.0


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


def compare(fetched: list[Fetched], acked: dict[int, Acked], owner: int = 1) -> None:
    """Everything acknowledged is where the acknowledgement said; of the owner there is nothing twice."""
    mine = [record for record in fetched if record.owner == owner]
    places = {record.sequence: Acked(record.partition, record.offset) for record in mine}
    twice = [sequence for sequence, count in Counter(record.sequence for record in mine).items() if count > 1]
    assert not twice, f"records are there twice: sequences={twice[:5]}"
    lost = sorted(set(acked) - set(places))
    assert not lost, f"acknowledged records are lost: sequences={lost[:5]} of {len(acked)}"
    moved = [sequence for sequence, place in acked.items() if place != places[sequence]]
    assert not moved, f"records aren't where they were acknowledged: sequences={moved[:5]}"


def in_order(fetched: list[Fetched]) -> None:
    """In each partition the records of an owner are in the order in which they were produced."""
    last: dict[tuple[int, int], int] = {}
    for record in fetched:
        before = last.get((record.partition, record.owner), -1)
        assert before < record.sequence, f"out of order: {record} comes after sequence={before}"
        last[record.partition, record.owner] = record.sequence


def make_admin(servers: str) -> AdminClient:
    """For requests about topics and groups."""
    return AdminClient({"bootstrap.servers": servers, **EAGER})


def make_producer(
    servers: str, codec: str, on_error: Callable[[KafkaError], None] = lambda _: None
) -> Producer:
    """An idempotent one, which doesn't give up. ``on_error`` hears of connections that are lost or can't be made."""
    return Producer(
        {
            "bootstrap.servers": servers,
            "error_cb": on_error,
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": 0,  # never
            "linger.ms": 2,
            "compression.type": codec,
            **EAGER,
        }
    )


def give_up(producer: Producer | None) -> None:
    """Forget what is on its way."""
    if producer is not None:
        with suppress(KafkaException):  # after a fatal error it can't even forget
            producer.purge()
            producer.poll(0)


def eager(call: Callable[[], T], done: int | None = None) -> T:
    """Make a request until it is answered; ``done`` is what says that an attempt before had been heard."""
    tries = 0
    while True:
        try:
            return call()
        except KafkaException as error:
            told = error.args[0]
            if tries and told.code() == done:
                return cast("T", None)
            tries += 1
            again = told.retriable() or told.code() < 0  # its own errors: nobody answered
            # Kafka has it tried again, librdkafka hasn't; of a partition that is damaged it is told for ever
            again = again or (told.code() == KafkaError.KAFKA_STORAGE_ERROR and tries < _TRIES_MAX)
            assert again, f"refused: {told}"
            time.sleep(_POLL_S)


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


class Writer:
    """A producer that notes what was acknowledged."""

    def __init__(self, servers: str, topic: str, owner: int, codec: str = "none") -> None:
        self._acked: dict[int, Acked] = {}
        self._errors: dict[int, str] = {}
        #: Why the producer can't go on; empty as long as it can.
        self._fault = ""
        self._next = 0
        self._topic = topic
        self._owner = owner
        self._lost = threading.Event()
        self._producer = make_producer(servers, codec, lambda _: self._lost.set())
        self._over = threading.Event()
        self._thread = threading.Thread()

    def note_loss(self) -> None:
        """From now on :meth:`wait_for_loss` waits."""
        self._lost.clear()

    def wait_for_loss(self) -> None:
        """Return when the connection was lost since :meth:`note_loss`, so that what came before was heard, or when
        it doesn't seem to be."""
        has_come(self._lost.wait, _LOSS_S)
        self._producer.poll(0)

    def acked(self) -> dict[int, Acked]:
        """The acknowledgements until now, by sequence."""
        return dict(self._acked)

    def handed_over(self) -> int:
        """The sequence of the next record."""
        return self._next

    def was_acked(self, sequence: int) -> bool:
        """Whether it was acknowledged, or a later one."""
        return max(self.acked(), default=-1) >= sequence

    def write(self, sequence: int, size: int) -> None:
        """Hand over one record; it goes to the partition that its key says."""
        key = f"{self._owner}/{sequence}"
        body = make_body(self._owner, sequence, size)
        while not self._over.is_set():
            try:
                self._producer.produce(self._topic, body, key, on_delivery=partial(self._told, sequence))
            except BufferError:
                self._producer.poll(_POLL_S)
            except (
                KafkaException
            ) as error:  # it lost track of what is there: no order can be promised any more
                self._fault = str(error)
                return
            else:
                break
        self._next = sequence + 1
        self._producer.poll(0)

    def _told(self, sequence: int, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._errors[sequence] = str(error)
        else:
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            self._acked[sequence] = Acked(partition, offset)

    def keep_writing(self, sizes: Sequence[int], pause_s: float = 0.0005) -> None:
        """Write records of these sizes, again and again, in a thread, from sequence 0 on, until :meth:`rest`."""

        def run() -> None:
            for sequence, size in enumerate(cycle(sizes)):
                if self._over.is_set() or self._fault:
                    return
                self.write(sequence, size)
                self._over.wait(pause_s)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def wait_for_acks(self, count: int) -> None:
        """Return when so many more records were acknowledged than now."""
        count += len(self._acked)
        while len(self._acked) < count and not self._over.wait(0.002):
            assert not self._fault, f"an idempotent producer can't go on: {self._fault}"
            self._producer.poll(0)

    def rest(self) -> dict[int, Acked]:
        """End :meth:`keep_writing`, and wait until everything is answered; all acknowledgements."""
        self._over.set()
        self._thread.join()
        return self.flush()

    def flush(self) -> dict[int, Acked]:
        """Wait until everything is answered; all acknowledgements."""
        while self._producer.flush(_POLL_S):
            pass
        assert not self._fault, f"an idempotent producer can't go on: {self._fault}"
        assert not self._errors, f"a record wasn't taken: {next(iter(self._errors.items()))}"
        return self.acked()


class Records:
    """Topics, records and groups of the cluster at one address."""

    def __init__(self, servers: str) -> None:
        self._servers = servers

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create it, and return when that is done."""
        admin = make_admin(self._servers)
        wanted = NewTopic(topic, partitions, 1)

        def once() -> object:
            return admin.create_topics([wanted])[topic].result()

        eager(once, KafkaError.TOPIC_ALREADY_EXISTS)

    def delete_topic(self, topic: str) -> None:
        """Delete it, and return when that is done."""
        admin = make_admin(self._servers)

        def once() -> object:
            return admin.delete_topics([topic])[topic].result()

        eager(once, KafkaError.UNKNOWN_TOPIC_OR_PART)

    def produce(
        self, topic: str, owner: int, sizes: Sequence[int], first: int = 0, codec: str = "none"
    ) -> dict[int, Acked]:
        """Produce a record of each size; the acknowledgements, by sequence."""
        writer = Writer(self._servers, topic, owner, codec)
        for sequence, size in enumerate(sizes, first):
            writer.write(sequence, size)
        acked = writer.flush()
        assert len(acked) == len(sizes), "a record was never answered"
        return acked

    def fetch_all(self, topic: str) -> list[Fetched]:
        """Every record of the topic, by partition, in order of offsets without a hole; contents are checked."""
        with closing(self._consumer()) as consumer:
            listed = eager(lambda: consumer.list_topics(topic, REQUEST_S)).topics[topic]
            assert listed.error is None, f"refused: {listed.error}"
            ends: dict[int, int] = {}
            nexts: dict[int, int] = {}
            for partition in sorted(listed.partitions):
                where = TopicPartition(topic, partition)
                nexts[partition], ends[partition] = eager(
                    partial(consumer.get_watermark_offsets, where, REQUEST_S)
                )
            consumer.assign([TopicPartition(topic, *place) for place in nexts.items()])
            found: dict[int, list[Fetched]] = {partition: [] for partition in ends}
            while any(nexts[partition] < end for partition, end in ends.items()):
                records, at_ends = _consume(consumer, 500)
                for record in records:
                    if record.offset < ends[record.partition]:
                        assert record.offset == nexts[record.partition], (
                            f"a hole or a repetition: partition={record.partition} offset={record.offset} "
                            f"expected={nexts[record.partition]}"
                        )
                        nexts[record.partition] = record.offset + 1
                        found[record.partition].append(record)
                for partition in at_ends:
                    assert nexts[partition] >= ends[partition], (
                        f"records are missing at the end: {partition=} next={nexts[partition]} "
                        f"told={ends[partition]}"
                    )
            return [record for partition in sorted(found) for record in found[partition]]

    def fetch_in_group(self, topic: str, group: str, count: int, growing: bool = False) -> list[Fetched]:
        """The next ``count`` records or more, as a member of a group, which then commits where it got to.

        So many are there, unless they are still being written.
        """
        with closing(self._consumer(group)) as consumer:
            consumer.subscribe([topic])
            found: list[Fetched] = []
            ended: set[int] = set()
            while len(found) < count:
                records, at_ends = _consume(consumer, count - len(found))
                found += records
                ended = ended | at_ends
                everywhere = {each.partition for each in consumer.assignment()} <= ended
                assert growing or not (ended and everywhere) or len(found) >= count, (
                    f"the group got {len(found)} of {count} records, and is at the end"
                )
            consumer.commit(asynchronous=False)
            return found

    def commit_of(self, topic: str, group: str, partitions: int) -> dict[int, int]:
        """What the group committed, by partition."""
        with closing(self._consumer(group)) as consumer:
            asked = [TopicPartition(topic, partition) for partition in range(partitions)]
            told = eager(partial(consumer.committed, asked, timeout=REQUEST_S))
            return {each.partition: each.offset for each in told if each.offset >= 0}

    def _consumer(self, group: str = "conformance") -> Consumer:
        return Consumer(
            {
                "bootstrap.servers": self._servers,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 500,
                **EAGER,
            }
        )


def _consume(consumer: Consumer, count: int) -> tuple[list[Fetched], set[int]]:
    """Some records, and the partitions whose end was reached behind them."""
    records: list[Fetched] = []
    at_ends: set[int] = set()
    for message in consumer.consume(count, _POLL_S):
        error = message.error()
        if error is None:
            records.append(checked(message))
        elif error.code() == KafkaError._PARTITION_EOF:
            at_ends.add(cast("int", message.partition()))
        else:
            assert error.code() != KafkaError.INVALID_MSG, f"the broker can't read it: {error}"
    return records, at_ends
