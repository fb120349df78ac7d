"""A broker starts only with the WAL that its acknowledged records are in, and takes nothing from one that has it."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import pytest
from confluent_kafka import Producer
from tests.integration.conftest import ServeFactory, ServeProcess, penstock
from tests.integration.ledger import SILENT, Ledger, check, create_topic, read_all
from tests.integration.test_faults import (
    BUSY,
    FLAKY,
    WITH_PLUGINS,
    Flaky,
    acks_go_on,
    finish,
    one_sentence,
    run_serve,
)
from tests.patience import HANG_S


def written(broker: ServeProcess) -> Ledger:
    """Acknowledged records that only the WAL holds; the producers are gone."""
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
    return ledger


def identity(broker: ServeProcess) -> str:
    """What the banner said last."""
    if broker.running:
        broker.wait_for_output("wal identity ", after=broker.printed_before)
    return str(re.findall(r"wal identity (\S+)", broker.output_so_far)[-1])


def refused(data_dir: Path, *sets: str, recorded: str, recorded_at: Path, found: str = "none") -> None:
    """A start ends at once, with one sentence that says which WAL was recorded, what was found, and what to do."""
    code, output = run_serve(data_dir, *sets)
    assert code == 2, output
    assert one_sentence(output)
    for told in (
        "node_id=1",
        f"recorded={recorded}",
        f"recorded_at={recorded_at}",
        f"found={found}",
        f"found_at={data_dir}",
        "point broker.data_dir or wal.path back",
        "stop the broker that uses it",
        f"broker.accept_lost_wal={recorded}",
    ):
        assert told in output, f"{told} isn't in: {output}"


def files(directory: Path) -> set[str]:
    """What there is, but for what the store keeps for the moment."""
    return {str(path) for path in directory.rglob("*") if ".penstock-tmp" not in path.parts}


def media(*directories: Path) -> dict[str, bytes]:
    """Every file and what is in it, but for what a process leaves of itself for the moment: its lock."""
    return {
        str(path): path.read_bytes()
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file() and ".penstock-tmp" not in path.parts and path.name != "penstock.lock"
    }


def refused_to_node_2(data_dir: Path, store: Path, *sets: str, recorded: str, recorded_at: Path) -> None:
    """Node 2 on that store ends at once, with one sentence that names the holder, its WAL and the ways out."""
    code, output = run_serve(data_dir, "broker.node_id=2", f"object_store.url=file://{store}", *sets)
    assert code == 2, output
    assert one_sentence(output)
    for told in (
        "the WAL of node 1 only",
        "start that node again",
        "pointing wal.path to it",
        f"broker.accept_lost_wal={recorded}",
        f"node_id=2 holder=1 recorded={recorded} recorded_at={recorded_at}",
        f"found_at={data_dir}",
    ):
        assert told in output, f"{told} isn't in: {output}"


def outcome_of(*arguments: str) -> tuple[int, str]:
    done = penstock(*arguments, merged=True)
    return done.returncode, done.stdout


def test_second_broker_with_another_data_directory_is_refused(serve: ServeFactory, tmp_path: Path) -> None:
    """Same store and node id: the second one never acknowledges anything, and the first one does all the time."""
    first = serve(*BUSY)
    create_topic(first.bootstrap_servers)
    ledger = Ledger(first.bootstrap_servers, idempotent=True, writers=2)
    second = tmp_path / "second"
    store = f"object_store.url=file://{first.data_dir}/objects"
    with ledger:
        acks_go_on(ledger)
        for _ in range(2):
            ended: list[None] = []

            def start_second(ended: list[None] = ended) -> None:
                wal = first.data_dir / "wal" / "penstock.wal"
                refused(second, store, recorded=identity(first), recorded_at=wal)
                ended.append(None)

            thread = threading.Thread(target=start_second)
            thread.start()
            acks_go_on(ledger, 50)
            thread.join(HANG_S)
            assert ended, "the second broker wasn't refused as it should be"
            assert first.running
            acks_go_on(ledger, 50)
    assert not (second / "wal").exists(), "it made a WAL"
    finish(first, ledger)
    assert first.terminate() == 0
    assert "FencedError" not in first.output
    assert "took over" not in first.output


def test_a_second_node_id_takes_nothing_from_a_broker_that_runs(serve: ServeFactory, tmp_path: Path) -> None:
    """Issue 5, 1: it never acknowledges anything, and the first one does all the time."""
    first = serve(*BUSY)
    create_topic(first.bootstrap_servers)
    ledger = Ledger(first.bootstrap_servers, idempotent=True, writers=2)
    second = tmp_path / "second"
    wal = first.data_dir / "wal" / "penstock.wal"
    with ledger:
        acks_go_on(ledger)
        for _ in range(2):
            refused_to_node_2(second, first.data_dir / "objects", recorded=identity(first), recorded_at=wal)
            assert first.running
            acks_go_on(ledger, 50)
    assert media(second) == {}, "it made a WAL"
    finish(first, ledger)
    assert first.terminate() == 0
    assert "FencedError" not in first.output
    assert "took over" not in first.output


def test_a_second_node_id_takes_nothing_from_a_broker_that_runs_and_is_idle(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """Not a byte changes on any medium of the first."""
    first = serve()
    ledger = written(first)
    before = media(first.data_dir)
    store, wal = first.data_dir / "objects", first.data_dir / "wal" / "penstock.wal"
    refused_to_node_2(tmp_path / "second", store, recorded=identity(first), recorded_at=wal)
    assert media(first.data_dir, tmp_path / "second") == before
    finish(first, ledger)


def test_a_second_node_id_takes_nothing_from_a_broker_that_was_killed(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """Nothing changes on any medium; the first one starts again with everything, and a clean stop leaves it."""
    first = serve()
    ledger = written(first)
    first.kill()
    before = media(first.data_dir)
    store, wal = first.data_dir / "objects", first.data_dir / "wal" / "penstock.wal"
    second = tmp_path / "second"
    for sets in ((), ("broker.accept_lost_wal=0000000000000000",)):
        refused_to_node_2(second, store, *sets, recorded=identity(first), recorded_at=wal)
    assert media(first.data_dir, second) == before
    there = ("--set", f"broker.data_dir={second}", "--set", f"object_store.url=file://{store}")
    code, output = outcome_of("verify", *there, "--set", "broker.node_id=2")
    assert code == 1, output
    assert "BROKEN I1 at WAL of node 1: acknowledged records may be in that WAL only" in output
    assert f"recorded={identity(first)} recorded_at={wal}" in output
    first.start()
    check(read_all(first.bootstrap_servers), ledger, idempotent=True)
    assert first.terminate() == 0
    other = serve("broker.node_id=2", f"object_store.url=file://{store}", data_dir=second)
    check(read_all(other.bootstrap_servers), ledger, idempotent=True)
    code, output = run_serve(first.data_dir)
    assert code == 2, output
    assert "the WAL of node 2 only" in output
    assert other.terminate() == 0
    first.start()
    check(read_all(first.bootstrap_servers), ledger, idempotent=True)


def test_another_node_takes_the_wal_of_a_killed_one_over_with_everything_in_it(
    serve: ServeFactory, tmp_path: Path
) -> None:
    first = serve()
    ledger = written(first)
    first.kill()
    store, wal = first.data_dir / "objects", first.data_dir / "wal" / "penstock.wal"
    sets = ("broker.node_id=2", f"object_store.url=file://{store}", f"wal.path={wal}")
    second = serve(*sets, data_dir=tmp_path / "second")
    second.wait_for_output("the WAL of node 1, and what it holds, are this node's from now on")
    assert identity(second) == identity(first)
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)
    code, output = run_serve(first.data_dir, "wal.path=fresh.wal")
    assert code == 2, output
    assert "the WAL of node 2 only" in output
    second.kill()
    code, output = outcome_of("verify", *(part for each in sets for part in ("--set", each)))
    assert code == 0, output
    second.start()
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)


def test_a_broker_that_runs_is_fenced_when_another_node_takes_its_wal_over(
    serve: ServeFactory, tmp_path: Path
) -> None:
    """On purpose, so no acknowledged record is lost; the first one acknowledges nothing more, and ends."""
    first = serve(*BUSY)
    ledger = written(first)
    store, wal = first.data_dir / "objects", first.data_dir / "wal" / "penstock.wal"
    second = serve(
        "broker.node_id=2",
        f"object_store.url=file://{store}",
        f"wal.path={wal}",
        data_dir=tmp_path / "second",
    )
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)
    producer = Producer(
        {"bootstrap.servers": first.bootstrap_servers, "logger": SILENT, "message.timeout.ms": 5000}
    )
    outcome: list[bool] = []
    producer.produce("ledger", b"late", on_delivery=lambda error, _: outcome.append(error is None))
    producer.flush(HANG_S)
    assert outcome != [True], "it acknowledged what nobody will ever read"
    assert first.wait(HANG_S) == 2
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)
    code, output = run_serve(first.data_dir)  # as a supervisor would
    assert code == 2, output
    assert "node 2 took this WAL over" in output
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)
    assert second.terminate() == 0
    first.start()
    check(read_all(first.bootstrap_servers), ledger, idempotent=True)


def test_the_lost_wal_of_another_node_is_given_up_by_name(serve: ServeFactory, tmp_path: Path) -> None:
    """What is uploaded is there; that WAL is never taken again, by no node."""
    first = serve()
    ledger = written(first)
    assert first.terminate() == 0
    first.start()
    producer = Producer({"bootstrap.servers": first.bootstrap_servers, "logger": SILENT})
    producer.produce("lost", b"only the WAL holds it")
    assert producer.flush(HANG_S) == 0
    lost = identity(first)
    first.kill()
    store = first.data_dir / "objects"
    second = serve(
        "broker.node_id=2",
        f"object_store.url=file://{store}",
        f"broker.accept_lost_wal={lost}",
        data_dir=tmp_path / "second",
    )
    second.wait_for_output("ACKNOWLEDGED RECORDS WERE GIVEN UP")
    check(read_all(second.bootstrap_servers), ledger, idempotent=True)
    assert second.terminate() == 0
    code, output = run_serve(first.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert "given up" in output
    code, output = outcome_of("verify", "--set", f"broker.data_dir={first.data_dir}")
    assert f"what only the WAL {lost} held was given up" in output


@pytest.mark.parametrize("ending", ["kill", "terminate"])
def test_a_lost_newest_metadata_entry_is_refused_and_seen_by_verify(serve: ServeFactory, ending: str) -> None:
    """Issue 5, 3: an acknowledged setting doesn't revert in silence; nothing is changed, and the copy mends it."""
    broker = serve()
    ledger = written(broker)
    entries = broker.data_dir / "objects" / "metadata" / "log"
    snapshots = broker.data_dir / "objects" / "metadata" / "snapshot"
    code, output = outcome_of(
        "topic",
        "alter",
        "ledger",
        "--config",
        "retention.ms=7200000",
        "--bootstrap-server",
        broker.bootstrap_servers,
    )
    assert code == 0, output
    getattr(broker, ending)()
    copies = {path: path.read_bytes() for path in (max(entries.iterdir()), *snapshots.glob("*"))}
    for path in copies:
        path.unlink()
    index = int(next(iter(copies)).name)
    before = media(broker.data_dir)
    code, output = run_serve(broker.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert f"found={index - 1} reached={index}" in output
    code, output = outcome_of("verify", "--set", f"broker.data_dir={broker.data_dir}")
    assert code == 1, output
    assert "BROKEN I7" in output
    assert f"reached={index} found={index - 1}" in output
    assert media(broker.data_dir) == before
    for path, data in copies.items():
        path.write_bytes(data)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    code, output = outcome_of("topic", "describe", "ledger", "--bootstrap-server", broker.bootstrap_servers)
    assert re.search(r"retention.ms +7200000 +topic", output)


def test_a_store_that_vanished_is_no_new_cluster(serve: ServeFactory) -> None:
    """Issue 5, 5: no metadata log is begun and no directory made; when it is back, everything is."""
    broker = serve()
    ledger = written(broker)
    broker.kill()
    store, away = broker.data_dir / "objects", broker.data_dir / "away"
    store.rename(away)
    before = media(broker.data_dir)
    code, output = run_serve(broker.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert "the metadata log that it was written with isn't here" in output
    assert not store.exists()
    assert media(broker.data_dir) == before
    away.rename(store)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_another_wal_path_after_a_kill_is_refused(serve: ServeFactory, tmp_path: Path) -> None:
    """Nothing is written; with the old path, or the old file in a new path, everything is there."""
    broker = serve()
    ledger = written(broker)
    broker.kill()
    wal = broker.data_dir / "wal" / "penstock.wal"
    before = files(broker.data_dir)
    refused(broker.data_dir, "wal.path=other.wal", recorded=identity(broker), recorded_at=wal)
    assert files(broker.data_dir) == before
    code, output = outcome_of(
        "verify", "--set", f"broker.data_dir={broker.data_dir}", "--set", "wal.path=other.wal"
    )
    assert code == 1, output
    assert f"recorded={identity(broker)}" in output
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    broker.kill()
    moved = tmp_path / "moved.wal"
    shutil.move(wal, moved)
    broker.sets = (f"wal.path={moved}",)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_another_wal_path_after_a_clean_stop_is_fine(serve: ServeFactory) -> None:
    """What was uploaded and trimmed needs no WAL; from then on the new one is the one that counts."""
    broker = serve()
    ledger = written(broker)
    old = identity(broker)
    assert broker.terminate() == 0
    broker.sets = ("wal.path=other.wal",)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    new = identity(broker)
    assert new != old
    broker.kill()
    refused(
        broker.data_dir,
        "wal.path=wal/penstock.wal",
        recorded=new,
        recorded_at=broker.data_dir / "other.wal",
        found=old,
    )
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_a_lost_wal_is_given_up_by_name_only(serve: ServeFactory) -> None:
    """After a kill, without its WAL: refused, and started when told which one is lost; no older permission counts."""
    broker = serve()
    ledger = written(broker)
    assert broker.terminate() == 0  # so far everything is uploaded
    broker.start()
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "logger": SILENT})
    producer.produce("lost", b"only the WAL holds it")
    assert producer.flush(HANG_S) == 0
    first = identity(broker)
    broker.kill()
    wal = broker.data_dir / "wal" / "penstock.wal"
    kept = wal.read_bytes()
    wal.unlink()
    refused(broker.data_dir, recorded=first, recorded_at=wal)
    refused(broker.data_dir, "broker.accept_lost_wal=0000000000000000", recorded=first, recorded_at=wal)
    broker.sets = (f"broker.accept_lost_wal={first}",)
    broker.start()
    broker.wait_for_output("ACKNOWLEDGED RECORDS WERE GIVEN UP")
    second = identity(broker)
    assert second != first
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    broker.kill()
    broker.start()  # with the key still there: it isn't needed
    broker.wait_for_output("broker.accept_lost_wal isn't needed", after=broker.printed_before)
    code, output = outcome_of("verify", "--set", f"broker.data_dir={broker.data_dir}")
    assert code == 0, output
    assert f"identity {second}" in output
    assert f"the WAL {first} held was given up" in output
    broker.kill()
    own = wal.read_bytes()
    wal.unlink()
    refused(broker.data_dir, *broker.sets, recorded=second, recorded_at=wal)
    wal.write_bytes(kept)  # the lost one turns up
    code, output = run_serve(broker.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert "given up" in output
    wal.write_bytes(own)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_a_stop_that_could_not_upload_is_not_clean(serve: ServeFactory) -> None:
    """SIGTERM while the store is down: the WAL is still the only place, so no other one will do."""
    broker = serve(*FLAKY, "broker.drain_timeout=1s", arguments=WITH_PLUGINS)
    flaky = Flaky(broker)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=1)
    with ledger:
        acks_go_on(ledger)
        flaky.turn("stall objects/")
        acks_go_on(ledger)
        assert broker.terminate() == 0
        assert "the next start recovers" in broker.output
        flaky.turn("ok")
        broker.sets = (*broker.sets, "wal.path=other.wal")
        ready = broker.launch()
        assert ready.wait(HANG_S)
        assert broker.wait(HANG_S) == 2
        assert f"recorded={identity(broker)}" in broker.output
        broker.sets = broker.sets[:-1]
        broker.start()
        acks_go_on(ledger)
    finish(broker, ledger)


@pytest.mark.parametrize("ending", ["kill", "terminate"])
def test_inspect_tells_which_wal_is_recorded(serve: ServeFactory, ending: str) -> None:
    broker = serve()
    getattr(broker, ending)()
    code, output = outcome_of("wal", "inspect", "--set", f"broker.data_dir={broker.data_dir}")
    assert code == 0, output
    assert re.search(rf"identity +{identity(broker)}\n", output)
    state = "in use, or not stopped cleanly" if ending == "kill" else "stopped cleanly, nothing in it"
    assert re.search(
        rf"recorded +{identity(broker)} at {broker.data_dir}/wal/penstock.wal on .*, {state}\n", output
    )


def test_a_broker_without_the_metadata_log_of_the_objects_overwrites_none(serve: ServeFactory) -> None:
    """With a mistyped prefix, or without the metadata log, ids would be given out anew, and objects put over others.

    Also on a host without WAL, where nothing else tells that this is another cluster. Nothing is changed: with the
    metadata log back, everything is there.
    """
    broker = serve()
    ledger = written(broker)
    assert broker.terminate() == 0
    shutil.rmtree(broker.data_dir / "wal")
    objects = broker.data_dir / "objects"
    before = {path: path.read_bytes() for path in objects.rglob("*") if path.is_file()}
    assert any(path.parent.name == "objects" for path in before), "something was uploaded"
    code, output = run_serve(broker.data_dir, "metadata_log.prefix=mistyped/")
    assert code == 2, output
    assert one_sentence(output)
    assert "the metadata log that knows them isn't here" in output
    (objects / "metadata").rename(broker.data_dir / "metadata-away")
    assert run_serve(broker.data_dir)[0] == 2
    shutil.rmtree(objects / "metadata", ignore_errors=True)
    (broker.data_dir / "metadata-away").rename(objects / "metadata")
    assert {path: path.read_bytes() for path in objects.rglob("*") if path.is_file()} == before
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
