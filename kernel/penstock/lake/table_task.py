"""One topic's table: claimed, opened, fed and committed by one task, for as long as this broker owns it."""

from __future__ import annotations

__all__ = ("LakeSettings", "Surroundings", "TableTask", "Wanted")

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

import anyio

from penstock.errors import (
    ClosedError,
    ConflictError,
    CorruptError,
    FencedError,
    FullError,
    NotFoundError,
    PenstockError,
)
from penstock.lake.columns import decode_entries, no_records
from penstock.lake.configs import TableConfigs
from penstock.lake.memory import StepMemory, StepRoom
from penstock.lake.source import LakeSource
from penstock.lake.states import LakeState
from penstock.lake.statistics import LakeTableStatistics
from penstock.lake.turns import Turns
from penstock.metadata.commands.lake import REASON_LENGTH_MAX, ClaimLake, SetLakeMaintained, SetLakeState
from penstock.metadata.service import MetadataService
from penstock.metadata.streams import StreamState
from penstock.metadata.topics import LakeMaintained, TopicState
from penstock.spi.allocator import Allocator, Charge
from penstock.spi.lake import LakeCompactor, LakeRecords, LakeTable, LakeTopic, one_line
from penstock.threads import run_in_thread
from penstock.wire.record_batch import BatchError
from penstock.work.retry import Backoff, doubling

logger = logging.getLogger("penstock.lake")

#: How long a commit waits for what was durable before it to be uploaded; what comes later is in the next one.
UPLOAD_WAIT_S = 5.0
#: Memory is asked for again after so long: a large request that waited in the allocator's queue would hold up those
#: of producers behind it.
_MEMORY_PAUSES_S = doubling(0.05, 1.0)

#: Said of a table that was taken away although nobody in this cluster claimed it.
_STRANGER = (
    "no broker of this cluster took it over, perhaps one that runs from a copy of this broker's data directory did: "
    "end one of the two"
)


class _GapError(PenstockError):
    """Records were deleted before they were in the table, and the topic says to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeSettings:
    """What the broker's configuration says."""

    #: Of one topic at work.
    memory_bytes: int
    concurrency: int
    bandwidth: int
    retry_min_s: float
    retry_max_s: float
    #: 0: never.
    maintenance_interval_s: float
    stop_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all tasks of a broker share."""

    metadata: MetadataService
    compactor: LakeCompactor
    #: At most so much goes into one ``write``.
    batch_bytes: int
    source: LakeSource
    allocator: Allocator
    #: ``LakeSettings.memory_bytes`` for each topic at work.
    memory: StepMemory
    settings: LakeSettings
    node_id: int
    node_epoch: int
    #: ``StreamEngine.begin_upload`` and ``StreamEngine.durable_end``.
    begin_upload: Callable[[], None]
    durable_end: Callable[[int], int | None]
    clock: Callable[[], float]
    #: Wall clock, in milliseconds: what is in metadata was written in another life, or on another host.
    now_ms: Callable[[], int]
    random: Random
    #: Topics at work.
    limiter: anyio.CapacityLimiter
    #: Whose table is maintained: it can take long, and mustn't keep records of other topics from their tables.
    maintenance_turns: Turns
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the topic wants now; the table is opened again when its part for the compactor changes."""

    topic: LakeTopic
    configs: TableConfigs


class TableTask:
    """See the module. ``run`` is the task; everything else is called from the event loop beside it."""

    def __init__(self, around: Surroundings, state: TopicState, wanted: Wanted) -> None:
        self._around = around
        self._topic_id = state.topic_id
        self._name = self.topic_name = state.name
        self.wanted = wanted
        self._news = anyio.Event()
        self._stopping = False
        self.stopped = anyio.Event()
        self._state = LakeState.OPENING
        self._reason = ""
        self._told: tuple[str, str] = ("", "")
        self._epoch = 0
        self._table_name = ""
        #: Of the newest commit, and of what is written since.
        self._committed: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self._written_bytes = 0
        #: The compactor would rather commit now.
        self._is_full = False
        #: When the table had everything that was durable, by partition.
        self._whole_at: dict[int, float] = {}
        #: When maintenance began last; None: not known before the topic is claimed.
        self._maintained_at: float | None = None
        #: Maintenance is under way, which a stop doesn't wait for.
        self.is_maintaining = False
        #: The greatest request for maintenance that was answered.
        self._answered_request = 0
        #: Whether the table could be opened when it was tried last.
        self._opens = False
        self._rows = self._commits = self._failures = self._gap_records = self._maintenances = 0
        self._all_bytes = 0
        self._rejected: Counter[str] = Counter()
        self._pending_rejected: Counter[str] = Counter()
        self._pending_gap = 0
        self._last_rejection = ""

    # -- from outside ----------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Something changed that may concern the table: a commit of its streams, its configs."""
        self._news.set()

    def stop(self) -> None:
        """Commit once more, and end; ``stopped`` says when."""
        self._stopping = True
        self._news.set()

    def statistics(self) -> LakeTableStatistics:
        """A snapshot."""
        now = self._around.clock()
        lags = {stream.partition: self._lag(stream) for stream in self._streams()}
        return LakeTableStatistics(
            table=self._table_name,
            state=self._state,
            reason=self._reason,
            lag_records={str(partition): lag for partition, lag in lags.items()},
            lag_ms={
                str(partition): int((now - self._whole_at.get(partition, now)) * 1000) if lag else 0
                for partition, lag in lags.items()
            },
            rows=self._rows,
            rejected=dict(self._rejected),
            gap_records=self._gap_records,
            written_bytes=self._all_bytes,
            commits=self._commits,
            failures=self._failures,
            last_rejection=self._last_rejection,
            maintenances=self._maintenances,
        )

    def _lag(self, stream: StreamState) -> int:
        position = self._committed.get(stream.partition, stream.start)
        return max(0, self._durable_end(stream) - max(position, stream.start))

    def _durable_end(self, stream: StreamState) -> int:
        """As this broker knows it if it leads the partition, else as far as it is committed."""
        end = self._around.durable_end(stream.stream_id)
        return stream.end if end is None else max(end, stream.end)

    def _streams(self) -> list[StreamState]:
        """The log streams of the topic, in the order of its partitions."""
        image = self._around.metadata.image
        state = image.topics.get(self._topic_id)
        found = () if state is None else (image.streams.get(stream_id) for stream_id in state.log_streams)
        return [stream for stream in found if stream is not None]

    # -- the task --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make the table until :meth:`stop` or cancellation. A failure is told, and tried again after a pause."""
        settings = self._around.settings
        pauses = doubling(settings.retry_min_s, settings.retry_max_s)
        backoff = Backoff(pauses, jitter=0.2, random=self._around.random.random)
        try:
            while not self._stopping:
                commits = self._commits
                is_strangers = False
                try:
                    await self._make_table()
                    continue
                except _GapError as error:
                    await self._tell(LakeState.GAP, _sentence(error))
                except PenstockError as error:
                    is_fenced, reason = isinstance(error, FencedError), _sentence(error)
                    is_strangers = is_fenced and self._is_claimed
                    if is_strangers:
                        reason = f"{reason} ({_STRANGER})"
                    elif is_fenced:
                        self._epoch = 0  # another has a higher one, and says how it goes
                    await self._tell(LakeState.FAILED, reason)
                    if is_strangers:
                        self._epoch = 0  # only a higher one helps
                except Exception as error:  # a plugin is a stranger: its bugs are its topic's affair
                    if self._reason != _sentence(error):
                        logger.exception("the lake compactor failed: topic=%s", self._name)
                    await self._tell(LakeState.FAILED, _sentence(error))
                await self._refuse_maintenance()
                if self._commits > commits:
                    backoff.succeeded()
                self._failures += 1
                # with a stranger it isn't raced for the table
                pause_s = settings.retry_max_s if is_strangers else backoff.failed()
                if is_strangers or backoff.is_news:
                    logger.warning(
                        "the table stands, trying again in %.1f s: topic=%s reason=%s",
                        pause_s,
                        self._name,
                        self._reason,
                    )
                await self._wait(pause_s, ends_early=False)
            await self._tell(LakeState.STOPPED, "")
        except ClosedError:
            return  # metadata are closed, which no pause mends: the broker ends
        finally:
            self.stopped.set()

    async def _tell(self, state: LakeState, reason: str) -> None:
        """Say in metadata how it goes, if that is news, and if the claim is still ours."""
        reason = one_line(reason, REASON_LENGTH_MAX - 3)  # it may quote a record, or be a stranger's
        self._state, self._reason = state, reason
        if not self._epoch or self._told == (state, reason):
            return
        try:
            await self._around.metadata.submit(SetLakeState(self._topic_id, self._epoch, state, reason))
            self._told = (state, reason)
        except (FencedError, NotFoundError) as error:
            logger.info(
                "the state of a table isn't told, it is another's now: topic=%s: %s", self._name, error
            )

    async def _wait(self, timeout_s: float, *, ends_early: bool = True) -> None:
        """Sleep until there is news, but no longer than that; a pause after a failure ends early only for a stop."""
        until = self._around.clock() + timeout_s
        while not self._stopping:
            left = until - self._around.clock()
            if left <= 0:
                return
            wanted = self.wanted
            if not ends_early:
                self._news = anyio.Event()
            with anyio.move_on_after(left):
                await self._news.wait()
            if ends_early or self.wanted is not wanted:
                return

    async def _make_table(self) -> None:
        """Claim the topic, open its table and feed it, until it is to be opened anew, or stopped."""
        around = self._around
        wanted = self.wanted
        self._opens = False
        if not self.is_standing:
            self._state = LakeState.OPENING
        if not self._is_claimed:
            self._epoch = await around.metadata.submit(
                ClaimLake(self._topic_id, around.node_id, around.node_epoch)
            )
        self._recall_maintenance()
        async with around.compactor.open_table(wanted.topic, self._epoch) as table:
            self._opens = True
            self._table_name = table.name
            self._committed = dict(await table.positions())
            self._positions = dict(self._committed)
            self._written_bytes = 0
            self._is_full = False
            self._pending_rejected.clear()
            self._pending_gap = 0
            self._check_positions()
            await self._begin_partitions(table)
            if self.is_standing:  # the reason is shown until a commit shows that it has gone
                await self._maintain(table)
            else:
                await self._tell(LakeState.RUNNING, "")
            await self._feed(table, wanted.topic)

    @property
    def _is_claimed(self) -> bool:
        """Whether the last claim still holds: another try needs no new one, which costs the table a commit."""
        state = self._around.metadata.image.topics.get(self._topic_id)
        claim = None if state is None else state.lake
        return claim is not None and claim.epoch == self._epoch

    @property
    def is_standing(self) -> bool:
        """Whether it failed when it was tried last."""
        return self._state in (LakeState.FAILED, LakeState.GAP)

    def _check_positions(self) -> None:
        """A table that is ahead of its topic belongs to another history of it: nothing is put upon that."""
        for stream in self._streams():
            position = self._committed.get(stream.partition, 0)
            end = max(stream.start, stream.end)
            if position > end:
                raise ConflictError(
                    f"the table is ahead of its topic, which lost records or isn't the one it was made from: "
                    f"topic={self._name} partition={stream.partition} position={position} end={end}"
                )

    async def _begin_partitions(self, table: LakeTable) -> None:
        """Commit where partitions that are new to the table begin: what is deleted from there on is a gap, too."""
        for stream in self._streams():
            self._positions.setdefault(stream.partition, stream.start)
        if self._positions != self._committed:
            await self._commit(table)

    async def _feed(self, table: LakeTable, topic: LakeTopic) -> None:
        clock = self._around.clock
        # one that stands shows at once whether the reason has gone, not after an interval that may be an hour
        due_at = clock() + (0 if self.is_standing else self.wanted.configs.commit_interval_s)
        while True:
            self._news = anyio.Event()  # what comes from here on is news: it may be too late for this round
            is_new = self.wanted.topic != topic
            is_asked = self._is_maintenance_asked and self._around.maintenance_turns.is_free
            if self._stopping or is_new or is_asked or clock() >= due_at:
                began = clock()
                await self._cycle(table)
                if self._stopping or is_new:
                    return
                await self._maintain(table)
                # from where it began: what came during a long upload mustn't wait for that and for the interval
                due_at = began + self.wanted.configs.commit_interval_s
            elif await self._drain(table, only_full=True):
                if self._is_enough:
                    await self._commit(table)
                    due_at = clock() + self.wanted.configs.commit_interval_s
            else:
                due_at = min(due_at, clock() + self.wanted.configs.commit_interval_s)
                await self._wait(due_at - clock())

    @property
    def _is_enough(self) -> bool:
        """Whether what was written is to be committed before the interval is over."""
        return self._is_full or self._written_bytes >= self.wanted.configs.commit_bytes

    async def _cycle(self, table: LakeTable) -> None:
        """Bring everything into the table that is durable now, or as much as an interval has time for."""
        clock = self._around.clock
        began = clock()
        ends = {stream.stream_id: self._durable_end(stream) for stream in self._streams()}
        await self._wait_uploaded(ends)
        until = clock() + max(UPLOAD_WAIT_S, self.wanted.configs.commit_interval_s)
        while await self._drain(table, only_full=False):
            if self._is_enough:
                await self._commit(table)
            # what was read has to be seen, and configs and maintenance mustn't wait for hours of records
            if not self._stopping and clock() >= until:
                break
        if self._positions != self._committed:
            await self._commit(table)
        await self._tell(LakeState.RUNNING, "")
        for stream in self._streams():
            if self._committed.get(stream.partition, stream.start) >= ends.get(stream.stream_id, 0):
                self._whole_at[stream.partition] = began

    async def _wait_uploaded(self, ends: Mapping[int, int]) -> None:
        """Have what is durable uploaded, and wait for that, but not for long."""

        def missing() -> bool:
            return any(stream.end < ends.get(stream.stream_id, 0) for stream in self._streams())

        if not missing():
            return
        self._around.begin_upload()
        with anyio.move_on_after(UPLOAD_WAIT_S):
            while missing():
                self._news = anyio.Event()
                await self._news.wait()

    async def _drain(self, table: LakeTable, *, only_full: bool) -> bool:
        """One step for each partition that has something, or with ``only_full`` enough for a whole batch."""
        moved = False
        for stream in self._streams():
            position = await self._position(table, stream)
            if position >= stream.end:
                continue
            if only_full:
                ranges = stream.ranges[stream.range_at(position) :]
                if ranges.size_bytes < self._around.batch_bytes:
                    continue
            async with self._around.limiter:
                moved |= await self._step(table, stream, position)
            if self._is_enough:
                break
        return moved

    async def _position(self, table: LakeTable, stream: StreamState) -> int:
        """Where the partition goes on; past records that are gone, if the topic says so."""
        position = self._positions.get(stream.partition)
        if position is None:
            return stream.start
        if position >= stream.start:
            return position
        if not self.wanted.configs.skips_gaps:
            if self._positions != self._committed:
                await self._commit(table)  # what was read in time isn't read again
            raise _GapError(
                f"records were deleted before they were in the table, set penstock.lake.gap=skip to go on without "
                f"them, or replay into a new table: topic={self._name} partition={stream.partition} "
                f"position={position} start={stream.start}"
            )
        lost = stream.start - position
        self._pending_gap += lost
        logger.warning(
            "%d records were deleted before they were in the table: topic=%s partition=%d from=%d to=%d",
            lost,
            self._name,
            stream.partition,
            position,
            stream.start,
        )
        await self._write(table, no_records(stream.partition, position, stream.start))
        return self._positions[stream.partition]

    async def _step(self, table: LakeTable, stream: StreamState, position: int) -> bool:
        """Write one read's worth of records; whether the position moved."""
        around = self._around
        room = await self._memory()
        try:
            entries = await around.source.read(stream, position, around.memory.window_bytes)
            decoding = decode_entries(
                stream.partition, entries, position, around.memory.columns_bytes, memory=room.columns
            )
            del entries
            while (records := await self._next(decoding, position)) is not None:
                await self._write(table, records)
        except BaseException:
            room.renew()
            raise
        finally:
            around.memory.give_back(room)
        return self._positions.get(stream.partition, position) > position

    async def _next(self, decoding: Iterator[LakeRecords], position: int) -> LakeRecords | None:
        try:
            return await run_in_thread(_next_of, decoding)
        except BatchError as error:
            raise CorruptError(
                f"stored records can't be read, delete them (DeleteRecords) to go on: topic={self._name} "
                f"after_offset={position} reason={error}"
            ) from error

    async def _write(self, table: LakeTable, records: LakeRecords) -> None:
        extra: Charge | None = None
        size = records.nbytes
        if size > self._around.memory.window_bytes:
            # one record that is larger than a batch may be: it is here already
            extra = self._around.allocator.charge_anyway(size, "lake")
        try:
            written = await table.write(records)
        finally:
            if extra is not None:
                extra.release()
        assert written.rows + sum(written.rejected.values()) == len(records), "every record has an outcome"
        self._pending_rejected.update(written.rejected)
        if written.reason:
            self._last_rejection = one_line(written.reason, REASON_LENGTH_MAX)
        self._written_bytes += size
        self._is_full |= written.is_full
        self._positions[records.partition] = records.next_offset

    async def _memory(self) -> StepRoom:
        backoff = Backoff(_MEMORY_PAUSES_S)
        while True:
            try:
                return self._around.memory.take_nowait()
            except FullError:
                await self._around.sleep(backoff.failed())

    async def _commit(self, table: LakeTable) -> None:
        changed = {
            partition: position
            for partition, position in self._positions.items()
            if self._committed.get(partition) != position
        }
        commit = await table.commit(changed)
        self._commits += 1
        self._rows += commit.rows
        self._rejected.update(self._pending_rejected)
        self._pending_rejected.clear()
        self._gap_records += self._pending_gap
        self._pending_gap = 0
        self._all_bytes += self._written_bytes
        self._written_bytes = 0
        self._is_full = False
        self._committed = dict(self._positions)
        logger.debug("committed %d rows: topic=%s version=%s", commit.rows, self._name, commit.version)

    def _recall_maintenance(self) -> None:
        """What metadata say of the newest maintenance: the schedule goes on over restarts and takeovers."""
        state = self._around.metadata.image.topics.get(self._topic_id)
        claim = None if state is None else state.lake
        last = (claim and claim.maintained) or LakeMaintained(ended_ms=self._around.now_ms())
        self._answered_request = last.request
        if self._maintained_at is None:
            passed_s = max(0, self._around.now_ms() - last.ended_ms) / 1000
            self._maintained_at = self._around.clock() - passed_s

    @property
    def _is_maintenance_asked(self) -> bool:
        return self.wanted.configs.maintenance_request > self._answered_request

    @property
    def _is_maintenance_due(self) -> bool:
        """By the schedule, if the compactor maintains anything."""
        assert self._maintained_at is not None, "the topic is claimed"
        around = self._around
        interval_s = around.settings.maintenance_interval_s
        if not interval_s or not around.compactor.capabilities.maintains:
            return False
        return around.clock() >= self._maintained_at + interval_s

    async def _maintain(self, table: LakeTable) -> None:
        """On a schedule or if asked for, with nothing written since the last commit; metadata say how it ended.

        Not while another table's turn is: records go on into this one, and it is looked again. Nor at a stop, which
        it would hold up: it is the next owner's then.
        """
        if self._stopping or not (self._is_maintenance_asked or self._is_maintenance_due):
            return
        turns = self._around.maintenance_turns
        if not turns.take(self.notify):
            return
        self.is_maintaining = True
        try:
            await self._maintain_now(table)
        finally:
            self.is_maintaining = False
            turns.end()

    async def _maintain_now(self, table: LakeTable) -> None:
        # before it is tried: one that fails mustn't keep records from the table until it succeeds
        self._maintained_at = self._around.clock()
        self._answered_request = max(self._answered_request, self.wanted.configs.maintenance_request)
        try:
            done = await table.maintain()
        except FencedError:
            raise  # it is for the next owner to answer
        except Exception as error:
            await self._tell_maintained(_sentence(error))
            raise
        self._maintenances += 1
        figures = " ".join(f"{name.replace(' ', '_')}={value}" for name, value in done.figures.items())
        logger.info("maintained the table: topic=%s saved_bytes=%d %s", self._name, done.saved_bytes, figures)
        await self._tell_maintained("", done.saved_bytes, done.figures)

    async def _refuse_maintenance(self) -> None:
        """Answer who asked for maintenance of a table that can't be opened."""
        if self._opens or not self._epoch or not self._is_maintenance_asked:
            return
        self._answered_request = self.wanted.configs.maintenance_request
        try:
            await self._tell_maintained(f"the table can't be opened: {self._reason}")
        except (FencedError, NotFoundError) as error:
            logger.info("nobody is told of maintenance, the topic is another's now: %s", error)

    async def _tell_maintained(
        self, reason: str, saved_bytes: int = 0, figures: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        shown = {_storable(name): _clamped(value) for name, value in figures.items()}
        await self._around.metadata.submit(
            SetLakeMaintained(
                self._topic_id, self._epoch, self._answered_request, reason, _clamped(saved_bytes), shown
            )
        )


def _next_of(decoding: Iterator[LakeRecords]) -> LakeRecords | None:
    return next(decoding, None)


def _sentence(error: Exception) -> str:
    """Why, as metadata keep it; a plugin is a stranger, so its words may be no text, and long."""
    text = _storable(" ".join(str(error).split()))[:REASON_LENGTH_MAX]
    return (
        text if isinstance(error, PenstockError) else f"the compactor raised {type(error).__name__}: {text}"
    )


def _storable(text: str) -> str:
    """Without what UTF-8 can't say: halves of surrogate pairs, as in names of files."""
    return text.encode(errors="replace").decode()


def _clamped(value: int) -> int:
    """As an integer that MessagePack has."""
    return max(-(2**63), min(int(value), 2**63 - 1))
