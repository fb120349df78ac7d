"""Nothing acknowledged is lost, reordered or duplicated by SIGKILL, however often."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import Ledger, check, create_topic, read_all


def run_crashes(broker: ServeProcess, ledger: Ledger, kills: int, seed: int) -> None:
    """Kill and restart ``kills`` times at random moments while the ledger is written."""
    rng = random.Random(seed)
    ledger.start()
    try:
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 0.6))
            broker.kill()
            broker.start()
    finally:
        ledger.stop()


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("idempotent", [True, False], ids=["idempotent", "plain"])
def test_fifty_kills_lose_nothing_acknowledged(serve: ServeFactory, idempotent: bool, tmp_path: Path) -> None:
    """SIGKILL at random moments; then again with nothing left but the WAL file and the object store."""
    broker = serve("stream.upload_interval=1s", "stream.upload_bytes=1MiB")
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=idempotent, writers=3)
    run_crashes(broker, ledger, 50 if idempotent else 10, seed=1 if idempotent else 2)
    assert len(ledger.acked) > 1000, dict(ledger.failed)
    check(read_all(broker.bootstrap_servers), ledger, idempotent=idempotent)
    broker.kill()

    kept = tmp_path / "kept"
    (kept / "wal").mkdir(parents=True)
    shutil.copy(broker.data_dir / "wal" / "penstock.wal", kept / "wal" / "penstock.wal")
    shutil.copytree(broker.data_dir / "objects", kept / "objects")
    shutil.rmtree(broker.data_dir)
    again = serve(data_dir=kept)
    check(read_all(again.bootstrap_servers), ledger, idempotent=idempotent)
