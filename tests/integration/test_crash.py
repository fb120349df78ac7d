"""Nothing acknowledged is lost, reordered or duplicated by SIGKILL, however often."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from tests.depth import how_many, in_full
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import Ledger, at_work, check, create_topic, read_all
from tests.integration.test_faults import FLAKY, WITH_PLUGINS, Flaky, acks_go_on

#: Batches that lie in one page, in several, and are written from their place: each alone, and small ones gathered.
MIXED_BYTES = (100, 20 * 1024, 70 * 1024, 300 * 1024, 100, 900 * 1024, 100)


def run_crashes(broker: ServeProcess, ledgers: list[Ledger], kills: int, seed: int) -> None:
    """Kill and restart ``kills`` times at random moments while the ledgers are written."""
    rng = random.Random(seed)
    with at_work(ledgers):
        for _ in range(kills):
            time.sleep(rng.uniform(0.05, 0.6))
            broker.kill()
            broker.start()


def mixed_ledgers(broker: ServeProcess, *, idempotent: bool = True) -> list[Ledger]:
    """Large and small batches of all codecs, one topic for each kind of timestamps."""
    ledgers = []
    for topic, codecs in (("CreateTime", ("none", "lz4")), ("LogAppendTime", ("none", "gzip", "zstd"))):
        create_topic(broker.bootstrap_servers, topic, {"message.timestamp.type": topic})
        ledger = Ledger(
            broker.bootstrap_servers,
            idempotent=idempotent,
            writers=len(codecs),
            value_bytes=MIXED_BYTES,
            topic=topic,
            codecs=codecs,
        )
        ledgers.append(ledger)
    return ledgers


def check_all(broker: ServeProcess, ledgers: list[Ledger], *, idempotent: bool = True) -> None:
    """What was acknowledged is there, byte by byte."""
    for ledger in ledgers:
        assert not ledger.failed, dict(ledger.failed)
        assert len(ledger.acked) > 50
        check(read_all(broker.bootstrap_servers, ledger.topic), ledger, idempotent=idempotent)


WALS = {
    "direct": ("wal.io=direct", "wal.capacity=24MiB"),
    "buffered": ("wal.io=buffered", "wal.capacity=24MiB"),
    "wal_s3": ("wal.plugin=wal_s3",),
}


@pytest.mark.parametrize("wal", in_full("direct", "wal_s3", "buffered"))
def test_large_batches_survive_kills(serve: ServeFactory, wal: str) -> None:
    """Read from the cache, after another kill, and from objects after a stop that uploaded everything."""
    broker = serve("stream.upload_interval=1s", "stream.upload_bytes=8MiB", *WALS[wal])
    ledgers = mixed_ledgers(broker)
    run_crashes(broker, ledgers, 3, seed=3)
    check_all(broker, ledgers)
    broker.kill()
    broker.start()
    check_all(broker, ledgers)
    assert broker.terminate() == 0
    broker.start()
    check_all(broker, ledgers)


def test_large_batches_survive_kills_while_the_store_lags(serve: ServeFactory) -> None:
    """The log goes around its ring as far as uploads let it; in between it is full."""
    broker = serve(*FLAKY, arguments=WITH_PLUGINS)
    flaky = Flaky(broker)
    ledgers = mixed_ledgers(broker)
    with at_work(ledgers):
        for mode in ("slow objects/", "stall objects/", "lose objects/"):
            flaky.turn(mode)
            time.sleep(0.7)
            broker.kill()
            flaky.turn("slow objects/")  # a start uploads what only the log holds
            broker.start()
        flaky.turn("ok")
        acks_go_on(ledgers[0], 30)
    check_all(broker, ledgers)
    broker.kill()
    broker.start()
    check_all(broker, ledgers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "idempotent",
    [pytest.param(True, id="idempotent"), pytest.param(False, id="plain", marks=pytest.mark.full)],
)
def test_kills_lose_nothing_acknowledged(serve: ServeFactory, idempotent: bool, tmp_path: Path) -> None:
    """SIGKILL at random moments; then again with nothing left but the WAL's files, if any, and the object store."""
    broker = serve("stream.upload_interval=1s", "stream.upload_bytes=1MiB")
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=idempotent, writers=3)
    run_crashes(broker, [ledger], how_many("kills"), seed=1 if idempotent else 2)
    assert len(ledger.acked) > 20 * how_many("kills"), dict(ledger.failed)
    check(read_all(broker.bootstrap_servers), ledger, idempotent=idempotent)
    broker.kill()

    kept = tmp_path / "kept"
    (kept / "wal").mkdir(parents=True)
    for file in (broker.data_dir / "wal").glob("*.wal"):
        shutil.copy(file, kept / "wal" / file.name)
    shutil.copytree(broker.data_dir / "objects", kept / "objects")
    shutil.rmtree(broker.data_dir)
    again = serve(data_dir=kept)
    check(read_all(again.bootstrap_servers), ledger, idempotent=idempotent)
