"""Marks: the newest index of the metadata log, kept in the WAL, so that the loss of newest entries is noticed.

A log that lost its newest entries looks like one that never had them. So whoever writes metadata leaves a *mark* in
the WAL after each entry, a small entry that says which index was reached, before anybody is told that a command
succeeded. At a start, and by ``penstock verify``, the newest mark is held against the log.

Marks cost a place in a group commit each, and no write of their own if records are on their way; while one is on its
way, the next one waits, and stands for all indexes until then. Without metadata entries there are none. The newest
one is never trimmed: a mark that is about to go is written again first. Only a WAL that has no room at all is trimmed
first.

A mark is an entry as others (``penstock.stream.entry``)::

    header, 41 bytes
        0   1  version, 1
        1   8  stream id, 0
        9   8  epoch of the node
       17   8  0
       25   8  index of the metadata entry
       33   8  time, ms
    then the name of the cluster, UTF-8

The other way round, each entry of the metadata log says where the newest durable mark ended, so that a WAL that was
rolled back, or cut off, is noticed as well.
"""

from __future__ import annotations

__all__ = (
    "MARK_STREAM",
    "Mark",
    "MetadataMarks",
    "Evidence",
    "collect_evidence",
    "encode_mark",
    "index_to_mark",
)

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import anyio

from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    FullError,
    NotFoundError,
    UnavailableError,
)
from penstock.metadata.image import Image
from penstock.spi.wal import WalAppend, WalEntry, WriteAheadLog
from penstock.stream.entry import HEADER, WalHeader, decode_header, encode_header

logger = logging.getLogger("penstock.stream")

#: The stream id of marks; metadata never give it to a stream. Versions without marks skip it like a deleted stream.
MARK_STREAM = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """The metadata log of ``cluster_id`` had the entry ``index``."""

    index: int
    cluster_id: str


def encode_mark(mark: Mark, node_epoch: int, now_ms: int) -> tuple[bytes, bytes]:
    """The WAL entry that holds the mark: the header of an entry, then the cluster's name."""
    return encode_header(MARK_STREAM, node_epoch, 0, mark.index, now_ms), mark.cluster_id.encode()


def decode_mark(header: WalHeader, data: memoryview, position: int) -> Mark:
    """The mark in a WAL entry of :data:`MARK_STREAM`. Raises CorruptError."""
    try:
        return Mark(header.next_offset, str(data[HEADER.size :], "utf-8"))
    except UnicodeDecodeError as error:
        raise CorruptError(f"the WAL's mark of metadata can't be read: position={position}") from error


@dataclass(slots=True)
class Evidence:
    """The evidence in a WAL about the metadata log that it was written with."""

    #: That log had an entry of this index at least; 0: nothing is said.
    index: int = 0
    #: Of the newest mark; empty: there is none.
    cluster_id: str = ""
    #: Entries with records.
    records: int = 0
    #: Position after the last entry; 0: there is none, or it isn't known which is the last.
    end: int = 0
    #: Why an entry can't be one that a broker appended, and so the log can't be a broker's; empty if all can.
    foreign: str = ""

    def add(self, entry: WalEntry) -> Mark | None:
        """Take an entry into account; the mark, if it is one. Raises CorruptError."""
        self.end = entry.next_position
        header = decode_header(entry.data, entry.position)
        if header.stream_id != MARK_STREAM:
            self.records += 1
            self.index = max(self.index, header.epoch)  # the index at which the stream was opened
            return None
        mark = decode_mark(header, entry.data, entry.position)
        self.index, self.cluster_id = max(self.index, mark.index), mark.cluster_id
        return mark


async def collect_evidence(entries: AsyncIterator[WalEntry]) -> Evidence:
    """Read a WAL from outside and collect its evidence. Where it can't be read, recovery says what is wrong."""
    evidence = Evidence()
    try:
        async for entry in entries:
            try:
                evidence.add(entry)
            except CorruptError as error:
                return Evidence(foreign=str(error))
    except NotFoundError:
        pass
    except (CorruptError, UnavailableError) as error:
        evidence.end = 0
        logger.debug("the WAL was looked at until it couldn't be read: %s", error)
    return evidence


def index_to_mark(image: Image, node_id: int, node_epoch: int) -> int:
    """How far metadata got in a life of a node: up to the entry before a newer life's first, if there is one.

    A newer life takes a mark of its first entry, or a later one, for metadata that were lost, and refuses to start.
    """
    node = image.nodes.get(node_id)
    return image.index if node is None or node.epoch <= node_epoch else node.epoch - 1


class MetadataMarks:
    """Writes marks. ``told(index)`` is called when everything up to that index may be told to who asked for it.

    ``full()`` is called when there was no room for a mark; a trim brings it.
    """

    def __init__(
        self,
        wal: WriteAheadLog,
        cluster_id: str,
        *,
        node_epoch: int,
        now_ms: Callable[[], int],
        told: Callable[[int], None],
        full: Callable[[], None] = lambda: None,
    ) -> None:
        self._wal = wal
        self._cluster_id = cluster_id
        self._node_epoch = node_epoch
        self._now_ms = now_ms
        self._told = told
        self._full = full
        #: The index to be marked, the one on its way (0: none is), and that of the newest durable mark.
        self._wanted = 0
        self._flying = 0
        self._marked = 0
        #: The newest durable mark's end in the WAL: trimming so far would drop it.
        self._end = 0
        self._landed = anyio.Event()

    def durable_end(self) -> int:
        """The WAL position where the newest durable mark ends: the WAL never ends before it; 0 without a mark."""
        return self._end

    def mark(self, index: int) -> None:
        """The metadata log has the entry ``index``: say so in the WAL as soon as may be."""
        if index <= self._marked:
            self._told(index)
            return
        self._wanted = max(self._wanted, index)
        if not self._flying:
            self._append()

    async def renew(self) -> None:
        """Write the newest mark again, at the WAL's end; return when it is durable, or can't be."""
        if not self._flying:
            self._append()
        if self._flying:  # the next ones, which may follow without end, aren't waited for
            await self._landed.wait()

    async def trim(self, position: int) -> None:
        """``WriteAheadLog.trim``, but the newest mark stays."""
        if self._wanted and position >= self._end:
            await self.renew()
        await self._wal.trim(position)
        if not self._flying and (self._marked < self._wanted or 0 < self._end <= position):
            await self.renew()  # there was no room before

    def _append(self) -> None:
        index = self._wanted
        mark = encode_mark(Mark(index, self._cluster_id), self._node_epoch, self._now_ms())
        try:
            append = self._wal.append(mark)
        except (FullError, ClosedError, FencedError) as error:
            # full: the next trim makes room, for which metadata must go on; ended: the broker ends as well
            logger.debug("metadata index %d isn't marked in the WAL: %s", index, error)
            self._told(index)
            if isinstance(error, FullError):
                self._full()
            return
        self._flying = index
        self._landed = anyio.Event()
        append.set_callback(self._complete)

    def _complete(self, append: WalAppend) -> None:
        index, self._flying = self._flying, 0
        if append.error is None:
            self._marked, self._end = index, append.next_position
        self._landed.set()
        self._told(index)
        if self._wanted > index and not self._flying:
            self._append()
