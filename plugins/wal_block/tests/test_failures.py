"""What ``wal_block`` owes a medium that is damaged, full, or fails, and whom it answers then."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import HEADER_AREA_BYTES, newest_header
from tests.block_wal import Opener, file_of, flip, recovered
from tests.patience import HANG_S

from penstock.errors import (
    ClosedError,
    CorruptError,
    FullError,
    InvalidRequestError,
    UnavailableError,
)
from penstock.spi import Buffer

pytestmark = pytest.mark.anyio


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
    tried = threading.Event()

    def no_space(*args: object) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    async with open_wal() as wal:
        await wal.append([b"before"]).wait_durable()
        with monkeypatch.context() as patch:
            patch.setattr(FileDevice, method, no_space)
            waiting = [wal.append([b"waiting"])]
            with anyio.fail_after(HANG_S):
                await anyio.to_thread.run_sync(tried.wait, HANG_S)  # before the log has no room itself
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
