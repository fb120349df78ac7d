"""Recovery: what only a WAL holds is uploaded and committed, then the WAL is trimmed.

    open WAL -> every entry, judged by metadata (``replay``) -> blocks -> objects, committed in log order
             -> a mark of how far metadata got, at the WAL's end -> trim up to there

It is a function of the WAL, the image and the store, and of nothing that serves clients: it reads no cache and fills
none. So the WAL may be this broker's own, as it is at every start; another node's that was taken over; or one that is
read beside a broker that serves.

It may be ended anywhere, and begun again with the WAL opened again: what was committed is passed over then, what was
put and not committed is given up by metadata at its deadline, and nothing is trimmed before everything is committed.
"""

from __future__ import annotations

__all__ = ("Recovered", "recover_wal")

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from penstock.errors import FullError
from penstock.metadata.service import MetadataService
from penstock.spi.allocator import Allocator
from penstock.spi.log_cache import StreamEntry
from penstock.spi.object_store import ObjectStore
from penstock.spi.wal import WriteAheadLog
from penstock.stream.entry import HEADER
from penstock.stream.marks import MetadataMarks, index_to_mark
from penstock.stream.object_puts import UploadSettings
from penstock.stream.replay import Replay
from penstock.stream.uploader import Uploader
from penstock.work.one_error import one_error

logger = logging.getLogger("penstock.stream")

#: What an entry costs beside its payload: Python objects, headers when uploaded (I8).
ENTRY_OVERHEAD_BYTES = 640


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The result of a recovery: all that the WAL held is uploaded."""

    #: Entries that only the WAL held, and their payload.
    entries: int
    payload_bytes: int
    #: Entries that were committed already, or of streams that don't exist any more.
    skipped_entries: int
    #: Position after the last entry, up to which the WAL is trimmed; 0 if there was none.
    end_position: int
    duration_ms: float


class _Block:
    """Entries on their way from the WAL to objects."""

    __slots__ = ("charged_bytes", "size_bytes", "streams")

    def __init__(self) -> None:
        self.streams: dict[int, list[StreamEntry]] = {}
        self.size_bytes = 0
        self.charged_bytes = 0

    def add(self, entry: StreamEntry) -> None:
        assert entry.charge is not None, "whoever adds it has charged it"
        self.streams.setdefault(entry.stream_id, []).append(entry)
        self.size_bytes += len(entry.data)
        self.charged_bytes += entry.charge.size

    def release(self) -> None:
        """The memory is the allocator's again."""
        for entries in self.streams.values():
            for entry in entries:
                if entry.charge is not None:
                    entry.charge.release()
                    entry.charge = None


async def recover_wal(
    wal: WriteAheadLog,
    *,
    node_id: int,
    node_epoch: int,
    metadata: MetadataService,
    store: ObjectStore,
    allocator: Allocator,
    marks: MetadataMarks,
    block_bytes: int,
    settings: UploadSettings,
    now_ms: Callable[[], int],
) -> Recovered:
    """Upload what only ``wal`` holds, commit it as the node ``node_id`` in its life ``node_epoch``, trim the WAL.

    The WAL was opened as that life, so whoever wrote it before is fenced, and nobody has read it yet. ``marks``
    writes to it: the newest mark stays in the WAL, durable, after everything else is trimmed.

    Memory: as many blocks as are put at a time and one that is filled, each of ``block_bytes`` of payload and
    overhead and at most one entry more, whatever the WAL's size; all of it charged as ``append``. Where the allocator
    has less than that, blocks are smaller.

    Raises what :meth:`Replay.take` and ``WriteAheadLog.recover`` raise of a WAL that isn't whole, FencedError if a
    newer life of the node took over. A store or a metadata log that fails is waited for. Cancelled, or after an
    error, nothing is trimmed and everything charged is given back.
    """
    started = time.perf_counter()
    blocks: set[_Block] = set()

    async def let_go(block: _Block) -> None:
        blocks.discard(block)
        block.release()

    uploader = Uploader[_Block](
        metadata, store, settings, node_id=node_id, node_epoch=node_epoch, now_ms=now_ms, let_go=let_go
    )
    replay = Replay(metadata.image, node_id, node_epoch, wal.location)
    try:
        with one_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(uploader.run)
                await _upload_entries(
                    wal, replay, uploader, blocks, allocator, block_bytes, settings.parallel_max
                )
                tasks.cancel_scope.cancel()
    finally:
        for block in blocks:
            block.release()
    # nothing that was committed on the way may be undone by a metadata log that lost its newest entries
    marks.mark(index_to_mark(metadata.image, node_id, node_epoch))
    await marks.renew()
    if replay.end_position:
        await marks.trim(replay.end_position)
    recovered = Recovered(
        entries=replay.entries,
        payload_bytes=replay.payload_bytes,
        skipped_entries=replay.skipped_entries,
        end_position=replay.end_position,
        duration_ms=(time.perf_counter() - started) * 1000,
    )
    if recovered.entries:
        logger.info(
            "recovered %d entries, %d bytes from the WAL in %.0f ms",
            recovered.entries,
            recovered.payload_bytes,
            recovered.duration_ms,
        )
    return recovered


async def _upload_entries(
    wal: WriteAheadLog,
    replay: Replay,
    uploader: Uploader[_Block],
    blocks: set[_Block],
    allocator: Allocator,
    block_bytes: int,
    parallel_max: int,
) -> None:
    """Read the WAL to its end, and return when all that had to be uploaded is committed.

    ``blocks`` are those that hold memory.
    """
    block = _Block()
    blocks.add(block)

    async def submit() -> None:
        nonlocal block
        uploader.submit(block)
        block = _Block()
        blocks.add(block)
        # with as many on their way as are put at a time, the next one is filled meanwhile, and no more
        await uploader.wait_pending(parallel_max)

    async for recovered in wal.recover():
        entry = replay.take(recovered)
        if entry is None:
            continue
        size = HEADER.size + len(entry.data) + ENTRY_OVERHEAD_BYTES
        try:
            entry.charge = allocator.charge_nowait(size, "append")
        except FullError:
            # what this recovery holds itself comes back by being uploaded, the rest when others give it back
            if block.streams:
                await submit()
            entry.charge = await allocator.charge(size, "append")
        block.add(entry)
        if block.charged_bytes >= block_bytes:
            await submit()
    statistics = wal.statistics()
    replay.check_end(max(statistics.trimmed_position, statistics.end_position))
    if replay.entries:
        logger.info(
            "uploading what only the WAL holds: entries=%d bytes=%d", replay.entries, replay.payload_bytes
        )
    if block.streams:
        await submit()
    await uploader.wait_idle()
