"""The WAL on block devices conforms: with logical blocks of 512 and of 4096 bytes."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.depth import in_full
from tests.integration.conftest import penstock
from tests.loop_device import loop_device
from tests.patience import HANG_S

PLUGINS = Path(__file__).with_name("_plugins")
DEVICE_BYTES = 4 * 2**20
#: What clauses append in one piece must be a sixteenth of it.
SHARED_DEVICE_BYTES = 32 * 2**20
#: The others are of what a shared log has in common with others; all of them: two minutes, by hand.
OF_OWNERS = "owner or node or fence or identit or kill or sealed or end_of_the_log"


def run_suite(
    tmp_path: Path, devices: list[Path], *settings: str, clauses: str = "", levels: str = ""
) -> dict[str, Any]:
    """The report of these clauses and levels, or all, on these devices; all that apply must hold."""
    report = tmp_path / "report.json"
    done = penstock(
        *("conformance", "run", "wal", "--plugin", "wal_on_device"),
        *("--plugins-dir", str(PLUGINS), "--report", str(report), "--deadline", str(HANG_S / 3)),
        *(("-k", clauses) if clauses else ()),
        *(part for level in levels for part in ("--level", level)),
        *(part for setting in settings for part in ("--set", setting)),
        more={"PENSTOCK_TEST_DEVICES": ":".join(map(str, devices))},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    outcome: dict[str, Any] = json.loads(report.read_text())
    assert outcome["result"] == "pass"
    return outcome


@pytest.mark.parametrize(
    ("sector_bytes", "io", "levels"),
    [(512, "direct", "3"), *in_full((4096, "direct", ""), (4096, "buffered", "13"))],
)
def test_wal_block_conforms_on_devices(tmp_path: Path, sector_bytes: int, io: str, levels: str) -> None:
    """Crashes on each, in the full run semantics, too, and on one all; clauses that damage the log can't be tried."""
    with (
        loop_device(tmp_path, DEVICE_BYTES, sector_bytes) as device,
        loop_device(tmp_path, DEVICE_BYTES, 4608 - sector_bytes) as other,
    ):
        outcome = run_suite(
            tmp_path,
            [device, other],
            f"io={io}",
            f"capacity={DEVICE_BYTES}",
            "group_bytes_max=256KiB",
            levels=levels,
        )
    assert outcome["counts"]["pass"] >= (5 if levels == "3" else 27)


def test_wal_block_conforms_on_devices_that_hosts_share(tmp_path: Path) -> None:
    """With the clauses of what is shareable: another host takes over, and an owner that was stopped wakes up."""
    with ExitStack() as stack:
        devices = [
            stack.enter_context(loop_device(directory, SHARED_DEVICE_BYTES))
            for directory in (tmp_path / "one", tmp_path / "two", tmp_path / "three")
        ]
        outcome = run_suite(
            tmp_path,
            devices,
            "path=wal/{node_id}.wal",
            "shared=true",
            f"capacity={SHARED_DEVICE_BYTES}",
            clauses=OF_OWNERS,
        )
    passed = {clause["name"] for clause in outcome["clauses"] if clause["outcome"] == "pass"}
    assert {
        "survivor_takes_a_dead_nodes_log_over_beside_its_own",
        "stopped_owner_that_wakes_up_acknowledges_nothing_more",
    } <= passed
