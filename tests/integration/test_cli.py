"""The client commands as real processes against a real ``penstock serve``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient
from tests.depth import in_full
from tests.integration.conftest import ServeProcess, penstock
from tests.patience import HANG_S

TIMEOUT_S = HANG_S


class Cli:
    """Runs ``penstock`` against one broker."""

    def __init__(self, broker: ServeProcess) -> None:
        self.address = broker.bootstrap_servers

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "penstock", *arguments, "--bootstrap-server", self.address]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start and don't wait."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, text: bytes = b"", code: int = 0) -> str:
        """Run to the end; stdout. Fails on another exit code, and on a traceback."""
        done = penstock(*arguments, "--bootstrap-server", self.address, text=text)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        self.error = done.stderr
        return done.stdout


@pytest.fixture
def cli(broker: ServeProcess) -> Cli:
    return Cli(broker)


def test_produce_gives_up_at_its_timeout_and_counts_only_what_was_acknowledged(
    cli: Cli, broker: ServeProcess
) -> None:
    cli.run("topic", "create", "lines")
    cli.run("produce", "lines", text=b"one\ntwo\n")
    assert "produced 2 records (6B) to lines" in cli.error
    producing = cli.start("produce", "lines", "--timeout", "1", "--linger-ms", "0")
    assert producing.stdin is not None
    producing.stdin.write(b"three\n")
    producing.stdin.flush()
    cli.run("consume", "lines", "-c", "3")  # returns when the third is there
    broker.signal(signal.SIGSTOP)
    try:
        _, error = producing.communicate(b"four\n", timeout=TIMEOUT_S)
    finally:
        broker.signal(signal.SIGCONT)
    assert producing.returncode == 1
    assert b"1 record not written" in error
    assert b"produced 1 record (5B) to lines" in error


def test_objects_are_listed_with_what_is_still_wanted_in_them(cli: Cli, broker: ServeProcess) -> None:
    for topic in ("kept", "dropped"):
        cli.run("topic", "create", topic)
        cli.run("produce", topic, text=b"x" * 5000 + b"\n")
    assert broker.terminate() == 0
    broker.start()
    cli.run("topic", "delete", "dropped")
    command = ["object", "list", "--set", f"broker.data_dir={broker.data_dir}"]
    shown = penstock(*command, "--json")
    assert shown.returncode == 0, shown.stderr
    (shared,) = [row for row in json.loads(shown.stdout) if "kept" in row["topics"]]
    assert shared["topics"] == ["kept"]
    assert shared["state"] == "committed"
    assert shared["size_bytes"] > 10_000 > shared["live_bytes"] > 5_000
    told = penstock(*command, "--topic", "kept")
    assert "1 object in use, " in told.stdout


def test_topics_from_creation_to_deletion(cli: Cli) -> None:
    assert "created topic orders with 3 partitions" in cli.run(
        "topic", "create", "orders", "-P", "3", "--config", "retention.ms=86400000"
    )
    cli.run("topic", "create", "orders", code=2)
    assert "topic exists already" in cli.error
    assert "there already" in cli.run("topic", "create", "orders", "--if-not-exists")
    assert cli.run("topic", "list") == "NAME    PARTITIONS\norders           3\n"

    cli.run("topic", "alter", "orders", "-P", "4", "--config", "retention.ms=1000000")
    document = json.loads(cli.run("topic", "describe", "orders", "--json"))
    assert [each["partition"] for each in document["partitions"]] == [0, 1, 2, 3]
    configs = {each["name"]: each for each in document["configs"]}
    assert (configs["retention.ms"]["value"], configs["retention.ms"]["source"]) == ("1000000", "topic")
    cli.run("topic", "alter", "orders", "--delete-config", "retention.ms")
    assert "retention.ms" not in cli.run("topic", "describe", "orders")
    cli.run("topic", "alter", "orders", "--config", "no.such.config=1", code=2)
    assert "no.such.config" in cli.error

    cli.run("topic", "delete", "orders")
    assert json.loads(cli.run("topic", "list", "--json")) == []
    cli.run("topic", "describe", "orders", code=2)
    assert cli.error == "penstock: there is no such topic: topic=orders\n"


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_lines_come_back_in_order_with_every_codec(cli: Cli, log_lines: list[str], codec: str) -> None:
    text = "".join(f"{line}\n" for line in log_lines)
    cli.run("topic", "create", "logs", "-P", "1")
    cli.run("produce", "logs", "-z", codec, text=text.encode())
    assert f"produced {len(log_lines)} records" in cli.error
    assert cli.run("consume", "logs", "-o", "beginning", "-e") == text


def test_keys_headers_tombstones_and_formats(cli: Cli, tmp_path: Path) -> None:
    cli.run("topic", "create", "t", "-P", "2")
    lines = tmp_path / "lines"
    lines.write_bytes(b"k1\tv1\nk2\t\nno key\nk3\t\xff\xfe")
    cli.run("produce", "t", "-l", str(lines), "-K", r"\t", "-Z", "-p", "1", "-H", "source=test")
    assert cli.run("consume", "t", "-p", "1", "-e", "-f", r"%p/%o [%k] [%s] %K %S %h\n").splitlines()[:3] == [
        "1/0 [k1] [v1] 2 2 source=test",
        "1/1 [k2] [] 2 -1 source=test",
        "1/2 [] [no key] -1 6 source=test",
    ]
    last = json.loads(cli.run("consume", "t", "-p", "1", "-o", "-1", "-e", "--json"))
    assert (last["key"], last["payload_base64"], last["offset"]) == ("k3", "//4=", 3)
    assert cli.run("consume", "t", "-p", "0", "-e") == ""
    assert cli.run("consume", "t", "-p", "1", "-c", "2", "-f", "%k;") == "k1;k2;"


def test_reading_begins_at_offsets_times_and_the_end(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "1")
    cli.run("produce", "t", text=b"0\n1\n2\n")
    time.sleep(0.01)  # so that the next records have a later millisecond
    between_ms = time.time_ns() // 1_000_000
    time.sleep(0.01)
    cli.run("produce", "t", text=b"3\n4\n")
    assert cli.run("consume", "t", "-o", "3", "-e") == "3\n4\n"
    assert cli.run("consume", "t", "-o", "-4", "-e") == "1\n2\n3\n4\n"
    assert cli.run("consume", "t", "-o", f"s@{between_ms}", "-e") == "3\n4\n"
    assert cli.run("consume", "t", "-o", "s@2100-01-01T00:00:00Z", "-e") == ""
    assert cli.run("consume", "t", "-o", "end", "-e") == ""
    cli.run("consume", "t", "-o", "99", "-e", code=2)
    assert "no such offset in the partition" in cli.error


@pytest.mark.parametrize("options", [["--acks", "1"], ["--acks", "0"], ["--no-idempotence"]])
def test_other_acknowledgements(cli: Cli, options: list[str]) -> None:
    cli.run("topic", "create", "t", "-P", "1")
    cli.run("produce", "t", *options, text=b"a\nb\n")
    assert cli.run("consume", "t", "-c", "2") == "a\nb\n"


@pytest.mark.parametrize("strategy", ["hash", "sticky", "round_robin"])
def test_partitioners(cli: Cli, strategy: str) -> None:
    cli.run("topic", "create", "t", "-P", "3")
    text = b"".join(b"key%d:%d\n" % (index % 7, index) for index in range(70))
    cli.run("produce", "t", "-K", ":", "--partitioner", strategy, text=text)
    found = [line.split() for line in cli.run("consume", "t", "-e", "-f", r"%k %p\n").splitlines()]
    places: dict[str, set[str]] = {}
    for key, partition in found:
        places.setdefault(key, set()).add(partition)
    assert len(found) == 70
    if strategy == "hash":
        assert all(len(partitions) == 1 for partitions in places.values())
        # where Java's murmur2 puts them
        assert {key: min(places[key]) for key in sorted(places)} == HASHED
    if strategy == "round_robin":
        counts = [sum(partition == str(number) for _, partition in found) for number in range(3)]
        assert max(counts) - min(counts) <= 1


def test_a_record_that_is_too_large_is_said_and_the_exit_code_is_1(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "1", "--config", "max.message.bytes=1000")
    cli.run("produce", "t", text=b"x" * 2000 + b"\n", code=1)
    assert "1 record not written" in cli.error
    assert "MESSAGE_TOO_LARGE" in cli.error


def test_an_interrupt_sends_what_was_read(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "1")
    reader = cli.start("consume", "t")
    writer = cli.start("produce", "t", "--linger-ms", "600000")
    assert writer.stdin is not None
    assert reader.stdout is not None
    writer.stdin.write(b"one\ntwo\n")
    writer.stdin.flush()
    deadline = time.monotonic() + TIMEOUT_S
    while unread_bytes(writer.pid) != 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    writer.send_signal(signal.SIGINT)
    _, error = writer.communicate(timeout=TIMEOUT_S)
    assert writer.returncode == 130, error
    assert b"produced 2 records" in error
    assert [reader.stdout.readline(), reader.stdout.readline()] == [b"one\n", b"two\n"]
    reader.send_signal(signal.SIGINT)
    _, error = reader.communicate(timeout=TIMEOUT_S)
    assert (reader.returncode, error) == (130, b"")


@pytest.mark.parametrize("unbuffered", ["", *in_full("1")])
def test_a_reader_that_goes_away_is_no_error(
    cli: Cli, unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    cli.run("topic", "create", "t", "-P", "1")
    cli.run("produce", "t", text=b"line\n" * 50_000)
    with cli.start("consume", "t") as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        assert reader.stdout.readline() == b"line\n"
        reader.stdout.close()
        try:
            assert (reader.wait(TIMEOUT_S), reader.stderr.read()) == (0, b"")
        finally:
            reader.kill()


def test_a_killed_broker_costs_time_but_no_record(cli: Cli, broker: ServeProcess) -> None:
    """An idempotent producer and a reader go on over SIGKILL and restart: every line once, in order."""
    cli.run("topic", "create", "t", "-P", "1")
    lines = [b"%d\n" % index for index in range(30_000)]
    with cli.start("consume", "t", "-c", str(len(lines))) as reader, cli.start("produce", "t") as writer:
        try:
            assert writer.stdin is not None
            assert reader.stdout is not None
            writer.stdin.writelines(lines[:10_000])
            writer.stdin.flush()
            found = [reader.stdout.readline()]  # the first are there: now it is killed under load
            for part in (lines[10_000:20_000], lines[20_000:]):
                writer.stdin.writelines(part)
                writer.stdin.flush()
                broker.kill()
                broker.start()
            writer.stdin.close()
            assert writer.wait(TIMEOUT_S) == 0
            found += reader.stdout.readlines()
            assert reader.wait(TIMEOUT_S) == 0
        finally:
            reader.kill()
            writer.kill()
    assert found == lines


def test_groups_are_listed_described_reset_and_deleted(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "2")
    cli.run("produce", "t", "-p", "0", text=b"0\n1\n2\n3\n")
    plan = cli.run("group", "reset-offsets", "g", "--topic", "t", "--to-latest")
    assert "nothing was changed" in plan
    assert json.loads(cli.run("group", "list", "--json")) == []

    cli.run("group", "reset-offsets", "g", "--topic", "t:0", "--to-offset", "3", "--execute")
    assert cli.run("group", "list").splitlines()[1].split()[:2] == ["g", "Empty"]
    document = json.loads(cli.run("group", "describe", "g", "--json"))
    assert document["offsets"] == [
        {"topic": "t", "partition": 0, "committed": 3, "end": 4, "member": None, "lag": 1}
    ]
    cli.run("group", "reset-offsets", "g", "--all-topics", "--shift-by", "-2", "--execute")
    assert json.loads(cli.run("group", "describe", "g", "--json"))["offsets"][0]["committed"] == 1
    cli.run("group", "delete", "g")
    cli.run("group", "describe", "g", code=2)
    assert cli.error == "penstock: there is no such group: group=g\n"


def test_a_group_goes_on_where_it_was(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "1")
    cli.run("produce", "t", text=b"0\n1\n2\n3\n")
    assert cli.run("consume", "t", "-G", "g", "-c", "3") == "0\n1\n2\n"
    (offset,) = json.loads(cli.run("group", "describe", "g", "--json"))["offsets"]
    assert (offset["committed"], offset["lag"]) == (3, 1)
    assert cli.run("consume", "t", "-G", "g", "-e") == "3\n"
    assert cli.run("consume", "t", "-G", "g", "-e") == ""


def test_two_members_share_a_topic_and_commit_when_they_are_interrupted_or_terminated(cli: Cli) -> None:
    cli.run("topic", "create", "t", "-P", "4")
    with cli.start("consume", "t", "-G", "g") as one, cli.start("consume", "t", "-G", "g") as two:
        try:
            wait_for_members(cli, "g", 2)
            group = describe_group(cli, "g")
            assert group["state"] == "Stable"
            assert [len(member["partitions"]) for member in group["members"]] == [2, 2]
            cli.run("group", "reset-offsets", "g", "--topic", "t", "--to-earliest", "--execute", code=2)
            assert "group is in use, stop its members first" in cli.error
            cli.run("group", "delete", "g", code=2)
            assert "NON_EMPTY_GROUP" in cli.error
            text = "".join(f"{index}\n" for index in range(40))
            cli.run("produce", "t", "--partitioner", "round_robin", text=text.encode())
            found = []
            for member in (one, two):
                assert member.stdout is not None
                found += [int(member.stdout.readline()) for _ in range(20)]
            assert sorted(found) == list(range(40))
            for member, number in ((one, signal.SIGINT), (two, signal.SIGTERM)):
                member.send_signal(number)
                assert member.wait(TIMEOUT_S) == 130
        finally:
            one.kill()
            two.kill()
    group = describe_group(cli, "g")
    assert group["state"] == "Empty"
    assert [each["lag"] for each in group["offsets"]] == [0, 0, 0, 0]


def wait_for_members(cli: Cli, name: str, count: int) -> None:
    """Return when it has so many, and all know their partitions; by one connection, for commands cost more."""
    admin = AdminClient({"bootstrap.servers": cli.address})
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        group = admin.describe_consumer_groups([name])[name].result(TIMEOUT_S)
        if group.state == ConsumerGroupState.STABLE and len(group.members) == count:
            return
        assert time.monotonic() < deadline, (group.state, group.members)
        time.sleep(0.05)


def describe_group(cli: Cli, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(cli.run("group", "describe", name, "--json"))
    return document


#: Partition of three by (murmur2(key) & 0x7fffffff) % 3, computed with kafka-python's partitioner.
HASHED = {"key0": "1", "key1": "2", "key2": "2", "key3": "1", "key4": "0", "key5": "1", "key6": "0"}


def unread_bytes(pid: int) -> int:
    """What a process has not yet read of the pipe that is its stdin; -1 while it has not started to read."""
    import array
    import fcntl
    import termios

    with open(f"/proc/{pid}/fd/0", "rb") as pipe:
        size = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, size)
    return size[0]
