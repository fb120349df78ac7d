"""How ``penstock serve`` ends: the exit code says whether a restart helps, and what was acknowledged is there then.

Each row of the table in docs/operations.md ("How it ends") has its test here, or in the file that it names there.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.depth import in_full
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.ledger import Ledger, check, create_topic, read_all
from tests.integration.test_faults import (
    FLAKY,
    WITH_PLUGINS,
    Flaky,
    acks_go_on,
    one_sentence,
    run_serve,
)
from tests.patience import HANG_S

RESTART_HELPS = 1
RESTART_IS_FUTILE = 2
FAULTY = "wal.plugin=faulty_wal"


@contextlib.contextmanager
def writing(broker: ServeProcess) -> Iterator[Ledger]:
    """Producers at work on a broker, of which some records are acknowledged."""
    create_topic(broker.bootstrap_servers)
    with Ledger(broker.bootstrap_servers, idempotent=True, writers=2) as ledger:
        acks_go_on(ledger)
        yield ledger


def all_there(broker: ServeProcess, ledger: Ledger) -> None:
    """After a start everything that was acknowledged is there."""
    broker.start()
    acks_go_on(ledger)
    ledger.stop()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_stop_that_was_asked_for_ends_with_0(serve: ServeFactory, number: signal.Signals) -> None:
    broker = serve()
    broker.signal(number)
    assert broker.wait(HANG_S) == 0


def test_a_failed_sync_ends_with_1_and_the_next_start_has_everything(serve: ServeFactory) -> None:
    broker = serve(FAULTY, arguments=WITH_PLUGINS)
    with writing(broker) as ledger:
        control = broker.data_dir / "wal.control"
        control.write_text("sync")
        assert broker.wait(HANG_S) == RESTART_HELPS
        control.unlink()
        assert one_sentence(broker.output)
        assert "the wal's medium failed, check the disk and restart the broker: path=" in broker.output
        assert "everything acknowledged is uploaded" in broker.output, broker.output
        all_there(broker, ledger)


@pytest.mark.parametrize("how", ["replaced", *in_full("removed", "moved")])
def test_a_wal_that_is_removed_ends_with_1_and_the_next_start_has_everything(
    serve: ServeFactory, how: str
) -> None:
    """What was acknowledged is uploaded from memory, so a new WAL will do: nobody is asked to accept a loss."""
    broker = serve()
    with writing(broker) as ledger:
        path = broker.data_dir / "wal/penstock.wal"
        match how:
            case "removed":
                path.unlink()
            case "moved":
                path.rename(broker.data_dir / "moved.wal")
            case _:
                other = broker.data_dir / "other"
                other.write_bytes(b"a user's notes")
                other.replace(path)
        assert broker.wait(HANG_S) == RESTART_HELPS
        assert one_sentence(broker.output)
        told = "the wal's file was removed or replaced while the broker ran, so nothing more is acknowledged"
        assert f"{told}; start it again: path={path}" in broker.output
        assert "everything acknowledged is uploaded" in broker.output, broker.output
        if how == "replaced":
            assert path.read_bytes() == b"a user's notes"
            path.unlink()
        all_there(broker, ledger)


def test_a_wal_that_is_removed_under_an_idle_broker_ends_it_too(serve: ServeFactory) -> None:
    broker = serve()
    with writing(broker) as ledger:
        pass
    (broker.data_dir / "wal/penstock.wal").unlink()
    assert broker.wait(HANG_S) == RESTART_HELPS
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_a_removed_wal_beside_a_failing_store_is_said_to_be_a_loss_and_the_next_start_asks(
    serve: ServeFactory,
) -> None:
    """Nothing else can be done: records are only in memory. It ends in bounded time, and says how much is lost."""
    broker = serve(*FLAKY, "broker.drain_timeout=1s", arguments=WITH_PLUGINS)
    with writing(broker) as ledger:
        Flaky(broker).turn("fail")
        acks_go_on(ledger)
        (broker.data_dir / "wal/penstock.wal").unlink()
        assert broker.wait(HANG_S) == RESTART_HELPS
        ledger.stop(abandon=True)
    assert (
        "not all of it could be uploaded, the rest is only in the wal that has ended: bytes=" in broker.output
    )
    Flaky(broker).turn("ok")
    broker.launch()
    assert broker.wait(HANG_S) == RESTART_IS_FUTILE
    assert "acknowledged records of this node may be in another WAL only" in broker.output


def test_a_broker_that_is_fenced_ends_with_2_since_a_restart_would_fence_the_other_one(
    serve: ServeFactory, tmp_path: Path
) -> None:
    shared = (f"wal.path={tmp_path / 'wal'}", f"object_store.url=file://{tmp_path / 'objects'}")
    older = serve(*shared)
    serve(*shared)
    assert older.wait(HANG_S) == RESTART_IS_FUTILE
    assert one_sentence(older.output)


def test_a_port_that_somebody_has_ends_with_1_for_it_may_be_free_again(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        code, output = run_serve(
            tmp_path / "data", f"listener.bind=127.0.0.1:{sock.getsockname()[1]}", executed=True
        )
    assert code == RESTART_HELPS, output
    assert one_sentence(output)
    assert (
        "can't listen, somebody listens there already, stop that or choose another port with listener.bind: "
        in output
    )


def test_a_host_that_isnt_this_machines_ends_with_2(tmp_path: Path) -> None:
    for_documentation = "192.0.2.1"  # RFC 5737
    code, output = run_serve(tmp_path / "data", f"listener.bind={for_documentation}:9092")
    assert code == RESTART_IS_FUTILE, output
    assert one_sentence(output)


def test_a_mistake_in_the_configuration_ends_with_2(tmp_path: Path) -> None:
    for sets in (
        ["broker.node_id=minus one"],
        ["broker.no_such_key=1"],
        ["wal.plugin=none"],
        ["wal.capacity=1KiB"],
    ):
        code, output = run_serve(tmp_path / "data", *sets)
        assert code == RESTART_IS_FUTILE, output
        assert one_sentence(output)
    (tmp_path / "file").write_bytes(b"")
    code, output = run_serve(tmp_path / "file/data")
    assert code == RESTART_IS_FUTILE, output
    assert one_sentence(output)


def test_a_second_broker_on_a_data_directory_ends_with_2(broker: ServeProcess) -> None:
    code, output = run_serve(broker.data_dir)
    assert code == RESTART_IS_FUTILE, output
    assert f"pid={broker.pid}" in output


def metadata_of(data_dir: Path) -> dict[str, bytes]:
    """Entries and snapshots of the metadata log."""
    root = data_dir / "objects/metadata"
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["wal", "metadata"])
def test_data_of_a_newer_version_end_with_2_before_anything_is_changed(
    broker: ServeProcess, place: str
) -> None:
    """After a downgrade by mistake: start the newer one again, and nothing has happened."""
    create_topic(broker.bootstrap_servers)
    broker.kill()
    wal = broker.data_dir / "wal/penstock.wal"
    path = wal if place == "wal" else max((broker.data_dir / "objects/metadata/log").iterdir())
    data = bytearray(path.read_bytes())
    at = 8 if place == "wal" else 4
    data[at : at + 2] = (7).to_bytes(2, "big")
    path.write_bytes(data)
    before = (wal.read_bytes(), metadata_of(broker.data_dir))
    code, output = run_serve(broker.data_dir)
    assert code == RESTART_IS_FUTILE, output
    assert one_sentence(output)
    assert "was written by a newer penstock, upgrade this one: " in output
    assert f"version=7 known={2 if place == 'wal' else 1}" in output
    assert (wal.read_bytes(), metadata_of(broker.data_dir)) == before
