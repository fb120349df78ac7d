"""A ``wal_block`` under test: its media, its log without a loop, and damage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from penstock_wal_block import BlockWal
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import BLOCK_BYTES
from penstock_wal_block._headers import Owner
from penstock_wal_block._log import BlockLog

from penstock.wal import GroupCommit

#: Name of the medium -> what ``io`` is set to, and the logical block of the device (0: a file).
MEDIA = {
    "buffered": ("buffered", 0),
    "direct": ("direct", 0),
    "device": ("direct", 512),
    "device-4k": ("direct", 4096),
    "device-buffered": ("buffered", 512),
}


Opener = Callable[..., AbstractAsyncContextManager[BlockWal]]


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
