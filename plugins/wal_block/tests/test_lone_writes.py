"""Lone small groups are written by the event loop while the disk is quick (RFC 0035): when, and what stays so."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_wal_block import BlockWal, Settings, penstock_register_wal
from penstock_wal_block import _device as device_module
from penstock_wal_block import _log as log_module
from penstock_wal_block import _lone as lone_module
from penstock_wal_block import _wal as wal_module
from penstock_wal_block._device import FileDevice
from penstock_wal_block._headers import Headers
from penstock_wal_block._log import BlockLog
from penstock_wal_block._lone import LONE_BYTES_MAX, SOON_BYTES_MAX, LoneWrites
from tests.patience import HANG_S

from penstock.errors import FencedError, FullError, UnavailableError
from penstock.spi import Buffer, Services
from penstock.spi.wal import WalAppend

pytestmark = pytest.mark.anyio

Opener = Callable[..., AbstractAsyncContextManager[BlockWal]]


@pytest.fixture
def open_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Any disk is quick and none fast, one lone group tells, the next 15 are the loop's; looks go by number only."""
    for name in ("_QUICK_US", "_QUICK_IN_THREAD_US"):
        monkeypatch.setattr(lone_module, name, 2**62)
    monkeypatch.setattr(lone_module, "_SOON_US", -1)
    monkeypatch.setattr(lone_module, "_RUN", 1)
    monkeypatch.setattr(lone_module, "_LOOK_AGAIN", 15)
    monkeypatch.setattr(wal_module, "_GATHER_NS", 2**62)
    monkeypatch.setattr(log_module, "_CHECK_AFTER_S", HANG_S)
    monkeypatch.setattr(BlockWal, "look_later", lambda wal: None)

    @asynccontextmanager
    async def open_(epoch: int = 1, **settings: Any) -> AsyncIterator[BlockWal]:
        services = Services(node_id=1, epoch=epoch, cluster_id="c", data_dir=tmp_path, clock=lambda: 0.0)
        values = Settings(**({"capacity": "2MiB"} | settings))
        async with penstock_register_wal().open(values, services) as wal:
            assert isinstance(wal, BlockWal)
            yield wal

    return open_


async def recovered(wal: BlockWal) -> list[bytes]:
    return [bytes(entry.data) async for entry in wal.recover()]


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who wrote each group."""
    names: list[str] = []
    write = FileDevice.write

    def watched(device: FileDevice, offset: int, parts: Sequence[Buffer], length: int) -> None:
        is_loop = threading.current_thread() is threading.main_thread()
        names.append("loop" if is_loop else "thread")
        write(device, offset, parts, length)

    monkeypatch.setattr(FileDevice, "write", watched)
    return names


@pytest.fixture
def keeps_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(BlockLog, "rest_after", lambda log, seconds: False)


SLOW_GROUPS: list[Callable[[LoneWrites], None]] = [
    lambda lone: lone.wrote_on_loop(1001),
    lambda lone: lone.wrote_in_thread(4001, alone=True),
]


def test_the_loop_writes_after_32_groups_that_were_alone_and_none_since_the_last_slow_one() -> None:
    lone = LoneWrites()
    for spoil in SLOW_GROUPS:
        for _ in range(32):
            assert not lone.on_loop(1)
            lone.wrote_in_thread(4000, alone=True)
        assert lone.on_loop(LONE_BYTES_MAX)
        assert not lone.on_loop(LONE_BYTES_MAX + 1)
        lone.wrote_on_loop(1000)
        assert lone.on_loop(1)
        spoil(lone)
        assert not lone.on_loop(1)


@pytest.mark.parametrize(("good", "on_loop"), [(4, True), (3, False)])
def test_the_loop_writes_for_who_meets_itself_at_times_and_not_for_two_who_wait_for_each_other(
    good: int, on_loop: bool
) -> None:
    """Two of three groups are alone, or fewer."""
    lone = LoneWrites()
    for _ in range(20):
        for number in range(6):
            lone.wrote_in_thread(4000, alone=number < good)
    assert lone.on_loop(1) == on_loop


def test_the_loop_writes_for_all_where_the_medium_is_faster_than_a_hand_over() -> None:
    lone = LoneWrites()
    for _ in range(32):
        assert not lone.on_loop(1)
        lone.wrote_in_thread(250, alone=False)
    assert lone.on_loop(SOON_BYTES_MAX)
    assert not lone.on_loop(SOON_BYTES_MAX + 1)
    for _ in range(1000):
        lone.wrote_in_thread(4000, alone=False)  # who knows what a thread waited for
        lone.wrote_on_loop(250)
    assert lone.on_loop(SOON_BYTES_MAX), (
        "no thread has to look, and none can tell that it isn't quick any more"
    )
    for _ in range(17):
        assert lone.on_loop(1)
        lone.wrote_on_loop(251)
    assert not lone.on_loop(1)


def test_a_slow_group_ends_what_is_known_of_a_fast_medium() -> None:
    lone = LoneWrites()
    for spoil in SLOW_GROUPS:
        for _ in range(32):
            assert not lone.on_loop(1)
            lone.wrote_in_thread(1, alone=False)
        assert lone.on_loop(1)
        spoil(lone)
        assert not lone.on_loop(1)


def test_the_loop_meets_a_medium_that_is_fast_at_times_for_no_more_than_half_of_these() -> None:
    """Each group that it wrote later counts against one that a thread wrote soon."""
    lone = LoneWrites()
    soon = met = 0
    for number in range(4000):
        if lone.on_loop(1):
            met += 1
            lone.wrote_on_loop(600)
        else:
            soon += number % 4 == 0
            lone.wrote_in_thread(200 if number % 4 == 0 else 600, alone=False)
    assert 0 < met <= soon


@pytest.mark.usefixtures("keeps_lock")
async def test_lone_groups_are_written_by_the_loop_and_every_sixteenth_by_a_thread_that_sees_company(
    open_wal: Opener, writers: list[str]
) -> None:
    async with open_wal() as wal:
        await recovered(wal)
        for number in range(40):
            await wal.append([b"%d" % number]).wait_durable()
        assert writers == (["thread", *["loop"] * 15] * 3)[:40]
        assert wal.statistics().written_groups == 40
    async with open_wal(2) as wal:
        assert await recovered(wal) == [b"%d" % number for number in range(40)]


def test_threads_write_one_of_256_groups_and_one_of_16_once_it_had_company() -> None:
    lone = LoneWrites()
    for _ in range(48):
        lone.wrote_in_thread(4000, alone=True)
    for alone, next_ones in ((True, 256), (False, 16), (True, 256)):
        lone.wrote_in_thread(4000, alone=alone)
        for _ in range(next_ones):
            assert lone.on_loop(1)
            lone.wrote_on_loop(1000)
        assert not lone.on_loop(1)


@pytest.mark.usefixtures("keeps_lock")
async def test_the_loop_sees_within_sixteen_groups_that_the_log_has_a_newer_owner(
    open_wal: Opener, writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who takes over waits for the lock no longer than it did for a thread."""
    monkeypatch.setattr(lone_module, "_LOOK_AGAIN", 2**62)
    looks: list[str] = []
    check = Headers.check

    def watched(headers: Headers) -> None:
        looks.append("loop" if threading.current_thread() is threading.main_thread() else "thread")
        check(headers)
        if len(looks) == 3:
            raise FencedError("a newer owner took over the wal")

    async with open_wal() as wal:
        await recovered(wal)
        monkeypatch.setattr(Headers, "check", watched)

        async def produce() -> None:
            for number in range(40):
                await wal.append([b"%d" % number]).wait_durable()

        with pytest.raises(FencedError):
            await produce()
        assert looks == ["thread", "loop", "loop"]
        assert writers == ["thread", *["loop"] * 31]
        assert wal.statistics().state == "fenced"


@pytest.mark.usefixtures("keeps_lock")
async def test_what_has_company_or_is_large_is_written_by_threads(
    open_wal: Opener, writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_wal(group_bytes_max="128KiB") as wal:
        await recovered(wal)
        await wal.append([b"a"]).wait_durable()
        await wal.append([b"b"]).wait_durable()
        await wal.append([bytes(LONE_BYTES_MAX)]).wait_durable()
        assert writers == ["thread", "loop", "thread"]
        gate = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(FileDevice, "sync", lambda device: gate.wait(HANG_S))
            monkeypatch.setattr(lone_module, "_RUN", 2**62)  # the first by a thread, which waits
            first = wal.append([b"c"])
            await anyio.lowlevel.checkpoint()
            monkeypatch.setattr(lone_module, "_RUN", 1)
            second = wal.append([b"d"])
            await anyio.lowlevel.checkpoint()
            gate.set()
            await first.wait_durable()
            await second.wait_durable()
        assert "loop" not in writers[3:]


@pytest.mark.usefixtures("keeps_lock")
async def test_what_a_callback_appends_has_a_turn_of_its_own(open_wal: Opener, writers: list[str]) -> None:
    """Else who appends in answer to being durable would keep the loop for ever."""
    done: list[int] = []
    async with open_wal() as wal:
        await recovered(wal)
        await wal.append([b"a"]).wait_durable()
        ended = anyio.Event()

        def go_on(*_: object) -> None:
            done.append(len(writers))
            if len(done) == 5:
                ended.set()
                return
            before = len(writers)
            wal.append([b"b"]).set_callback(go_on)
            assert len(writers) == before, "nothing is written within a callback"

        wal.append([b"b"]).set_callback(go_on)
        with anyio.fail_after(HANG_S):
            await ended.wait()
        assert writers == ["thread", *["loop"] * 5]


@pytest.mark.usefixtures("keeps_lock")
async def test_threads_write_what_makes_the_file_longer(
    open_wal: Opener, writers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes milliseconds, on a disk that is quick else; and the loop goes on with the next group."""
    monkeypatch.setattr(device_module, "_GROWTH_BYTES", 2**15)
    monkeypatch.setattr(lone_module, "_LOOK_AGAIN", 2**62)
    grown: list[int] = []
    grow = FileDevice._grow

    def watched(device: FileDevice, start: int) -> None:
        grown.append(len(writers))
        grow(device, start)

    monkeypatch.setattr(FileDevice, "_grow", watched)
    async with open_wal(capacity="1MiB") as wal:
        await recovered(wal)
        for number in range(24):
            await wal.append([b"%d" % number]).wait_durable()
    # the header has two of the first eight blocks; the group that makes it longer has one, and its zeros the others
    assert (
        [number for number, writer in enumerate(writers, 1) if writer == "thread"] == grown == [1, 7, 15, 23]
    )


@pytest.mark.usefixtures("keeps_lock")
async def test_what_came_while_the_loop_wrote_shares_a_group_with_who_is_answered_and_asks_again(
    open_wal: Opener, writers: list[str]
) -> None:
    """Else each of two clients waits for the other's group, then for its own, for ever."""
    async with open_wal() as wal:
        await recovered(wal)
        await wal.append([b"a"]).wait_durable()
        loop = asyncio.get_running_loop()
        appends: list[WalAppend] = []

        def ask() -> None:
            appends.append(wal.append([b"again"]))

        def ask_again(_: WalAppend) -> None:
            loop.call_soon(ask)

        wal.append([b"first"]).set_callback(ask_again)
        loop.call_soon(ask)  # the second's request is read behind the group of the first
        await anyio.lowlevel.checkpoint()
        assert [append.done for append in appends] == [False]
        await anyio.lowlevel.checkpoint()
        for append in appends:
            await append.wait_durable()
        assert len(appends) == 2
        assert writers == ["thread", "loop", "loop"]


@pytest.mark.usefixtures("keeps_lock")
async def test_a_group_waits_for_company_only_behind_one_that_had_some_and_while_each_turn_brings_some(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_wal() as wal:
        await recovered(wal)

        async def turns(*sizes: int) -> int:
            """Turns of the loop until all is with the medium, when an entry comes in each of them."""
            for turn in itertools.count():
                if turn < len(sizes):
                    last = wal.append([bytes(sizes[turn])])
                elif not wal._commit.open_entries:
                    await last.wait_durable()
                    return turn
                await anyio.lowlevel.checkpoint()
            raise AssertionError

        assert await turns(1) == 1
        assert await turns(1) == 1, "who is alone waits for nobody"
        wal.append([b"x"])
        assert await turns(1) == 1, "two in one turn, the first time"
        assert await turns(1) == 2
        assert await turns(1) == 1, "nobody came"
        wal.append([b"x"])
        assert await turns(1) == 1
        assert await turns(1, 1, 1) == 4
        for _ in range(7):
            wal.append([b"x"])
        assert await turns(1) == 1, "eight are enough"
        assert await turns(2**16) == 1, "or so many bytes"
        wal.append([b"x"])
        assert await turns(1) == 1
        wal.append([bytes(wal.capabilities.entry_bytes_max)])
        last = wal.append([b"x"])
        await anyio.lowlevel.checkpoint()
        assert wal._commit.in_flight == 1, "a full group waits for nobody"
        await last.wait_durable()
        wal.append([b"x"])
        assert await turns(1) == 1
        monkeypatch.setattr(wal_module, "_GATHER_NS", 0)
        assert await turns(1) == 1, "nor where turns take longer than a quick disk does"


@pytest.mark.usefixtures("keeps_lock")
@pytest.mark.parametrize("method", ["write", "sync"])
async def test_a_lone_group_without_room_waits_in_a_thread_and_is_written_again(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def no_space(*args: object) -> None:
        tried.append(threading.current_thread() is threading.main_thread())
        raise OSError(errno.ENOSPC, "No space left on device")

    tried: list[bool] = []
    async with open_wal() as wal:
        await recovered(wal)
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
            assert tried[0]
            assert not any(tried[1:]), "only a thread waits for room"
        await waiting[-1].wait_durable()
    async with open_wal(2) as wal:
        assert await recovered(wal) == [b"before", *[b"waiting"] * len(waiting)]


@pytest.mark.usefixtures("keeps_lock")
async def test_a_medium_that_fails_under_the_loop_is_not_tried_again(
    open_wal: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that failed may have lost the pages: the next one that succeeds says nothing of them."""
    failed: list[bool] = []
    sync = FileDevice.sync

    def fails_once(device: FileDevice) -> None:
        if failed:
            sync(device)
            return
        failed.append(threading.current_thread() is threading.main_thread())
        raise OSError(errno.EIO, "Input/output error")

    async with open_wal() as wal:
        await recovered(wal)
        await wal.append([b"good"]).wait_durable()
        monkeypatch.setattr(FileDevice, "sync", fails_once)
        with pytest.raises(UnavailableError, match=f"errno={errno.EIO}"):
            await wal.append([b"bad"]).wait_durable()
        assert failed == [True]
        assert wal.statistics().state == "failed"


@pytest.mark.usefixtures("keeps_lock")
async def test_the_loop_writes_nothing_to_a_file_that_was_removed(
    open_wal: Opener, writers: list[str], tmp_path: Path
) -> None:
    async with open_wal() as wal:
        await recovered(wal)
        await wal.append([b"a"]).wait_durable()
        await wal.append([b"b"]).wait_durable()
        assert writers == ["thread", "loop"]
        (tmp_path / "wal" / "penstock.wal").unlink()
        with pytest.raises(UnavailableError, match="removed or replaced"):
            await wal.append([b"c"]).wait_durable()
        assert writers == ["thread", "loop"]


@pytest.mark.usefixtures("keeps_lock")
async def test_the_loop_waits_for_no_lock_of_the_log(open_wal: Opener, writers: list[str]) -> None:
    async with open_wal() as wal:
        await recovered(wal)
        await wal.append([b"a"]).wait_durable()
        held, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with wal._log._mutex:  # as a trim does while it writes the header
                held.set()
                leave.wait(HANG_S)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(hold)
            assert held.wait(HANG_S)
            append = wal.append([b"b"])
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            assert not append.done
            leave.set()
        await append.wait_durable()
        assert writers == ["thread", "thread"]


async def test_an_owner_that_becomes_idle_after_a_write_by_the_loop_lets_a_taker_in(open_wal: Opener) -> None:
    async with open_wal() as wal:
        await recovered(wal)
        for _ in range(5):
            await wal.append([b"x"]).wait_durable()
        async with open_wal(2) as taken:  # waits for the lock
            assert await recovered(taken) == [b"x"] * 5
            with pytest.raises(FencedError):
                await wal.append([b"late"]).wait_durable()
