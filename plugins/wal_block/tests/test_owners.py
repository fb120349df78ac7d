"""Owners of a ``wal_block``: one at a time, the newest, of the right cluster; the lock that a busy one keeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from penstock_wal_block import BlockWal
from penstock_wal_block._device import FileDevice
from penstock_wal_block._log import BlockLog
from tests.block_wal import Opener, open_log, recovered, writer_of
from tests.patience import HANG_S

from penstock.errors import (
    ConfigError,
    FencedError,
    UnavailableError,
)

pytestmark = pytest.mark.anyio


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
