"""The book of one partition's producers (KIP-98): pure, no clock, no I/O. What happens goes in, decisions come out.

Per producer id it has the epoch, the next sequence and the last five batches. Its owner, the partition, tells it in
log order, without awaiting in between:

    admit(header, now)        a batch came. Out: the Producer that it may be appended for; a Duplicate, to be answered
                              with the offset that it has, once that is durable; or an error with Kafka's code
    appended(producer, ...)   it was appended, at this offset. Before it is durable: batches in flight count
    failed_from(offset)       appends from there on failed, so their sequences are given back: the producer must
                              come again with the first one that failed; those in flight behind it get
                              OUT_OF_ORDER_SEQUENCE_NUMBER instead of overtaking it
    trimmed_to(offset)        the log starts there now; what was said of readers below isn't asked for any more
    expire(now)               time has passed: who wrote nothing for a day is forgotten
    replay(header, now)       what the log has at a start, after restore(snapshot)
    snapshot(end_offset)      out: what to write into the state stream. What isn't durable is left out, since a
                              duplicate must never be confirmed by a batch that a crash has erased

Transactions: there are none yet, and ``admit`` is the one place that refuses their batches. Readers ask the book
nevertheless how far what they may see is settled: ``last_stable_offset`` and ``aborted`` are where open
transactions and aborted ranges of offsets will be looked up, and ``admit`` and ``appended`` where they begin. Of
markers only the epoch counts so far.

A snapshot is a header, then an entry and its batches for each producer, all integers big-endian::

    header, 22 bytes
        0   4  magic "PSPS"
        4   2  version, 1
        6   8  end offset: the snapshot says what batches below it said
       14   4  producers
       18   4  CRC-32C of the end offset and the producers in decimal, a space between, and all that follows

    producer, 31 bytes
        0   8  producer id
        8   2  epoch
       10   4  next sequence; -1 refuses everything until a new epoch
       14   8  time of the last write, ms
       22   8  base offset of the last batch that fell out of the window, or -1
       30   1  batches in the window

    batch, 32 bytes
        0   4  first sequence
        4   4  last sequence
        8   8  base offset
       16   8  last offset
       24   8  append time, ms; -1 for CreateTime
"""

from __future__ import annotations

__all__ = (
    "PRODUCERS_MAX",
    "PRODUCER_BYTES",
    "PRODUCER_EXPIRATION_MS",
    "WINDOW_BATCHES",
    "AbortedTransaction",
    "Duplicate",
    "Producer",
    "ProducerBook",
    "ProducerInfo",
    "ProducerMemory",
    "SequenceError",
)

from collections.abc import Sequence
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple

import msgspec
from crc32c import crc32c

from penstock.account import Ledger
from penstock.errors import CorruptError, NewerVersionError
from penstock.log.unsupported import TRANSACTIONAL_BATCH
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import CONTROL_BIT, TRANSACTIONAL_BIT, BatchError, BatchHeader

#: How many batches per producer are recognised when they come again; clients keep at most as many in flight.
WINDOW_BATCHES: Final = 5
#: Default of ``producer.id.expiration.ms``: a day after the last write.
PRODUCER_EXPIRATION_MS: Final = 24 * 60 * 60 * 1000
#: Producers remembered per partition; past it the one that wrote longest ago is forgotten.
PRODUCERS_MAX: Final = 10_000

#: What a producer takes in memory with a full window (measured: 0.9 KB).
PRODUCER_BYTES: Final = 1024
#: At the bound, this part of the producers of a partition is forgotten at a time.
_FORGET_PART: Final = 8

_SEQUENCE_MASK: Final = 0x7FFFFFFF  # after 2**31 - 1 comes 0
_REFUSE_ALL: Final = -1  # as next sequence: nothing fits until a new epoch
_NONE: Final = -1
_NO_EPOCH: Final = -1  # what batches without a producer have; with one, any epoch is newer
_FROM_FIRST_BATCH: Final = -2  # as first offset: that of the batch which is about to be appended

_SNAPSHOT_VERSION: Final = 1
_SNAPSHOT_HEAD: Final = Struct(">4sHqII")  # magic, version, end offset, producers, CRC-32C of the rest
_SNAPSHOT_MAGIC: Final = b"PSPS"
_SNAPSHOT_ENTRY: Final = Struct(">qhiqqB")  # producer id, epoch, next sequence, last write, evicted, batches
_SNAPSHOT_BATCH: Final = Struct(">iiqqq")  # first and last sequence, base and last offset, append time


class SequenceError(BatchError):
    """A batch doesn't follow the producer's last one (45) or comes from an old epoch (47): refuse it."""


class Duplicate(msgspec.Struct, frozen=True):
    """The batch was recorded before: don't append it, answer with this offset once ``last_offset`` is durable.

    ``log_append_time_ms`` is -1 for CreateTime.
    """

    base_offset: int
    last_offset: int
    log_append_time_ms: int


class ProducerInfo(NamedTuple):
    """One producer, for people and tools; ``last_sequence`` is -1 when it has written nothing in its epoch."""

    producer_id: int
    epoch: int
    last_sequence: int
    last_write_ms: int


class AbortedTransaction(NamedTuple):
    """Records of this producer, from ``first_offset`` to its next marker, aren't for readers of committed data."""

    producer_id: int
    first_offset: int


class _Batch(msgspec.Struct, frozen=True, gc=False):
    first_sequence: int
    last_sequence: int
    base_offset: int
    last_offset: int
    log_append_time_ms: int


class Producer:
    """One producer, as the book has it; nobody else looks into it."""

    __slots__ = ("batches", "epoch", "evicted_offset", "first_offset", "last_write_ms", "next_sequence")

    def __init__(self, epoch: int, first_offset: int) -> None:
        self.epoch = epoch
        self.next_sequence = 0
        self.last_write_ms = 0
        #: The window, oldest first; all of this epoch. A deque would take 600 bytes more.
        self.batches: list[_Batch] = []
        #: Base offset of the last batch that fell out of the window in this epoch.
        self.evicted_offset = _NONE
        #: Where this entry began: what isn't durable from here on never existed after a crash.
        self.first_offset = first_offset

    @property
    def last_sequence(self) -> int:
        """Of the last batch in this epoch; -1 if there is none, or it isn't known any more."""
        if self.batches:
            return self.batches[-1].last_sequence
        return max(self.next_sequence, 0) - 1

    def next_sequence_at(self, end_offset: int) -> int:
        """The sequence to expect if nothing from ``end_offset`` on had been recorded."""
        for batch in self.batches:
            if batch.base_offset >= end_offset:
                # With more in flight than the window holds, the first that failed is no longer known:
                # no sequence is safe then.
                return _REFUSE_ALL if self.evicted_offset >= end_offset else batch.first_sequence
        return self.next_sequence


class ProducerMemory:
    """What the producers of all partitions of a broker may take. At the bound, those are forgotten that wrote longest
    ago in the partition that has most: who makes them up loses his own first. Forgotten ones may start anew.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tables: set[ProducerBook] = set()

    def add(self, table: ProducerBook, count: int) -> None:
        """Producers are about to be added to ``table``."""
        size = count * PRODUCER_BYTES
        while self._tables and not self._ledger.has_room(size):
            largest = max(self._tables, key=len)
            if not len(largest):
                break  # only the one that is being added
            largest.forget_oldest(-(-len(largest) // _FORGET_PART))
        self.restore(table, count)

    def restore(self, table: ProducerBook, count: int) -> None:
        """A start found producers in a snapshot: they are there, whatever the bound is."""
        if count:
            self._tables.add(table)
            self._ledger.add(count * PRODUCER_BYTES)

    def remove(self, table: ProducerBook, count: int) -> None:
        """Producers of ``table`` are gone."""
        if count:
            self._ledger.add(-count * PRODUCER_BYTES)
        if not len(table):
            self._tables.discard(table)

    def leave(self, table: ProducerBook) -> None:
        """``table`` is no longer on the account."""
        self._ledger.add(-len(table) * PRODUCER_BYTES)
        self._tables.discard(table)


class ProducerBook:
    """The producers of one partition; see the module's docstring. Not safe for threads; every method is synchronous.

    ``expiration_ms`` is ``producer.id.expiration.ms``; ``producers_max`` bounds the memory (about
    1 KB each).
    """

    __slots__ = ("_memory", "_producers", "expiration_ms", "producers_max")

    def __init__(
        self,
        *,
        expiration_ms: int = PRODUCER_EXPIRATION_MS,
        producers_max: int = PRODUCERS_MAX,
        memory: ProducerMemory | None = None,
    ) -> None:
        self.expiration_ms = expiration_ms
        self.producers_max = producers_max
        #: In the order of their last write, so that the oldest come first.
        self._producers: dict[int, Producer] = {}
        #: Shared with the other partitions of the broker; None: this table is bounded by itself only.
        self._memory = memory

    def __len__(self) -> int:
        return len(self._producers)

    def __contains__(self, producer_id: int) -> bool:
        return producer_id in self._producers

    def epoch(self, producer_id: int) -> int | None:
        """The producer's current epoch, None if it isn't known."""
        producer = self._producers.get(producer_id)
        return None if producer is None else producer.epoch

    def active(self, now_ms: int) -> list[ProducerInfo]:
        """The producers that haven't expired, by id; batches in flight count."""
        return sorted(
            ProducerInfo(producer_id, producer.epoch, producer.last_sequence, producer.last_write_ms)
            for producer_id, producer in self._producers.items()
            if now_ms - producer.last_write_ms <= self.expiration_ms
        )

    def admit(self, header: BatchHeader, now_ms: int) -> Producer | Duplicate:
        """Decide about one data batch of a client that has a producer id; changes nothing.

        What comes back is for ``appended``. A producer that isn't known (new, expired, forgotten) may start at any
        sequence.

        Raises:
            BatchError: TRANSACTIONAL_BATCH (``penstock.log.unsupported``).
            SequenceError: INVALID_PRODUCER_EPOCH for an older epoch, OUT_OF_ORDER_SEQUENCE_NUMBER for
                a gap, a step back, or a new epoch that doesn't start at 0.
        """
        producer = self._producers.get(header.producer_id)
        if (
            producer is not None
            and producer.next_sequence == header.base_sequence
            and producer.epoch == header.producer_epoch
            and now_ms - producer.last_write_ms <= self.expiration_ms
            and not header.attributes & TRANSACTIONAL_BIT
        ):
            return producer
        return self._admit_unusual(header, producer, now_ms)

    def _admit_unusual(
        self, header: BatchHeader, producer: Producer | None, now_ms: int
    ) -> Producer | Duplicate:
        """``admit`` for a batch that isn't the one that ``producer`` is known to send next."""
        if header.attributes & TRANSACTIONAL_BIT:
            raise BatchError(TRANSACTIONAL_BATCH.text, TRANSACTIONAL_BATCH.code)
        if header.producer_epoch < _NO_EPOCH:
            raise SequenceError(
                f"there is no such epoch producer_id={header.producer_id} producer_epoch={header.producer_epoch}",
                ErrorCode.INVALID_PRODUCER_EPOCH,
            )
        if producer is None or now_ms - producer.last_write_ms > self.expiration_ms:
            return Producer(header.producer_epoch, _FROM_FIRST_BATCH)
        first = header.base_sequence
        if header.producer_epoch == producer.epoch:
            last = header.last_sequence
            for batch in producer.batches:
                if batch.first_sequence == first and batch.last_sequence == last:
                    return Duplicate(batch.base_offset, batch.last_offset, batch.log_append_time_ms)
            if producer.epoch == _NO_EPOCH:  # as in Kafka, which checks no sequence of it
                return producer
        elif header.producer_epoch < producer.epoch:
            raise SequenceError(
                f"a newer epoch of this producer has written producer_id={header.producer_id} "
                f"producer_epoch={header.producer_epoch} current_epoch={producer.epoch}",
                ErrorCode.INVALID_PRODUCER_EPOCH,
            )
        elif first == 0 or producer.epoch == _NO_EPOCH:
            return Producer(header.producer_epoch, producer.first_offset)
        expected = producer.next_sequence if header.producer_epoch == producer.epoch else 0
        raise SequenceError(
            f"batch out of sequence producer_id={header.producer_id} producer_epoch={header.producer_epoch} "
            f"base_sequence={first} expected={expected}",
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
        )

    def appended(
        self,
        producer: Producer,
        header: BatchHeader,
        base_offset: int,
        now_ms: int,
        log_append_time_ms: int = -1,
    ) -> None:
        """Remember a batch that was admitted for ``producer``, at the offset it was given, before it is durable.

        ``header`` may still have its old base offset.
        """
        producers, producer_id = self._producers, header.producer_id
        known = producers.pop(producer_id, None)  # it goes to the end: in the order of their last writes
        if known is not producer:
            self._begin(producer, known, base_offset)
        producers[producer_id] = producer
        producer.last_write_ms = now_ms
        first, delta = header.base_sequence, header.last_offset_delta
        last = first + delta & _SEQUENCE_MASK
        batches = producer.batches
        if len(batches) == WINDOW_BATCHES:  # the window moves on
            producer.evicted_offset = batches.pop(0).base_offset
        batches.append(_Batch(first, last, base_offset, base_offset + delta, log_append_time_ms))
        producer.next_sequence = last + 1 & _SEQUENCE_MASK

    def _begin(self, producer: Producer, known: Producer | None, base_offset: int) -> None:
        """``producer`` takes the place of the ``known`` one, which isn't in the book any more: make room for it."""
        if producer.first_offset == _FROM_FIRST_BATCH:
            producer.first_offset = base_offset
        if known is None:
            if len(self._producers) >= self.producers_max:
                self.forget_oldest(1)
            if self._memory is not None:
                self._memory.add(self, 1)

    def marked(self, header: BatchHeader, base_offset: int, now_ms: int) -> None:
        """A marker that ends a transaction was appended; its epoch fences those before it (KIP-360, KIP-890)."""
        producer = self._writer_of(header, now_ms)
        known = self._producers.pop(header.producer_id, None)
        if known is not producer:
            self._begin(producer, known, base_offset)
        self._producers[header.producer_id] = producer
        producer.last_write_ms = now_ms

    def replay(self, header: BatchHeader, now_ms: int) -> None:
        """Record a stored batch, in log order, without checks: what is in the log was accepted once.

        A batch that is already in the state (the log may overlap the snapshot) changes nothing. ``now_ms``
        stands for the time of the write; the time of the replay is a safe choice: it only delays expiry.
        """
        if header.producer_id < 0:
            return
        producer = self._producers.get(header.producer_id)
        if producer is not None and any(b.base_offset >= header.base_offset for b in producer.batches):
            return
        if header.attributes & CONTROL_BIT:
            self.marked(header, header.base_offset, now_ms)
            return
        append_time = header.max_timestamp if header.timestamp_type == "LogAppendTime" else -1
        self.appended(self._writer_of(header, now_ms), header, header.base_offset, now_ms, append_time)

    def _writer_of(self, header: BatchHeader, now_ms: int) -> Producer:
        """The producer in the epoch of ``header``, whatever came before."""
        producer = self._producers.get(header.producer_id)
        if producer is None or now_ms - producer.last_write_ms > self.expiration_ms:
            return Producer(header.producer_epoch, _FROM_FIRST_BATCH)
        if producer.epoch != header.producer_epoch:
            return Producer(header.producer_epoch, producer.first_offset)
        return producer

    # --- what readers ask ---

    def last_stable_offset(self, high_watermark: int) -> int:
        """Where readers of committed data stop: at the first open transaction, of which there are none."""
        return high_watermark

    def aborted(self, start_offset: int, end_offset: int) -> Sequence[AbortedTransaction]:
        """The aborted transactions with records in these offsets, of which there are none."""
        return ()

    def trimmed_to(self, offset: int) -> None:
        """Records below ``offset`` are gone, and with them the aborted transactions there, of which there are none.

        Producers stay: what they wrote last decides on what comes next, wherever the log starts.
        """

    # --- what doesn't last ---

    def failed_from(self, offset: int) -> int:
        """Take back all batches from ``offset`` on, since their append failed; return how many.

        Each producer hit must come again with the first sequence that failed; until then all others get
        45. Where more of its batches were in flight than the window holds, that sequence isn't known any
        more, and everything gets 45 until the producer starts a new epoch. Epochs stay.
        """
        removed = 0
        for producer in self._producers.values():
            if producer.batches and producer.batches[-1].base_offset >= offset:
                producer.next_sequence = producer.next_sequence_at(offset)
                while producer.batches and producer.batches[-1].base_offset >= offset:
                    producer.batches.pop()
                    removed += 1
        return removed

    def clear(self) -> None:
        """Drop all producers."""
        self._replace({})

    def forget(self, producer_id: int) -> None:
        """Drop one producer, if it is known."""
        if self._producers.pop(producer_id, None) is not None and self._memory is not None:
            self._memory.remove(self, 1)

    def forget_oldest(self, count: int) -> None:
        """Drop the ``count`` producers that wrote longest ago."""
        for producer_id in list(islice(self._producers, count)):
            self.forget(producer_id)

    def release(self) -> None:
        """The partition closes: what its producers take is no longer on the account."""
        if self._memory is not None:
            self._memory.leave(self)
            self._memory = None

    def _replace(self, producers: dict[int, Producer]) -> None:
        before, self._producers = len(self._producers), producers
        if self._memory is not None:
            self._memory.remove(self, before)
            self._memory.restore(self, len(producers))

    def expire(self, now_ms: int) -> int:
        """Drop the producers whose last write is older than ``expiration_ms``; return how many.

        Only frees memory: ``admit`` ignores them anyway.
        """
        expired = []
        for producer_id, producer in self._producers.items():
            if now_ms - producer.last_write_ms <= self.expiration_ms:
                break
            expired.append(producer_id)
        for producer_id in expired:
            self.forget(producer_id)
        return len(expired)

    # --- snapshots ---

    def snapshot(self, end_offset: int) -> bytes:
        """The state as of ``end_offset`` (exclusive, durable), with version and checksum.

        Batches at or beyond it are left out: replay brings them back, if they made it to the log.
        """
        body = bytearray()
        count = 0
        for producer_id, producer in self._producers.items():
            if producer.first_offset >= end_offset:
                continue
            count += 1
            durable = [batch for batch in producer.batches if batch.base_offset < end_offset]
            body += _SNAPSHOT_ENTRY.pack(
                producer_id,
                producer.epoch,
                producer.next_sequence_at(end_offset),
                producer.last_write_ms,
                producer.evicted_offset,
                len(durable),
            )
            for batch in durable:
                body += _SNAPSHOT_BATCH.pack(*msgspec.structs.astuple(batch))
        fields = (_SNAPSHOT_MAGIC, _SNAPSHOT_VERSION, end_offset, count)
        return _SNAPSHOT_HEAD.pack(*fields, _checksum(end_offset, count, body)) + bytes(body)

    def restore(self, data: bytes) -> int:
        """Replace the state by a snapshot's; return its end offset, where replay goes on.

        Raises:
            CorruptError: damaged; the state is unchanged. The caller may rebuild it by replaying the log
                from its start.
            NewerVersionError: a newer version wrote it; the state is unchanged.
        """
        if len(data) < _SNAPSHOT_HEAD.size:
            raise CorruptError(f"producer snapshot is cut size_bytes={len(data)}")
        magic, version, end_offset, count, checksum = _SNAPSHOT_HEAD.unpack_from(data)
        if magic == _SNAPSHOT_MAGIC and version > _SNAPSHOT_VERSION:
            raise NewerVersionError.of(
                "a snapshot of producers' state",
                f"end_offset={end_offset}",
                version=version,
                known=_SNAPSHOT_VERSION,
            )
        if magic != _SNAPSHOT_MAGIC or version != _SNAPSHOT_VERSION:
            raise CorruptError(f"not a snapshot of producers: magic={magic!r} version={version}")
        if _checksum(end_offset, count, memoryview(data)[_SNAPSHOT_HEAD.size :]) != checksum:
            raise CorruptError(f"producer snapshot checksum mismatch end_offset={end_offset}")
        self._replace(_read_entries(data, count))
        return int(end_offset)


def _checksum(end_offset: int, count: int, body: bytes | bytearray | memoryview) -> int:
    return crc32c(body, crc32c(b"%d %d" % (end_offset, count)))


def _read_entries(data: bytes, count: int) -> dict[int, Producer]:
    producers: dict[int, Producer] = {}
    pos = _SNAPSHOT_HEAD.size
    for _ in range(count):
        producer_id, epoch, next_sequence, last_write_ms, evicted, size = _SNAPSHOT_ENTRY.unpack_from(
            data, pos
        )
        pos += _SNAPSHOT_ENTRY.size
        producer = Producer(epoch, _NONE)
        producer.next_sequence = next_sequence
        producer.last_write_ms = last_write_ms
        producer.evicted_offset = evicted
        for _ in range(size):
            producer.batches.append(_Batch(*_SNAPSHOT_BATCH.unpack_from(data, pos)))
            pos += _SNAPSHOT_BATCH.size
        producers[producer_id] = producer
    assert pos == len(data), "a snapshot with a valid checksum must be filled by its entries"
    return producers
