"""The behaviour of wal_block on real files, over what the conformance suite asks of every WAL."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_wal_block import _wal
from penstock_wal_block._device import FileDevice
from tests.block_wal import Opener, recovered

from penstock.errors import (
    ClosedError,
    ConfigError,
    FullError,
    InvalidRequestError,
)
from penstock.spi import Buffer

pytestmark = pytest.mark.anyio


async def test_entries_come_back_in_order_after_reopening(open_wal: Opener) -> None:
    expected = [b"%d" % i * (i + 1) for i in range(300)]
    async with open_wal() as wal:
        appends = [wal.append([data[:3], memoryview(data)[3:]]) for data in expected]
        await appends[-1].wait_durable()
        assert all(append.done for append in appends)
    async with open_wal(2, recover=False) as wal:
        assert await recovered(wal) == expected


async def test_an_opening_that_is_cancelled_leaves_no_descriptor_and_no_lock(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[FileDevice] = []
    loop = asyncio.get_running_loop()

    class Cancelling(FileDevice):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            opened.append(self)
            loop.call_soon_threadsafe(tasks.cancel_scope.cancel)

    with monkeypatch.context() as patch:
        patch.setattr(_wal, "FileDevice", Cancelling)
        async with anyio.create_task_group() as tasks, open_wal():
            pass
    assert [device._fds for device in opened] == [[]]
    async with open_wal():
        pass


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
