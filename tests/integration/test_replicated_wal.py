"""A broker whose log is in two places at once: kills, and a place that is lost, hangs, or comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.integration.conftest import ServeFactory, ServeProcess, penstock
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

#: Nothing is uploaded, so what was acknowledged is in the log only.
WAL = (
    "wal.plugin=wal_s3express_replicated",
    "wal.drop_after=2s",
    "wal.return_after=300ms",
    "stream.upload_interval=1h",
    "wal.replicas.0.plugin=wal_s3",
    "wal.replicas.0.prefix=wal-zonal/",
    "wal.replicas.1.plugin=wal_block",
    "wal.replicas.1.path=wal/replica.wal",
)


def file_of(broker: ServeProcess) -> Path:
    return broker.data_dir / "wal" / "replica.wal"


def bucket_of(broker: ServeProcess) -> Path:
    return broker.data_dir / "objects" / "wal-zonal"


def recorded(broker: ServeProcess) -> int:
    """How many replicas count, as metadata say."""
    sets = [argument for item in broker.sets for argument in ("--set", item)]
    sets += ["--set", f"broker.data_dir={broker.data_dir}"]
    told = json.loads(penstock("wal", "inspect", "--json", *sets).stdout)
    return int(told["facts"]["members"])


def test_kills_and_the_loss_of_either_place_lose_nothing(serve: ServeFactory) -> None:
    """SIGKILL at random moments; then the file is gone, and is given the log; then the bucket is."""
    broker = serve(*WAL)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    run_crashes(broker, [ledger], 2, seed=5)
    assert len(ledger.acked) > 50, dict(ledger.failed)
    for place in (file_of(broker), bucket_of(broker)):
        broker.kill()
        assert recorded(broker) == 2
        place.unlink() if place.is_file() else shutil.rmtree(place)
        broker.start()
        check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    assert broker.terminate() == 0
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_a_place_that_is_removed_while_running_is_dropped_and_comes_back(serve: ServeFactory) -> None:
    broker = serve(*WAL)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
        file_of(broker).unlink()
        broker.wait_for_output("a replica of the wal is dropped")
        acks_go_on(ledger)
        broker.wait_for_output("and holds the log again")
        acks_go_on(ledger)
    broker.kill()
    shutil.rmtree(bucket_of(broker))
    broker.start()
    assert "the wal is degraded" not in broker.output_so_far.rpartition("listening")[2]
    finish(broker, ledger)


def test_a_place_that_hangs_is_dropped_and_never_asked_again_what_was_acknowledged(
    serve: ServeFactory,
) -> None:
    broker = serve("object_store.plugin=flaky_store", *WAL, arguments=WITH_PLUGINS)
    create_topic(broker.bootstrap_servers)
    flaky = Flaky(broker)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
        flaky.turn("stall_puts wal-zonal/")
        acks_stop(ledger, quiet_s=0.2)
        broker.wait_for_output("replicas[0] is out")
        acks_go_on(ledger)
        broker.kill()
        flaky.turn("ok")
        broker.start()  # the bucket lacks the newest, and is given it from the file
        acks_go_on(ledger)
    finish(broker, ledger)


def test_a_stopped_broker_whose_replicated_log_was_taken_over_wakes_up_and_ends(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """The newer broker, on another host, has the bucket only."""
    overtake_while_stopped(serve, tmp_path, WAL)
