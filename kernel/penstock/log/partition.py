"""A Kafka partition on two streams: the log, and the snapshots of its producers' state.

Offsets of the log stream are the partition's offsets; an entry holds exactly one record batch, as it came from the
client but for base offset and leader epoch, which are patched in place, as is what else its header said wrongly. The
state stream holds snapshots of the idempotent producers (KIP-98); the newest one, plus the batch headers after it,
gives the state back.
"""

from __future__ import annotations

__all__ = ("Partition", "ReadResult")

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Protocol

import anyio

from penstock.bus import EventBus
from penstock.checksum import COMBINE_BYTES_MIN
from penstock.errors import (
    ClosedError,
    CorruptError,
    FullError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
)
from penstock.log.append_outcome import AppendOutcome, append_error_code, doubtful_error_code
from penstock.log.errors import KafkaError
from penstock.log.events import AvailabilityChanged
from penstock.log.listeners import Listener, Listeners
from penstock.log.mending import Mender
from penstock.log.partition_config import PartitionConfig
from penstock.log.preparation import Preparation, Preparer
from penstock.log.producer_book import (
    AbortedTransaction,
    Duplicate,
    Producer,
    ProducerBook,
    ProducerInfo,
    ProducerMemory,
    SequenceError,
)
from penstock.log.producer_snapshots import ProducerSnapshots
from penstock.log.unsupported import TRANSACTIONAL_BATCH
from penstock.spi.allocator import Allocation
from penstock.spi.log_cache import StreamEntry
from penstock.stream.engine import StreamEngine
from penstock.stream.entry import untimed
from penstock.stream.open_stream import Stream
from penstock.wire.error_codes import ErrorCode
from penstock.wire.record_batch import PREFIX_BYTES, is_transactional, pack_start_into
from penstock.wire.records import (
    HEADER_BYTES,
    BatchError,
    BatchHeader,
    assign_offsets,
    find_timestamp,
    max_timestamp_record,
    read_header,
    set_log_append_time,
    whole_checksum,
)
from penstock.wire.validation import BROKER_BITS, amend_batch, check_batch, check_records_nowait, check_sum

logger = logging.getLogger("penstock.log")


class ReadResult:
    """Whole batches, as stored: what leaves for the socket unchanged."""

    __slots__ = ("aborted", "is_cut", "records", "size_bytes")

    def __init__(
        self,
        records: Sequence[memoryview],
        size_bytes: int,
        aborted: Sequence[AbortedTransaction] = (),
        *,
        is_cut: bool = False,
    ) -> None:
        #: Pieces that follow each other; nobody writes to their memory while they are referenced.
        self.records = records
        #: The sum of their sizes.
        self.size_bytes = size_bytes
        #: Which of the records a reader of committed data leaves out (KIP-98).
        self.aborted = aborted
        #: The limit left out batches that are there.
        self.is_cut = is_cut


#: Of a record that has none, and one that is before all times.
_NO_TIMESTAMP = -1
_ANY_TIME = -(2**63)
_NOTHING = ReadResult((), 0)
_NOTHING_FITS = ReadResult((), 0, is_cut=True)
_data_of = attrgetter("data")
_base_offset_of = attrgetter("base_offset")
#: "No epoch" in OffsetForLeaderEpoch (KIP-320).
_NO_EPOCH = -1


class _Search(Protocol):
    def __call__(self, *, inflated_bytes_max: int) -> tuple[int, int] | None:
        """(offset, timestamp) of a record."""


class _Append(AppendOutcome, frozen=True, eq=False, kw_only=True):
    """An append on its way, and at once its outcome if it becomes durable: one object for both."""

    _partition: Partition
    _on_done: Callable[[AppendOutcome], None]

    def done(self, error: Exception | None) -> None:
        """The WAL is done with it."""
        if error is None:
            self._on_done(self)
            if self._partition._is_watched:
                self._partition._advanced()
        else:
            self._on_done(AppendOutcome(doubtful_error_code(error), str(error)))


class Partition:
    """A partition that this broker leads. Synchronous methods never block; all run on the event loop."""

    def __init__(
        self,
        topic: str,
        topic_id: bytes,
        index: int,
        *,
        engine: StreamEngine,
        stream: Stream,
        state_stream: Stream,
        config: PartitionConfig,
        preparer: Preparer,
        bus: EventBus,
        producer_memory: ProducerMemory | None = None,
    ) -> None:
        self.topic = topic
        self.topic_id = topic_id
        self.index = index
        self.config = config
        self.stream = stream
        self.state_stream = state_stream
        self.producers = ProducerBook(memory=producer_memory)
        stream.on_reset = self._reset
        self._engine = engine
        self._reads = engine.reads
        self._preparer = preparer
        self._closed = False
        #: Whether somebody may wait for the high watermark: a listener or a duplicate.
        self._is_watched = False
        self._listeners = Listeners()
        #: Duplicates of batches that aren't durable yet: (last offset, outcome, who asks).
        self._duplicates: list[tuple[int, AppendOutcome, Callable[[AppendOutcome], None]]] = []
        #: Bytes appended since the partition was opened.
        self._appended_bytes = 0
        #: Where those want the log to start who delete records, and when the trim ends that is under way for them.
        self._wanted_start = 0
        self._trim_ended: anyio.Event | None = None
        #: The damage that was reported last.
        self._damage = ""
        self._unavailable: str | None = None
        #: Neither closed nor unavailable.
        self._is_open = True
        self._bus = bus
        self._snapshots = ProducerSnapshots(engine, stream, state_stream, self.producers)
        self._mender = Mender(self, engine, self._snapshots)

    @property
    def leader_epoch(self) -> int:
        """Grows with each opening of the partition."""
        return self.stream.leader_epoch

    @property
    def log_start_offset(self) -> int:
        """The first offset that can be read."""
        return self.stream.start_offset

    @property
    def is_closed(self) -> bool:
        """Nothing is appended or read any more."""
        return self._closed

    @property
    def unavailable(self) -> str | None:
        """Why nothing can be written or read here, or None: its data, or its state of producers, are damaged.

        Only DeleteRecords works then.
        """
        return self._unavailable

    @unavailable.setter
    def unavailable(self, reason: str | None) -> None:
        self._unavailable = reason
        self._is_open = reason is None and not self._closed

    @property
    def has_records(self) -> bool:
        """Whether the log or the producers' state holds anything."""
        log, state = self.stream, self.state_stream
        return log.confirmed_offset > log.start_offset or state.confirmed_offset > state.start_offset

    @property
    def high_watermark(self) -> int:
        """The offset after the last durable record."""
        return self.stream.confirmed_offset

    @property
    def uploaded_end(self) -> int:
        """The offset up to which records are in objects, committed."""
        return self._engine.uploaded_end(self.stream.stream_id)

    @property
    def last_stable_offset(self) -> int:
        """Where readers of committed data stop: as the book of producers has it."""
        return self.producers.last_stable_offset(self.stream.confirmed_offset)

    @property
    def size_bytes(self) -> int:
        """Bytes of its record batches: of the committed ranges, and what only the WAL holds."""
        return self._reads.size_bytes(self.stream)

    def active_producers(self, now_ms: int) -> list[ProducerInfo]:
        """The idempotent producers that haven't expired, by id."""
        return self.producers.active(now_ms)

    # -- append ----------------------------------------------------------------------------------------------

    def append(
        self,
        records: memoryview,
        *,
        produce_version: int,
        now_ms: int,
        charge: Allocation | None,
        on_done: Callable[[AppendOutcome], None],
        is_prepared: bool = False,
    ) -> bool:
        """Validate, sequence, assign offsets in place, hand to the WAL. The call fixes the order.

        Returns whether the records were taken. When True and ``charge`` is given, the partition owns the
        memory from now on and releases ``charge`` some day; when False nothing was appended (a validation
        error, a duplicate) and ``charge`` stays the caller's. Without ``charge`` the records are in a scratch
        buffer: the partition copies what it keeps before it returns, whatever it returns.

        ``on_done`` is called exactly once, before the return or later from the event loop: with success only
        when the records are durable. It must not raise.

        Raises:
            FullError: there is no room now; nothing has changed and ``on_done`` is not called. Wait with
                ``LogManager.wait_for_room`` and try again.
            NotNowError: the batch takes longer to check, or to recompress for its topic; nothing has changed.
                Its ``wait`` returns the batch to append instead, with ``is_prepared``, and its memory, None if
                that is the one it has; or raises BatchError for a batch that can't be. (Small batches are
                recompressed at once: False is returned then, as their own memory isn't needed any more, and
                ``on_done`` is called as ever.)
        """
        if not self._is_open:
            on_done(self._refusal())
            return False
        config = self.config
        rules = config.rules
        try:
            header = (
                read_header(records) if is_prepared else check_batch(records, rules, produce_version, now_ms)
            )
            if config.codec is not None and header.codec != config.codec:
                if self._is_known_duplicate(records, header, now_ms, on_done):
                    return False
                return self._append_recompressed(records, header, now_ms, on_done)
            max_timestamp = header.max_timestamp
            if rules.full and not is_prepared:
                found = check_records_nowait(records, header, rules, now_ms)
                if found is None:
                    if self._is_known_duplicate(records, header, now_ms, on_done):
                        return False
                    raise Preparation(self._preparer, records, header, rules, now_ms).due()
                max_timestamp = found
            if max_timestamp != header.max_timestamp or header.attributes & BROKER_BITS:
                header = amend_batch(records, header, max_timestamp)
            producer = None
            # last, as in Kafka: what is wrong with the batch itself is told first
            if header.producer_id >= 0:
                admitted = self.producers.admit(header, now_ms)
                if isinstance(admitted, Duplicate):
                    self._answer_duplicate(admitted, on_done)
                    return False
                producer = admitted
        except SequenceError as error:
            on_done(self._sequence_outcome(error))
            return False
        except BatchError as error:
            on_done(self.refused_batch(error, records))
            return False
        append_time_ms = now_ms if rules.is_log_append_time else -1
        try:
            self._append_valid(records, header, producer, append_time_ms, now_ms, charge, on_done)
        except FullError:
            raise
        except PenstockError as error:
            on_done(AppendOutcome(append_error_code(error), str(error)))
            return False
        return True

    def _is_known_duplicate(
        self, records: memoryview, header: BatchHeader, now_ms: int, on_done: Callable[[AppendOutcome], None]
    ) -> bool:
        """Whether the batch is a duplicate, which is answered then: what takes long isn't done for it once more."""
        if header.producer_id < 0:
            return False
        try:
            admitted = self.producers.admit(header, now_ms)
        except BatchError:
            return False  # told once it is known that the batch itself is right
        if not isinstance(admitted, Duplicate):
            return False
        check_sum(records, header, self.config.rules)  # raises BatchError
        self._answer_duplicate(admitted, on_done)
        return True

    def _refusal(self) -> AppendOutcome:
        """The outcome of appends while the partition isn't served."""
        if self._closed:
            return AppendOutcome(ErrorCode.NOT_LEADER_OR_FOLLOWER, "the partition is closed on this broker")
        return AppendOutcome(ErrorCode.KAFKA_STORAGE_ERROR, self.unavailable)

    def refused_batch(self, error: BatchError, records: memoryview | None = None) -> AppendOutcome:
        """The outcome of a batch that isn't taken, with the log start where Kafka tells it."""
        if records is not None and is_transactional(records):  # as in Kafka, whatever else is wrong with it
            return AppendOutcome(*TRANSACTIONAL_BATCH)
        start = self.log_start_offset if error.tells_log_start else -1
        return AppendOutcome(error.error_code, str(error), error.record_errors, log_start_offset=start)

    def _sequence_outcome(self, error: SequenceError) -> AppendOutcome:
        """The outcome of a batch that doesn't follow what its producer wrote last.

        Once no append is taken any more, the book isn't the last word: it gave back the sequences of batches that
        failed with the WAL, and those may come back at the next start. A producer that is told of a hole takes a new
        epoch or id and sends all of them under that, where nobody recognises them (librdkafka does, for all
        partitions at once). So it is told to try again, with the batches as they are, and the next start decides.
        """
        if self._engine.takes_appends:
            return self.refused_batch(error)
        return AppendOutcome(
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
            "the broker takes nothing more, its next start knows what is stored",
        )

    def _append_recompressed(
        self,
        records: memoryview,
        header: BatchHeader,
        now_ms: int,
        on_done: Callable[[AppendOutcome], None],
    ) -> bool:
        """Append in the topic's codec what came in another, if that is quickly done; as ``append``.

        Returns False: the records' own memory isn't needed any more.
        """
        config = self.config
        work = Preparation(
            self._preparer, records, header, config.rules, now_ms, config.codec, config.codec_level
        )
        own = work.recompress_nowait()
        if own is None:
            raise work.due()
        taken = False
        try:
            taken = self.append(
                own.view, produce_version=0, now_ms=now_ms, charge=own, on_done=on_done, is_prepared=True
            )
        finally:
            if not taken:
                own.release()
        return False

    def _append_valid(
        self,
        records: memoryview,
        header: BatchHeader,
        producer: Producer | None,
        append_time_ms: int,
        now_ms: int,
        charge: Allocation | None,
        on_done: Callable[[AppendOutcome], None],
    ) -> None:
        """Hand over a batch that was checked, and admitted for ``producer``. Raises as ``StreamEngine.append``."""
        stream = self.stream
        own = charge
        data = records
        if own is None:
            own = self._engine.allocator.allocate_nowait(len(records), "append")
            data = own.view
            data[:] = records
        original = b""
        time_ms = header.max_timestamp
        if append_time_ms >= 0:
            original = bytes(data[:HEADER_BYTES])
            set_log_append_time(data, append_time_ms)
            time_ms = append_time_ms
        elif time_ms < 0:
            time_ms = untimed(now_ms)  # retention needs some time, as Kafka takes that of the segment's file
        base_offset = stream.next_offset
        size = len(data)
        pack_start_into(data, 0, base_offset, size - PREFIX_BYTES, stream.leader_epoch)
        try:
            self._engine.append(
                stream,
                header.count,
                time_ms,
                data,
                own,
                _Append(
                    base_offset=base_offset,
                    log_append_time_ms=append_time_ms,
                    log_start_offset=stream.start_offset,
                    _partition=self,
                    _on_done=on_done,
                ).done,
                whole_checksum(data) if size >= COMBINE_BYTES_MIN else None,
            )
        except PenstockError:
            if charge is None:
                own.release()
            elif original:
                data[:HEADER_BYTES] = original  # the caller tries again with the same bytes
            else:
                assign_offsets(data, 0, -1)
            raise
        self._appended_bytes += size
        if producer is not None:
            self.producers.appended(producer, header, base_offset, now_ms, append_time_ms)

    def _answer_duplicate(self, verdict: Duplicate, on_done: Callable[[AppendOutcome], None]) -> None:
        outcome = AppendOutcome(
            0, None, (), verdict.base_offset, verdict.log_append_time_ms, self.stream.start_offset
        )
        if verdict.last_offset < self.stream.confirmed_offset:
            on_done(outcome)
        else:  # its first copy is still on the way: both are answered by the same outcome
            self._duplicates.append((verdict.last_offset, outcome, on_done))
            self._is_watched = True

    def _advanced(self) -> None:
        """The high watermark moved."""
        if self._duplicates:
            confirmed = self.stream.confirmed_offset
            due = [waiting for waiting in self._duplicates if waiting[0] < confirmed]
            self._duplicates = [waiting for waiting in self._duplicates if waiting[0] >= confirmed]
            for _, outcome, on_done in due:
                on_done(outcome)
        self._listeners.tell()
        self._is_watched = bool(self._listeners or self._duplicates)

    def _reset(self, next_offset: int) -> None:
        """Appends from ``next_offset`` on failed: forget their sequences, and whoever waits for them."""
        self.producers.failed_from(next_offset)
        due = [waiting for waiting in self._duplicates if waiting[0] >= next_offset]
        self._duplicates = [waiting for waiting in self._duplicates if waiting[0] < next_offset]
        for _, _, on_done in due:
            on_done(
                AppendOutcome(
                    ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
                    "whether the first copy of this batch is stored isn't known",
                )
            )

    async def append_batch(self, batch: bytearray) -> int:
        """Append a batch of the broker's own making; returns its base offset once it is durable.

        Raises the WAL's error; waits while there is no room. A cancelled call may still take effect.
        """
        done = anyio.Event()
        outcomes: list[AppendOutcome] = []

        def on_done(outcome: AppendOutcome) -> None:
            outcomes.append(outcome)
            done.set()

        header = read_header(batch)
        own: Allocation | None = None
        try:
            while True:
                if self._closed:
                    raise ClosedError(f"the partition is closed: topic={self.topic} partition={self.index}")
                self._check_available()
                data = memoryview(batch) if own is None else own.view
                try:
                    self._append_valid(data, header, None, -1, header.max_timestamp, own, on_done)
                    own = None
                    break
                except FullError:
                    if own is None:
                        # In one step: who only waits for memory finds that others wait, and may never get any.
                        own = await self._engine.allocator.allocate(len(batch), "append")
                        own.view[:] = batch
                    else:
                        await self._engine.wait_for_room(0)
        finally:
            if own is not None:
                own.release()
        await done.wait()
        (outcome,) = outcomes
        if outcome.error_code:
            raise KafkaError(outcome.error_code, outcome.error_message)
        return outcome.base_offset

    # -- read ------------------------------------------------------------------------------------------------

    def _check_available(self) -> None:
        if self.unavailable is not None:
            raise KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, self.unavailable)

    def _check_offset(self, offset: int) -> None:
        if self._closed:
            raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "the partition is closed on this broker")
        self._check_available()
        if offset < self.stream.start_offset or offset > self.stream.confirmed_offset:
            raise KafkaError(
                ErrorCode.OFFSET_OUT_OF_RANGE,
                f"offset is outside of the log: offset={offset} start={self.stream.start_offset} "
                f"end={self.stream.confirmed_offset}",
            )

    def read_nowait(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult | None:
        """What the log cache has from ``offset`` on, below the high watermark (or last stable offset).

        The batch that contains ``offset`` comes whole. Batches past ``bytes_max`` are left out, but for the
        first one when ``at_least_one``. At the end: an empty result. None: not in the log cache, use ``read``.

        Raises:
            KafkaError: OFFSET_OUT_OF_RANGE; NOT_LEADER_OR_FOLLOWER if the partition is closed,
                KAFKA_STORAGE_ERROR if it is unavailable.
        """
        self._check_offset(offset)
        end = self.last_stable_offset if read_committed else self.stream.confirmed_offset
        if offset >= end:
            return _NOTHING
        entries = self._reads.read_cached(self.stream, offset, bytes_max)
        if entries is None:
            return None
        return self._result(entries, end, bytes_max, read_committed, at_least_one)

    async def read(
        self, offset: int, bytes_max: int, *, read_committed: bool, at_least_one: bool
    ) -> ReadResult:
        """``read_nowait`` from wherever the data are. Raises KafkaError, also for damaged data; UnavailableError."""
        self._check_offset(offset)
        end = self.last_stable_offset if read_committed else self.stream.confirmed_offset
        if offset >= end:
            await anyio.lowlevel.checkpoint()
            return _NOTHING
        try:
            entries = await self._reads.read(self.stream, offset, bytes_max)
        except (CorruptError, NotFoundError) as error:
            self._check_offset(offset)  # trimmed while we looked: what is gone was neither lost nor damaged
            self._report_damage(error)
            raise KafkaError(ErrorCode.CORRUPT_MESSAGE, str(error)) from error
        except NewerVersionError as error:
            self._report_damage(error)
            raise KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, str(error)) from error
        if not entries:
            self._check_offset(offset)
        return self._result(entries, end, bytes_max, read_committed, at_least_one)

    def _result(
        self,
        entries: Sequence[StreamEntry],
        end_offset: int,
        bytes_max: int,
        read_committed: bool,
        at_least_one: bool,
    ) -> ReadResult:
        """What a reader gets of ``entries``: those below ``end_offset``, in whole batches."""
        if not entries:
            return _NOTHING
        if not at_least_one and len(entries[0].data) > bytes_max:
            return _NOTHING_FITS
        if entries[-1].base_offset >= end_offset:
            entries = entries[: bisect_left(entries, end_offset, key=_base_offset_of)]
            if not entries:
                return _NOTHING
        # a step of Python for each would be most of a fetch of small batches
        records = list(map(_data_of, entries))
        aborted: Sequence[AbortedTransaction] = ()
        if read_committed:
            aborted = self.producers.aborted(entries[0].base_offset, entries[-1].next_offset)
        is_cut = entries[-1].next_offset < end_offset
        return ReadResult(records, sum(map(len, records)), aborted, is_cut=is_cut)

    def _report_damage(self, error: PenstockError) -> None:
        """Readers come back for it again and again: each damage is told once."""
        if str(error) != self._damage:
            self._damage = str(error)
            logger.error("can't read topic=%s partition=%d: %s", self.topic, self.index, error)

    def add_listener(self, listener: Listener) -> None:
        """Call ``listener()`` once, when the high watermark moves next or the partition closes.

        One of a crowd is called some iterations of the loop later. Who wants to know more is added again.
        """
        self._listeners.add(listener)
        self._is_watched = True

    def remove_listener(self, listener: Listener) -> None:
        """Stop calling it; an unknown one is ignored. May be called from within a listener."""
        self._listeners.remove(listener)

    @property
    def watchers(self) -> int:
        """How many listeners there are, with those that were called and neither removed nor added again."""
        return len(self._listeners)

    async def offset_for_timestamp(self, timestamp: int) -> tuple[int, int, int] | None:
        """(offset, timestamp, leader epoch) of the first record with a timestamp >= ``timestamp`` (KIP-79)."""
        self._check_available()
        start = self.stream.start_offset
        offset = start
        while True:
            entry = await self._reads.find_time(self.stream, offset, timestamp)
            if entry is None:
                return None
            found = await self._search(
                entry.data, partial(find_timestamp, entry.data, timestamp, min_offset=start)
            )
            if found is not None:
                return (*found, read_header(entry.data).leader_epoch)
            offset = entry.next_offset  # its newest record was deleted: a batch that straddles the log start

    async def max_timestamp_offset(self) -> tuple[int, int, int] | None:
        """(offset, timestamp, leader epoch) of the first record with the greatest timestamp, or -1 (KIP-734)."""
        self._check_available()
        start = self.stream.start_offset
        greatest = await self._reads.max_time(self.stream, start)
        entry = await self._reads.find_time(self.stream, start, greatest if greatest >= 0 else _ANY_TIME)
        if entry is None:
            return None
        found = await self._search(entry.data, partial(max_timestamp_record, entry.data))
        if found is None or found[1] < _NO_TIMESTAMP:
            return None
        return (*found, read_header(entry.data).leader_epoch)

    async def _search(self, batch: memoryview, look: _Search) -> tuple[int, int] | None:
        try:
            return await self._preparer.search(batch, lambda bound: look(inflated_bytes_max=bound))
        except BatchError as error:  # stored with topics.validate_records=header
            self._report_damage(error)
            raise KafkaError(ErrorCode.CORRUPT_MESSAGE, str(error)) from error

    async def delete_records(self, offset: int) -> int:
        """Move the log start to ``offset`` (-1: the high watermark), durably; returns the log start offset.

        An unavailable partition comes back if what is left of it is whole.
        """
        target = self.stream.confirmed_offset if offset == -1 else offset
        if self._closed or target < 0 or target > self.stream.confirmed_offset:
            self._check_offset(target)
            raise KafkaError(ErrorCode.OFFSET_OUT_OF_RANGE)
        if target > self.stream.start_offset:
            await self._trim(target)
            if self.stream.start_offset < target:  # deleted meanwhile
                raise KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "the partition is closed on this broker")
        if self.unavailable is not None:
            await self._mender.mend()
        return self.stream.start_offset

    async def _trim(self, start: int) -> None:
        """Move the log start to ``start`` once its producers' state is uploaded; what was begun goes on if cancelled.

        That may take long, and clients ask again: one trim at a time goes as far as anybody wanted when it began, who
        comes later waits for its end. So there is also one snapshot at a time, of maybe two megabytes, however often
        a record is produced and deleted.
        """
        while self.stream.start_offset < start and not self._closed:
            self._wanted_start = max(self._wanted_start, start)
            ended = self._trim_ended
            if ended is not None:
                await ended.wait()
                continue
            ended = self._trim_ended = anyio.Event()
            try:
                await self._engine.finish(partial(self._trim_as_wanted, ended))
            except PenstockError:
                self._end_trim(ended)  # it may not even have begun
                raise
            return  # the log starts there, unless its stream is gone

    async def _trim_as_wanted(self, ended: anyio.Event) -> None:
        start = self._wanted_start
        try:
            await self.save_producers(start)
            await self._snapshots.upload(start)
            await self._engine.trim([(self.stream.stream_id, start)])
        finally:
            self._end_trim(ended)

    def _end_trim(self, ended: anyio.Event) -> None:
        if self._trim_ended is ended:
            self._trim_ended = None
            self._wanted_start = 0  # only those want more who are here to try again
        ended.set()

    def end_offset_for_epoch(self, epoch: int) -> tuple[int, int]:
        """(greatest leader epoch <= ``epoch``, the offset where it ended) (KIP-320).

        For an epoch before all that are known it is (``epoch``, the start of the first one); (-1, -1) for one that
        is still to come.
        """
        state = self._engine.metadata.image.streams.get(self.stream.stream_id)
        epochs = state.leader_epochs if state is not None else []
        if not epochs or epoch == _NO_EPOCH or epoch > epochs[-1][0]:
            return -1, -1
        end = self.stream.confirmed_offset
        for known, start in reversed(epochs):
            if known <= epoch:
                return known, end
            if start <= self.log_start_offset:
                return epoch, self.log_start_offset  # as if what ended before the log begins had never been
            end = start
        return epoch, epochs[0][1]

    def leader_epoch_at(self, offset: int) -> int:
        """The leader epoch that a record at ``offset`` has, or would have."""
        state = self._engine.metadata.image.streams.get(self.stream.stream_id)
        epochs = state.leader_epochs if state is not None else []
        return next((epoch for epoch, start in reversed(epochs) if start <= offset), self.leader_epoch)

    # -- life ------------------------------------------------------------------------------------------------

    async def load(self, now_ms: int) -> None:
        """Rebuild the producers' state before any append; the partition is unavailable if that meets damage.

        Raises UnavailableError.
        """
        await self._mender.load(now_ms)

    async def take_offline(self, error: PenstockError, damaged_from: int | None) -> None:
        """Serve nothing from here on: what the partition, or its owner, must know is damaged or missing.

        ``damaged_from`` is an offset before the damage; None if it is the snapshot of the producers' state.
        Raises UnavailableError.
        """
        await self._mender.take_offline(error, damaged_from)

    def set_unavailable(self, reason: str | None) -> None:
        """Serve nothing, for this reason; None: serve again."""
        self.unavailable = reason
        self._bus.publish(
            AvailabilityChanged(topic_id=self.topic_id, partition=self.index, available=reason is None)
        )

    def snapshot_producers(self, now_ms: int) -> None:
        """Append a snapshot of the producers' state to the state stream, if anything changed since the last."""
        self._snapshots.write_if_due(now_ms, self._appended_bytes)

    async def save_producers(self, start: int) -> None:
        """Snapshot the producers' state, durably, if a log that starts at ``start`` couldn't give it back.

        Raises the WAL's error; waits while there is no room.
        """
        await self._snapshots.save(start, self._appended_bytes)

    def trim_limit(self, start: int) -> int:
        """How far towards ``start`` the log may be trimmed now: a WAL that is lost takes what it alone held."""
        return self._snapshots.trim_limit(start)

    def expired_offset(self, now_ms: int) -> int:
        """The log start that retention asks for (``retention.ms``, ``retention.bytes``); the present one if none."""
        config = self.config
        start = self.stream.start_offset
        if self.unavailable is not None or (config.retention_ms < 0 and config.retention_bytes < 0):
            return start
        # adding up is for those who have a limit: most partitions are decided on by their oldest range
        total = self._reads.size_bytes(self.stream) if config.retention_bytes >= 0 else 0
        for end, size, time_ms in self._reads.ranges(self.stream):
            too_old = config.retention_ms >= 0 and 0 <= time_ms < now_ms - config.retention_ms
            too_much = config.retention_bytes >= 0 and total - size >= config.retention_bytes
            if not (too_old or too_much):
                break
            start = max(start, end)
            total -= size
        return start

    def close(self) -> None:
        """Nothing is appended or read any more; parked fetches are woken. Appends on their way still end."""
        self._closed = True
        self._is_open = False
        self._snapshots.close()
        self.producers.release()
        self._listeners.tell()
