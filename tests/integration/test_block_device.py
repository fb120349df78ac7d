"""A write-ahead log on a block device, with real clients: nothing acknowledged is lost by kills or a take-over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.depth import in_full
from tests.integration.conftest import ServeFactory, penstock
from tests.integration.ledger import Ledger, at_work, create_topic
from tests.integration.test_crash import MIXED_BYTES, check_all, mixed_ledgers, run_crashes
from tests.integration.test_faults import acks_go_on, overtake_while_stopped
from tests.loop_device import loop_device
from tests.patience import HANG_S

#: Small enough for several laps.
CAPACITY_BYTES = 24 * 2**20


def tool(data_dir: Path, device: Path, *command: str) -> dict[str, Any]:
    """What ``penstock wal inspect`` or ``verify`` says; it must find nothing wrong."""
    sets = (f"broker.data_dir={data_dir}", f"wal.path={device}", f"wal.capacity={CAPACITY_BYTES}")
    done = penstock(*command, *(part for s in sets for part in ("--set", s)), "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("sector_bytes", "settings"),
    [(4096, ("wal.sync=dsync",)), *in_full((512, ()), (4096, ("wal.io=buffered",)))],
    ids=["4096-dsync", "512", "4096-buffered"],
)
def test_kills_lose_nothing_on_a_device(
    serve: ServeFactory, tmp_path: Path, sector_bytes: int, settings: tuple[str, ...]
) -> None:
    """And the tools read the log of a dead broker, and of one that runs."""
    with loop_device(tmp_path, CAPACITY_BYTES + 512, sector_bytes) as device:
        broker = serve(
            f"wal.path={device}",
            f"wal.capacity={CAPACITY_BYTES}",
            "stream.upload_interval=1s",
            "stream.upload_bytes=4MiB",
            *settings,
        )
        try:
            ledgers = mixed_ledgers(broker)
            run_crashes(broker, ledgers, 3, seed=sector_bytes)
            check_all(broker, ledgers)
            tool(broker.data_dir, device, "wal", "inspect")
            broker.kill()
            inspected = tool(broker.data_dir, device, "wal", "inspect")
            assert inspected["facts"]["path"] == str(device)
            assert not inspected["damage"]
            assert not tool(broker.data_dir, device, "verify")["problems"]
            broker.start()
            check_all(broker, ledgers)
            assert broker.terminate() == 0
            assert tool(broker.data_dir, device, "wal", "inspect")["entry_count"] == 0
        finally:
            if broker.running:
                broker.kill()


@pytest.mark.full
def test_a_second_broker_takes_the_device_over(serve: ServeFactory, tmp_path: Path) -> None:
    """The first ends at its next write; the second, and whoever follows, has all that either acknowledged."""
    with loop_device(tmp_path, CAPACITY_BYTES) as device:
        sets = (
            f"wal.path={device}",
            f"wal.capacity={CAPACITY_BYTES}",
            f"object_store.url=file://{tmp_path}/objects",
            "stream.upload_bytes=4MiB",
        )
        first = serve(*sets, data_dir=tmp_path / "first")
        brokers = [first]
        ledgers = mixed_ledgers(first)
        try:
            with at_work(ledgers):
                acks_go_on(ledgers[0], 50)
                second = serve(*sets, data_dir=tmp_path / "second")
                brokers.append(second)
                assert first.wait(HANG_S) != 0
                assert "Traceback" not in first.output, first.output
                create_topic(second.bootstrap_servers, "later")
                later = Ledger(
                    second.bootstrap_servers,
                    idempotent=True,
                    writers=1,
                    value_bytes=MIXED_BYTES,
                    topic="later",
                )
                with later:
                    acks_go_on(later, 50)
                second.kill()
                first.start()  # the producers go on where they were
                acks_go_on(ledgers[0], 50)
            check_all(first, [*ledgers, later])
            first.kill()
            first.start()
            check_all(first, [*ledgers, later])
        finally:
            for broker in brokers:
                if broker.running:
                    broker.kill()


def test_brokers_that_were_stopped_and_wake_up_change_nothing_on_a_shared_device(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """Two hosts, one device."""
    capacity_bytes = 64 * 2**20
    with loop_device(tmp_path, capacity_bytes) as device:
        wal = (
            f"wal.path={device}",
            "wal.shared=true",
            f"wal.capacity={capacity_bytes}",
            "stream.upload_bytes=4MiB",
        )
        assert "a newer" in overtake_while_stopped(serve, tmp_path, wal)
