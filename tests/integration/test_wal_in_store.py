"""A broker whose write-ahead log is in its object store: crashes, faults, another host, a real S3 server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import ServeFactory
from tests.integration.ledger import Ledger, check, create_topic, read_all
from tests.integration.test_crash import run_crashes
from tests.integration.test_faults import (
    WITH_PLUGINS,
    Flaky,
    acks_go_on,
    acks_stop,
    finish,
    overtake_while_stopped,
)
from tests.patience import HANG_S
from tests.s3_server import S3Server, serving_s3

WAL = ("wal.plugin=wal_s3", "stream.upload_interval=500ms", "stream.upload_bytes=256KiB")


def test_the_store_is_all_that_must_outlive_a_broker(serve: ServeFactory, tmp_path: Path) -> None:
    """SIGKILL at random moments; then again in an empty data directory, as on another host."""
    broker = serve(*WAL)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    run_crashes(broker, [ledger], 3, seed=11)
    assert len(ledger.acked) > 100, dict(ledger.failed)
    broker.kill()
    assert [path.name for path in (broker.data_dir / "objects" / "wal").iterdir()] == ["1"]
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.move(broker.data_dir / "objects", kept / "objects")
    shutil.rmtree(broker.data_dir)
    again = serve(*WAL, data_dir=kept)
    check(read_all(again.bootstrap_servers), ledger, idempotent=True)
    assert again.terminate() == 0
    assert len(list((kept / "objects" / "wal" / "1").iterdir())) < 20, "what is uploaded is deleted"


def test_a_log_in_a_store_that_fails_stalls_or_loses_replies(serve: ServeFactory) -> None:
    """Every put of the log meets the fault: appends wait, nothing fails, and all goes on by itself."""
    broker = serve("object_store.plugin=flaky_store", *WAL, arguments=WITH_PLUGINS)
    create_topic(broker.bootstrap_servers)
    flaky = Flaky(broker)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=1000)
    with ledger:
        for mode, works in (("lose", True), ("fail", False), ("slow", True), ("stall_puts", False)):
            acks_go_on(ledger, 50)
            flaky.turn(f"{mode} wal/")
            if works:
                acks_go_on(ledger, 50)
            else:
                acks_stop(ledger)
            flaky.turn("ok")
        acks_go_on(ledger, 50)
    finish(broker, ledger)


def test_a_stopped_broker_whose_log_was_taken_over_wakes_up_and_ends(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """Two hosts, one store: the newer broker has all that the older one acknowledged, and that one ends."""
    assert "a newer" in overtake_while_stopped(serve, tmp_path, WAL)


def test_the_log_is_changed_by_config_after_a_clean_stop_and_not_after_a_kill(serve: ServeFactory) -> None:
    broker = serve(*WAL)
    in_store = broker.sets
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=1)
    with ledger:
        for sets in (("wal.capacity=16MiB",), in_store):
            acks_go_on(ledger, 50)
            assert broker.terminate() == 0
            broker.sets = sets
            broker.start()
        acks_go_on(ledger, 50)
        broker.kill()
        broker.sets = ("wal.capacity=16MiB",)
        broker.launch()
        assert broker.wait(HANG_S) != 0
        broker.sets = in_store
        broker.start()
    assert "acknowledged records" in broker.output_so_far
    finish(broker, ledger)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_crashes_of_broker_and_store_on_a_real_s3_server(
    serve: ServeFactory, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata, objects and log in one bucket, and nothing on disk that matters."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    broker = serve(
        *WAL,
        f"object_store.url=s3://{s3.make_bucket()}/penstock",
        f"object_store.options.endpoint_url={s3.endpoint_url}",
        f"object_store.options.client_kwargs.region_name={s3.region}",
    )
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=500)
    with ledger:
        acks_go_on(ledger, 100)
        broker.kill()
        shutil.rmtree(broker.data_dir)
        broker.start()
        acks_go_on(ledger, 100)
        if s3.kind == "versitygw":  # the other one keeps its objects in memory
            s3.kill()
            time.sleep(0.5)
            s3.start()
            acks_go_on(ledger, 100)
    finish(broker, ledger)
