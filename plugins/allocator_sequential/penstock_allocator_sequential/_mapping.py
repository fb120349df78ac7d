"""Anonymous memory: how it is sized, made, and tested for views that are still around."""

from __future__ import annotations

__all__ = (
    "NO_VIEW",
    "Chunk",
    "IdlePool",
    "class_bytes",
    "is_exported",
    "map_memory",
    "map_sparsely",
    "round_to_pages",
)

import mmap
from contextlib import suppress

from penstock.errors import FullError

_PAGE_BYTES = mmap.PAGESIZE
NO_VIEW = memoryview(b"")


class Chunk:
    """One mapping that allocations are cut from; ``live`` counts those that aren't released yet.

    ``base`` is None for a mapping that serves a single allocation.
    """

    __slots__ = ("base", "live", "mapping", "open", "purpose", "size", "used")

    def __init__(self, mapping: mmap.mmap, size: int, purpose: str, base: memoryview | None) -> None:
        self.mapping = mapping
        self.size = size
        self.purpose = purpose
        self.base = NO_VIEW if base is None else base
        self.open = base is not None
        self.used = 0
        self.live = 0


def round_to_pages(size: int) -> int:
    """``size`` rounded up to whole pages."""
    return (size + _PAGE_BYTES - 1) & -_PAGE_BYTES


def class_bytes(size: int) -> int:
    """The size class of ``size``: eight classes per doubling, whole pages, so that at most 1/8 is lost.

    Few classes make it likely that a released mapping fits the next request.
    """
    step = max(_PAGE_BYTES, 1 << max(0, (size - 1).bit_length() - 4))
    return (size + step - 1) & -step


def map_memory(size: int) -> mmap.mmap:
    """Fresh zeroed memory of ``size`` bytes (whole pages). Raises FullError when the system has none."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise FullError(
            f"the system gave no memory, lower the limit of the allocator: bytes={size}"
        ) from error


def map_sparsely(size: int) -> mmap.mmap:
    """``map_memory`` without huge pages: a page takes memory when it is written, without its neighbours."""
    mapping = map_memory(size)
    # a huge page would take 2 MiB for the first byte; where the kernel has none there is nothing to advise against
    with suppress(OSError):
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


def is_exported(mapping: mmap.mmap, size: int) -> bool:
    """Whether any memoryview (or slice of one) of ``mapping`` is still alive anywhere in the process.

    Resizing to the same size changes nothing, and is refused while a buffer is exported.
    """
    try:
        mapping.resize(size)
    except BufferError:
        return True
    return False


class IdlePool:
    """Mappings that nobody uses, kept because touching fresh memory costs a page fault per page."""

    __slots__ = ("_by_size", "bytes", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._by_size: dict[int, list[mmap.mmap]] = {}
        self.bytes = 0
        self.bytes_max = bytes_max

    def put(self, mapping: mmap.mmap, size: int) -> int:
        """Keep ``mapping`` if the pool may hold it; the bytes that went back to the system for that."""
        freed = 0
        if self.bytes + size > self.bytes_max:
            freed = self.shrink(self.bytes + size - self.bytes_max)
            if self.bytes + size > self.bytes_max:
                mapping.close()
                return freed + size
        self._by_size.setdefault(size, []).append(mapping)
        self.bytes += size
        return freed

    def take(self, size: int) -> mmap.mmap | None:
        """A kept mapping of exactly ``size`` bytes (the one used last: its pages are warm)."""
        mappings = self._by_size.get(size)
        if mappings is None:
            return None
        mapping = mappings.pop()
        if not mappings:
            del self._by_size[size]
        self.bytes -= size
        return mapping

    def shrink(self, wanted: int) -> int:
        """Give at least ``wanted`` bytes back to the system if there are as many; bytes given back."""
        freed = 0
        while freed < wanted and self._by_size:
            size = next(iter(self._by_size))
            mapping = self.take(size)
            assert mapping is not None
            mapping.close()
            freed += size
        return freed
