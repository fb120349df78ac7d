"""A disk for logs of blocks: what is written is seen at once, and durable when it is synced."""

from __future__ import annotations

__all__ = ("BlockMedium", "SimulatedDevice")

import errno
import importlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any
from unittest import mock

from penstock.errors import UnavailableError
from penstock.plugins import PluginRegistry, validate_settings
from penstock.spi.plugin import Buffer
from penstock_conformance.simulation._bucket import Bucket
from penstock_conformance.simulation._loop import SimulatedLoop
from penstock_conformance.simulation._media import Medium
from penstock_conformance.simulation._threads import (
    THREADING,
    SimulatedWriter,
    Turns,
    pause,
    running_life,
)

_SECTOR_BYTES = 512
_BLOCK_BYTES = 4096
#: All header slots that a log may have.
_AREA_BYTES_MAX = 16 * _BLOCK_BYTES
_LOCK_TIMEOUT_S = 10.0
#: The descriptor for the header; others are named by their threads.
_HEADER = 0
#: An access to a slow disk looks so often whether it still is.
_SLICE_S = 0.25
#: Of the openings in times of faults, so many meet a failed read in their recovery, which reads once or twice.
_UNREADABLE_RATE = 0.25


class _Disk:
    """The bytes, which outlive every process."""

    def __init__(self, loop: SimulatedLoop, random: Random, size_bytes: int) -> None:
        self.loop, self.random = loop, random
        self.seen = bytearray(size_bytes)
        self.durable = bytearray(size_bytes)
        #: By life: what it wrote and didn't sync.
        self.unsynced: dict[int, list[tuple[int, int]]] = {}
        #: The newest places in the ring.
        self.written: deque[tuple[int, int]] = deque(maxlen=6)
        #: Who holds them: as on Linux, an opening and not a process, which may open the log again while it closes it.
        self.locks: dict[str, SimulatedDevice] = {}
        self.dead: set[int] = set()
        self.cut_off_until_s: dict[int, float] = {}
        self.fault_rate = 0.0
        self.is_failing = False
        self.typical_s = 0.0005
        #: So much slower than that.
        self.slowness = 1.0

    def wait(self, life: int) -> None:
        """Take the time of one access. Raises OSError for a dead process."""
        slow = 40 if self.random.random() < 0.02 else 1
        left_s = self.random.uniform(0.1, 1.0) * self.typical_s * slow
        while self.slowness > 1 and left_s > 0:  # once the disk is fast again, so is the rest of what it does
            slice_s = min(left_s, _SLICE_S / self.slowness)
            pause(slice_s * self.slowness)
            left_s -= slice_s
        pause(left_s)
        held_s = self.cut_off_until_s.get(life, 0.0) - self.loop.time()
        if held_s > 0 and life not in self.dead:
            pause(held_s)
        self.check_alive(life)

    def check_alive(self, life: int) -> None:
        """Raises OSError for a dead process."""
        if life in self.dead:
            raise OSError(errno.EIO, "simulated: this process is dead")

    def meet(self) -> None:
        """Raises OSError if an access goes wrong."""
        if self.is_failing or self.random.random() < self.fault_rate / 50:
            raise OSError(errno.EIO, "simulated: the disk failed")

    def lose(self) -> None:
        """Another disk is in its place, and empty."""
        size = len(self.seen)
        self.seen, self.durable = bytearray(size), bytearray(size)
        self.unsynced.clear()
        self.written.clear()

    def kill(self, life: int, *, with_host: bool) -> None:
        """The process is gone, and its locks; with its host, what it didn't sync, sector by sector."""
        self.dead.add(life)
        self.locks = {name: owner for name, owner in self.locks.items() if owner._life != life}
        kept = self.random.choice((0.0, 0.5, 0.9))
        for start, end in self.unsynced.pop(life, []):
            for sector in range(start, end, _SECTOR_BYTES):
                at = slice(sector, min(end, sector + _SECTOR_BYTES))
                if with_host and self.random.random() >= kept:
                    self.seen[at] = self.durable[at]
                else:
                    self.durable[at] = self.seen[at]


class SimulatedDevice:
    """The disk as one process has it open: ``penstock_wal_block._device.Device``, on one host.

    Like the real one it has a descriptor for the header, and one for each thread that writes.
    """

    in_place = is_linked = True
    devices = stripe_bytes = 0

    def __init__(self, disk: _Disk, find_header: Any, *, shared: bool) -> None:
        self._disk = disk
        self._life = running_life()
        self._find_header = find_header
        self.capacity_bytes = self.extent_bytes = len(disk.seen)
        #: Each life is on a host of its own, which sees no lock of another one.
        self.shareable = self.is_block_device = self.direct = shared
        self._host = f"host {self._life} " if shared else ""
        self.seat = (self._host or "the only host").ljust(16)[:16].encode()
        self._descriptors = {_HEADER}
        #: Those that are still to be told of a sync that failed.
        self._untold: set[int] = set()
        self._reads = 0
        #: Which of them fails, if one does.
        self._failing_read = 0
        if disk.random.random() < (_UNREADABLE_RATE if disk.fault_rate else 0.0):
            self._failing_read = disk.random.choice((1, 1, 2))

    def find_header(self, location: str) -> Any:
        seen = self._disk.seen
        is_new = not self.is_block_device and not any(seen[2 * _BLOCK_BYTES :])
        size = 2 * _BLOCK_BYTES if is_new else len(seen)
        area = self.read_header_area(0, min(size, _AREA_BYTES_MAX))
        return self._find_header(
            area,
            size,
            lambda offset, size: bytes(seen[offset : offset + size]),
            location,
            is_block_device=self.is_block_device,
        )

    def read_header_area(self, offset: int, size: int) -> bytes:
        self._disk.wait(self._life)
        self._disk.meet()
        return bytes(self._disk.seen[offset : offset + size])

    def write_header_slot(self, index: int, slot: bytes) -> None:
        self._put(index * _BLOCK_BYTES, slot)
        self._sync(_HEADER)

    def read(self, offset: int, size: int) -> memoryview:
        self._disk.wait(self._life)
        self._disk.meet()
        self._reads += 1
        if self._reads == self._failing_read:
            raise OSError(errno.EIO, "simulated: the disk can't be read")
        return memoryview(bytes(self._disk.seen[offset : offset + size]))

    def write(self, offset: int, parts: Sequence[Buffer], length: int) -> None:
        data = b"".join(parts)
        assert len(data) == length, "the length is that of the parts"
        self._descriptors.add(threading.get_ident())
        self._disk.written.append((offset, offset + length))
        self._put(offset, data.ljust(-(-length // _BLOCK_BYTES) * _BLOCK_BYTES, b"\0"))

    def _put(self, offset: int, data: bytes) -> None:
        """In two pieces, between which the process may die."""
        middle = len(data) // 2 // _SECTOR_BYTES * _SECTOR_BYTES
        for start, end in ((0, middle), (middle, len(data))):
            if start < end:
                self._disk.wait(self._life)
                self._disk.meet()
                self._disk.seen[offset + start : offset + end] = data[start:end]
                self._disk.unsynced.setdefault(self._life, []).append((offset + start, offset + end))

    def sync(self) -> None:
        self._sync(threading.get_ident())

    def _sync(self, descriptor: int) -> None:
        """One that fails takes with it what was written over all descriptors, and each is told of it once.

        A second one over the same descriptor finds nothing to do, and succeeds.
        """
        disk = self._disk
        disk.wait(self._life)
        ranges = disk.unsynced.pop(self._life, [])
        try:
            disk.meet()
        except OSError:
            for start, end in ranges:
                disk.seen[start:end] = disk.durable[start:end]
            self._untold = self._descriptors - {descriptor}
            raise
        for start, end in ranges:
            disk.durable[start:end] = disk.seen[start:end]
        if descriptor in self._untold:
            self._untold.remove(descriptor)
            raise OSError(errno.EIO, "simulated: the disk failed before")

    def sync_all(self) -> None:
        self._disk.wait(self._life)
        for life in list(self._disk.unsynced):
            for start, end in self._disk.unsynced.pop(life):
                self._disk.durable[start:end] = self._disk.seen[start:end]

    def label(self, log_id: int) -> None:
        """Only further devices of a set are labelled."""

    def header_lock(self) -> AbstractContextManager[None]:
        return self._locked("header")

    def data_lock(self) -> AbstractContextManager[None]:
        return self._locked("data")

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        disk = self._disk
        name = self._host + name
        deadline_s = disk.loop.time() + _LOCK_TIMEOUT_S
        disk.check_alive(self._life)
        while disk.locks.get(name, self) is not self:
            if disk.loop.time() > deadline_s:
                raise UnavailableError("simulated: another process holds the lock, and doesn't let go")
            pause(0.02)
            disk.check_alive(self._life)
        disk.locks[name] = self
        try:
            yield
        finally:
            if disk.locks.get(name) is self:
                del disk.locks[name]

    def claim(self, epoch: int) -> bool:
        return self._disk.locks.setdefault(f"{self._host}epoch {epoch}", self) is self

    def reserve(self, epoch: int, earlier: Sequence[int]) -> frozenset[int]:
        return frozenset()  # the fence of headers alone must do

    def is_free(self, epoch: int) -> bool:
        return f"{self._host}epoch {epoch}" not in self._disk.locks

    def close(self) -> None:
        """Ends the locks."""
        locks = self._disk.locks
        self._disk.locks = {name: owner for name, owner in locks.items() if owner is not self}


class _ReadOnlyDisk:
    """The disk as somebody reads it who doesn't have it open."""

    is_block_device = False

    def __init__(self, disk: _Disk) -> None:
        self._disk = disk
        self.size = len(disk.seen)

    def __enter__(self) -> _ReadOnlyDisk:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def read(self, offset: int, size: int) -> memoryview:
        """What is seen at this moment. Raises UnavailableError."""
        try:
            self._disk.wait(running_life())
            self._disk.meet()
        except OSError as error:
            raise UnavailableError(f"simulated: the disk can't be read: {error}") from error
        return memoryview(bytes(self._disk.seen[offset : offset + size]))


class BlockMedium(Medium):
    """``wal_block`` on a simulated disk, with its threads in simulated time."""

    def __init__(self, registry: PluginRegistry, plugin: str, settings: Mapping[str, object]) -> None:
        super().__init__(registry, plugin, {"capacity": 2**20, "group_bytes_max": 16 * 1024, **settings})
        self._package = self.spec.open.__module__.rpartition(".")[0]
        self._find_header = importlib.import_module(f"{self._package}._place").find_header

    def begin(self, loop: SimulatedLoop, random: Random, bucket: Bucket) -> None:
        super().begin(loop, random, bucket)
        checked: Any = validate_settings(self.spec, self.settings)
        self.disk = _Disk(loop, random, checked.capacity)
        self._turns = Turns(loop, random)

    def _new_device(self) -> SimulatedDevice:
        return SimulatedDevice(self.disk, self._find_header, shared=bool(self.settings.get("shared")))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        wal, log, inspect = (
            importlib.import_module(f"{self._package}.{name}") for name in ("_wal", "_log", "_inspect")
        )
        with (
            mock.patch.object(wal, "threading", THREADING),
            mock.patch.object(log, "threading", THREADING),
            mock.patch.object(wal, "WriterThread", SimulatedWriter),
            mock.patch.object(wal, "_open_device", lambda *_, **__: self._new_device()),
            mock.patch.object(inspect, "_ReadOnlyFile", lambda _: _ReadOnlyDisk(self.disk)),
            mock.patch.object(inspect, "check_place", lambda _: any(self.disk.seen)),
            mock.patch.object(inspect, "run_in_thread", SimulatedWriter.run_in_turn),
            mock.patch.object(SimulatedWriter, "turns", self._turns, create=True),
        ):
            try:
                yield
            finally:
                self._turns.close()

    def set_pace(self, fault_rate: float, typical_s: float) -> None:
        self.disk.fault_rate = fault_rate
        self.typical_s = self.disk.typical_s = typical_s / 20

    def cut_off(self, life: int, seconds: float) -> None:
        self.disk.cut_off_until_s[life] = self.loop.time() + seconds

    async def kill(self, life: int) -> None:
        self.disk.kill(life, with_host=self.random.random() < 0.5)

    def damage(self, random: Random) -> str:
        """One bit of what was written last."""
        disk = self.disk
        if not disk.written or random.random() < 0.2:
            return ""
        start, end = random.choice(disk.written)
        at = random.randrange(start, min(end, start + 2 * _SECTOR_BYTES))
        disk.seen[at] ^= 1 << random.randrange(8)
        disk.durable[at] = disk.seen[at]
        return f"flipped {at}"
