"""The inspector reads live, closed and damaged logs, and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from penstock_wal_block import Settings, inspect_wal, penstock_register_wal
from penstock_wal_block._format import BLOCK_BYTES
from tests.loop_device import loop_device

from penstock.errors import (
    ConfigError,
    CorruptError,
    FencedError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi import Services


async def write(tmp_path: Path, epoch: int, entries: list[bytes], *, live: bool = False) -> Path:
    services = Services(node_id=4, epoch=epoch, cluster_id="cluster", data_dir=tmp_path, clock=lambda: 0.0)
    settings = Settings(capacity=2**20, group_bytes_max=2**16, io="buffered")
    path = tmp_path / settings.path
    async with penstock_register_wal().open(settings, services) as wal:
        async for _ in wal.recover():
            pass
        for entry in entries:
            await wal.append([entry]).wait_durable()
        if live:
            before = path.read_bytes()
            assert inspect_wal(path).summary()["entries"] == len(entries)
            assert path.read_bytes() == before
    return path


@pytest.mark.anyio
async def test_a_closed_log_tells_its_groups_and_totals(tmp_path: Path) -> None:
    path = await write(tmp_path, 3, [b"one", b"three"])
    inspection = inspect_wal(path)
    groups = list(inspection.groups())
    assert [(group.sequence, group.epoch, group.position, group.offset) for group in groups] == [
        (0, 3, 0, 8192),
        (1, 3, 4096, 12288),
    ]
    assert groups[1].entries == ((4096 + 72, 5),)
    summary = inspection.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["error"] is None
    assert summary["closed_cleanly"] is True
    assert (summary["entries"], summary["payload_bytes"], summary["epoch"]) == (2, 8, 3)


@pytest.mark.anyio
async def test_a_live_log_is_read_without_disturbing_it(tmp_path: Path) -> None:
    await write(tmp_path, 1, [b"one", b"two"], live=True)


@pytest.mark.anyio
@pytest.mark.parametrize("trimmed", [False, True], ids=["written", "trimmed and written over"])
async def test_what_an_owner_does_while_its_log_is_read_is_no_loss(tmp_path: Path, trimmed: bool) -> None:
    services = Services(node_id=4, epoch=1, cluster_id="cluster", data_dir=tmp_path, clock=lambda: 0.0)
    settings = Settings(capacity=2 * 2**20 if trimmed else 16 * 2**20, group_bytes_max=2**16)
    async with penstock_register_wal().open(settings, services) as wal:
        _ = [entry async for entry in wal.recover()]

        async def write(count: int) -> int:
            appends = [wal.append([bytes(60_000)]) for _ in range(count)]
            await appends[-1].wait_durable()
            return appends[-1].position

        last = await write(25 if trimmed else 10)
        groups = inspect_wal(tmp_path / settings.path).groups()
        found = [next(groups).position]
        for _ in range(2):
            position = await write(5)
            if trimmed:
                await wal.trim(position)
                await write(10)
        found += [group.position for group in groups]
        assert found == sorted(found)
        assert found[-1] + BLOCK_BYTES > last, "all that was there at first, or what came since"


@pytest.mark.anyio
async def test_damage_is_the_first_error_of_the_summary(tmp_path: Path) -> None:
    path = await write(tmp_path, 1, [b"one", b"two"])
    with path.open("r+b") as file:
        file.seek(8192 + 4096 + 96)
        file.write(b"X")
    summary = inspect_wal(path).summary()
    assert summary["entries"] == 1
    assert "position=4168" in str(summary["error"])


def test_what_is_no_log_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        inspect_wal(tmp_path / "nothing")
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(CorruptError, match="no wal_block log"):
        inspect_wal(tmp_path / "other")


async def identify(tmp_path: Path) -> str | None:
    """What the plugin says of the place where ``write`` makes its log, asked as the kernel does before opening."""
    services = Services(node_id=4, epoch=0, cluster_id="cluster", data_dir=tmp_path, clock=lambda: 0.0)
    tell = penstock_register_wal().identify
    assert tell is not None
    return await tell(Settings(capacity=2**20, group_bytes_max=2**16), services)


@pytest.mark.anyio
async def test_the_identity_is_the_log_id_of_either_header_slot(tmp_path: Path) -> None:
    """A torn slot leaves the other one, as at opening."""
    path = await write(tmp_path, 1, [b"one"])
    header = inspect_wal(path).header
    assert await identify(tmp_path) == f"{header.log_id:016x}" == inspect_wal(path).summary()["identity"]
    with path.open("r+b") as file:
        file.seek(header.sequence % 2 * 4096 + 20)
        file.write(b"torn")
    assert inspect_wal(path).header.sequence == header.sequence - 1
    assert await identify(tmp_path) == f"{header.log_id:016x}"


@pytest.mark.anyio
@pytest.mark.parametrize("content", [b"", bytes(8192), bytes(4096) + b"PSTKWALBtorn"])
async def test_a_log_whose_creation_broke_off_is_none_yet(tmp_path: Path, content: bytes) -> None:
    """Where opening would create one, there is none."""
    path = tmp_path / Settings().path
    path.parent.mkdir()
    path.write_bytes(content)
    assert await identify(tmp_path) is None
    assert path.read_bytes() == content
    await write(tmp_path, 1, [b"one"])
    assert await identify(tmp_path) is not None


@pytest.mark.anyio
async def test_a_damaged_log_is_not_taken_for_none(tmp_path: Path) -> None:
    path = await write(tmp_path, 1, [b"one"])
    with path.open("r+b") as file:
        file.write(os.urandom(8192))
    with pytest.raises(CorruptError, match="no valid header"):
        await identify(tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)], ids=str)
async def test_a_header_of_a_newer_version_is_named_and_the_older_slot_never_takes_its_place(
    tmp_path: Path, slots: tuple[int, ...]
) -> None:
    """Told by whoever identifies, inspects or opens the log, before a byte of it is changed."""
    path = await write(tmp_path, 1, [b"precious"])
    with path.open("r+b") as file:
        for slot in slots:
            file.seek(slot * 4096 + 8)
            file.write(b"\0\3")
    before = path.read_bytes()
    told = rf"the wal was written by a newer penstock, upgrade this one: path={path} version=3 known=2"
    with pytest.raises(NewerVersionError, match=told):
        inspect_wal(path)
    with pytest.raises(NewerVersionError, match=told):
        await identify(tmp_path)
    with pytest.raises(NewerVersionError, match=told):
        await write(tmp_path, 2, [b"more"])
    assert path.read_bytes() == before


@pytest.mark.anyio
async def test_an_owner_that_a_newer_version_took_the_log_from_is_fenced(tmp_path: Path) -> None:
    services = Services(node_id=4, epoch=1, cluster_id="cluster", data_dir=tmp_path, clock=lambda: 0.0)
    settings = Settings(capacity=2**20, group_bytes_max=2**16, io="buffered")
    async with penstock_register_wal().open(settings, services) as wal:
        async for _ in wal.recover():
            pass
        with (tmp_path / settings.path).open("r+b") as file:
            file.seek(8)
            file.write(b"\0\3")
        with pytest.raises(FencedError, match="a newer penstock took over the wal"):
            await wal.append([b"late"]).wait_durable()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("link to a file", ConfigError),
        ("link to nothing", ConfigError),
        ("pipe", UnavailableError),
        ("directory", UnavailableError),
        ("below a file", UnavailableError),
    ],
)
def test_what_isnt_a_log_is_told_in_a_sentence_by_whoever_reads_it(
    tmp_path: Path, kind: str, error: type[PenstockError]
) -> None:
    """A start reads the log from outside first, so what opening refuses mustn't end it with a traceback."""
    path, other = tmp_path / "wal", tmp_path / "other"
    other.write_bytes(b"precious")
    match kind:
        case "link to a file":
            path.symlink_to(other)
        case "link to nothing":
            path.symlink_to(tmp_path / "nothing")
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path = other / "wal"
    with pytest.raises(error, match=str(path)):
        inspect_wal(path)
    assert other.read_bytes() == b"precious"


@pytest.mark.anyio
async def test_a_device_behind_a_link_is_read_as_it_is_opened(tmp_path: Path) -> None:
    """Names in /dev/disk are links; a start reads the log before it opens it."""
    with loop_device(tmp_path, 2**20) as device:
        path = tmp_path / Settings().path
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(device)
        await write(tmp_path, 3, [b"one", b"three"])
        assert inspect_wal(path).summary()["entries"] == 2
