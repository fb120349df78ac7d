"""The metadata service: owns the metadata log, keeps the image current, and writes commands.

One task writes: it takes the commands that wait, makes one entry of them, appends it at the next index, and answers.
On a conflict it catches up first; the fold then decides on the commands against the newer image. Another one follows
what other writers append. Both go through the tailer (:mod:`penstock.metadata.tailer`), which tells of every change
on the event bus.
"""

from __future__ import annotations

__all__ = ("MetadataService", "MetadataStatistics", "follow", "load_image")

import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from penstock.bus import EventBus
from penstock.errors import (
    AlreadyExistsError,
    ClosedError,
    ConflictError,
    FencedError,
    InvalidRequestError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.limits import SNAPSHOT_ENTRIES
from penstock.metadata import owners
from penstock.metadata.command import CommandFor
from penstock.metadata.commands import Command, Entry, encode_entry, new_entry
from penstock.metadata.commands.cluster import FormatCluster
from penstock.metadata.commands.nodes import RegisterNode
from penstock.metadata.image import Image
from penstock.metadata.snapshot import Cut
from penstock.metadata.tailer import BehindError, Tailer, follow, load_image
from penstock.metadata.versions import METADATA_VERSION
from penstock.spi.metadata_log import MetadataLog, MetadataSnapshot
from penstock.spi.statistics import counter, gauge
from penstock.work.retry import Backoff

logger = logging.getLogger("penstock.metadata")

R = TypeVar("R")

#: Commands in one entry at most; the entry's size is bounded as well.
BATCH_COMMANDS_MAX = 200
#: What the commands of one entry change in the image (``Command.weight``), unless it is one command: an entry is
#: folded in one go, some milliseconds.
BATCH_WEIGHT_MAX = 2000
#: Others get their turn each time that so much of a snapshot was encoded.
SNAPSHOT_PAUSE_BYTES = 32 * 1024
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataStatistics:
    """A snapshot of the service."""

    index: Annotated[int, gauge("", "Index of the newest entry in the image.")]
    pending_commands: Annotated[int, gauge("commands", "Commands that wait to be written.")]
    topics: Annotated[int, gauge("topics", "Topics.")]
    streams: Annotated[int, gauge("streams", "Streams.")]
    objects: Annotated[int, gauge("objects", "Objects, prepared and destroyed ones too.")]
    snapshot_index: Annotated[int, gauge("", "Index of the newest snapshot.")]
    followed_entries: Annotated[int, counter("entries", "Entries that other writers appended.")] = 0


def _unknown() -> int:
    return 0


async def _checked_image(log: MetadataLog, check: Callable[[Image], Awaitable[None]] | None) -> Image:
    while True:
        image = await load_image(log)
        if check is None:
            return image
        try:
            await check(image)
        except BehindError as error:
            logger.info("other brokers wrote metadata snapshots meanwhile, reading the newest: %s", error)
        else:
            return image


class _Call:
    """Commands that were handed over together: who did waits once for all their answers, not once for each."""

    __slots__ = ("answered", "left")

    def __init__(self, commands: int) -> None:
        #: How many have no answer yet.
        self.left = commands
        self.answered = anyio.Event()


class _Submission:
    """A command on its way, and its answer."""

    __slots__ = ("call", "command", "is_answered", "result")

    def __init__(self, command: Command, call: _Call) -> None:
        self.command = command
        self.call = call
        self.is_answered = False
        self.result: Any = None


class MetadataService:
    """Use ``async with MetadataService.open(log, ...)``; all calls from the event loop."""

    def __init__(
        self,
        log: MetadataLog,
        image: Image,
        now_ms: Callable[[], int],
        tasks: TaskGroup,
        bus: EventBus,
        snapshot_entries: int,
    ) -> None:
        self._log = log
        self._snapshot_entries = snapshot_entries
        self._tasks = tasks
        self._now_ms = now_ms
        self._writer = uuid.uuid4().hex
        self._pending: deque[_Submission] = deque()
        self._news = anyio.Event()
        self._closed = False
        self._snapshot_index = image.index
        self._snapshot_lock = anyio.Lock(fast_acquire=True)
        self._snapshot_pending = False
        #: (node id, epoch) that this process registered.
        self._registered: tuple[int, int] | None = None
        self._witness: Callable[[int], None] | None = None
        self._wal_end: Callable[[], int] = _unknown
        #: Entries that are in the log, and whose results wait until the witness knows: (index, batch, results).
        self._unwitnessed: deque[tuple[int, list[_Submission], Sequence[Any]]] = deque()
        self._tailer = Tailer(log, image, bus, self._assert_not_deposed)
        #: Asked freely, changed by nobody else.
        self.image = image
        #: Where the deltas of every entry are published (``penstock.metadata.deltas``), after the whole entry.
        self.bus = bus

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        log: MetadataLog,
        *,
        now_ms: Callable[[], int],
        cluster_id: str = "",
        before_writing: Callable[[Image], Awaitable[None]] | None = None,
        bus: EventBus | None = None,
        snapshot_entries: int = SNAPSHOT_ENTRIES,
    ) -> AsyncIterator[MetadataService]:
        """Read the log, format it if it is new (with ``cluster_id``, or a fresh one), and start writing.

        ``before_writing`` is awaited with the image that was read, before anything is written; it may refuse by
        raising, and may bring the image up to date with :func:`follow`, whose BehindError has it awaited again, with
        a newer one. From then on, what changes is published on
        ``bus``, or on one of its own. A snapshot is written each time that ``snapshot_entries`` entries came since
        the newest.
        Raises CorruptError, UnavailableError of the log; InvalidRequestError if the log belongs to a cluster
        of another name than ``cluster_id``.
        """
        image = await _checked_image(log, before_writing)
        async with anyio.create_task_group() as tasks:
            service = cls(log, image, now_ms, tasks, bus or EventBus(), snapshot_entries)
            tasks.start_soon(service._write_forever)
            tasks.start_soon(service._tailer.run)
            try:
                await service._format(cluster_id)
                yield service
            finally:
                service._close()
                tasks.cancel_scope.cancel()

    async def _format(self, cluster_id: str) -> None:
        if not self.image.cluster_id:
            fresh = cluster_id or uuid.uuid4().hex[:22]
            (result,) = await self.submit_many([FormatCluster(cluster_id=fresh)])
            if isinstance(result, AlreadyExistsError):
                logger.info("another broker formatted the metadata log first")
            elif isinstance(result, Exception):
                raise again(result)
        if cluster_id and self.image.cluster_id != cluster_id:
            raise InvalidRequestError(
                f"the metadata log at {self._log.location} belongs to another cluster, set broker.cluster_id or "
                f"use another place: configured={cluster_id} found={self.image.cluster_id}"
            )

    async def register(
        self,
        node_id: int,
        *,
        wal: str = "",
        unnamed: bool = False,
        place: str = "",
        lost_wals: Sequence[str] = (),
    ) -> int:
        """Register this process as the node; returns its epoch and fences its earlier lives.

        ``wal`` is the identity of the WAL that the node found in ``place``, unless it is ``unnamed``; if it is
        another node's, that is taken over, and that node fenced. Raises ConfigError, and fences nobody, if records
        may be in another one only, of whatever node, unless that is one of ``lost_wals``, which gives them up.
        When a later life registers, this service ends with FencedError: when it hears of that, or at the next entry
        that it wants to write.
        """
        self._registered = None
        command = RegisterNode(node_id, self._writer, wal, place, lost_wals=list(lost_wals), unnamed=unnamed)
        # the fold does too; this way a refused start writes nothing
        owners.check_registration(self.image.nodes, command.found(), METADATA_VERSION)
        epoch = await self.submit(command)
        self._registered = (node_id, epoch)
        return epoch

    async def submit(self, command: CommandFor[R]) -> R:
        """Write one command; returns the fold's result once it is durable, or raises the error that refused it.

        A cancelled call may still take effect. Raises ClosedError when the service ends first.
        """
        (result,) = await self.submit_many([command])
        if isinstance(result, Exception):
            raise again(result)
        return result

    async def submit_many(self, commands: Sequence[CommandFor[R]]) -> list[R | Exception]:
        """Write commands in order; returns a result or an error for each."""
        if self._closed:
            raise ClosedError("the metadata service is closed")
        if not commands:
            return []
        call = _Call(len(commands))
        submissions: list[_Submission] = []
        for command in commands:
            assert isinstance(command, Command)
            submissions.append(_Submission(command, call))
        self._pending.extend(submissions)
        self._news.set()
        await call.answered.wait()
        return [submission.result for submission in submissions]

    def set_witness(
        self, witness: Callable[[int], None] | None, wal_end: Callable[[], int] | None = None
    ) -> None:
        """Call ``witness`` with the index of every entry that is in the log from now on.

        Nobody is told the results of an entry before :meth:`witnessed` was called for it. None ends that, and tells
        what is left to be told. Entries say what ``wal_end`` gives when they are written: how far the WAL got.
        """
        self._witness = witness
        self._wal_end = wal_end or _unknown
        if witness is None:
            self.witnessed(self.image.index)

    def witnessed(self, index: int) -> None:
        """The results of entries up to ``index`` may be told."""
        while self._unwitnessed and self._unwitnessed[0][0] <= index:
            _, batch, results = self._unwitnessed.popleft()
            for submission, result in zip(batch, results, strict=True):
                self._answer(submission, result)

    def statistics(self) -> MetadataStatistics:
        """A snapshot of the state."""
        return MetadataStatistics(
            index=self.image.index,
            pending_commands=len(self._pending),
            topics=len(self.image.topics),
            streams=len(self.image.streams),
            objects=len(self.image.objects),
            snapshot_index=self._snapshot_index,
            followed_entries=self._tailer.followed_entries,
        )

    def _close(self) -> None:
        self._closed = True
        self.set_witness(None)
        while self._pending:
            self._answer(
                self._pending.popleft(),
                ClosedError("the metadata service closed before the command was written"),
            )

    @staticmethod
    def _answer(submission: _Submission, result: Any) -> None:
        if submission.is_answered:
            return  # one that doesn't wait for the mark, when the others of its entry are
        submission.is_answered, submission.result = True, result
        submission.call.left -= 1
        if not submission.call.left:
            submission.call.answered.set()

    async def _write_forever(self) -> None:
        while True:
            if not self._pending:
                self._news = anyio.Event()
                await self._news.wait()
            batch, data, entry = self._next_batch()
            try:
                results = await self._append(entry, data)
            except PenstockError as error:
                # not retryable (CorruptError, FencedError...): nothing more can be decided here
                failure = kept(error)
                for submission in batch:
                    self._answer(submission, failure)
                if isinstance(error, BehindError | FencedError):
                    raise again(failure) from None
                continue
            except BaseException:
                for submission in batch:
                    self._answer(
                        submission, ClosedError("the metadata service closed before the command was written")
                    )
                raise
            # not the newest index: that may be of the entry by which a later life registered, which this one must not
            # mark as known before it registered
            index = self._tailer.landed_index
            for submission, result in zip(batch, results, strict=True):
                if not submission.command.waits_for_mark:
                    self._answer(submission, result)
            self._unwitnessed.append((index, batch, results))
            if self._witness is None:
                self.witnessed(index)
            else:
                self._witness(index)
            self._maybe_snapshot()

    def _next_batch(self) -> tuple[list[_Submission], bytes, Entry]:
        """Take as many waiting commands as fit into one entry; a single one that doesn't is refused by the log."""
        count = weight = 0
        for submission in self._pending:
            weight += submission.command.weight(self.image)
            if count and (weight > BATCH_WEIGHT_MAX or count == BATCH_COMMANDS_MAX):
                break
            count += 1
        while True:
            batch = [self._pending[i] for i in range(count)]
            entry = new_entry([s.command for s in batch], self._writer, self._now_ms(), self._wal_end())
            data = encode_entry(entry)
            if count == 1 or len(data) <= self._log.capabilities.entry_bytes_max:
                break
            count //= 2
        for _ in range(count):
            self._pending.popleft()
        return batch, data, entry

    async def _append(self, entry: Entry, data: bytes) -> Sequence[Any]:
        """Append at the next index until it is in the log, and apply it; one result per command."""
        backoff = Backoff(_BACKOFF_S, told_every=30)
        tailer = self._tailer
        tailer.expect(data)
        while tailer.landed is None:
            self._assert_not_deposed(self.image)
            before = self.image.index
            failure: PenstockError
            try:
                await tailer.append(entry, data)
                continue
            except ConflictError as error:
                logger.info("metadata index %d is taken by another writer, catching up", before + 1)
                failure = kept(error)
            except UnavailableError as error:
                failure = kept(error)
            try:
                await tailer.catch_up()
            except BehindError:
                raise
            except UnavailableError as error:
                failure = kept(error)
            if self.image.index > before:
                continue
            # also of a conflict: what can't be read yet is in the way of the next attempt, too
            pause_s = backoff.failed()
            level = logging.WARNING if backoff.is_news else logging.DEBUG
            logger.log(
                level, "metadata log at %s is unavailable, trying again: %s", self._log.location, failure
            )
            await anyio.sleep(pause_s)
        return tailer.landed

    def _assert_not_deposed(self, image: Image) -> None:
        """I9: raise FencedError once a later life of this node is in an image."""
        if self._registered is None:
            return
        node_id, epoch = self._registered
        image.nodes.check_epoch(node_id, epoch)

    def _maybe_snapshot(self) -> None:
        if self._snapshot_pending or self.image.index - self._snapshot_index < self._snapshot_entries:
            return
        self._snapshot_pending = True
        self._tasks.start_soon(self._snapshot_meanwhile, self.image.cut())

    async def _snapshot_meanwhile(self, cut: Cut) -> None:
        """Write the image as it was cut, while commands go on."""
        try:
            with cut:
                async with self._snapshot_lock:
                    await self._write_cut(cut)
        except UnavailableError as error:
            logger.warning("metadata snapshot wasn't written, trying again later: %s", error)
        finally:
            self._snapshot_pending = False

    async def write_snapshot(self) -> None:
        """Write a snapshot now unless the newest is current (at a clean stop). Raises UnavailableError.

        Commands go on meanwhile; the snapshot is of the index at which it was begun.
        """
        async with self._snapshot_lock:
            if self.image.index > self._snapshot_index:
                with self.image.cut() as cut:
                    await self._write_cut(cut)

    async def _write_cut(self, cut: Cut) -> None:
        # it may be large: this grows without copying what it has, and gives it away without copying
        data = BytesIO()
        paused_at = 0
        for piece in cut.pieces():
            if data.write(piece) and data.tell() - paused_at > SNAPSHOT_PAUSE_BYTES:
                paused_at = data.tell()
                await anyio.lowlevel.checkpoint()
        await self._log.write_snapshot(MetadataSnapshot(cut.index, data.getvalue()))
        self._snapshot_index = max(self._snapshot_index, cut.index)
