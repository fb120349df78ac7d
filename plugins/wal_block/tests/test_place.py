"""What is at wal.path and isn't ours stays as it is; what is ours is private."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import anyio
import pytest
from penstock_wal_block import Settings, penstock_register_wal
from penstock_wal_block._device import FileDevice
from penstock_wal_block._format import Header
from penstock_wal_block._place import find_header, mounted_type
from tests.loop_device import loop_device
from tests.patience import HANG_S

from penstock.errors import ConfigError, CorruptError, UnavailableError
from penstock.files import ACCESSES
from penstock.spi import Services

SETTINGS = Settings(capacity=2**20, group_bytes_max=2**16, io="buffered")


def services(tmp_path: Path, epoch: int = 1, access: str = "owner") -> Services:
    return Services(
        node_id=4, epoch=epoch, cluster_id="c", data_dir=tmp_path, access=ACCESSES[access], clock=lambda: 0.0
    )


async def write(tmp_path: Path, epoch: int, *entries: bytes) -> Path:
    async with penstock_register_wal().open(SETTINGS, services(tmp_path, epoch)) as wal:
        async for _ in wal.recover():
            pass
        for entry in entries:
            await wal.append([entry]).wait_durable()
    return tmp_path / SETTINGS.path


async def identify(tmp_path: Path) -> str | None:
    """What the plugin says, asked as the kernel does before it changes anything."""
    tell = penstock_register_wal().identify
    assert tell is not None
    return await tell(SETTINGS, services(tmp_path))


@pytest.mark.anyio
async def test_what_can_be_no_log_is_refused_before_anything_is_changed(tmp_path: Path) -> None:
    """A pipe isn't waited for, a directory isn't read, a link isn't followed."""
    path = tmp_path / SETTINGS.path
    path.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    for make in (
        lambda: os.mkfifo(path),
        path.mkdir,
        lambda: path.symlink_to(tmp_path / "nothing"),  # a log would be made behind it
        lambda: path.symlink_to(elsewhere),
    ):
        make()  # type: ignore[no-untyped-call]
        with pytest.raises(ConfigError, match=rf"path={path}"):
            await identify(tmp_path)
        with pytest.raises(ConfigError, match=rf"path={path}"):
            await write(tmp_path, 1, b"one")
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    assert elsewhere.read_bytes() == b""
    assert not (tmp_path / "nothing").exists()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"a user's notes\n",
        bytes(100) + b"x",
        os.urandom(4096),
        os.urandom(8192),
        bytes(8192) + b"x" * 9000,
    ],
    ids=[
        "a byte",
        "a note",
        "zeros first",
        "a block",
        "as large as the header",
        "zeros where the header would be",
    ],
)
async def test_a_file_that_is_no_log_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / SETTINGS.path
    path.parent.mkdir()
    path.write_bytes(content)
    before = path.stat()
    with pytest.raises(CorruptError, match=r"nothing was changed; set wal\.path to a place of its own"):
        await identify(tmp_path)
    with pytest.raises(CorruptError, match=r"nothing was changed; set wal\.path to a place of its own"):
        await write(tmp_path, 1, b"one")
    assert path.read_bytes() == content
    assert (path.stat().st_mtime_ns, path.stat().st_mode) == (before.st_mtime_ns, before.st_mode)


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("btrfs", 0x10040, b"_BHRfS_M"),
        ("iso9660", 0x8001, b"CD001"),
        ("zfs", 0x20000 + 3 * 1024, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        ("raid", 2**21 - 2**16, b"\xfc\x4e\x2b\xa9"),
    ],
)
def test_a_device_is_used_by_others_even_if_its_first_blocks_are_zeros(
    name: str, offset: int, magic: bytes
) -> None:
    device = bytearray(2**21)

    def look() -> Header | None:
        return find_header(
            bytes(device[:8192]),
            len(device),
            lambda at, size: bytes(device[at : at + size]),
            "/dev/it",
            is_block_device=True,
        )

    assert look() is None
    device[offset : offset + len(magic)] = magic
    with pytest.raises(CorruptError, match=f"path=/dev/it found={name}"):
        look()


def test_a_mounted_device_is_refused_whatever_is_on_it(tmp_path: Path) -> None:
    """A file system that nobody knows here: the system says that the device is used."""
    with loop_device(tmp_path, 2**21) as path:
        holder = os.open(path, os.O_RDONLY | os.O_EXCL)  # as a mount has it
        try:
            with pytest.raises(ConfigError, match="in use, mounted or as part of a volume"):
                open_device(path).find_header(str(path))
        finally:
            os.close(holder)
        device = open_device(path)
        assert device.find_header(str(path)) is None
        device.close()


def open_device(path: Path) -> FileDevice:
    return FileDevice(path, capacity_bytes=2**20, io="buffered", sync="fdatasync", buffer_bytes=2**16)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("access", "umask", "modes"), [("owner", 0, (0o700, 0o600)), ("group", 0o077, (0o750, 0o640))]
)
async def test_the_log_is_as_private_as_configured_whatever_the_umask(
    tmp_path: Path, access: str, umask: int, modes: tuple[int, int]
) -> None:
    settings = Settings(path="new/wal/penstock.wal", capacity=2**20, group_bytes_max=2**16)
    before = os.umask(umask)
    try:
        async with penstock_register_wal().open(settings, services(tmp_path, 1, access)):
            pass
    finally:
        os.umask(before)
    path = tmp_path / settings.path
    found = [stat.S_IMODE(p.stat().st_mode) for p in (path.parent.parent, path.parent, path)]
    assert found == [modes[0], modes[0], modes[1]]


@pytest.mark.anyio
async def test_a_log_that_others_can_read_is_told_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = await write(tmp_path, 1, b"one")
    path.chmod(0o644)
    await write(tmp_path, 2, b"two")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"path={path} mode=0644" in caplog.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_type_of_a_file_system_is_that_of_its_device() -> None:
    mounts = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "27 1 254:0 / /a\\040folder rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard\n"
        "28 27 0:45 / /mnt rw - fuse.sshfs host:/ rw\n"
        "\n29 27\n"
    )
    assert mounted_type(mounts, os.makedev(254, 0)) == "ext4"
    assert mounted_type(mounts, os.makedev(0, 45)) == "fuse.sshfs"
    assert mounted_type(mounts, os.makedev(254, 1)) == ""


@pytest.mark.anyio
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
async def test_a_removed_log_takes_nothing_more_since_it_would_be_lost(
    tmp_path: Path, replaced: bool
) -> None:
    async with penstock_register_wal().open(SETTINGS, services(tmp_path)) as wal:
        async for _ in wal.recover():
            pass
        await wal.append([b"good"]).wait_durable()
        path = tmp_path / SETTINGS.path
        path.unlink()
        if replaced:
            path.write_bytes(b"")
        with pytest.raises(UnavailableError, match=f"was removed or replaced .*path={path}"):
            await wal.append([b"lost"]).wait_durable()
        assert wal.statistics().state == "failed"


@pytest.mark.anyio
async def test_a_removed_log_is_noticed_without_an_append(tmp_path: Path) -> None:
    async with penstock_register_wal().open(SETTINGS, services(tmp_path)) as wal:
        async for _ in wal.recover():
            pass
        (tmp_path / SETTINGS.path).unlink()
        with anyio.fail_after(HANG_S):
            while wal.statistics().state == "open":  # noqa: ASYNC110 - a WAL has no event for it
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_the_names_of_a_new_log_and_of_all_directories_above_it_are_durable_before_an_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure takes a directory whose name was never synced, and all that is in it."""
    synced: set[str] = set()
    sync = os.fsync

    def noted(fd: int) -> None:
        sync(fd)
        synced.add(os.readlink(f"/proc/self/fd/{fd}"))

    monkeypatch.setattr(os, "fsync", noted)
    directory = tmp_path / "data" / "deeper"
    async with penstock_register_wal().open(SETTINGS, services(directory)) as wal:
        async for _ in wal.recover():
            pass
        await wal.append([b"one"]).wait_durable()
        path = directory / SETTINGS.path
        assert {str(above) for above in path.parents if above.is_relative_to(tmp_path)} <= synced
