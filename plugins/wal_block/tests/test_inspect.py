"""The inspector reads live, closed and damaged logs, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from penstock_wal_block import Settings, inspect_wal, penstock_register_wal

from penstock.errors import CorruptError, NotFoundError
from penstock.spi import Services


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
