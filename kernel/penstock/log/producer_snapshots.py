"""The producers' state of a partition in its second stream: snapshots written there, the state rebuilt from them.

The newest snapshot, plus the headers of the batches after it, gives the state back. So before batches are deleted
there must be a snapshot of what they said of their producers, and it must last as long as they would have: of batches
that are uploaded, it is uploaded, too. A WAL that is lost takes what it alone held, and what objects said isn't among
that.
"""

from __future__ import annotations

__all__ = ("ProducerSnapshots",)

import logging
from collections.abc import Callable

import anyio

from penstock.errors import CorruptError, FullError, PenstockError, again
from penstock.log.producer_book import ProducerBook
from penstock.stream.engine import StreamEngine
from penstock.stream.open_stream import Stream
from penstock.wire.records import read_header

logger = logging.getLogger("penstock.log")

#: How much of the log is read at a time when producer state is rebuilt from batch headers.
REPLAY_BYTES = 4 * 2**20
#: A partition without idempotent producers is snapshot too once so much was appended: it bounds what a start reads.
SNAPSHOT_BYTES = 64 * 1024
#: The same after so many uploads, or batches that a start had to read: each may be in an object of its own, and a
#: broker that is killed soon after each start would take longer to start each time.
SNAPSHOT_UPLOADS = 8


class ProducerSnapshots:
    """Writes snapshots of ``table`` for the batches of ``log`` to ``state``, and rebuilds it from them.

    Half a state is never written: while the table isn't known to be whole, snapshots are left out.
    """

    __slots__ = (
        "_end",
        "_engine",
        "_is_closed",
        "_is_whole",
        "_log",
        "_replayed_bytes",
        "_saved_bytes",
        "_state",
        "_table",
        "_unsaved_uploads",
        "_uploaded_end",
        "_written",
        "replay_offset",
    )

    def __init__(self, engine: StreamEngine, log: Stream, state: Stream, table: ProducerBook) -> None:
        self._engine = engine
        self._log = log
        self._state = state
        self._table = table
        self._is_whole = True
        self._is_closed = False
        #: Log end when the newest snapshot was taken.
        self._end = -1
        #: Snapshots that aren't known to be uploaded, oldest first: where each ends in its stream, and the log end
        #: when it was taken.
        self._written: tuple[tuple[int, int], ...] = ()
        #: Log end when the newest one was taken that is uploaded.
        self._uploaded_end = -1
        #: Bytes that the last rebuilding read, and bytes replayed and appended up to the newest snapshot.
        self._replayed_bytes = 0
        self._saved_bytes = 0
        #: Objects that a start would read after the newest snapshot, at most.
        self._unsaved_uploads = 0
        #: Where the rebuilding stands in the log; None: at the snapshot.
        self.replay_offset: int | None = None

    async def load(self, now_ms: int) -> None:
        """Rebuild the table: newest snapshot, then the batch headers after it. ``replay_offset`` follows.

        Raises CorruptError, NotFoundError, BatchError: the state can't be rebuilt, and the table isn't whole.
        Raises UnavailableError, NewerVersionError.
        """
        table, log, state = self._table, self._log, self._state
        self.forget()
        self.replay_offset = None
        self._end = self._uploaded_end = -1
        self._written = ()
        self._replayed_bytes = self._saved_bytes = self._unsaved_uploads = 0
        replay_from = log.start_offset
        if state.confirmed_offset > state.start_offset:
            newest = await self._engine.reads.read(state, state.confirmed_offset - 1, 1)
            if not newest:
                raise CorruptError(f"snapshot of the producers' state is missing: stream={state.stream_id}")
            end = table.restore(bytes(newest[-1].data))
            if end > log.confirmed_offset:
                # uploaded before the batches, which went with a lost WAL; their offsets are given again
                end = log.confirmed_offset
                table.failed_from(end)
            replay_from = max(replay_from, end)
            self._taken(state.confirmed_offset, replay_from)
        while replay_from < log.confirmed_offset:
            self.replay_offset = replay_from
            entries = await self._engine.reads.read(log, replay_from, REPLAY_BYTES)
            if not entries:
                if replay_from >= log.start_offset:
                    break  # the stream was deleted
                replay_from = log.start_offset  # trimmed while we looked
                continue
            for entry in entries:
                table.replay(read_header(entry.data), now_ms)
                self._replayed_bytes += len(entry.data)
            self._unsaved_uploads += len(entries)
            replay_from = entries[-1].next_offset
        table.expire(now_ms)
        self._is_whole = True
        if self._unsaved_uploads >= SNAPSHOT_UPLOADS:
            self.write_if_due(now_ms, 0)

    def forget(self) -> None:
        """The table isn't the whole state, and can't be known to be before the next :meth:`load`: empty it."""
        self._table.clear()
        self._is_whole = False

    async def give_up(self) -> None:
        """Drop all snapshots, durably. Raises the metadata log's error, ClosedError."""
        await self._engine.trim_streams([(self._state.stream_id, self._state.confirmed_offset)])

    def write_if_due(self, now_ms: int, appended_bytes: int) -> None:
        """Write a snapshot if anything changed since the newest one; without waiting, and without promise.

        ``appended_bytes`` is what was appended to the log since it was opened.
        """
        if self._is_closed or not self._is_whole or self._log.confirmed_offset == self._end:
            return
        self._table.expire(now_ms)
        self._unsaved_uploads += 1
        if (
            not len(self._table)
            and self._unsaved_uploads < SNAPSHOT_UPLOADS
            and self._unsaved_bytes(appended_bytes) < SNAPSHOT_BYTES
        ):
            return

        def on_done(error: Exception | None) -> None:
            if error is not None:
                logger.warning("snapshot of producers wasn't written, the next upload tries again: %s", error)

        try:
            self._write(appended_bytes, on_done)
        except PenstockError as error:
            logger.debug("snapshot of producers is put off to the next upload: %s", error)

    def _unsaved_bytes(self, appended_bytes: int) -> int:
        return self._replayed_bytes + appended_bytes - self._saved_bytes

    async def save(self, start: int, appended_bytes: int) -> None:
        """Write a snapshot, durably, if a log that starts at ``start`` couldn't give the state back.

        Raises the WAL's error; waits while there is no room.
        """
        while start > self._end and len(self._table) and self._is_whole and not self._is_closed:
            done = anyio.Event()
            errors: list[Exception] = []

            def on_done(
                error: Exception | None, done: anyio.Event = done, errors: list[Exception] = errors
            ) -> None:
                if error is not None:
                    errors.append(error)
                done.set()

            try:
                self._write(appended_bytes, on_done)
            except FullError:
                await self._engine.wait_for_room(REPLAY_BYTES)
                continue
            await done.wait()
            if errors:
                raise again(errors[0])

    async def upload(self, start: int) -> None:
        """Have the snapshot uploaded without which the log can't be trimmed to ``start``; it was saved for that.

        Raises ClosedError.
        """
        if self.trim_limit(start) < start:
            written = next((state_end for state_end, end in self._written if end >= start), 0)
            await self._engine.upload_to(self._state, written)

    def trim_limit(self, start: int) -> int:
        """How far towards ``start`` the log may be trimmed, so that a lost WAL takes nothing that objects had."""
        if not len(self._table) or not self._is_whole:
            return start
        self._look_what_is_uploaded()
        needed = min(start, self._engine.uploading_end(self._log.stream_id))
        return start if needed <= max(self._uploaded_end, self._log.start_offset) else self._uploaded_end

    def _look_what_is_uploaded(self) -> None:
        uploaded = self._engine.uploaded_end(self._state.stream_id)
        while self._written and self._written[0][0] <= uploaded:
            self._uploaded_end = max(self._uploaded_end, self._written[0][1])
            self._written = self._written[1:]

    def _taken(self, state_end: int, end: int) -> None:
        """The snapshot that ends at ``state_end`` in its stream says what the log said up to ``end``."""
        self._end = max(self._end, end)
        self._written += ((state_end, end),)
        self._look_what_is_uploaded()  # else those that nobody asks for would never go

    def _write(self, appended_bytes: int, on_done: Callable[[Exception | None], None]) -> None:
        end, saved_bytes = self._log.confirmed_offset, self._replayed_bytes + appended_bytes
        state_end = self._state.next_offset + 1

        def written(error: Exception | None) -> None:
            if error is None:
                self._taken(state_end, end)
                self._saved_bytes = max(self._saved_bytes, saved_bytes)
                self._unsaved_uploads = 0
            on_done(error)

        self._table.trimmed_to(self._log.start_offset)
        data = memoryview(self._table.snapshot(end))
        self._engine.append(self._state, 1, -1, data, None, written)

    def close(self) -> None:
        """Nothing is written any more; what is on its way still ends."""
        self._is_closed = True
