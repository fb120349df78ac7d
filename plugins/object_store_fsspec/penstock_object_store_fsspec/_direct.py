"""Writes and reads of files that pass the page cache by, where the file system lets them.

An object is written once and, while it is young, read from the log cache: pages of it would only push out
others, and filling fresh ones costs several times the copy (measured: half of a broker's time at 200 KiB
requests). Small objects, and file systems without O_DIRECT, are written and read as usual.
"""

from __future__ import annotations

__all__ = ("BUFFER_BYTES", "DIRECT_READ_BYTES_MIN", "FileWriter", "read_buffers", "read_direct")

import errno
import fcntl
import os
from collections.abc import Sequence

from penstock.direct_io import BLOCK_BYTES, BounceBuffers, DirectGather, ReadBuffers, write_vectors
from penstock.spi.plugin import Buffer
from penstock_object_store_fsspec._backend import body_size

#: What is gathered before it is written; bodies smaller than this are written as usual. It is also what one system
#: call writes: a longer one would hold up the log, if that is on the same disk.
BUFFER_BYTES = 2**20
#: Ranges from here on are read past the page cache.
DIRECT_READ_BYTES_MIN = 2**18
#: One read from the disk. The kernel's own readahead asks for megabytes at once, and a sync of the log on the same
#: disk waits behind them: p99 of a small one was 6 ms beside 150 MB/s of such reads, 1 ms beside these, 0.4 ms alone.
_READ_BYTES = 2**18
#: Memory that waits for the next reads, of which one asks for 4 MiB at most, unless a single block is larger.
_REUSED_BYTES = 16 * 2**20
#: Linux takes at most 1024 vectors a call (IOV_MAX).
_VECTORS_MAX = 1024


class FileWriter:
    """Appends to ``fd``, a new file. Not for use by several threads at once; ``finish`` before syncing."""

    __slots__ = ("_buffers", "_fd", "_gather", "_position")

    def __init__(self, fd: int, buffers: BounceBuffers | None = None) -> None:
        """``buffers`` are of :data:`BUFFER_BYTES`; None: one of its own."""
        self._fd = fd
        self._buffers = buffers or BounceBuffers(BUFFER_BYTES, 0)
        self._gather: DirectGather | None = None
        self._position = 0

    def write(self, body: Sequence[Buffer]) -> None:
        """Append ``body``. Each system call releases the GIL. Raises OSError."""
        if self._gather is None and (body_size(body) < BUFFER_BYTES or not self._go_direct()):
            for first in range(0, len(body), _VECTORS_MAX):
                self._write_vectors([memoryview(part) for part in body[first : first + _VECTORS_MAX]])
            return
        assert self._gather is not None
        self._gather.add_all(body)

    def finish(self) -> None:
        """Write what is gathered still; nothing can be written afterwards. Raises OSError."""
        if self._gather is not None:
            rest = bytes(self._gather.flush())
            _set_direct(self._fd, on=False)
            self._write_vectors([memoryview(rest)])
            self.discard()

    def discard(self) -> None:
        """Give the buffer back."""
        if self._gather is not None:
            self._gather.close()
            self._gather = None

    def _go_direct(self) -> bool:
        if self._position % BLOCK_BYTES or not _set_direct(self._fd, on=True):
            return False
        self._gather = DirectGather(self._buffers, self._write_direct, write_bytes=BUFFER_BYTES)
        return True

    def _write_direct(self, vectors: Sequence[memoryview]) -> None:
        try:
            self._write_vectors(vectors)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _set_direct(self._fd, on=False)  # accepted when asked, refused when used: some file systems do
            self._write_vectors(vectors)

    def _write_vectors(self, vectors: Sequence[memoryview]) -> None:
        write_vectors(self._fd, vectors, self._position, on_partial=self._go_on_buffered)
        self._position += sum(map(len, vectors))

    def _go_on_buffered(self) -> None:
        # A partial write means that the disk is nearly full; the rest, perhaps not aligned any more, says so.
        _set_direct(self._fd, on=False)


def read_buffers() -> ReadBuffers:
    """Memory for the reads of one store."""
    return ReadBuffers(_REUSED_BYTES)


def read_direct(fd: int, start: int, end: int, buffers: ReadBuffers) -> memoryview | None:
    """The bytes [start, end) of ``fd``, at least one, fewer where the file ends; None if that is refused.

    Raises OSError.
    """
    if not _set_direct(fd, on=True):
        return None
    base = start - start % BLOCK_BYTES
    memory = buffers.take(-(-(end - base) // BLOCK_BYTES) * BLOCK_BYTES)
    size = 0
    try:
        while size < len(memory):
            count = os.preadv(fd, [memory[size : size + _READ_BYTES]], base + size)
            size += count
            if count % BLOCK_BYTES or not count:
                break  # the end of the file
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _set_direct(fd, on=False)
        return None
    return memory[start - base : min(size, end - base)].toreadonly()


def _set_direct(fd: int, *, on: bool) -> bool:
    """Whether the file system agreed."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True
