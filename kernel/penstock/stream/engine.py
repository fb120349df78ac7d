"""The stream engine: appends of all streams go through one WAL into the log cache, and from there into objects.

Life: ``async with StreamEngine.open(...)`` recovers the WAL (replay -> upload -> commit -> trim), then streams are
opened, appended to, read (``reads``) and trimmed. ``drain`` uploads what is left and trims the WAL; without it, what
is left when the context ends is for the next recovery.

Back-pressure, at three points: ``append`` raises FullError when too much is in flight, when the WAL is at its
capacity, or when memory is short (the caller waits with :meth:`StreamEngine.wait_for_room` and tries again);
memory pressure evicts caches and forces uploads; fetches charge what they send.
"""

from __future__ import annotations

__all__ = ("EngineSettings", "EngineStatistics", "StreamEngine")

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import repeat, starmap
from operator import itemgetter
from typing import Annotated, TypeAlias

import anyio
from anyio.abc import TaskGroup

from penstock.bus import EventBus
from penstock.checksum import checksum, combine
from penstock.errors import (
    ClosedError,
    FencedError,
    FullError,
    InvariantError,
    UnavailableError,
    again,
    kept,
)
from penstock.metadata.commands import Command
from penstock.metadata.commands.streams import OpenStreams, TrimStreams
from penstock.metadata.service import MetadataService
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.block_cache import BlockCache
from penstock.spi.events import RecoveryFinished, UploadCommitted, WalDegraded, WalRestored
from penstock.spi.log_cache import LogCache, LogCacheBlock, StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.statistics import counter, gauge
from penstock.spi.traffic import Traffic
from penstock.spi.wal import WalAppend, WalStatistics, WriteAheadLog
from penstock.stream.events import BlockUploaded
from penstock.stream.lifecycle import ObjectLifecycle
from penstock.stream.marks import MetadataMarks, index_to_mark
from penstock.stream.object_puts import UploadSettings
from penstock.stream.open_stream import Stream
from penstock.stream.orphans import OrphanStatistics, OrphanSweeper
from penstock.stream.reader import ColdReader, ReaderSettings, ReaderStatistics
from penstock.stream.reads import StreamReads
from penstock.stream.recovery import ENTRY_OVERHEAD_BYTES, recover_wal
from penstock.stream.uploader import Uploader, UploaderStatistics
from penstock.work.finish import Finisher
from penstock.work.periodic import Jobs, JobsStatistics, PeriodicJob
from penstock.work.pieces import pieces
from penstock.work.room import Room
from penstock.work.traffic import view_of

logger = logging.getLogger("penstock.stream")

#: What an append costs beside its payload until it is durable: the request, its response, what waits for the WAL.
#: Measured with requests of 1 KiB; it counts against the bytes in flight.
IN_FLIGHT_OVERHEAD_BYTES = 3072
#: Overhead is charged for this many entries at once: charging each would cost more than the entry.
OVERHEAD_ENTRIES = 256
#: Streams that one metadata command names at most: folding it holds up everybody, some milliseconds at most.
STREAMS_PER_COMMAND = 1000
#: Trims that wait for the metadata log at most: each holds a task, and those who asked may be gone.
TRIMS_MAX = 100_000
#: So often the WAL is asked whether it still works while nothing is appended.
WAL_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Sizes in bytes, times in ms."""

    upload_bytes: int
    upload_interval_ms: int
    in_flight_bytes_max: int
    lifecycle_interval_ms: int
    delete_delay_ms: int
    orphan_sweep_interval_ms: int
    orphan_grace_ms: int
    upload: UploadSettings
    reader: ReaderSettings
    #: How long the engine goes on to upload once the WAL has ended.
    last_upload_ms: int = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """A snapshot."""

    open_streams: Annotated[int, gauge("streams", "Streams that this broker owns.")]
    in_flight_bytes: Annotated[int, gauge("bytes", "What appends hold that wait for the WAL.")]
    appended_entries: Annotated[int, counter("entries", "Entries handed to the WAL.")]
    appended_bytes: Annotated[int, counter("bytes", "Their payload.")]
    append_failures: Annotated[int, counter("entries", "Entries that the WAL could not make durable.")]
    uploader: UploaderStatistics
    reader: ReaderStatistics
    orphans: OrphanStatistics
    jobs: JobsStatistics


class _WithOverhead:
    """The charge of an entry, and that of the overhead of some entries before it."""

    __slots__ = ("_charges", "size")

    def __init__(self, *charges: Charge) -> None:
        self._charges = charges
        self.size = sum(charge.size for charge in charges)

    def release(self) -> None:
        for charge in self._charges:
            charge.release()


#: An append that waits for the WAL: its stream, the stream's generation then, who wants to know how it ends, and what
#: it takes of the bytes in flight.
_Flying: TypeAlias = tuple[Stream, StreamEntry, int, Callable[[Exception | None], None], int]
_cost_of = itemgetter(4)


class StreamEngine:
    """See the module's docstring. All calls come from the event loop's thread."""

    def __init__(
        self,
        *,
        metadata: MetadataService,
        store: ObjectStore,
        wal: WriteAheadLog,
        log_cache: LogCache,
        block_cache: BlockCache,
        allocator: Allocator,
        settings: EngineSettings,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        tasks: TaskGroup,
        bus: EventBus,
    ) -> None:
        self.metadata = metadata
        self.allocator = allocator
        self._wal = wal
        self._log_cache = log_cache
        self._block_cache = block_cache
        self._settings = settings
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._streams: dict[int, Stream] = {}
        self._upload_bytes = settings.upload_bytes
        self._in_flight_bytes_max = settings.in_flight_bytes_max
        #: In the order of the WAL; and their payload, with what each costs beside it.
        self._flying: deque[_Flying] = deque()
        self._in_flight_bytes = 0
        #: Appends that the WAL answered, and their payload.
        self._ended_entries = 0
        self._ended_bytes = 0
        self._append_failures = 0
        self._complete = self._completed  # one object, by which the WAL knows that appends belong together
        self._tasks = tasks
        self._bus = bus
        #: WAL position after the newest entry that is in the log cache, or of a deleted stream.
        self._stored_end = 0
        #: Up to where the WAL was trimmed when last there was nothing left to upload.
        self._trimmed_end = 0
        self._wal_degraded = False
        self._uncharged_entries = 0
        self._wal_full = False
        #: Trims of what is dead that run, or are about to.
        self._trims_of_dead = 0
        self._closing = False
        #: Nothing is appended any more; what is in the log cache may still be on its way to the store.
        self._drained = False
        self._fatal: Exception | None = None
        self._died = anyio.Event()
        self._room = Room()
        self._finisher = Finisher(
            tasks,
            waiting_max=TRIMS_MAX,
            full="too many trims wait for the metadata log, is its store down?",
            stopped="the broker stopped before the trim was written",
        )
        self._marks = MetadataMarks(
            wal,
            metadata.image.cluster_id,
            node_epoch=node_epoch,
            now_ms=now_ms,
            told=metadata.witnessed,
            full=self._make_room,
        )
        self._uploader = Uploader[LogCacheBlock](
            metadata,
            view_of(store, Traffic.UPLOAD),
            settings.upload,
            node_id=node_id,
            node_epoch=node_epoch,
            now_ms=now_ms,
            let_go=self._let_go,
            committed=self._upload_committed,
            intake=self._intake,
        )
        self._reader = ColdReader(metadata.image, store, block_cache, settings.reader, tasks)
        #: Everything that reads streams.
        self.reads = StreamReads(metadata.image, log_cache, self._reader, self._streams)
        self._lifecycle = ObjectLifecycle(
            metadata,
            view_of(store, Traffic.COMPACTION),
            block_cache,
            now_ms=now_ms,
            interval_ms=settings.lifecycle_interval_ms,
            delete_delay_ms=settings.delete_delay_ms,
            prepare_deadline_ms=settings.upload.prepare_deadline_ms,
            bus=bus,
        )
        self._orphans = OrphanSweeper(
            metadata,
            view_of(store, Traffic.COMPACTION),
            now_ms=now_ms,
            interval_ms=settings.orphan_sweep_interval_ms,
            grace_ms=settings.orphan_grace_ms,
            bus=bus,
        )
        self._jobs = Jobs(
            self._lifecycle.job,
            self._orphans.job,
            PeriodicJob("upload", self._freeze, settings.upload_interval_ms / 1000, logger=logger),
            # its contract has no call that tells, so a WAL to which nothing is appended is asked
            PeriodicJob("look at the WAL", lambda: self._look_at_wal(None), WAL_LOOK_S, logger=logger),
        )
        allocator.add_pressure_listener(self._relieve)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        *,
        metadata: MetadataService,
        store: ObjectStore,
        wal: WriteAheadLog,
        log_cache: LogCache,
        block_cache: BlockCache,
        allocator: Allocator,
        settings: EngineSettings,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        bus: EventBus,
    ) -> AsyncIterator[StreamEngine]:
        """Recover the WAL and run until the context is left.

        Published on ``bus``: RecoveryFinished, BlockUploaded, ObjectsDestroyed, WalDegraded, WalRestored.
        Raises CorruptError if acknowledged data are missing (I10), FencedError if a newer process took over.
        """
        async with anyio.create_task_group() as tasks:
            engine = cls(
                metadata=metadata,
                store=store,
                wal=wal,
                log_cache=log_cache,
                block_cache=block_cache,
                allocator=allocator,
                settings=settings,
                node_id=node_id,
                node_epoch=node_epoch,
                now_ms=now_ms,
                tasks=tasks,
                bus=bus,
            )
            bus.publish(await engine._recover(store, now_ms))
            # before anybody else may wait for memory: what is pending must become evictable
            tasks.start_soon(engine._uploader.run)
            engine._jobs.start(tasks)
            tasks.start_soon(engine._end_when_wal_ended)
            try:
                yield engine
            finally:
                metadata.set_witness(None)
                engine._closing = True
                engine._take_nothing_more()
                engine._room.wake()
                tasks.cancel_scope.cancel()

    # -- streams ---------------------------------------------------------------------------------------------

    async def open_streams(self, stream_ids: Sequence[int]) -> list[Stream]:
        """Become the owner of these streams, with few metadata entries, and open them; deleted ones are left out."""
        await self.own_streams(stream_ids)
        for stream_id in stream_ids:
            self._streams.pop(stream_id, None)
        return [s for s in map(self.attach_stream, stream_ids) if s is not None]

    async def own_streams(self, stream_ids: Sequence[int]) -> None:
        """Become the owner of these streams, with few metadata entries; deleted ones are passed over."""
        commands: list[Command] = [
            OpenStreams(self._node_id, self._node_epoch, list(chunk))
            for chunk in pieces(stream_ids, STREAMS_PER_COMMAND)
        ]
        for result in await self.metadata.submit_many(commands):
            if isinstance(result, Exception):
                raise again(result)

    def attach_stream(self, stream_id: int) -> Stream | None:
        """The stream, opened if it isn't; None if it was deleted. This node must own it, as metadata say."""
        state = self.metadata.image.streams.get(stream_id)
        if state is None:
            return None
        stream = self._streams.get(stream_id)
        if stream is None:
            end = max(state.start, state.end)
            stream = Stream(stream_id, state.epoch, state.leader_epoch, state.start, end)
            self._streams[stream_id] = stream
        return stream

    def is_open(self, stream_id: int) -> bool:
        """Whether the stream was opened in this life, and not deleted since."""
        return stream_id in self._streams

    def forget_streams(self, stream_ids: Sequence[int]) -> None:
        """The streams were deleted: drop what memory holds of them."""
        for stream_id in stream_ids:
            stream = self._streams.pop(stream_id, None)
            if stream is not None:
                stream.is_forgotten = True
            self._log_cache.drop_stream(stream_id)

    async def trim_streams(self, starts: Sequence[tuple[int, int]]) -> None:
        """Move starts forward, durably: (stream id, new start offset). Offsets below are never read again.

        A cancelled call takes effect nevertheless: streams must start where metadata says that they do.
        """
        await self.finish(lambda: self.trim(starts))

    async def finish(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work``, which trims streams, to its end, also if this call is cancelled.

        Raises what it raises; ClosedError, UnavailableError if it isn't begun, or the engine ends before it.
        """
        if self._closing:
            raise ClosedError("the broker is stopping")
        await self._finisher.finish(work)

    async def trim(self, starts: Sequence[tuple[int, int]]) -> None:
        """Trim streams like ``trim_streams``, within what is finished."""
        for chunk in pieces(starts, STREAMS_PER_COMMAND):
            await self.metadata.submit(TrimStreams(self._node_id, self._node_epoch, list(chunk)))
            for stream_id, start in chunk:
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.start_offset = max(stream.start_offset, start)

    # -- append ----------------------------------------------------------------------------------------------

    def append(
        self,
        stream: Stream,
        count: int,
        time_ms: int,
        data: memoryview,
        charge: Charge | None,
        on_done: Callable[[Exception | None], None],
        data_checksum: int | None = None,
    ) -> None:
        """Append ``count`` offsets whose payload is ``data``; the call fixes their order.

        ``on_done(error)`` is called once, in order, when the payload is durable (or never will be). ``data`` must not
        change any more; its memory, and ``charge``, belong to the engine if the call returns. ``data_checksum`` is
        its CRC-32C, if that is known.
        Raises FullError (nothing changed: wait for room, try again), ClosedError, FencedError.
        """
        if self._in_flight_bytes >= self._in_flight_bytes_max:
            if self._drained:
                raise ClosedError("the broker is stopping")
            raise FullError(f"too many bytes wait for the WAL: in_flight={self._in_flight_bytes}")
        base = stream.next_offset
        end = base + count
        size = len(data)
        header = stream.pack_header(base, end, time_ms)
        entry_checksum = None
        if data_checksum is not None:
            entry_checksum = combine(checksum(header), data_checksum, size)
        try:
            append = self._wal.append((header, data), entry_checksum)
        except FullError:
            self._make_room()
            raise
        except FencedError as error:
            self._die(kept(error))
            raise
        except ClosedError as error:
            self._look_at_wal(error)
            self._die(UnavailableError(f"the wal takes nothing any more, restart the broker: cause={error}"))
            raise
        entry = StreamEntry(
            stream.stream_id, base, end, time_ms, data, charge, append.next_position, data_checksum
        )
        stream.next_offset = end
        cost = size + IN_FLIGHT_OVERHEAD_BYTES
        self._in_flight_bytes += cost
        self._flying.append((stream, entry, stream.generation, on_done, cost))
        append.set_run_callback(self._complete)

    def _completed(self, appends: Sequence[WalAppend], error: Exception | None) -> None:
        """The WAL is done with ``appends``, the oldest in flight, which all end alike.

        For each of them, in this order: the log cache takes the entry, readers may have it (the high watermark
        moves), who appended it is told. What doesn't differ from one to the other is done once for all of them.
        """
        count = len(appends)
        take = self._flying.popleft
        # all at once: who is told may append, and an append may complete at once. In C if there are many; a lone
        # request must not pay for that
        run = (take(),) if count == 1 else tuple(starmap(take, repeat((), count)))
        newest = run[-1]
        assert newest[1].wal_position == appends[-1].next_position, "the WAL completes in order"
        cost = newest[4] if count == 1 else sum(map(_cost_of, run))
        self._in_flight_bytes -= cost
        self._ended_entries += count
        self._ended_bytes += cost - count * IN_FLIGHT_OVERHEAD_BYTES
        first_error = self._store(run) if error is None else self._fail(run, error)
        if self._room.waiters:
            self._made_progress()
        if first_error is not None:
            raise again(first_error)

    def _store(self, run: Sequence[_Flying]) -> Exception | None:
        """The entries are durable. The first error that was raised by who was told."""
        if self._append_failures:
            run = self._without_holes(run)
            if not run:
                return None
        # The WAL works: whoever waits tries again, and if it is full still, what came since is uploaded.
        self._wal_full = False
        self._uncharged_entries += len(run)
        cache, is_closing = self._log_cache, self._closing
        put = cache.put
        newest: StreamEntry | None = None
        first_error: Exception | None = None
        for stream, entry, _, on_done, _ in run:
            if stream.is_forgotten or is_closing:
                # it was deleted while the append was on its way; or the engine ended, and recovery finds the entry
                self._uncharged_entries -= 1
                if entry.charge is not None:
                    entry.charge.release()
            else:
                put(entry)
                newest = entry
            stream.confirmed_offset = entry.next_offset
            try:
                on_done(None)
            except Exception as raised:  # noqa: BLE001 - the others are told before it is raised
                first_error = first_error or kept(raised)
        # not before: who is told may append, find the WAL full, and have all up to here trimmed
        self._stored_end = run[-1][1].wal_position
        if newest is not None and self._uncharged_entries >= OVERHEAD_ENTRIES:
            self._charge_overhead(newest)
        if cache.active_bytes >= self._upload_bytes:
            self._freeze()
        return first_error

    def _without_holes(self, run: Sequence[_Flying]) -> Sequence[_Flying]:
        """The entries that follow what their streams acknowledged: by its contract, all that a WAL makes durable.

        A WAL that does otherwise ends the broker. Who appended the others is told that they failed.
        """
        holed = [flying for flying in run if flying[2] != flying[0].generation]
        if not holed:
            return run
        error = InvariantError(
            f"the WAL acknowledged an append after one that failed, which was made before that error was told; mend "
            f"its plugin: wal={self._wal.location} position={holed[0][1].wal_position}"
        )
        self._die(error)
        first_error = self._fail(holed, UnavailableError(str(error)))
        if first_error is not None:
            logger.error("who was told that an append failed raised an error", exc_info=first_error)
        return [flying for flying in run if flying[2] == flying[0].generation]

    def _fail(self, run: Sequence[_Flying], error: Exception) -> Exception | None:
        """The entries will never be acknowledged. The first error that was raised by who was told."""
        self._append_failures += len(run)
        self._look_at_wal(error)
        first_error: Exception | None = None
        for stream, entry, generation, on_done, _ in run:
            if generation == stream.generation:
                # later appends of this stream fail too: offsets start again after the last durable one
                stream.generation += 1
                stream.next_offset = stream.confirmed_offset
                if stream.on_reset is not None:
                    try:
                        stream.on_reset(stream.confirmed_offset)
                    except Exception as raised:  # noqa: BLE001 - as below
                        first_error = first_error or kept(raised)
            if entry.charge is not None:
                entry.charge.release()
            try:
                on_done(again(error))
            except Exception as raised:  # noqa: BLE001 - the others are told before it is raised
                first_error = first_error or kept(raised)
        return first_error

    @property
    def takes_appends(self) -> bool:
        """False from when the WAL has ended, or everything is drained: then each append is refused, for good."""
        return self._fatal is None and not self._drained

    async def wait_for_room(self, size: int) -> None:
        """Return when an append of ``size`` bytes that got FullError is worth another try.

        ``size`` is what the append itself allocates: 0 when it brings its memory. Raises ClosedError when the
        engine stops.
        """
        if size:
            (await self.allocator.charge(size, "append")).release()
        if self._closing:
            raise ClosedError("the broker is stopping")
        if self._wal_full or (self._in_flight_bytes >= self._in_flight_bytes_max and not self._drained):
            await self._room.wait()
            if self._closing:
                raise ClosedError("the broker is stopping")
        else:
            await anyio.lowlevel.checkpoint()

    def _die(self, error: Exception) -> None:
        """The WAL will take nothing more: without it there is no durability, so the broker ends."""
        if self._fatal is None:
            self._fatal = error
            self._died.set()

    def _look_at_wal(self, error: Exception | None) -> None:
        """End if the WAL has ended; ``error`` is what an append was told, if there was one."""
        if self._fatal is not None:
            return
        if isinstance(error, FencedError):
            self._die(kept(error))
            return
        statistics = self._wal.statistics()
        if statistics.state == "fenced":
            self._die(FencedError(statistics.last_error or f"the wal is fenced: wal={self._wal.location}"))
        elif statistics.state == "failed":
            reason = statistics.last_error or f"the wal failed, restart the broker: wal={self._wal.location}"
            self._die(UnavailableError(reason))
        elif (statistics.state == "degraded") != self._wal_degraded:
            self._tell_degraded(statistics)

    def _tell_degraded(self, statistics: WalStatistics) -> None:
        """The WAL does with less than its settings promise, or no longer."""
        self._wal_degraded = statistics.state == "degraded"
        place, domain = self._wal.location, self._wal.capabilities.durability_domain
        if self._wal_degraded:
            logger.warning("the wal is degraded: %s", statistics.last_error)
            self._bus.publish(
                WalDegraded(location=place, durability_domain=domain, reason=statistics.last_error)
            )
        else:
            logger.info("the wal is whole again: wal=%s", place)
            self._bus.publish(WalRestored(location=place, durability_domain=domain))

    async def _end_when_wal_ended(self) -> None:
        await self._died.wait()
        assert self._fatal is not None
        if not isinstance(self._fatal, FencedError):
            await self._upload_the_rest()
        raise again(self._fatal)

    async def _upload_the_rest(self) -> None:
        """Upload what was acknowledged from memory: nobody knows whether a WAL that failed gives it back."""
        self._freeze()
        logger.error(
            "the wal has ended, and the broker ends when what it acknowledged is uploaded: bytes=%d wal=%s",
            self.unuploaded_bytes(),
            self._wal.location,
        )
        with anyio.move_on_after(self._settings.last_upload_ms / 1000):
            # what went to the medium before the failure ends by itself, and is acknowledged if it got there
            while self._in_flight_bytes:
                await self._room.wait()
            self._freeze()
            await self._uploader.wait_idle()
        left = self.unuploaded_bytes()
        if left:
            logger.error(
                "not all of it could be uploaded, the rest is only in the wal that has ended: bytes=%d wal=%s",
                left,
                self._wal.location,
            )
        else:
            logger.info("everything acknowledged is uploaded")

    def _made_progress(self) -> None:
        # with nothing in flight there is no completion left that could wake anybody later
        if self._room.waiters and (not self._wal_full or not self._in_flight_bytes):
            self._room.wake()

    def _charge_overhead(self, entry: StreamEntry) -> None:
        try:
            overhead = self.allocator.charge_nowait(self._uncharged_entries * ENTRY_OVERHEAD_BYTES, "entries")
        except FullError:
            return  # durable already, so it can't be refused: charged with one of the next entries
        self._uncharged_entries = 0
        entry.charge = overhead if entry.charge is None else _WithOverhead(entry.charge, overhead)

    # -- upload ----------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """The WAL is full: get on its way what fills it."""
        self._wal_full = True
        self._freeze()
        self._uploader.hurry()

    def _freeze(self) -> None:
        if self._closing:
            return  # memory may still be short; what isn't uploaded is recovered
        block = self._log_cache.freeze()
        if block is not None:
            self._uploader.submit(block)
        elif self._wal_full and not self._uploader.pending_blocks and not self._trims_of_dead:
            # what fills the WAL is of deleted streams, or marks: nothing to upload, only to trim. Up to where it ends
            # now: before the task runs, more may become durable that is not dead (I4)
            self._trims_of_dead += 1
            self._tasks.start_soon(self._trim_dead, max(self._stored_end, self._marks.durable_end()))

    async def _trim_dead(self, position: int) -> None:
        try:
            await self._marks.trim(position)
        except UnavailableError as error:
            logger.warning("the WAL wasn't trimmed, the next upload does it: %s", error)
            return
        finally:
            self._trims_of_dead -= 1
        self._trimmed_end = max(self._trimmed_end, position)
        self._wal_full = False
        self._made_progress()

    def begin_upload(self) -> None:
        """Begin to upload what is durable now, at twice the usual pace, without waiting for its size or age."""
        self._freeze()
        self._uploader.quicken()

    def durable_end(self, stream_id: int) -> int | None:
        """The offset up to which the stream is durable; None if this broker doesn't own it."""
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.confirmed_offset

    def uploaded_end(self, stream_id: int) -> int:
        """The offset up to which the stream is uploaded and committed, whether its records are still there or not."""
        state = self.metadata.image.streams.get(stream_id)
        return 0 if state is None else state.end

    def uploading_end(self, stream_id: int) -> int:
        """The offset up to which the stream is uploaded, or may be before a trim that is asked for now is written."""
        return max(self.uploaded_end(stream_id), self._uploader.pending_end(stream_id))

    async def upload_to(self, stream: Stream, offset: int) -> None:
        """Return when the stream is uploaded up to ``offset``, which is durable, or trimmed or deleted.

        Many who ask at once are served by the same uploads, of which one at a time is begun for their sake, and with
        a pause where these become many. Raises ClosedError if the engine ends before that.
        """
        streams = self.metadata.image.streams
        while (state := streams.get(stream.stream_id)) is not None and max(state.start, state.end) < offset:
            if not self._uploader.pending_blocks:
                if not self._closing and not await self._uploader.may_be_asked():
                    continue
                self._freeze()
            if not self._uploader.pending_blocks:
                raise ClosedError("the broker is stopping, the WAL has what isn't uploaded")
            await self._uploader.wait_commit()

    async def flush(self) -> None:
        """Upload and commit everything that is durable now."""
        self._freeze()
        await self._uploader.wait_idle()
        if not self._log_cache.active_bytes and not self._in_flight_bytes:
            self._trims_of_dead += 1
            await self._trim_dead(self._stored_end)

    def _finish(self) -> bool:
        """Take nothing more, if the WAL holds nothing any more that isn't uploaded and trimmed."""
        if (
            self._in_flight_bytes
            or self._log_cache.active_bytes
            or self._uploader.pending_blocks
            or self._trimmed_end < self._stored_end
        ):
            return False
        self._take_nothing_more()
        return True

    def _take_nothing_more(self) -> None:
        self._drained = True
        self._in_flight_bytes_max = 0  # all that an append looks at

    def unuploaded_bytes(self) -> int:
        """Payload that is durable in the WAL only."""
        return self._log_cache.active_bytes + self._uploader.statistics().pending_bytes

    async def drain(self) -> bool:
        """Wait for the WAL to answer every append, then upload, commit and trim everything; at a clean stop.

        Returns whether that was all: then nothing is taken any more, and nothing is in the WAL only.
        """
        while self._in_flight_bytes:
            await self._room.wait()
        await self.flush()
        return self._finish()

    async def _let_go(self, block: LogCacheBlock) -> None:
        """The block is committed: trim the WAL (I4: only now), then the log cache may evict it."""
        await self._uploader.retry("WAL trim", lambda: self._trim_uploaded(block.wal_end))
        self._log_cache.mark_uploaded(block)

    async def _trim_uploaded(self, position: int) -> None:
        # a WAL that has ended needs no room; whoever opens it next passes over what is committed
        if self._wal.statistics().state != "failed":
            await self._marks.trim(position)

    def _intake(self) -> tuple[int, float]:
        """For the pace of uploads: bytes that came in so far, and what presses: blocks that wait for their turn."""
        return self._ended_bytes, max(0, self._uploader.pending_blocks - 1)

    def _upload_committed(self, event: UploadCommitted, block: LogCacheBlock) -> None:
        self._wal_full = False
        self._made_progress()
        self._bus.publish(BlockUploaded(event=event, block=block))

    def _relieve(self, bytes_wanted: int) -> int:
        """Memory is short: evict what may go; if that isn't enough, get data that may not on its way. Bytes freed."""
        freed = self._log_cache.evict(bytes_wanted)
        if freed < bytes_wanted:
            freed += self._block_cache.evict(bytes_wanted - freed)
        if freed < bytes_wanted and (
            self._uploader.pending_blocks == 0
            or self._log_cache.active_bytes > self._settings.upload_bytes // 4
        ):
            self._freeze()
        if freed < bytes_wanted:
            self._uploader.hurry()
        return freed

    @property
    def appends_wait(self) -> bool:
        """Whether appends wait for the WAL."""
        return self._in_flight_bytes > 0

    def statistics(self) -> EngineStatistics:
        """A snapshot of the state."""
        flying_bytes = self._in_flight_bytes - len(self._flying) * IN_FLIGHT_OVERHEAD_BYTES
        return EngineStatistics(
            open_streams=len(self._streams),
            in_flight_bytes=self._in_flight_bytes,
            appended_entries=self._ended_entries + len(self._flying),
            appended_bytes=self._ended_bytes + flying_bytes,
            append_failures=self._append_failures,
            uploader=self._uploader.statistics(),
            reader=self._reader.statistics(),
            orphans=self._orphans.statistics(),
            jobs=self._jobs.statistics(),
        )

    # -- recovery --------------------------------------------------------------------------------------------

    async def _recover(self, store: ObjectStore, now_ms: Callable[[], int]) -> RecoveryFinished:
        """Upload what only the WAL holds, and trim it."""
        recovered = await recover_wal(
            self._wal,
            node_id=self._node_id,
            node_epoch=self._node_epoch,
            metadata=self.metadata,
            store=view_of(store, Traffic.UPLOAD),
            allocator=self.allocator,
            marks=self._marks,
            block_bytes=self._settings.upload_bytes,
            settings=self._settings.upload,
            now_ms=now_ms,
        )
        # from here on no command is told to have succeeded before the WAL says how far metadata got
        self.metadata.set_witness(self._marks.mark, self._marks.durable_end)
        self._marks.mark(index_to_mark(self.metadata.image, self._node_id, self._node_epoch))
        return RecoveryFinished(
            entries=recovered.entries,
            recovered_bytes=recovered.payload_bytes,
            skipped_entries=recovered.skipped_entries,
            duration_ms=recovered.duration_ms,
        )
