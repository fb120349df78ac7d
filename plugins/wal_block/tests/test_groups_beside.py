"""Groups that ``wal_block`` writes beside one another."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES
from tests.block_wal import Opener, recovered
from tests.patience import HANG_S

from penstock.errors import (
    FencedError,
    UnavailableError,
)
from penstock.spi.wal import WalAppend

pytestmark = pytest.mark.anyio


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


async def test_two_who_seal_at_the_same_time_both_hear_of_it(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_wal(groups_in_flight_max=3, group_bytes_max=4096) as wal:
        gates = Gates(monkeypatch)
        append = wal.append([b"x" * 3000])
        (first,) = await gates.wait(1)
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(wal.seal)
                await anyio.wait_all_tasks_blocked()
                gates.let(first)
        assert append.error is None
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"late"])


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
