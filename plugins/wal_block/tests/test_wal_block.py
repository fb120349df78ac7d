"""The behaviour of wal_block on real files, over what the conformance suite asks of every WAL."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from penstock_wal_block import BlockWal, Settings, penstock_register_wal
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES, newest_header
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import BlockLog
from tests.loop_device import loop_device
from tests.patience import HANG_S

from penstock.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    FencedError,
    FullError,
    InvalidRequestError,
    UnavailableError,
)
from penstock.spi import Buffer, Services
from penstock.spi.wal import WalAppend
from penstock.wal import GroupCommit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


#: Name of the medium -> what ``io`` is set to, and the logical block of the device (0: a file).
MEDIA = {
    "buffered": ("buffered", 0),
    "direct": ("direct", 0),
    "device": ("direct", 512),
    "device-4k": ("direct", 4096),
    "device-buffered": ("buffered", 512),
}


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """A device for many tests, by its logical block; each test finds the groups of those before it."""
    made: dict[int, Path] = {}
    with ExitStack() as stack:

        def get(sector_bytes: int) -> Path:
            if sector_bytes not in made:
                directory = tmp_path_factory.mktemp("loop")
                made[sector_bytes] = stack.enter_context(loop_device(directory, 8 * 2**20, sector_bytes))
            return made[sector_bytes]

        yield get


@pytest.fixture(params=MEDIA)
def io(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    io, sector_bytes = MEDIA[request.param]
    if sector_bytes:
        path = request.getfixturevalue("devices")(sector_bytes)
        with path.open("r+b") as file:
            file.write(bytes(HEADER_AREA_BYTES))
        file_of(tmp_path).parent.mkdir()
        file_of(tmp_path).symlink_to(path)
    elif io == "direct":
        try:
            os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system takes no O_DIRECT")
    return io


Opener = Callable[..., AbstractAsyncContextManager[BlockWal]]


@pytest.fixture
def open_wal(tmp_path: Path, io: str) -> Opener:
    @asynccontextmanager
    async def open_(
        epoch: int = 1, *, recover: bool = True, cluster_id: str = "c", node_id: int = 1, **settings: Any
    ) -> AsyncIterator[BlockWal]:
        values = {"capacity": "1MiB", "group_bytes_max": "64KiB", "io": io} | settings
        services = Services(
            node_id=node_id, epoch=epoch, cluster_id=cluster_id, data_dir=tmp_path, clock=lambda: 0.0
        )
        async with penstock_register_wal().open(Settings(**values), services) as wal:
            assert isinstance(wal, BlockWal)
            if recover:
                await recovered(wal)
            yield wal

    return open_


async def recovered(wal: BlockWal) -> list[bytes]:
    return [bytes(entry.data) async for entry in wal.recover()]


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "wal" / "penstock.wal"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


async def test_entries_come_back_in_order_after_reopening(open_wal: Opener) -> None:
    expected = [b"%d" % i * (i + 1) for i in range(300)]
    async with open_wal() as wal:
        appends = [wal.append([data[:3], memoryview(data)[3:]]) for data in expected]
        await appends[-1].wait_durable()
        assert all(append.done for append in appends)
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == expected


async def test_an_entry_larger_than_a_group_is_written_alone(open_wal: Opener) -> None:
    large = os.urandom(200_001)
    async with open_wal() as wal:
        for data in (b"before", large, b"after"):
            last = wal.append([data])
        await last.wait_durable()
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"before", large, b"after"]


async def test_large_payloads_are_written_from_where_they_are(
    open_wal: Opener, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their place in a page; only their ends, less than a page each, are copied."""
    views = []
    for number, offset in enumerate([0, 1, 24, 700, 4095, 4080]):
        view = memoryview(mmap.mmap(-1, 2**18 + offset))[offset : offset + 100_000 + number]
        view[:] = bytes([number + 1]) * len(view)
        views.append(view)
    vectors: list[int] = []
    real = os.pwritev

    def pwritev(fd: int, buffers: Sequence[Buffer], *rest: int) -> int:
        vectors.extend(len(buffer) for buffer in buffers)
        return real(fd, buffers, *rest)

    async with open_wal(group_bytes_max=2**20, capacity=8 * 2**20) as wal:
        monkeypatch.setattr(os, "pwritev", pwritev)
        for view in views:
            wal.append([b"small"])
            last = wal.append([b"header", view])
        await last.wait_durable()
        if io == "direct":
            assert sum(size for size in vectors if size >= 90_000) > 6 * 94_000
            assert sum(size for size in vectors if size < 90_000) < 6 * 3 * 4096
    async with open_wal(2, recover=False, capacity=8 * 2**20) as wal:
        found = await recovered(wal)
    assert found == [piece for view in views for piece in (b"small", b"header" + bytes(view))]


def open_log(tmp_path: Path, epoch: int) -> BlockLog:
    """The log without event loop and thread."""
    device = FileDevice(
        tmp_path / "wal", capacity_bytes=2**26, io="auto", sync="fdatasync", buffer_bytes=2**16
    )
    owner = Owner(cluster_id="c", node_id=1, epoch=epoch, incarnation=bytes([epoch]) * 16, log_id=7)
    return BlockLog(device, owner, location="wal", window_bytes=2**16)


def writer_of(log: BlockLog) -> Callable[[], int]:
    """Recover; then each call writes a group, and doesn't rest. It returns where the entry ends."""
    list(log.scan())
    log.settle()
    commit = GroupCommit(alignment=BLOCK_BYTES)
    commit.start(log.cursor.position, log.cursor.sequence)

    def write() -> int:
        append = commit.append([b"x"])
        group = commit.take()
        assert group is not None
        log.write(group)
        return append.next_position

    return write


def test_a_busy_owner_lets_a_newer_one_in(tmp_path: Path) -> None:
    """It holds the lock over several groups as long as more of them wait, but not for ever."""
    write = writer_of(open_log(tmp_path, 1))
    write()

    def write_for_ever() -> None:
        while True:
            write()

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(open_log, tmp_path, 2)
        with pytest.raises(FencedError, match="newer owner"):
            write_for_ever()
        successor = taken.result(HANG_S)
    assert len(list(successor.scan())) > 0


def test_an_owner_that_keeps_the_lock_looks_at_the_header_again_after_16_groups_or_10_ms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look lets go of the interpreter; that the file is there is seen before each lone group nevertheless."""
    log = open_log(tmp_path, 1)
    write = writer_of(log)
    now = 100.0
    looks: list[str] = []
    header, linked = FileDevice.read_header_area, FileDevice.__dict__["is_linked"].fget

    def look_at_header(device: FileDevice, offset: int, size: int) -> bytes:
        looks.append("header")
        return header(device, offset, size)

    def look_at_links(device: FileDevice) -> bool:
        looks.append("file")
        return bool(linked(device))

    monkeypatch.setattr("penstock_wal_block._log.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(FileDevice, "read_header_area", look_at_header)
    monkeypatch.setattr(FileDevice, "is_linked", property(look_at_links))

    def write_alone(groups: int) -> list[str]:
        looks.clear()
        for _ in range(groups):
            log.look_before_next()
            write()
        return looks

    assert write_alone(1) == ["header"]
    assert write_alone(15) == ["file"] * 15
    assert write_alone(2) == ["header", "file"]
    now += 0.011
    assert write_alone(2) == ["header", "file"]
    looks.clear()
    write()
    assert looks == []
    (tmp_path / "wal").unlink()
    with pytest.raises(UnavailableError, match="was removed or replaced"):
        write_alone(1)


async def test_a_small_group_that_the_system_writes_in_part_is_written_whole(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    sizes: list[int] = []

    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int, *flags: int) -> int:
        size = sum(map(len, buffers))
        sizes.append(size)
        if len(sizes) == 1:
            return real(fd, [memoryview(buffers[0])[:4096]], offset, *flags)
        return real(fd, buffers, offset, *flags)

    data = os.urandom(10_000)
    async with open_wal() as wal:
        await wal.append([b"the file grows"]).wait_durable()
        monkeypatch.setattr(os, "pwritev", pwritev)
        await wal.append([data]).wait_durable()
        assert len(sizes) > 1
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"the file grows", data]


def test_an_owner_whose_last_job_was_a_trim_for_nothing_holds_no_lock(tmp_path: Path) -> None:
    """The group before it kept the lock because another job waited."""
    log = open_log(tmp_path, 1)
    write = writer_of(log)
    position = write()
    log.trim(position)
    write()
    log.trim(position)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(open_log, tmp_path, 2).result(HANG_S)


async def test_an_owner_keeps_the_lock_over_lone_groups_and_lets_go_of_it_when_it_is_idle(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks: list[str] = []
    locked, rest_after = FileDevice.data_lock, BlockLog.rest_after
    is_idle = threading.Event()

    @contextmanager
    def data_lock(device: FileDevice) -> Iterator[None]:
        with locked(device):
            locks.append("taken")
            yield
            locks.append("let go")  # before the lock is free: its next owner adds its own from another thread

    def when_idle(log: BlockLog, seconds: float) -> None:
        if is_idle.is_set():
            rest_after(log, seconds)

    monkeypatch.setattr(BlockLog, "rest_after", when_idle)
    monkeypatch.setattr(BlockWal, "look_later", lambda wal: None)
    async with open_wal(1) as wal:
        monkeypatch.setattr(FileDevice, "data_lock", data_lock)
        for _ in range(10):
            await wal.append([b"x"]).wait_durable()
        assert locks == ["taken"]
        is_idle.set()
        await wal.append([b"x"]).wait_durable()
        async with open_wal(2, recover=False) as taken:
            assert await recovered(taken) == [b"x"] * 11
        assert locks[:2] == ["taken", "let go"]


async def test_an_owner_that_fails_on_a_payload_holds_no_lock(
    open_wal: Opener,
) -> None:
    """A bug of whoever appended: the groups behind it aren't written, and the log can be taken over."""
    gone = memoryview(bytearray(100))
    async with open_wal(1, group_bytes_max=4096) as wal:
        first, second, third = wal.append([bytes(4000)]), wal.append([gone, bytes(3900)]), wal.append([b"x"])
        gone.release()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with pytest.raises(UnavailableError, match="released memoryview"):
            await third.wait_durable()
        assert first.error is None
        assert second.error is not None
        async with open_wal(2, recover=False) as taken:
            assert await recovered(taken) == [bytes(4000)]


async def test_a_trim_that_failed_makes_no_room_until_it_is_durable(
    open_wal: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else recovery would start in groups that were overwritten."""

    def broken(self: FileDevice, index: int, slot: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def start_of_the_log() -> int:
        header = newest_header(file_of(tmp_path).read_bytes()[:HEADER_AREA_BYTES], "file")
        assert header is not None
        return header.start.position

    async with open_wal() as wal:
        append = wal.append([bytes(10_000)])
        await append.wait_durable()
        with monkeypatch.context() as patch:
            patch.setattr(FileDevice, "write_header_slot", broken)
            for _ in range(2):
                with pytest.raises(UnavailableError):
                    await wal.trim(append.next_position)
                assert wal.statistics().used_bytes > 0
        assert start_of_the_log() == 0
        await wal.trim(append.next_position)
        assert wal.statistics().used_bytes == 0
        assert start_of_the_log() > append.position


def test_a_device_that_was_opened_early_clears_nothing_of_what_came_since(tmp_path: Path) -> None:
    """The owner of that time filled the file, and went around the ring, before it was taken over."""

    def device() -> FileDevice:
        return FileDevice(
            tmp_path / "wal", capacity_bytes=2**21, io="auto", sync="fdatasync", buffer_bytes=2**16
        )

    early, late = device(), device()
    late.write(8192, [b"x" * (2**21 - 8192)], 2**21 - 8192)
    early.write(8192, [b"y" * 4096], 4096)
    assert (tmp_path / "wal").read_bytes()[8192:] == b"y" * 4096 + b"x" * (2**21 - 8192 - 4096)


@pytest.mark.parametrize("sync", ["auto", "fdatasync", "dsync"])
async def test_what_a_dead_owner_did_not_sync_is_durable_before_it_counts(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch, sync: str
) -> None:
    """Recovery may find it in the page cache only."""
    async with open_wal(1) as wal:
        await wal.append([b"perhaps not synced"]).wait_durable()
    calls: list[str] = []
    real_sync, real_write = os.fdatasync, FileDevice.write_header_slot

    def fdatasync(fd: int) -> None:
        calls.append("sync")
        real_sync(fd)

    def write_header_slot(self: FileDevice, index: int, slot: bytes) -> None:
        calls.append("header")
        real_write(self, index, slot)

    async with open_wal(2, recover=False, sync=sync) as wal:
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(FileDevice, "write_header_slot", write_header_slot)
        assert await recovered(wal) == [b"perhaps not synced"]
        assert calls == ["sync", "header", "sync"]


@pytest.mark.parametrize(
    ("sync", "system", "small", "large"),
    [
        ("auto", "ext4", "dsync", "fdatasync"),
        ("auto", "xfs", "dsync", "fdatasync"),
        ("auto", "fuse.sshfs", "fdatasync", "fdatasync"),
        ("auto", "", "fdatasync", "fdatasync"),
        ("fdatasync", "ext4", "fdatasync", "fdatasync"),
        ("dsync", "", "dsync", "dsync"),
    ],
)
async def test_each_group_is_synced_by_its_write_or_behind_it_as_the_file_system_keeps_it(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch, sync: str, system: str, small: str, large: str
) -> None:
    """Some hand RWF_DSYNC on to somebody who doesn't look at it; there, nothing but a sync will do."""
    how: list[str] = []
    real_write, real_sync = os.pwritev, os.fdatasync

    def pwritev(fd: int, buffers: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_DSYNC:
            how.append("dsync")
        return real_write(fd, buffers, offset, flags)

    def fdatasync(fd: int) -> None:
        how.append("fdatasync")
        real_sync(fd)

    monkeypatch.setattr("penstock_wal_block._device.mounted_type", lambda *_: system)
    async with open_wal(sync=sync, group_bytes_max=2**20, capacity=8 * 2**20) as wal:
        if sync == "auto" and stat.S_ISBLK(os.stat(wal.location).st_mode):
            small = "dsync"  # no file system is in between
        monkeypatch.setattr(os, "pwritev", pwritev)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        for size, expected in ((100, small), (100_000, large), (60_000, small)):
            how.clear()
            await wal.append([bytes(size)]).wait_durable()
            assert how == [expected]
        monkeypatch.undo()


def test_a_group_around_the_end_of_the_ring_is_synced_if_one_half_of_it_needs_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock_wal_block._device.mounted_type", lambda *_: "ext4")
    device = FileDevice(tmp_path / "wal", capacity_bytes=2**21, io="auto", sync="auto", buffer_bytes=2**16)
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    device.write(2**21 - 2**17, [bytes(2**17)], 2**17)
    device.write(8192, [b"x"], 1)
    device.sync()
    assert len(syncs) == 1
    device.write(8192, [b"x"], 1)
    device.sync()
    assert len(syncs) == 1
    device.close()


def test_a_sync_that_failed_is_owed_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group that follows, or the same one once more, may be small."""
    monkeypatch.setattr("penstock_wal_block._device.mounted_type", lambda *_: "ext4")
    device = FileDevice(tmp_path / "wal", capacity_bytes=2**21, io="auto", sync="auto", buffer_bytes=2**16)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    device.write(8192, [bytes(2**17)], 2**17)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space"):
            device.sync()
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    device.write(8192, [b"x"], 1)
    device.sync()
    assert len(syncs) == 1
    device.close()


async def test_a_missing_device_is_not_replaced_by_a_file_in_memory(open_wal: Opener) -> None:
    path = Path("/dev/penstock-test/no-such-device")
    with pytest.raises(ConfigError, match="no such device"):
        async with open_wal(path=str(path)):
            pass
    assert not path.parent.exists()


async def test_leaving_the_context_flushes_what_was_appended(open_wal: Opener) -> None:
    async with open_wal() as wal:
        append = wal.append([b"last words"])
    assert append.done
    assert append.error is None
    with pytest.raises(ClosedError):
        wal.append([b"too late"])


async def test_the_ring_is_recycled_for_many_laps(open_wal: Opener) -> None:
    async with open_wal() as wal:
        for lap in range(40):
            for piece in range(3):
                last = wal.append([bytes([lap]) * 40_000, bytes([piece])])
            await last.wait_durable()
            await wal.trim(last.position)
        assert wal.statistics().confirmed_position > 4 * wal.statistics().capacity_bytes
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [bytes([39]) * 40_000 + b"\x02"]


async def test_a_full_log_refuses_and_takes_appends_again_after_trim(open_wal: Opener) -> None:
    async with open_wal() as wal:
        appends = []
        with pytest.raises(FullError):  # noqa: PT012 - the loop ends in the error
            for _ in range(1000):
                appends.append(wal.append([bytes(10_000)]))
        await appends[-1].wait_durable()
        await wal.trim(appends[-1].next_position)
        assert wal.statistics().used_bytes == 0
        await wal.append([b"again"]).wait_durable()
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"again"]


async def test_trimmed_entries_stay_away_after_reopening(open_wal: Opener) -> None:
    async with open_wal() as wal:
        first, second = wal.append([b"first"]), wal.append([b"second"])
        await second.wait_durable()
        await wal.trim(first.next_position)
        await wal.trim(0)
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"second"]


async def test_positions_grow_over_reopening(open_wal: Opener) -> None:
    async with open_wal() as wal:
        first = wal.append([b"first"])
    async with open_wal(2) as wal:
        second = wal.append([b"second"])
        assert second.position >= first.next_position


async def test_a_taker_fences_the_live_owner(open_wal: Opener) -> None:
    async with open_wal(1) as old:
        await old.append([b"acked"]).wait_durable()
        async with open_wal(2, recover=False) as new:
            with pytest.raises(FencedError):  # at once, where the owner has looked since
                await old.append([b"late"]).wait_durable()
            with pytest.raises(FencedError):
                old.append([b"later"])
            assert old.statistics().state == "fenced"
            assert await recovered(new) == [b"acked"]
            await new.append([b"new"]).wait_durable()
    async with open_wal(3, recover=False) as wal:
        assert await recovered(wal) == [b"acked", b"new"]


async def test_a_fenced_owner_overwrites_nothing(open_wal: Opener) -> None:
    """Both would write at the same place; the new owner was first."""
    async with open_wal(1) as old:
        await old.append([b"acked"]).wait_durable()
        async with open_wal(2) as new:
            await new.append([b"new"]).wait_durable()
            with pytest.raises(FencedError):
                await old.append([b"late"]).wait_durable()
            with pytest.raises(FencedError):
                await old.trim(2**40)
    async with open_wal(3, recover=False) as wal:
        assert await recovered(wal) == [b"acked", b"new"]


async def test_a_fenced_owner_can_not_trim_or_seal(open_wal: Opener) -> None:
    async with open_wal(1) as old:
        append = old.append([b"acked"])
        await append.wait_durable()
        async with open_wal(2):
            with pytest.raises(FencedError):
                await old.trim(append.next_position)
            assert old.statistics().state == "fenced"
            with pytest.raises(FencedError):
                await old.seal()
    async with open_wal(3, recover=False) as wal:
        assert await recovered(wal) == [b"acked"]


async def test_an_epoch_that_had_the_log_can_not_open_it_again(open_wal: Opener) -> None:
    async with open_wal(5) as wal:
        await wal.append([b"entry"]).wait_durable()
    with pytest.raises(FencedError, match=r"open it with a newer one.* epoch=5"):
        async with open_wal(5, recover=False):
            pass
    async with open_wal(6, recover=False) as wal:
        assert await recovered(wal) == [b"entry"]


async def test_an_older_epoch_can_not_open(open_wal: Opener) -> None:
    async with open_wal(5):
        pass
    with pytest.raises(FencedError, match="owner_epoch=5 epoch=4"):
        async with open_wal(4):
            pass


async def test_the_same_epoch_twice_is_one_clear_error(open_wal: Opener) -> None:
    async with open_wal(1) as wal:
        with pytest.raises(ConfigError, match="in use by another broker"):
            async with open_wal(1):
                pass
        await wal.append([b"unharmed"]).wait_durable()


async def test_another_node_of_the_cluster_takes_the_log_over_with_a_later_epoch_only(
    open_wal: Opener,
) -> None:
    """Whether it may is decided by metadata, which gave it that epoch."""
    async with open_wal(3) as first:
        await first.append([b"kept"]).wait_durable()
        with pytest.raises(FencedError, match="newer owner"):
            async with open_wal(2, node_id=2):
                pass
        await first.append([b"too"]).wait_durable()
        async with open_wal(4, node_id=2, recover=False) as second:
            with pytest.raises(FencedError):
                await first.append([b"late"]).wait_durable()
            assert [bytes(entry.data) async for entry in second.recover()] == [b"kept", b"too"]


@pytest.mark.parametrize("other", [{"cluster_id": "d"}, {"capacity": "2MiB"}])
async def test_somebody_elses_log_is_one_clear_error(open_wal: Opener, other: dict[str, Any]) -> None:
    async with open_wal():
        pass
    with pytest.raises(ConfigError, match=r"path=\S+ found=\S+ expected=\S+"):
        async with open_wal(2, **other):
            pass


async def test_appending_before_recovery_is_refused(open_wal: Opener) -> None:
    async with open_wal(recover=False) as wal:
        with pytest.raises(InvalidRequestError, match="recover"):
            wal.append([b"early"])


async def test_leaving_before_recovery_keeps_the_log(open_wal: Opener) -> None:
    async with open_wal() as wal:
        await wal.append([b"kept"]).wait_durable()
    async with open_wal(2, recover=False):
        pass
    async with open_wal(3, recover=False) as wal:
        assert await recovered(wal) == [b"kept"]


async def test_a_sealed_log_takes_no_append_of_any_owner(open_wal: Opener) -> None:
    async with open_wal() as wal:
        await wal.append([b"before"]).wait_durable()
        await wal.seal()
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"after"])
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"before"]
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"after"])


async def test_damage_below_the_confirmed_position_stops_recovery(open_wal: Opener, tmp_path: Path) -> None:
    """I10: the first group is damaged, the second says that the first was confirmed."""
    async with open_wal() as wal:
        first = wal.append([b"first"])
        await first.wait_durable()
        await wal.append([b"second"]).wait_durable()
    flip(file_of(tmp_path), 8192 + first.position + 24)
    async with open_wal(2, recover=False) as wal:
        with pytest.raises(CorruptError, match=f"position={first.position}"):
            await recovered(wal)
        with pytest.raises(InvalidRequestError):
            wal.append([b"not past a hole"])


async def test_damage_of_the_last_entry_after_a_clean_end_stops_recovery(
    open_wal: Opener, tmp_path: Path
) -> None:
    async with open_wal() as wal:
        append = wal.append([b"only"])
    flip(file_of(tmp_path), 8192 + append.position + 24)
    async with open_wal(2, recover=False) as wal:
        with pytest.raises(CorruptError):
            await recovered(wal)


@pytest.mark.parametrize("slot", [0, 1])
async def test_one_torn_header_slot_loses_no_entry(open_wal: Opener, tmp_path: Path, slot: int) -> None:
    async with open_wal() as wal:
        await wal.append([b"kept"]).wait_durable()
    flip(file_of(tmp_path), slot * 4096 + 20)
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"kept"]


async def test_two_damaged_headers_are_never_formatted_over(open_wal: Opener, tmp_path: Path) -> None:
    async with open_wal() as wal:
        await wal.append([b"precious"]).wait_durable()
    flip(file_of(tmp_path), 20)
    flip(file_of(tmp_path), 4096 + 20)
    with pytest.raises(CorruptError, match="no valid header"):
        async with open_wal(2):
            pass


async def test_a_failing_medium_answers_everybody(open_wal: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FileDevice) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with open_wal() as wal:
        await wal.append([b"good"]).wait_durable()
        monkeypatch.setattr(FileDevice, "sync", broken)
        appends = [wal.append([b"bad"]) for _ in range(10)]
        for append in appends:
            with pytest.raises(UnavailableError, match=rf"path=\S+penstock.wal errno={errno.EIO}"):
                await append.wait_durable()
        assert wal.statistics().state == "failed"
        with pytest.raises(ClosedError):
            wal.append([b"after"])


@pytest.mark.parametrize("method", ["write", "sync"])
async def test_a_full_disk_refuses_appends_until_space_returns(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Pending appends wait, new ones get FullError, and nothing needs a restart."""

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with open_wal() as wal:
        await wal.append([b"before"]).wait_durable()
        with monkeypatch.context() as patch:
            patch.setattr(FileDevice, method, no_space)
            waiting = [wal.append([b"waiting"])]
            with anyio.fail_after(HANG_S):
                while True:
                    try:
                        waiting.append(wal.append([b"waiting"]))
                    except FullError:
                        break
                    await anyio.lowlevel.checkpoint()
            assert not any(append.done for append in waiting)
        await waiting[-1].wait_durable()
        await wal.append([b"after"]).wait_durable()
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [b"before", *[b"waiting"] * len(waiting), b"after"]


async def test_closing_on_a_full_disk_answers_and_ends(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with open_wal() as wal:
        monkeypatch.setattr(FileDevice, "write", no_space)
        append = wal.append([b"never"])
    assert isinstance(append.error, UnavailableError)


async def test_a_callback_of_an_earlier_group_runs_before_a_later_failure(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one group failed, no later one is written, acknowledged or left waiting."""
    written: list[int] = []
    write = FileDevice.write

    def fail_once(self: FileDevice, offset: int, parts: Any, length: int) -> None:
        written.append(length)
        if len(written) == 2:
            raise OSError(errno.EIO, "Input/output error")
        write(self, offset, parts, length)

    async with open_wal(group_bytes_max="4KiB", groups_in_flight_max=1) as wal:
        monkeypatch.setattr(FileDevice, "write", fail_once)
        appends = [wal.append([bytes(3000)]) for _ in range(6)]
        order: list[Exception | None] = []
        for append in appends:
            append.set_callback(lambda append: order.append(append.error))
        with pytest.raises(UnavailableError):
            await appends[-1].wait_durable()
        assert order[0] is None
        assert all(isinstance(error, UnavailableError) for error in order[1:])
        assert len(order) == 6
        assert len(written) == 2


class Gates:
    """Holds up the syncs of a WAL, each until it is let go or told to fail; in the order in which groups began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offsets: list[int] = []
        self.fds: list[int] = []
        self._outcomes: dict[int, Future[None]] = {}
        self._changed = threading.Condition()
        self._local = threading.local()
        write, sync = FileDevice.write, FileDevice.sync

        def write_and_tell(device: FileDevice, offset: int, parts: Any, length: int) -> None:
            write(device, offset, parts, length)
            self._local.offset = offset
            with self._changed:
                self.offsets.append(offset)
                self._outcomes[offset] = Future()
                self._changed.notify_all()

        def sync_when_let(device: FileDevice) -> None:
            self._outcomes[self._local.offset].result(HANG_S)
            sync(device)
            with self._changed:
                self.fds.append(device._lane.fd)
                self._changed.notify_all()

        monkeypatch.setattr(FileDevice, "write", write_and_tell)
        monkeypatch.setattr(FileDevice, "sync", sync_when_let)

    async def wait(self, count: int) -> list[int]:
        """Until so many groups are written and not synced; their places in order."""

        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.offsets) >= count, HANG_S)

        await anyio.to_thread.run_sync(wait)
        return sorted(self.offsets)

    async def wait_synced(self, count: int) -> None:
        """Until so many groups are synced."""

        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.fds) >= count, HANG_S)

        await anyio.to_thread.run_sync(wait)

    def let(self, offset: int, error: Exception | None = None) -> None:
        """Let the group at ``offset`` be synced, or fail."""
        if error is None:
            self._outcomes[offset].set_result(None)
        else:
            self._outcomes[offset].set_exception(error)


async def test_groups_are_on_the_medium_together_and_acknowledged_in_order(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_wal(groups_in_flight_max=3, group_bytes_max=4096) as wal:
        gates = Gates(monkeypatch)
        appends = [wal.append([bytes([i]) * 3000]) for i in range(3)]
        first, second, third = await gates.wait(3)
        order: list[WalAppend] = []
        for append in appends:
            append.set_callback(order.append)
        gates.let(third)
        gates.let(second)
        await gates.wait_synced(2)
        await wal.trim(1)  # a job of the same threads, and the loop has turned
        assert order == []
        gates.let(first)
        await appends[-1].wait_durable()
        assert order == appends
        assert len(set(gates.fds)) == 3, "each sync hears of its own errors"
    monkeypatch.undo()
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == [bytes([i]) * 3000 for i in range(3)]


async def test_a_failed_group_fails_later_ones_though_durable_and_those_it_was_written_beside(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that fails may take with it what was written beside it, but nothing that was synced before."""
    async with open_wal(groups_in_flight_max=3, group_bytes_max=4096) as wal:
        before = wal.append([b"before" * 500])
        await before.wait_durable()
        gates = Gates(monkeypatch)
        appends = [wal.append([bytes([i]) * 3000]) for i in range(4)]
        first, second, third = await gates.wait(3)
        gates.let(third)
        gates.let(second, OSError(errno.EIO, "Input/output error"))
        with anyio.fail_after(HANG_S):
            while wal.statistics().state == "open":
                await anyio.to_thread.run_sync(lambda: None)
        assert not any(append.done for append in appends)
        gates.let(first)
        with pytest.raises(UnavailableError):
            await appends[-1].wait_durable()
        assert before.error is None
        assert all(append.error is not None for append in appends)
        assert len(gates.offsets) == 3, "the fourth wasn't begun"
    monkeypatch.undo()
    async with open_wal(2, recover=False) as wal:
        found = await recovered(wal)
        assert found[0] == b"before" * 500
        assert found[1:] == [bytes([i]) * 3000 for i in range(len(found) - 1)]


async def test_a_group_behind_a_hole_never_comes_back(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second group of three never reached the medium; the third did, and was not acknowledged."""
    write = FileDevice.write
    start = 0

    def lose_the_second(device: FileDevice, offset: int, parts: Any, length: int) -> None:
        if offset == start + BLOCK_BYTES:
            raise OSError(errno.EIO, "Input/output error")
        write(device, offset, parts, length)

    async with open_wal(groups_in_flight_max=3, group_bytes_max=4096) as wal:
        start = HEADER_AREA_BYTES + wal.statistics().confirmed_position
        monkeypatch.setattr(FileDevice, "write", lose_the_second)
        appends = [wal.append([bytes([i]) * 3000]) for i in range(3)]
        with pytest.raises(UnavailableError):
            await appends[-1].wait_durable()
        monkeypatch.undo()
    for epoch in (2, 3):
        async with open_wal(epoch, recover=False) as wal:
            assert await recovered(wal) == [bytes(3000)]
    async with open_wal(4) as wal:
        await wal.append([b"new" * 1000]).wait_durable()
    async with open_wal(5, recover=False) as wal:
        assert await recovered(wal) == [bytes(3000), b"new" * 1000]


async def test_a_taker_waits_for_all_groups_that_are_on_their_way(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_wal(1, groups_in_flight_max=3, group_bytes_max=4096) as old:
        with monkeypatch.context() as patch:
            gates = Gates(patch)
            appends = [old.append([bytes([i]) * 3000]) for i in range(3)]
            first, second, third = await gates.wait(3)
            found: list[bytes] = []

            async def take() -> None:
                async with open_wal(2, recover=False) as new:
                    assert len(gates.fds) == 3, "the last one of the older owner is synced"
                    found.extend(await recovered(new))

            async with anyio.create_task_group() as tasks:
                gates.let(first)
                await appends[0].wait_durable()
                tasks.start_soon(take)
                gates.let(third)
                await gates.wait_synced(2)
                gates.let(second)
        # on a device that other hosts may have open too, an owner looks again before it acknowledges
        assert [append.error is None for append in appends] in ([True] * 3, [True, False, False])
        assert found == [bytes([i]) * 3000 for i in range(3)]
        with pytest.raises(FencedError):
            await old.append([b"late"]).wait_durable()


def test_growing_the_file_clears_nothing_that_another_thread_writes_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice(
        tmp_path / "wal", capacity_bytes=2**22, io="auto", sync="fdatasync", buffer_bytes=2**16, writers=2
    )
    grow = FileDevice._grow
    behind: list[Future[None]] = []

    def grow_late(self: FileDevice, start: int) -> None:
        if not behind:
            behind.append(pool.submit(self.write, start, [b"z" * 4096], 4096))
            futures_wait(behind, 0.2)  # it has to wait for us; if it doesn't, its bytes are cleared now
        grow(self, start)

    monkeypatch.setattr(FileDevice, "_grow", grow_late)
    with ThreadPoolExecutor(1) as pool:
        device.write(8192, [b"y" * 4096], 4096)
    behind[0].result()
    device.close()
    assert (tmp_path / "wal").read_bytes()[8192 : 8192 + 8192] == b"y" * 4096 + b"z" * 4096


_CHILD = """
import sys, anyio
from pathlib import Path
from penstock.spi import Buffer, Services
from penstock.wal import GroupCommit
from penstock_wal_block import Settings, penstock_register_wal

async def main():
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(sys.argv[1]), clock=lambda: 0.0)
    settings = Settings(capacity="1MiB", io=sys.argv[2])
    async with penstock_register_wal().open(settings, services) as wal:
        assert [entry async for entry in wal.recover()] == []
        number = 0
        while True:
            append = wal.append([b"%d" % number])
            number += 1
            if number % 10 == 0:
                await append.wait_durable()
                print(number, flush=True)

anyio.run(main)
"""


async def test_a_killed_process_leaves_every_acked_entry(open_wal: Opener, tmp_path: Path, io: str) -> None:
    command = [sys.executable, "-c", _CHILD, str(tmp_path), io]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        output = b""
        while output.count(b"\n") < 5:
            output += await process.stdout.receive()
        process.kill()
        async for chunk in process.stdout:
            output += chunk
    acked = int(output.split(b"\n")[-2])
    async with open_wal(2, recover=False) as wal:
        numbers = [int(entry) for entry in await recovered(wal)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acked
