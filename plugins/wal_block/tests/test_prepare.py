"""``penstock wal format`` and ``check``: nothing of anybody's is lost without the exact words for it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from penstock_wal_block import Settings, penstock_register_wal
from penstock_wal_block._format import HEADER_AREA_BYTES
from tests.loop_device import loop_device

from penstock.spi import Services
from penstock_tools.cli import main

BYTES = 8 * 2**20


@pytest.mark.parametrize(
    ("offset", "content", "found"),
    [
        (510, b"\x55\xaa", "a partition table"),
        (0x438, b"\x53\xef", "ext"),
        (0, b"XFSB", "xfs"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (BYTES - 2**16, b"\xfc\x4e\x2b\xa9", "raid"),
        (BYTES - 1, b"x", f"data (the byte at {BYTES - 1} isn't zero)"),
        (5 * 2**20 + 77, b"x", f"data (the byte at {5 * 2**20 + 77} isn't zero)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_holds_something_is_refused_without_the_exact_words(
    tmp_path: Path, offset: int, content: bytes, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the place of a device: the same code judges both."""
    place = tmp_path / "place"
    place.write_bytes(bytes(BYTES))
    with place.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    before = place.read_bytes()
    command = ["wal", "format", "--set", f"wal.path={place}", "--set", f"broker.data_dir={tmp_path}"]
    for force in ([], ["--force", "yes"], ["--force", f"erase {place}x"]):
        assert main([*command, *force]) == 2
        told = capsys.readouterr().err
        assert f"the place for the wal holds {found}, so nothing was changed" in told
        assert f"--force 'erase {place}'" in told
        assert place.read_bytes() == before
    assert main([*command, "--force", f"erase {place}"]) == 0
    assert f"held                       {found}" in capsys.readouterr().out
    assert not any(place.read_bytes())


def test_a_device_is_tried_and_emptied_and_then_takes_a_log_that_check_tells_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def write_log(path: Path) -> None:
        settings = Settings(path=str(path), capacity=BYTES)
        services = Services(node_id=3, epoch=7, cluster_id="c", data_dir=tmp_path, clock=lambda: 0.0)
        async with penstock_register_wal().open(settings, services) as wal:
            async for _ in wal.recover():
                pass
            await wal.append([b"x" * 100_000]).wait_durable()

    with loop_device(tmp_path, BYTES) as device:
        sets = [
            f"--set=wal.path={device}",
            f"--set=wal.capacity={BYTES}",
            f"--set=broker.data_dir={tmp_path}",
        ]
        assert main(["wal", "format", "--json", *sets]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["size_bytes"], facts["block_bytes"], facts["held"]) == (BYTES, 4096, "nothing")
        assert facts["write_us_p50"] > 0
        anyio.run(write_log, device)
        assert main(["wal", "check", "--json", *sets]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["node_id"], facts["epoch"], facts["block_bytes"]) == (3, 7, 4096)
        assert facts["used_bytes"] > 100_000
        assert facts["full"] == "1.2 %"
        assert main(["wal", "format", *sets]) == 2
        assert (
            "holds a wal of cluster 'c', node 3, epoch 7, so nothing was changed" in capsys.readouterr().err
        )
        assert main(["wal", "format", *sets, "--set", f"wal.capacity={2 * BYTES}"]) == 2
        assert "the device is smaller than wal.capacity" in capsys.readouterr().err
        holder = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount has it
        try:
            assert main(["wal", "format", *sets, "--force", f"erase {device}"]) == 2
            assert "in use, mounted or as part of a volume" in capsys.readouterr().err
        finally:
            os.close(holder)
        assert main(["wal", "format", *sets, "--force", f"erase {device}"]) == 0
        assert not any(device.read_bytes()[:HEADER_AREA_BYTES])


def test_a_log_that_somebody_has_open_is_not_emptied_whatever_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has acknowledged may be nowhere else."""
    place = tmp_path / "x.wal"
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=time.monotonic)
    command = ["wal", "format", f"--set=wal.path={place}", f"--set=broker.data_dir={tmp_path}"]

    async def open_log() -> None:
        settings = Settings(path=str(place), capacity=BYTES)
        async with penstock_register_wal().open(settings, services) as wal:
            assert [entry async for entry in wal.recover()] == []
            await wal.append([b"acknowledged"]).wait_durable()
            before = place.read_bytes()
            assert await to_thread.run_sync(main, [*command, "--force", f"erase {place}"]) == 2
            assert place.read_bytes() == before

    anyio.run(open_log)
    assert capsys.readouterr().err == (
        f"penstock: a broker of this host has the wal open, so nothing was changed; stop it first: path={place}\n"
    )
    assert main([*command, "--force", f"erase {place}"]) == 0
    assert "write_us_p50" not in capsys.readouterr().out, "a file is emptied, and nothing is measured"


def test_a_place_where_nothing_is_needs_no_formatting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wal", "format", "--set", f"broker.data_dir={tmp_path}"]) == 2
    assert "there is nothing to format" in capsys.readouterr().err
