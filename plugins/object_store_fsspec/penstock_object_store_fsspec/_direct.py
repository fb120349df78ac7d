"""Writes to one file that pass the page cache by, where the file system lets them.

An object is written once and, while it is young, read from the log cache: pages of it would only push out
others, and filling fresh ones costs several times the copy (measured: half of a broker's time at 200 KiB
requests). Small objects, and file systems without O_DIRECT, are written as usual.
"""

from __future__ import annotations

__all__ = ("FileWriter",)

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence

from penstock.spi.plugin import Buffer

#: O_DIRECT wants address, offset and length in multiples of the device's block; 4 KiB covers all common ones.
ALIGNMENT_BYTES = 4096
#: What is gathered before it is written; bodies smaller than this are written as usual.
BUFFER_BYTES = 2**20
#: Linux takes at most 1024 vectors a call (IOV_MAX); 16 MiB a call keeps each system call short.
_VECTORS_MAX = 1024
_WRITE_BYTES_MAX = 16 * 2**20


class FileWriter:
    """Appends to ``fd``, a new file. Not for use by several threads at once; ``finish`` before syncing."""

    __slots__ = ("_buffer", "_fd", "_used", "_view")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._used = 0

    def write(self, body: Sequence[Buffer]) -> None:
        """Append ``body``. Each system call releases the GIL. Raises OSError."""
        if self._view is None and (_size(body) < BUFFER_BYTES or not self._go_direct()):
            _write_vectors(self._fd, body)
            return
        assert self._view is not None
        for part in body:
            rest = memoryview(part).cast("B")
            while rest:
                piece = rest[: BUFFER_BYTES - self._used]
                self._view[self._used : self._used + len(piece)] = piece
                self._used += len(piece)
                rest = rest[len(piece) :]
                if self._used == BUFFER_BYTES:
                    self._flush(BUFFER_BYTES)

    def finish(self) -> None:
        """Write what is gathered still; nothing can be written afterwards. Raises OSError."""
        if self._view is None:
            return
        tail = self._used % ALIGNMENT_BYTES
        last = bytes(self._view[self._used - tail : self._used])
        self._flush(self._used - tail)
        _set_direct(self._fd, on=False)
        _write_vectors(self._fd, [last])
        self.discard()

    def discard(self) -> None:
        """Give the buffer back."""
        if self._view is not None and self._buffer is not None:
            self._view.release()
            self._buffer.close()
            self._view = self._buffer = None

    def _go_direct(self) -> bool:
        if os.lseek(self._fd, 0, os.SEEK_CUR) % ALIGNMENT_BYTES or not _set_direct(self._fd, on=True):
            return False
        self._buffer = mmap.mmap(-1, BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        return True

    def _flush(self, size: int) -> None:
        assert self._view is not None
        assert size % ALIGNMENT_BYTES == 0, "only whole blocks are written directly"
        with self._view[:size] as gathered:
            position = 0
            while position < size:
                try:
                    written = os.write(self._fd, gathered[position:])
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    _set_direct(
                        self._fd, on=False
                    )  # accepted when asked, refused when used: some file systems do
                    continue
                if written % ALIGNMENT_BYTES:
                    _set_direct(self._fd, on=False)  # the disk is nearly full: the rest says so
                position += written
        self._used = 0


def _set_direct(fd: int, *, on: bool) -> bool:
    """Whether the file system agreed."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True


def _size(body: Sequence[Buffer]) -> int:
    return sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in body)


def _write_vectors(fd: int, body: Sequence[Buffer]) -> None:
    """Write all of ``body`` without joining it; each system call releases the GIL."""
    views = [memoryview(part).cast("B") for part in body]
    at, offset = 0, 0
    while at < len(views):
        batch: list[memoryview] = []
        room = _WRITE_BYTES_MAX
        index, skip = at, offset
        while index < len(views) and room and len(batch) < _VECTORS_MAX:
            piece = views[index][skip : skip + room]
            batch.append(piece)
            room -= len(piece)
            index, skip = index + 1, 0
        written = os.writev(fd, batch)
        while at < len(views) and written >= len(views[at]) - offset:
            written -= len(views[at]) - offset
            at, offset = at + 1, 0
        offset += written
