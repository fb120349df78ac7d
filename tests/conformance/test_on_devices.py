"""The WAL on block devices conforms: with logical blocks of 512 and of 4096 bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.loop_device import loop_device
from tests.patience import HANG_S

PLUGINS = Path(__file__).with_name("_plugins")
DEVICE_BYTES = 4 * 2**20


@pytest.mark.parametrize("io", ["direct", "buffered"])
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_wal_block_conforms_on_devices(tmp_path: Path, sector_bytes: int, io: str) -> None:
    """All three levels; only the clauses that damage the log on purpose can't be tried."""
    report = tmp_path / "report.json"
    with (
        loop_device(tmp_path, DEVICE_BYTES, sector_bytes) as device,
        loop_device(tmp_path, DEVICE_BYTES, 4608 - sector_bytes) as other,
    ):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "penstock", "conformance", "run", "wal", "--plugin", "wal_on_device"),
                *("--plugins-dir", str(PLUGINS), "--report", str(report), "--set", f"io={io}"),
                *("--set", f"capacity={DEVICE_BYTES}", "--set", "group_bytes_max=256KiB"),
                *("--deadline", str(HANG_S / 3)),
            ],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
            env={**os.environ, "PENSTOCK_TEST_DEVICES": f"{device}:{other}"},
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    outcome = json.loads(report.read_text())
    assert outcome["result"] == "pass"
    assert outcome["counts"]["pass"] >= 27
