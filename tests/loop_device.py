"""Block devices for tests: loop devices over sparse files, where the system lets us make them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.patience import HANG_S


@contextmanager
def loop_device(directory: Path, size_bytes: int, sector_bytes: int = 512) -> Iterator[Path]:
    """A block device over a new file in ``directory``; skips the test where there can be none."""
    if shutil.which("losetup") is None or os.geteuid() != 0:
        pytest.skip("losetup needs root")
    image = directory / f"device-{sector_bytes}.img"
    directory.mkdir(exist_ok=True)
    with image.open("xb") as file:
        file.truncate(size_bytes)
    device = _attach(image, sector_bytes)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True, timeout=HANG_S)
        image.unlink()


def _attach(image: Path, sector_bytes: int) -> Path:
    command = [
        "losetup",
        "--find",
        "--show",
        "--direct-io=on",
        "--sector-size",
        str(sector_bytes),
        str(image),
    ]
    for _ in range(5):  # two that look for a free device at the same time may find the same one
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
        if done.returncode == 0:
            return Path(done.stdout.strip())
    pytest.skip(f"no loop device: {done.stderr.strip()}")
