"""Disk full, a store that fails, stalls or loses replies, a full WAL, damage: nothing acknowledged is lost.

Producers see retriable errors or wait; the broker says what happened in one sentence, and goes on by itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.depth import how_many, in_full
from tests.integration.conftest import ON_WAL_BLOCK, ServeFactory, ServeProcess, penstock
from tests.integration.ledger import SILENT, Ledger, check, create_topic, read_all, value_of
from tests.patience import HANG_S

PLUGINS = Path(__file__).with_name("_plugins")
#: Uploads that come often and are small, so that a fault meets many of them.
BUSY = ("stream.upload_interval=200ms", "stream.upload_bytes=256KiB")
FLAKY = ("object_store.plugin=flaky_store", "wal.capacity=16MiB", *BUSY)
WITH_PLUGINS = ("--plugins-dir", str(PLUGINS))


def eventually(holds: Callable[[], bool], what: str, timeout_s: float = HANG_S) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def acks_go_on(ledger: Ledger, count: int = 200, timeout_s: float = HANG_S) -> None:
    """Return when so many records were acknowledged that were produced from now on.

    Not merely so many more: a producer may hear late of what the broker had taken, and uploaded, long before.
    """
    target = ledger.produced - sum(ledger.failed.values()) + count
    eventually(lambda: len(ledger.acked) >= target, f"{count} more acknowledgements", timeout_s)


def acks_stop(ledger: Ledger, quiet_s: float = 0.7, timeout_s: float = HANG_S) -> None:
    """Return when nothing was acknowledged for a while."""
    deadline = time.monotonic() + timeout_s
    while True:
        before = len(ledger.acked)
        time.sleep(quiet_s)
        if len(ledger.acked) == before:
            return
        assert time.monotonic() < deadline, "acknowledgements never stop"


def overtake_while_stopped(serve: ServeFactory, tmp_path: Path, wal: Sequence[str]) -> str:
    """Stop a broker that takes records, have another host take its log over, wake it up; and again with that host.

    Who wakes up ends, nothing acknowledged before is lost, and nothing after by who was stopped. ``wal`` are
    settings with which two hosts reach one log. The result is what the last of those that ended said.
    """
    sets = (f"object_store.url=file://{tmp_path / 'shared'}", *wal)
    old = serve(*sets, data_dir=tmp_path / "host-0")
    brokers = [old]
    written: list[Ledger] = []
    said = ""
    try:
        for number in range(how_many("zombie_rounds")):
            topic = f"topic-{number}"
            create_topic(old.bootstrap_servers, topic)
            size = (100, 1000, 30_000)[number % 3]
            ledger = Ledger(old.bootstrap_servers, idempotent=True, writers=2, value_bytes=size, topic=topic)
            written.append(ledger)
            with ledger:
                acks_go_on(ledger, 50)
                old.signal(signal.SIGSTOP)
                try:
                    new = serve(*sets, data_dir=tmp_path / f"host-{number + 1}")
                    brokers.append(new)
                    found = read_all(new.bootstrap_servers, topic)
                finally:
                    old.signal(signal.SIGCONT)
                code = old.wait(HANG_S)
                ledger.stop(abandon=True)
            assert code != 0
            check(found, ledger, idempotent=True)
            said, old = old.output, new
        for ledger in written[-20:]:
            check(read_all(old.bootstrap_servers, ledger.topic), ledger, idempotent=True)
    finally:
        for broker in brokers:
            if broker.running:
                broker.kill()
    return said


def finish(broker: ServeProcess, ledger: Ledger) -> None:
    """Stop the producers, and check everything; then once more after a kill."""
    ledger.stop()
    assert not ledger.failed, dict(ledger.failed)
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
    broker.kill()
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


# -- disk full -----------------------------------------------------------------------------------------------


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts small file systems."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / f"tmpfs-{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(path)]
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a tmpfs can't be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(directory: Path, leave: int = 0) -> Path:
    """A file that takes what is free but for ``leave`` bytes."""
    path = directory / "filler"
    free = os.statvfs(directory)
    size = max(0, free.f_bavail * free.f_frsize - leave)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while size > 0:
            size -= file.write(bytes(min(size, 2**20)))
        while not leave:
            file.write(bytes(4096))
    return path


@pytest.mark.parametrize(
    "which",
    ["wal", "objects", *in_full("both")],
)
def test_disk_full(tmpfs: Callable[[int], Path], serve: ServeFactory, tmp_path: Path, which: str) -> None:
    """With WAL and objects on a full disk, or one of them: no loss, one sentence, and on when there is room."""
    disk = tmpfs(64 * 2**20)
    data_dir = disk / "data" if which == "both" else tmp_path / "data"
    sets = ["wal.capacity=16MiB", *BUSY]
    if which == "wal":
        sets.append(f"wal.path={disk / 'wal'}")
    if which == "objects":
        sets.append(f"object_store.url=file://{disk / 'objects'}")
    broker = serve(*sets, data_dir=data_dir)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=1000)
    with ledger:
        acks_go_on(ledger)
        filler = fill(disk)
        acks_stop(ledger, timeout_s=HANG_S)
        broker.wait_for_output("no space left for objects" if which == "objects" else "space")
        filler.unlink()
        acks_go_on(ledger, timeout_s=HANG_S)
    finish(broker, ledger)


def test_disk_full_at_start(tmpfs: Callable[[int], Path], serve: ServeFactory) -> None:
    """A start without space says so, can be stopped, and goes on by itself when there is space."""
    disk = tmpfs(40 * 2**20)
    filler = fill(disk)
    broker = ServeProcess(disk / "data")
    broker.launch()
    broker.wait_for_output("no space left")
    assert broker.terminate() == 0
    ready = broker.launch()
    broker.wait_for_output("no space left", after=broker.printed_before)
    filler.unlink()
    assert ready.wait(HANG_S)
    create_topic(broker.bootstrap_servers)
    assert broker.terminate() == 0
    assert "Traceback" not in broker.output


def run_serve(data_dir: Path, *sets: str, executed: bool = False) -> tuple[int, str]:
    """``penstock serve`` that is expected to end by itself: exit code and output; forked if not ``executed``."""
    command = ["serve"]
    for setting in (f"broker.data_dir={data_dir}", "listener.bind=127.0.0.1:0", "wal.capacity=64MiB", *sets):
        command += ["--set", setting]
    if executed:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_S,
            check=False,
        )
    else:
        done = penstock(*command, merged=True)
    return done.returncode, done.stdout


def one_sentence(output: str) -> bool:
    """The last line is the command's complaint, and there is no other, nor a traceback."""
    lines = output.strip().splitlines()
    complaints = [line for line in lines if line.startswith("penstock: ")]
    return complaints == lines[-1:] and "Traceback" not in output


# -- the object store ----------------------------------------------------------------------------------------


class Flaky:
    """A broker on the flaky store, and the switch."""

    def __init__(self, broker: ServeProcess) -> None:
        self.broker = broker

    def turn(self, mode: str) -> None:
        """Change the mode at once, for all calls."""
        fresh = self.broker.data_dir / "control.new"
        fresh.write_text(mode)
        fresh.rename(self.broker.data_dir / "flaky.control")


@pytest.fixture
def flaky(serve: ServeFactory) -> Flaky:
    broker = serve(*FLAKY, arguments=WITH_PLUGINS)
    create_topic(broker.bootstrap_servers)
    return Flaky(broker)


@pytest.mark.parametrize("mode", ["fail", *in_full("stall")])
def test_store_down(flaky: Flaky, mode: str) -> None:
    """Acknowledgements go on until the WAL is full, then producers wait, then all goes on by itself."""
    broker = flaky.broker
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=4000)
    with ledger:
        acks_go_on(ledger)
        flaky.turn(mode)
        acks_go_on(ledger, 400)
        acks_stop(ledger, timeout_s=HANG_S)
        if mode == "fail":
            broker.wait_for_output("upload failed 1 times, trying again", "unavailable, trying again")
        flaky.turn("ok")
        acks_go_on(ledger, timeout_s=HANG_S)
    finish(broker, ledger)


def test_store_loses_replies(flaky: Flaky) -> None:
    """Every write takes effect and then fails, metadata's too: nothing is lost, nothing doubled, no orphan stays."""
    broker = flaky.broker
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=1000)
    with ledger:
        for prefix in ("metadata/", "objects/", "metadata/"):
            flaky.turn(f"lose {prefix}")
            acks_go_on(ledger, 300)
            flaky.turn("ok")
            acks_go_on(ledger, 50)
    finish(broker, ledger)


@pytest.mark.slow
def test_store_slow_and_flapping(flaky: Flaky) -> None:
    """Up and down many times, slow in between."""
    ledger = Ledger(flaky.broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=1000)
    with ledger:
        for _ in range(6):
            for mode in ("slow", "fail", "lose", "ok"):
                flaky.turn(mode)
                time.sleep(0.08)
        acks_go_on(ledger)
    finish(flaky.broker, ledger)


def test_sigterm_while_the_store_is_down(serve: ServeFactory) -> None:
    """It ends in time, says what only the WAL holds, and the next start recovers that."""
    broker = serve(*FLAKY, "broker.drain_timeout=1s", arguments=WITH_PLUGINS)
    flaky = Flaky(broker)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2, value_bytes=1000)
    with ledger:
        acks_go_on(ledger)
        flaky.turn("stall")
        acks_go_on(ledger)
        assert broker.terminate() == 0
        assert "the next start recovers" in broker.output
        assert "bytes" in broker.output.partition("the next start recovers")[2].splitlines()[0]
        flaky.turn("ok")
        broker.start()
        acks_go_on(ledger)
    finish(broker, ledger)


def test_sigterm_while_recovery_waits_for_the_store(serve: ServeFactory) -> None:
    """A start that can't upload what it recovered can be stopped."""
    broker = serve(*FLAKY, arguments=WITH_PLUGINS)
    flaky = Flaky(broker)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=1)
    with ledger:
        acks_go_on(ledger)
        flaky.turn("stall_puts objects/")  # a start looks for objects first
        acks_go_on(ledger)
        broker.kill()
        ready = broker.launch()
        broker.wait_for_output(
            "uploading what only the WAL holds",
            "the object store doesn't work",  # it uploads before it has read all, when that is much
            after=broker.printed_before,
        )
        assert not ready.is_set(), broker.output_so_far[broker.printed_before :]
        assert broker.terminate() == 0
        assert "stopping before the start is complete" in broker.output
        flaky.turn("ok")
        broker.start()
        acks_go_on(ledger)
    finish(broker, ledger)


# -- a second owner ------------------------------------------------------------------------------------------


def test_second_broker_on_the_same_directory(serve: ServeFactory) -> None:
    """It is refused in one sentence, and the first one notices nothing; after a kill the directory is free."""
    broker = serve(*BUSY)
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
        code, output = run_serve(broker.data_dir)
        assert code == 2, output
        assert one_sentence(output)
        assert str(broker.pid) in output
        acks_go_on(ledger)
    finish(broker, ledger)


# -- damage --------------------------------------------------------------------------------------------------


#: How the value of record 100 begins, on any medium.
HUNDREDTH = value_of(0, 100, 500)[:40]


def written(broker: ServeProcess, *, upload: bool) -> Ledger:
    """Records in the broker: in objects, or in the WAL only."""
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=1, value_bytes=500)
    with ledger:
        acks_go_on(ledger)
    # one more group commit: what only the log's last group holds can't be told from a torn write if it is damaged
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "logger": SILENT})
    producer.produce("after", b"confirms what came before")
    assert producer.flush(HANG_S) == 0
    if upload:
        assert broker.terminate() == 0
    else:
        broker.kill()
    return ledger


def snapshot(directory: Path) -> dict[str, bytes]:
    """All files and their bytes, without locks."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def damage(path: Path, position: int) -> None:
    """Turn a few bytes round."""
    with path.open("r+b") as file:
        file.seek(position)
        found = file.read(8)
        file.seek(position)
        file.write(bytes(byte ^ 0xFF for byte in found))


@ON_WAL_BLOCK
def test_damaged_wal_header(serve: ServeFactory) -> None:
    """A WAL whose headers are garbage is refused; the objects and the file stay as they are."""
    broker = serve()
    ledger = written(broker, upload=False)
    wal = broker.data_dir / "wal" / "penstock.wal"
    whole = wal.read_bytes()[:8192]
    with wal.open("r+b") as file:
        file.write(os.urandom(8192))
    before = wal.read_bytes()
    code, output = run_serve(broker.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert wal.read_bytes() == before
    with wal.open("r+b") as file:
        file.write(whole)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


@ON_WAL_BLOCK
def test_damaged_wal_entries(serve: ServeFactory) -> None:
    """A hole in acknowledged entries stops the start with what is missing (I10); nothing is trimmed or lost."""
    broker = serve()
    ledger = written(broker, upload=False)
    wal = broker.data_dir / "wal" / "penstock.wal"
    data = wal.read_bytes()
    middle = data.index(HUNDREDTH)
    damage(wal, middle)
    for _ in range(2):
        code, output = run_serve(broker.data_dir)
        assert code == 2, output
        assert one_sentence(output)
    damage(wal, middle)  # turned back
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


@ON_WAL_BLOCK
def test_missing_wal(serve: ServeFactory) -> None:
    """Without its WAL a broker that had uploaded everything goes on where metadata ends."""
    broker = serve()
    ledger = written(broker, upload=True)
    shutil.rmtree(broker.data_dir / "wal")
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


def test_damaged_object(serve: ServeFactory) -> None:
    """Whoever reads a damaged block gets an error, others don't; the broker lives, and verify names the object."""
    broker = serve()
    ledger = written(broker, upload=True)
    objects = [path for path in (broker.data_dir / "objects" / "objects").rglob("*") if path.is_file()]
    (held,) = [path for path in objects if HUNDREDTH in path.read_bytes()]
    position = held.read_bytes().index(HUNDREDTH)
    damage(held, position)
    broker.start()
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "g", "logger": SILENT})
    try:
        consumer.assign([TopicPartition("ledger", 100 % 3, 0)])
        met: list[str] = []
        deadline = time.monotonic() + HANG_S
        while not met and time.monotonic() < deadline:
            message = consumer.poll(0.2)
            if message is not None and message.error() is not None:
                met.append(message.error().name())
            else:
                assert message is None, "a record of the damaged block was delivered"
    finally:
        consumer.close()
    assert met, "the consumer was never told"
    broker.wait_for_output("checksum")
    done = penstock("verify", "--set", f"broker.data_dir={broker.data_dir}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "checksum" in done.stdout + done.stderr
    damage(held, position)
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)


@pytest.mark.parametrize("which", ["first", "last"])
def test_damaged_metadata(serve: ServeFactory, which: str) -> None:
    """A metadata entry that fails its checksum stops the start in one sentence, and nothing is changed."""
    broker = serve()
    ledger = written(broker, upload=False)
    entries = sorted((broker.data_dir / "objects" / "metadata" / "log").rglob("*"))
    entries = [path for path in entries if path.is_file()]
    path = entries[{"first": 0, "last": -1}[which]]
    damage(path, path.stat().st_size - 12)
    before = snapshot(broker.data_dir)
    code, output = run_serve(broker.data_dir)
    assert code == 2, output
    assert one_sentence(output)
    assert path.name in output, "the sentence names the entry"
    assert snapshot(broker.data_dir) == before
    damage(path, path.stat().st_size - 12)
    broker.start()
    check(read_all(broker.bootstrap_servers), ledger, idempotent=True)
