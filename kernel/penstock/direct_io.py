"""Writes that pass the page cache by (O_DIRECT), from where the bytes lie in memory.

O_DIRECT takes address, position and length in multiples of the device's block. A large buffer holds whole pages
wherever it lies; they can be written from where they are if the buffer's address and its position in the file agree
modulo the page. Who lays a file out can see to that with less than a page of filler in front of a large buffer
(:func:`filler_bytes`). What is left, the ends of large buffers and all small ones, is gathered in a bounce buffer.

Any layout is written correctly; one that agrees is written without a copy.
"""

from __future__ import annotations

__all__ = (
    "BLOCK_BYTES",
    "LARGE_BYTES",
    "BounceBuffers",
    "DirectGather",
    "ReadBuffers",
    "filler_bytes",
    "write_vectors",
)

import ctypes
import errno
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from penstock import native

Buffer: TypeAlias = bytes | bytearray | memoryview

#: Covers the logical block of all common devices, and is a page.
BLOCK_BYTES: Final = 4096
#: Buffers from here on are worth the filler: half a page on average.
LARGE_BYTES: Final = 64 * 1024
#: Linux takes at most 1024 vectors a call (IOV_MAX).
_VECTORS_MAX: Final = 512
#: Without native code, buffers smaller than this on average are joined, so many at a time: a third of the time that
#: they take one by one.
_JOIN_PART_BYTES: Final = 4096
_JOIN_PARTS: Final = 64
#: A piece of memory is used for what is shorter by this part at most: caches copy what keeps an eighth more alive.
_LONGER_PART: Final = 12
#: Whether the system makes a piece of memory longer or shorter (mremap).
_RESIZES: Final = sys.platform == "linux"
#: This part of what ``ReadBuffers`` keeps may wait beside it to be given back: a few reads of a mebibyte.
_SURPLUS_PART: Final = 4


def filler_bytes(position: int, buffers: Sequence[Buffer]) -> int:
    """Bytes to leave free at ``position`` so that the first large buffer of ``buffers`` is written from its place.

    0 to 4095; 0 too if none is large, or if it lies in memory that can't be written (whose address isn't told).
    """
    for buffer in buffers:
        size = len(buffer)
        if size >= LARGE_BYTES:
            address = _address(buffer)
            return 0 if address is None else (address - position) % BLOCK_BYTES
        position += size
    return 0


def _address(buffer: Buffer) -> int | None:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):
        return None


class BounceBuffers:
    """Bounce buffers of one size for gathers that come and go. Some are kept: fresh memory costs a fault per page.

    May be used by several threads at once.
    """

    __slots__ = ("_kept", "_kept_max", "size")

    def __init__(self, size: int, kept_max: int) -> None:
        assert size > 0, "there is room to gather in"
        assert size % BLOCK_BYTES == 0, "a bounce buffer is whole blocks"
        self.size = size
        self._kept_max = kept_max
        self._kept: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        """A buffer, its contents undefined."""
        try:
            return self._kept.pop()
        except IndexError:
            return mmap.mmap(-1, self.size)

    def give(self, memory: mmap.mmap) -> None:
        """Keep a buffer for the next one, unless somebody sees it still (an error on its way)."""
        try:
            memory.resize(self.size)  # changes nothing, and is refused while a view is alive
        except BufferError:
            return
        if len(self._kept) < self._kept_max:
            self._kept.append(memory)
        else:
            memory.close()


class ReadBuffers:
    """Memory for what is read and handed out, used again when the last view of it is gone.

    Fresh memory costs a fault per page: writing to a mebibyte of it takes 0.4 ms, to a used one 0.03, and giving it
    back 0.2 to 0.3. Pieces of ``kept_bytes_max`` together wait for their next use, on no account; one of about the
    right length is made longer or shorter, so that only what is added is fresh. Whoever lets go
    last may be the event loop; so a quarter as much waits to be given back by the next ``take``, which belongs in a
    thread: that goes without the interpreter. May be used by several threads at once.
    """

    __slots__ = (
        "_kept",
        "_kept_bytes",
        "_kept_bytes_max",
        "_loans",
        "_lock",
        "_returned",
        "_surplus",
        "_surplus_bytes",
        "_surplus_bytes_max",
    )

    def __init__(self, kept_bytes_max: int) -> None:
        self._kept_bytes_max = kept_bytes_max
        #: The oldest first.
        self._kept: list[mmap.mmap] = []
        self._kept_bytes = 0
        #: What is to be given back.
        self._surplus: list[mmap.mmap] = []
        self._surplus_bytes = 0
        self._surplus_bytes_max = kept_bytes_max // _SURPLUS_PART
        self._lock = threading.Lock()
        #: What nobody sees any more, and isn't among ``_kept`` yet.
        self._returned: deque[mmap.mmap] = deque()
        #: By their ids, as what they refer to can't be hashed.
        self._loans: dict[int, _Loan] = {}

    def take(self, size: int) -> memoryview:
        """``size`` > 0 writable bytes, whole pages from their start on, contents undefined."""
        length = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        with self._lock:
            self._keep_returned()
            memory = self._nearest(length)
            surplus, self._surplus, self._surplus_bytes = self._surplus, [], 0
        surplus.clear()  # unmaps them
        if memory is None or not _fits(memory, length):
            memory = _fresh(length)
        # All views keep this object, which can be watched, and it alone keeps the memory.
        owner = (ctypes.c_char * len(memory)).from_buffer(memory)
        loan = _Loan(owner, self._end)
        loan.memory = memory
        self._loans[id(loan)] = loan
        return memoryview(owner).cast("B")[:size]

    def _nearest(self, length: int) -> mmap.mmap | None:
        """The kept piece that is nearest to ``length``, if it fits or can be made to."""
        low, high = (length // 2, 2 * length) if _RESIZES else (length, length + length // _LONGER_PART)
        near = [memory for memory in self._kept if low <= len(memory) <= high]
        if not near:
            return None
        memory = min(near, key=lambda memory: abs(len(memory) - length))
        self._kept.remove(memory)
        self._kept_bytes -= len(memory)
        return memory

    def _end(self, loan: weakref.ref[object]) -> None:
        """Nobody sees the piece of ``loan`` any more. Called anywhere, so it waits for nothing."""
        assert isinstance(loan, _Loan)
        del self._loans[id(loan)]
        self._returned.append(loan.memory)
        if self._lock.acquire(blocking=False):  # else the next one who comes keeps it
            try:
                self._keep_returned()
            finally:
                self._lock.release()

    def _keep_returned(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            if len(memory) > self._kept_bytes_max:
                continue
            self._kept.append(memory)
            self._kept_bytes += len(memory)
        while self._kept_bytes > self._kept_bytes_max:
            memory = self._kept.pop(0)
            self._kept_bytes -= len(memory)
            if self._surplus_bytes + len(memory) <= self._surplus_bytes_max:
                self._surplus.append(memory)
                self._surplus_bytes += len(memory)


def _fits(memory: mmap.mmap, length: int) -> bool:
    """Whether ``memory`` is hardly longer than ``length``, or could be made so long."""
    if length <= len(memory) <= length + length // _LONGER_PART:
        return True
    try:
        memory.resize(length)
    except (BufferError, OSError):
        return False  # its last view is on its way out in another thread, or there are no addresses
    return True


def _fresh(length: int) -> mmap.mmap:
    """Memory of this process alone, which takes half as long to touch first as such that can be shared."""
    memory = mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _RESIZES:  # on Linux, where what a read of the disk writes to mustn't be copied by a fork meanwhile
        memory.madvise(mmap.MADV_DONTFORK)
    return memory


class _Loan(weakref.ref[object]):
    """Tells when nobody sees a piece of memory any more."""

    __slots__ = ("memory",)

    memory: mmap.mmap


class DirectGather:
    """Turns buffers, one behind the other from an aligned position, into vectors fit for O_DIRECT.

    ``write(vectors)`` is called with whole blocks at aligned addresses when the bounce buffer (of so many bytes, or
    one of ``bounce``) is full, when ``write_bytes`` have come together (0: never), and by :meth:`flush`. It must
    write all of them behind the ones before, and not keep them. Not for use by several threads at once.
    """

    __slots__ = (
        "_bounce",
        "_buffers",
        "_from",
        "_memory",
        "_pending",
        "_used",
        "_vectors",
        "_write",
        "_write_bytes",
    )

    def __init__(
        self,
        bounce: int | BounceBuffers,
        write: Callable[[Sequence[memoryview]], None],
        *,
        write_bytes: int = 0,
    ) -> None:
        self._buffers = BounceBuffers(bounce, 0) if isinstance(bounce, int) else bounce
        self._memory = self._buffers.take()
        self._bounce = memoryview(self._memory)
        self._write = write
        self._write_bytes = write_bytes or sys.maxsize
        self._vectors: list[memoryview] = []
        #: Bytes in ``_vectors``.
        self._pending = 0
        #: The bounce buffer is in ``_vectors`` up to here, and filled up to there. Both agree with the position in
        #: the file modulo the block.
        self._from = 0
        self._used = 0

    def add(self, buffer: Buffer) -> None:
        """Append ``buffer``; it must not change until it is written."""
        size = len(buffer)
        if size >= LARGE_BYTES:
            address = _address(buffer)
            if address is not None and (address - self._used) % BLOCK_BYTES == 0:
                self._add_in_place(memoryview(buffer), size)
                return
        if size < len(self._bounce) - self._used:
            end = self._used + size
            self._bounce[self._used : end] = buffer
            self._used = end
        else:
            self._copy(memoryview(buffer))

    def add_all(self, buffers: Sequence[Buffer]) -> None:
        """Append all of ``buffers``, as :meth:`add` one by one; many small ones are copied in one go."""
        copy = native.copy
        if copy is None:
            self._add_each(buffers)
            return
        room = len(self._bounce) - self._used
        run: list[Buffer] = []
        run_bytes = 0
        for buffer in buffers:
            size = len(buffer)
            if size < LARGE_BYTES and run_bytes + size < room:
                run.append(buffer)
                run_bytes += size
                continue
            self._used = copy(self._bounce, self._used, run)
            self.add(buffer)
            room = len(self._bounce) - self._used
            run = []
            run_bytes = 0
        self._used = copy(self._bounce, self._used, run)

    def _add_each(self, buffers: Sequence[Buffer]) -> None:
        if len(buffers) * _JOIN_PART_BYTES <= sum(map(len, buffers)):
            for buffer in buffers:
                self.add(buffer)
            return
        while buffers:
            self.add(b"".join(buffers[:_JOIN_PARTS]))
            buffers = buffers[_JOIN_PARTS:]

    def whole(self, buffers: Sequence[Buffer], size: int) -> memoryview | None:
        """``buffers`` (``size`` bytes) and zeros up to the next block, for a caller that writes them itself, at once.

        None where they don't fit the bounce buffer. The short way for what is small: nothing may have been added.
        """
        end = -(-size // BLOCK_BYTES) * BLOCK_BYTES
        bounce = self._bounce
        if end > len(bounce):
            return None
        assert not self._used, "nothing else is gathered"
        bounce[:end] = b"".join(buffers).ljust(end, b"\0")
        return bounce[:end]

    def pad(self) -> None:
        """Append zeros up to the next block."""
        self.add(bytes(-self._used % BLOCK_BYTES))

    def flush(self) -> memoryview:
        """Write the whole blocks; what doesn't fill one stays, and is returned."""
        self._cut()
        if self._vectors:
            self._write(self._vectors)
            self._vectors.clear()
            self._pending = 0
        rest = self._used - self._from
        self._bounce[:rest] = self._bounce[self._from : self._used]
        self._from, self._used = 0, rest
        return self._bounce[:rest]

    def reset(self) -> None:
        """Forget what was added and not written."""
        self._vectors.clear()
        self._pending = self._from = self._used = 0

    def close(self) -> None:
        """Give the bounce buffer back: at once, or when an error on its way lets go of what wasn't written."""
        self.reset()
        self._bounce.release()
        self._buffers.give(self._memory)

    def _add_in_place(self, view: memoryview, size: int) -> None:
        head = -self._used % BLOCK_BYTES
        tail = size - (size - head) % BLOCK_BYTES
        self._copy(view[:head])
        self._cut()
        while tail - head + self._pending > self._write_bytes:
            end = head + max(self._write_bytes - self._pending, 0) // BLOCK_BYTES * BLOCK_BYTES
            if end > head:
                self._vectors.append(view[head:end])
            self.flush()
            head = end
        self._vectors.append(view[head:tail])
        self._pending += tail - head
        self._copy(view[tail:])
        if len(self._vectors) >= _VECTORS_MAX:
            self.flush()

    def _copy(self, rest: memoryview) -> None:
        capacity = len(self._bounce)
        while rest:
            piece = rest[: capacity - self._used]
            end = self._used + len(piece)
            self._bounce[self._used : end] = piece
            self._used = end
            rest = rest[len(piece) :]
            if end == capacity:
                self.flush()

    def _cut(self) -> None:
        """Move the gathered whole blocks to the vectors."""
        end = self._used - self._used % BLOCK_BYTES
        if end > self._from:
            self._vectors.append(self._bounce[self._from : end])
            self._pending += end - self._from
            self._from = end


def write_vectors(
    fd: int,
    vectors: Sequence[memoryview],
    position: int,
    flags: int = 0,
    *,
    on_partial: Callable[[], None] | None = None,
) -> None:
    """Write all of ``vectors`` at ``position`` of the file. Raises OSError.

    ``on_partial()`` is called when the system wrote only a part, before the rest is tried.
    """
    written = os.pwritev(fd, vectors, position, flags)
    if written == sum(map(len, vectors)):
        return
    rest = vectors
    while True:
        rest = _behind(rest, written)
        if not rest:
            return
        if written == 0:
            raise OSError(errno.ENOSPC, "the medium takes no more bytes")
        if on_partial is not None:
            on_partial()
        position += written
        written = os.pwritev(fd, rest, position, flags)


def _behind(vectors: Sequence[memoryview], size: int) -> Sequence[memoryview]:
    """What is left of ``vectors`` when the first ``size`` bytes are taken away."""
    for i, vector in enumerate(vectors):
        if size < len(vector):
            return [vector[size:], *vectors[i + 1 :]] if size else vectors[i:]
        size -= len(vector)
    return ()
