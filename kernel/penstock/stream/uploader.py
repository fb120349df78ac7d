"""Upload: blocks of entries become objects, committed in log order.

Blocks are put in parallel (a few at a time) but committed one after the other, in the order in which they were
submitted, each with one metadata command. Failures are retried for ever: until a block is committed, the WAL holds
its data. Whose blocks these are, the uploader doesn't know: the engine submits those of the log cache, a recovery
those that it reads from a WAL.
"""

from __future__ import annotations

__all__ = ("Uploader", "UploaderStatistics")

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import anyio

from penstock.errors import ClosedError, InvariantError, NotFoundError, PenstockError
from penstock.metadata.commands.objects import CommitUpload, UploadedObject
from penstock.metadata.service import MetadataService
from penstock.spi.events import UploadCommitted
from penstock.spi.object_store import ObjectStore
from penstock.spi.statistics import counter, gauge, text
from penstock.stream.object_puts import ObjectPuts, UploadSettings
from penstock.stream.pacer import PRESSURE_MAX, Pacer
from penstock.stream.upload_plan import UploadBlock, first_part
from penstock.work.retry import retry
from penstock.work.room import Room

logger = logging.getLogger("penstock.stream.upload")

T = TypeVar("T")
B = TypeVar("B", bound=UploadBlock)

#: Blocks that are submitted because somebody waits for that: so many at once, later one each so often. Each has
#: objects, and ranges in metadata, of its own; with many who wait there could be some a second.
ASKED_UPLOADS = 6
ASKED_UPLOAD_PAUSE_S = 5.0
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploaderStatistics:
    """A snapshot."""

    pending_blocks: Annotated[int, gauge("blocks", "Blocks that are not committed yet.")]
    pending_bytes: Annotated[int, gauge("bytes", "Their payload.")]
    committed_blocks: Annotated[int, counter("blocks", "Blocks that were committed.")]
    committed_bytes: Annotated[int, counter("bytes", "Their payload.")]
    objects: Annotated[int, counter("objects", "Objects that were committed.")]
    failures: Annotated[int, counter("attempts", "Attempts that failed and were repeated.")]
    last_error: Annotated[str, text("Why the last of them failed.")]
    pace_bytes: Annotated[
        int,
        gauge("bytes", "Bytes a second that uploads keep to while nobody waits for them."),
    ]


class _Upload(Generic[B]):
    """A block on its way."""

    __slots__ = ("block", "objects", "put", "started")

    def __init__(self, block: B, started: float) -> None:
        self.block = block
        self.started = started
        self.put = anyio.Event()
        self.objects: list[UploadedObject] = []


class Uploader(Generic[B]):
    """Whoever owns it runs :meth:`run` in a task group and calls :meth:`submit`.

    ``let_go(block)`` is awaited when a block is committed, before the next one is: nothing is needed of it any more
    (I4: only now may the WAL forget it). ``committed(event, block)`` is called after that.

    ``intake()`` says how many bytes have come in so far, and how much presses (see :class:`Pacer`): uploads go little
    faster than that, unless somebody waits for them. None: they go as fast as they can.
    """

    def __init__(
        self,
        metadata: MetadataService,
        store: ObjectStore,
        settings: UploadSettings,
        *,
        node_id: int,
        node_epoch: int,
        now_ms: Callable[[], int],
        let_go: Callable[[B], Awaitable[None]],
        committed: Callable[[UploadCommitted, B], None] = lambda event, block: None,
        intake: Callable[[], tuple[int, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._settings = settings
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._let_go = let_go
        self._told = committed
        self._puts = ObjectPuts(
            metadata,
            store,
            settings,
            node_id=node_id,
            node_epoch=node_epoch,
            now_ms=now_ms,
            pace=self._pace,
            burst_bytes=lambda: sys.maxsize if intake is None else self._pacer.burst_bytes,
        )
        self._intake = intake
        self._clock = clock
        self._pacer = Pacer(clock())
        self._waiting = 0
        self._hurried = False
        self._quickened = False
        self._hurry = Room()
        #: When the next block would be due that is asked for, had each waited for its pause. Not 0 at first, as the
        #: clock of a host that has just started.
        self._asked_s = -math.inf
        self._queue: deque[_Upload[B]] = deque()  # submitted, not committed, in log order
        self._fresh: deque[_Upload[B]] = deque()  # not yet being put
        self._news = anyio.Event()  # for the putting task
        self._submitted = anyio.Event()  # for the committing task
        self._progress = Room()
        self._ended = False
        self._committed_blocks = 0
        self._committed_bytes = 0
        self._objects = 0
        self._failures = 0
        self._last_error = ""

    @property
    def pending_blocks(self) -> int:
        """Blocks that were submitted and aren't committed."""
        return len(self._queue)

    def pending_end(self, stream_id: int) -> int:
        """The offset up to which pending blocks have the stream; 0 if none of them has it."""
        entries = (upload.block.streams.get(stream_id) for upload in self._queue)
        return max((found[-1].next_offset for found in entries if found), default=0)

    def submit(self, block: B) -> None:
        """Queue a block; blocks come in log order."""
        upload = _Upload(block, time.perf_counter())
        self._queue.append(upload)
        self._fresh.append(upload)
        self._news.set()
        self._submitted.set()

    async def wait_idle(self) -> None:
        """Return when everything that was submitted is committed. Raises ClosedError if that won't happen."""
        await self.wait_pending(0)

    async def wait_pending(self, blocks_max: int) -> None:
        """Return when at most so many blocks are pending. Raises ClosedError if that won't happen."""
        await self._wait_until(lambda: len(self._queue) <= blocks_max)

    async def wait_commit(self) -> None:
        """Return when the oldest of the pending blocks is committed. Raises ClosedError if that won't happen."""
        oldest = self._queue[0]
        await self._wait_until(lambda: not self._queue or self._queue[0] is not oldest)

    async def may_be_asked(self) -> bool:
        """Whether a block may be submitted now because somebody waits for it; if not, after a pause or a commit."""
        now_s = anyio.current_time()
        due_s = max(self._asked_s, now_s - (ASKED_UPLOADS - 1) * ASKED_UPLOAD_PAUSE_S)
        if due_s <= now_s:
            self._asked_s = due_s + ASKED_UPLOAD_PAUSE_S
            return True
        with anyio.move_on_after(due_s - now_s):
            await self._progress.wait()
        return False

    async def _wait_until(self, is_reached: Callable[[], bool]) -> None:
        self._waiting += 1
        self._hurry.wake()
        try:
            while not is_reached():
                if self._ended:
                    raise ClosedError("uploads ended before everything was committed; the WAL holds the rest")
                await self._progress.wait()
        finally:
            self._waiting -= 1

    def hurry(self) -> None:
        """Something can't go on before what is pending is committed: put it as fast as may be."""
        if self._queue:
            self._hurried = True
            self._hurry.wake()

    def quicken(self) -> None:
        """Somebody would like what is pending soon, and can do without: put it twice as fast."""
        self._quickened = bool(self._queue)

    async def _pace(self, size: int) -> None:
        if self._intake is None:
            return
        taken_bytes, pressure = self._intake()
        if self._quickened:
            pressure = max(1.0, pressure)
        if self._waiting or self._hurried:
            pressure = PRESSURE_MAX
        pause_s = self._pacer.pause_s(size, self._clock(), taken_bytes, pressure)
        if pause_s > 0:
            with anyio.move_on_after(pause_s):
                await self._hurry.wait()

    def statistics(self) -> UploaderStatistics:
        """A snapshot of the state."""
        return UploaderStatistics(
            pending_blocks=len(self._queue),
            pending_bytes=sum(upload.block.size_bytes for upload in self._queue),
            committed_blocks=self._committed_blocks,
            committed_bytes=self._committed_bytes,
            objects=self._objects,
            failures=self._failures,
            last_error=self._last_error,
            pace_bytes=round(self._pacer.rate),
        )

    async def run(self) -> None:
        """Put and commit for ever. Raises only errors that can't be retried (fenced, corrupt)."""
        limiter = anyio.CapacityLimiter(self._settings.parallel_max)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._commit_forever)
                while True:
                    if not self._fresh:
                        self._news = anyio.Event()
                        await self._news.wait()
                    upload = self._fresh.popleft()
                    token = object()
                    await limiter.acquire_on_behalf_of(token)
                    tasks.start_soon(self._put_block, upload, limiter, token)
        finally:
            self._ended = True
            self._progress.wake()

    async def _put_block(self, upload: _Upload[B], limiter: anyio.CapacityLimiter, token: object) -> None:
        try:
            upload.objects = await self.retry("upload", lambda: self._puts.put(upload.block))
        finally:
            limiter.release_on_behalf_of(token)
        upload.put.set()

    async def _commit_forever(self) -> None:
        while True:
            if not self._queue:
                self._submitted = anyio.Event()
                await self._submitted.wait()
            upload = self._queue[0]
            await upload.put.wait()
            await self._commit(upload)

    async def _commit(self, upload: _Upload[B]) -> None:
        committed: list[int] = []
        while upload.objects:
            part = first_part(upload.objects, self._settings.commit_ranges_max)
            try:
                await self._metadata.submit(CommitUpload(self._node_id, self._node_epoch, part))
            except NotFoundError as error:
                logger.warning("upload took longer than its deadline, putting it again: %s", error)
                await self.retry("upload", lambda: self._puts.discard(upload.objects))
                upload.objects = await self.retry("upload", lambda: self._puts.put(upload.block))
            else:
                committed += [uploaded.object_id for uploaded in part]
                upload.objects = upload.objects[len(part) :]
        await self._let_go(upload.block)
        removed = self._queue.popleft()
        if removed is not upload:
            raise InvariantError("uploads are committed in log order")
        self._hurried = self._hurried and bool(self._queue)
        self._quickened = self._quickened and bool(self._queue)
        self._committed_blocks += 1
        self._committed_bytes += upload.block.size_bytes
        self._objects += len(committed)
        event = UploadCommitted(
            object_ids=tuple(committed),
            stream_count=len(upload.block.streams),
            payload_bytes=upload.block.size_bytes,
            duration_ms=(time.perf_counter() - upload.started) * 1000,
        )
        self._told(event, upload.block)
        self._progress.wake()

    async def retry(self, what: str, step: Callable[[], Awaitable[T]]) -> T:
        """Do ``step`` until it succeeds; raises only what can't be retried."""
        return await retry(what, step, _BACKOFF_S, logger=logger, on_failure=self._count_failure)

    def _count_failure(self, error: PenstockError) -> None:
        self._failures += 1
        self._last_error = str(error)
