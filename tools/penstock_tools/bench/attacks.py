"""Attacks on a broker, each one function, and how a good client fares beside them.

    python tools/bench/attacks.py                                  # the table
    python tools/bench/attacks.py --only announced,never_read --seconds 5 --rounds 3 --json out.json
    python -m penstock_tools.bench.attacks run NAME PORT           # one attack, until killed, on this machine only
    python -m penstock_tools.bench.attacks control PART            # use a part of a processor, until killed
    python -m penstock_tools.bench.attacks good PORT BYTES SECONDS PRIORITY # the good client; its latencies

A good client produces a batch and fetches it again, one request at a time, beside a control and beside an attack in
turn, round by round, so that a noisy machine disturbs both. Good client and attackers run in processes of their own,
attackers at the lowest priority. The control is a process at that priority too, which uses as much processor time as
the attackers did and never touches the broker. What counts is the ratio, and that attackers get through:
the last columns say how much they did in a second. With ``--realtime`` other work on the machine doesn't count, nor
does a disk with ``--dir /dev/shm``; the good client comes before the broker's threads then, as if it had a processor
of its own. ``--together`` gives it the broker's priority.

A further attack is an ``async def name(port)`` with ``@attack``; it goes on until it's cancelled, and its docstring
says what it does. Attackers whose connection is closed come again at once.
"""

from __future__ import annotations

__all__ = ("ATTACKS", "attacking", "compare", "main")

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Final, Self

import penstock_tools.bench.attacks_of_crowds  # noqa: F401 - these are in the table, too
from penstock.wire import ApiKey
from penstock.wire.messages import (
    api_versions,
    describe_configs,
    describe_groups,
    fetch,
    find_coordinator,
    join_group,
    list_offsets,
    metadata,
    offset_commit,
    offset_fetch,
    produce,
)
from penstock.wire.records import build_batch
from penstock.wire.registry import decode_response
from penstock_tools.bench.floor import TOPIC, create_topic, produce_frame
from penstock_tools.bench.good_client import HOST, GoodClient, exactly, fetch_request, request
from penstock_tools.bench.peers import (
    ATTACKS,
    MIB,
    MOVED,
    Moved,
    Peer,
    ask,
    attack,
    crowd,
    flood,
    make_topics,
)
from penstock_tools.bench.priority import REALTIME, give_way, take_realtime
from penstock_tools.bench.server import BrokerProcess

_READY: Final = "ready"
#: Attackers say what they have done so far.
_TELL: Final = signal.SIGUSR1

# -- attacks ---------------------------------------------------------------------------------------------------

#: The start of a Produce of 90 MiB: its length, key, version and correlation id.
_ANNOUNCEMENT: Final = struct.pack(">ihhih", 90 * MIB, ApiKey.PRODUCE, 9, 1, -1)


@attack
async def announced(port: int) -> None:
    """5 connections announce 90 MiB and send a byte a second"""

    async def conduct(peer: Peer) -> None:
        await peer.send(_ANNOUNCEMENT)
        while True:
            await asyncio.sleep(1)
            await peer.send(b"x")

    await crowd(5, port, conduct)


@attack
async def half_sent(port: int) -> None:
    """200 connections send 2 MiB of 90, stop, and come again when they are closed"""

    async def conduct(peer: Peer) -> None:
        await peer.send(_ANNOUNCEMENT)
        await peer.send(bytes(2 * MIB))
        await peer.hold()

    await crowd(200, port, conduct)


@attack
async def slow_movers(port: int) -> None:
    """200 connections send requests of 90 MiB at 20 KiB/s each"""

    async def conduct(peer: Peer) -> None:
        await peer.send(_ANNOUNCEMENT)
        while True:
            await asyncio.sleep(0.5)
            await peer.send(bytes(10 * 1024))

    await crowd(200, port, conduct)


@attack
async def small_halves(port: int) -> None:
    """2,000 connections send 31 KiB of a small request and stop"""

    async def conduct(peer: Peer) -> None:
        await peer.send(struct.pack(">ihhih", 32_000, ApiKey.PRODUCE, 9, 1, -1) + bytes(31_000))
        await peer.hold()

    await crowd(2000, port, conduct)


@attack
async def large_halves(port: int) -> None:
    """2,000 connections send 60 KiB of a request of 64 and stop"""

    async def conduct(peer: Peer) -> None:
        await peer.send(struct.pack(">ihhih", 64 * 1024, ApiKey.PRODUCE, 9, 1, -1) + bytes(60 * 1024))
        await peer.hold()

    await crowd(2000, port, conduct)


@attack
async def never_read(port: int) -> None:
    """60 consumers ask for 50 MiB again and again and never read"""

    async def conduct(peer: Peer) -> None:
        await peer.send(fetch_request(50 * MIB) * 50)
        await peer.hold()

    await crowd(60, port, conduct, receive_bytes=4096)


@attack
async def never_read_metadata(port: int) -> None:
    """100 clients ask for all metadata and never read"""

    async def conduct(peer: Peer) -> None:
        await peer.send(request(ApiKey.METADATA, 9, metadata.MetadataRequest(topics=None)) * 2000)
        await peer.hold()

    await crowd(100, port, conduct, receive_bytes=4096)


@attack
async def parked(port: int) -> None:
    """2,000 fetches of 200 partitions wait for data that never come"""

    await make_topics(port, "parked", partitions=200)
    data = fetch_request(MIB, 200, wait_ms=300_000, topic="parked")

    async def conduct(peer: Peer) -> None:
        await peer.send(data)
        await peer.frame()

    await crowd(2000, port, conduct)


@attack
async def woken(port: int) -> None:
    """1,000 parked fetches are woken by each append and never have enough"""

    async def conduct(peer: Peer) -> None:
        place = list_offsets.ListOffsetsPartition(partition_index=0, timestamp=-1)
        topics = [list_offsets.ListOffsetsTopic(name=TOPIC, partitions=[place])]
        body = list_offsets.ListOffsetsRequest(replica_id=-1, topics=topics)
        await peer.send(request(ApiKey.LIST_OFFSETS, 5, body))
        answer: Any = decode_response(ApiKey.LIST_OFFSETS, 5, await peer.frame())[1]
        end = answer.topics[0].partitions[0].offset
        # the first batch isn't enough, and no second one fits
        await peer.send(fetch_request(150_000, wait_ms=300_000, min_bytes=150_000, offset=end))
        await peer.frame()

    await crowd(1000, port, conduct)


@attack
async def cheap_requests(port: int) -> None:
    """8 connections pipeline ApiVersions by the thousand"""
    await flood(8, port, request(ApiKey.API_VERSIONS, 3, api_versions.ApiVersionsRequest()), 2000)


@attack
async def small_produces(port: int) -> None:
    """4 connections pipeline small Produces with acks=0"""
    small = request(
        ApiKey.PRODUCE,
        9,
        produce.ProduceRequest(
            acks=0,
            timeout_ms=1000,
            topic_data=[
                produce.TopicProduceData(
                    name=TOPIC,
                    partition_data=[produce.PartitionProduceData(index=0, records=produce_frame(1024)[1])],
                )
            ],
        ),
    )

    async def conduct(peer: Peer) -> None:
        while True:
            await peer.send(small * 100)
            await asyncio.sleep(0)

    await crowd(4, port, conduct)


@attack
async def metadata_of_all(port: int) -> None:
    """4 connections ask for all metadata in a loop"""
    await flood(4, port, request(ApiKey.METADATA, 9, metadata.MetadataRequest(topics=None)), 50)


@attack
async def long_metadata(port: int) -> None:
    """2 connections ask for 20,000 topics that aren't there, in a loop"""
    topics = [metadata.MetadataRequestTopic(name=f"no-such-topic-{number}") for number in range(20_000)]
    ask = metadata.MetadataRequest(topics=topics, allow_auto_topic_creation=False)
    await flood(2, port, request(ApiKey.METADATA, 9, ask), 1)


@attack
async def long_offsets(port: int) -> None:
    """2 connections ask for the committed offsets of 100,000 partitions, in a loop"""
    topics = [offset_fetch.OffsetFetchRequestTopics(name=TOPIC, partition_indexes=list(range(100_000)))]
    body = offset_fetch.OffsetFetchRequest(
        groups=[offset_fetch.OffsetFetchRequestGroup(group_id="g", topics=topics)]
    )
    await flood(2, port, request(ApiKey.OFFSET_FETCH, 8, body), 1)


@attack
async def long_coordinators(port: int) -> None:
    """2 connections look for the coordinators of 50,000 groups, in a loop"""
    keys = [f"group-{number}" for number in range(50_000)]
    ask = find_coordinator.FindCoordinatorRequest(key_type=0, coordinator_keys=keys)
    await flood(2, port, request(ApiKey.FIND_COORDINATOR, 4, ask), 1)


@attack
async def long_configs(port: int) -> None:
    """2 connections ask for the configs of 20,000 topics, in a loop"""
    resources = [
        describe_configs.DescribeConfigsResource(
            resource_type=2, resource_name=f"t{number}", configuration_keys=None
        )
        for number in range(20_000)
    ]
    ask = describe_configs.DescribeConfigsRequest(resources=resources)
    await flood(2, port, request(ApiKey.DESCRIBE_CONFIGS, 4, ask), 1)


@attack
async def long_list_offsets(port: int) -> None:
    """2 connections ask for the offsets of 40,000 partitions, in a loop"""
    partitions = [
        list_offsets.ListOffsetsPartition(partition_index=number, timestamp=-1) for number in range(40_000)
    ]
    ask = list_offsets.ListOffsetsRequest(
        replica_id=-1, topics=[list_offsets.ListOffsetsTopic(name=TOPIC, partitions=partitions)]
    )
    await flood(2, port, request(ApiKey.LIST_OFFSETS, 5, ask), 1)


@attack
async def long_fetch(port: int) -> None:
    """2 connections fetch from 30,000 partitions that aren't there, in a loop"""
    await flood(2, port, fetch_request(MIB, 30_000), 1)


@attack
async def connects(port: int) -> None:
    """50 clients connect and leave, again and again"""

    async def conduct(peer: Peer) -> None:
        return

    await crowd(50, port, conduct)


@attack
async def silent(port: int) -> None:
    """3,000 connections never send a byte"""
    await crowd(3000, port, Peer.hold)


# -- attacks on what the broker remembers ------------------------------------------------------------------------


def _join(group: str, size: int, version: int = 3) -> bytes:
    return request(
        ApiKey.JOIN_GROUP,
        version,
        join_group.JoinGroupRequest(
            group_id=group,
            session_timeout_ms=1_800_000,
            rebalance_timeout_ms=60_000,
            protocol_type="consumer",
            protocols=[join_group.JoinGroupRequestProtocol(name="range", metadata=memoryview(bytes(size)))],
        ),
    )


@attack
async def large_members(port: int) -> None:
    """250 members join groups with a megabyte of metadata each"""

    async def conduct(peer: Peer) -> None:
        await peer.send(_join(f"g{id(peer) % 40}", 1_000_000))
        await peer.frame()
        await peer.hold()

    await crowd(250, port, conduct)


@attack
async def member_ids(port: int) -> None:
    """20 clients ask for member ids of ever new groups, and never come back"""
    await ask(20, port, lambda number, turn: _join(f"g{number}-{turn}" * 200, 10, version=4))


@attack
async def long_commits(port: int) -> None:
    """20 clients commit offsets with 4,000 characters of metadata, each for a new group"""

    def asked(number: int, turn: int) -> bytes:
        partition = offset_commit.OffsetCommitRequestPartition(
            partition_index=0, committed_offset=1, committed_metadata="m" * 4_000
        )
        topic = offset_commit.OffsetCommitRequestTopic(name=TOPIC, partitions=[partition])
        body = offset_commit.OffsetCommitRequest(
            group_id=f"c{number}-{turn}", generation_id_or_member_epoch=-1, member_id="", topics=[topic]
        )
        return request(ApiKey.OFFSET_COMMIT, 8, body)

    await ask(20, port, asked)


@attack
async def large_sessions(port: int) -> None:
    """6 clients begin fetch sessions of 8,000 partitions, again and again"""
    asked = [
        fetch.FetchPartition(partition=one, fetch_offset=0, partition_max_bytes=100) for one in range(2_000)
    ]
    topics = [fetch.FetchTopic(topic=f"none{one}", partitions=asked) for one in range(4)]
    body = fetch.FetchRequest(
        max_wait_ms=0, min_bytes=0, max_bytes=1000, session_id=0, session_epoch=0, topics=topics
    )
    await flood(6, port, request(ApiKey.FETCH, 11, body), 1)


@attack
async def made_up_producers(port: int) -> None:
    """10 clients produce a record each with ever new producer ids"""

    def asked(number: int, turn: int) -> bytes:
        batch = build_batch(
            [(None, b"v", (), 0)], producer_id=number * 10**6 + turn, producer_epoch=0, base_sequence=0
        )
        partition = produce.PartitionProduceData(index=0, records=bytes(batch))
        body = produce.ProduceRequest(
            acks=-1,
            timeout_ms=1000,
            topic_data=[produce.TopicProduceData(name=TOPIC, partition_data=[partition])],
        )
        return request(ApiKey.PRODUCE, 9, body)

    await ask(10, port, asked)


@attack
async def unread_groups(port: int) -> None:
    """60 clients describe a group of megabytes again and again, and never read"""

    async def member(peer: Peer) -> None:
        await peer.send(_join("large", 700_000))
        await peer.frame()
        await peer.hold()

    async def reader(peer: Peer) -> None:
        body = describe_groups.DescribeGroupsRequest(groups=["large"] * 1_000)
        await peer.send(request(ApiKey.DESCRIBE_GROUPS, 1, body) * 3)
        await peer.hold()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crowd(8, port, member))
        tasks.create_task(crowd(60, port, reader, receive_bytes=4096))


# -- comparing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Intensity:
    """What attackers did in a second beside the good client, and their processor seconds and the broker's for it."""

    connections: float
    sent_bytes: float
    received_bytes: float
    cpu: float
    broker_cpu: float


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds: the median over rounds of a round's percentile."""

    name: str
    what: str
    produce_p50: tuple[float, float]
    produce_p99: tuple[float, float]
    fetch_p50: tuple[float, float]
    fetch_p99: tuple[float, float]
    produced: tuple[int, int]
    resident_bytes: int
    attackers: Intensity


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "penstock_tools.bench.attacks", *map(str, arguments)]


class _Beside:
    """A process beside the good client: the attack, or the control."""

    def __init__(self, *arguments: object) -> None:
        self._process = subprocess.Popen(
            _command(*arguments), stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Self:
        said = self._said()
        assert said == _READY, f"it didn't begin: it said={said!r}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def moved(self) -> tuple[float, Moved]:
        """When attackers looked, on their clock, and what they had done until then."""
        self._process.send_signal(_TELL)
        at, *moved = json.loads(self._said())
        return at, Moved(*moved)


def attacking(name: str, port: int) -> contextlib.AbstractContextManager[object]:
    """The attack, in a process of its own."""
    return _Beside("run", name, port)


def _good(port: int, batch_bytes: int, seconds: float, priority: int) -> tuple[list[float], list[float]]:
    """The good client's latencies, in a process of its own."""
    command = _command("good", port, batch_bytes, seconds, priority)
    produces, fetches = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return produces, fetches


def _run_good(port: int, batch_bytes: int, seconds: float, priority: int) -> None:
    if priority:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    client = GoodClient(port, batch_bytes)
    client.run(min(1.0, seconds / 4))
    _say(json.dumps(client.run(seconds)))
    client.close()


def _run_control(part: float) -> None:
    """Use this part of a processor, in pieces of a few milliseconds."""
    _say(_READY)
    begin, used = time.perf_counter(), time.process_time
    while True:
        while used() < part * (time.perf_counter() - begin):
            sum(range(2_000))
        time.sleep(0.002)


def compare(
    broker: BrokerProcess, name: str, *, rounds: int, seconds: float, batch_bytes: int, priority: int = 0
) -> Row:
    """The good client beside the attack, and beside a control that uses as much of the processors, in turn.

    The good client has this real-time ``priority``; with 0, that of whoever calls.
    """
    port = int(broker.bootstrap_servers.rpartition(":")[2])
    figures: list[list[list[float]]] = [[[], [], [], []], [[], [], [], []]]
    counts = [0, 0]
    resident = 0
    attackers: list[Intensity] = []
    for _ in range(rounds):
        for is_attacked in (1, 0):
            arguments = ("run", name, port) if is_attacked else ("control", attackers[-1].cpu)
            with _Beside(*arguments) as beside:
                time.sleep(1)
                before = _spent(broker, beside) if is_attacked else None
                produces, fetches = _good(port, batch_bytes, seconds, priority)
                if before is not None:
                    attackers.append(_intensity(before, _spent(broker, beside)))
                usage = broker.usage()
                resident = max(resident, usage.resident_bytes if usage is not None else 0)
            counts[is_attacked] += len(produces)
            for at, latencies in enumerate((produces, fetches)):
                latencies.sort()
                figures[is_attacked][2 * at].append(latencies[len(latencies) // 2])
                figures[is_attacked][2 * at + 1].append(
                    latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)]
                )
        time.sleep(0.5)
    alone, other = ([statistics.median(values) for values in side] for side in figures)
    pairs = list(zip(alone, other, strict=True))
    return Row(
        name=name,
        what=(ATTACKS[name].__doc__ or "").strip(),
        produce_p50=pairs[0],
        produce_p99=pairs[1],
        fetch_p50=pairs[2],
        fetch_p99=pairs[3],
        produced=(counts[0], counts[1]),
        resident_bytes=resident,
        attackers=Intensity(
            *(statistics.median(values) for values in zip(*map(astuple, attackers), strict=True))
        ),
    )


def _spent(broker: BrokerProcess, beside: _Beside) -> tuple[float, ...]:
    """(the attackers' time, connections, bytes sent, bytes received, processor seconds, and the broker's)."""
    at, moved = beside.moved()
    usage = broker.usage()
    return at, *astuple(moved), beside.cpu_s, usage.cpu_s if usage is not None else 0.0


def _intensity(before: tuple[float, ...], after: tuple[float, ...]) -> Intensity:
    seconds, *spent = (late - early for early, late in zip(before, after, strict=True))
    return Intensity(*(one / seconds for one in spent))


def _line(row: Row) -> str:
    def cell(pair: tuple[float, float]) -> str:
        return f"{pair[0] * 1e3:.1f} / {pair[1] * 1e3:.1f} ({pair[1] / pair[0]:.1f}x)"

    cells = [cell(pair) for pair in (row.produce_p50, row.produce_p99, row.fetch_p50, row.fetch_p99)]
    did = row.attackers
    cells += [
        str(row.resident_bytes // MIB),
        f"{did.connections:,.0f}",
        f"{did.sent_bytes / 1e6:,.1f} / {did.received_bytes / 1e6:,.1f}",
        f"{did.cpu:.2f} / {did.broker_cpu:.2f}",
    ]
    return f"| `{row.name}` | {row.what} | {' | '.join(cells)} |"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(name: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(_TELL, lambda: _say(json.dumps([time.monotonic(), *astuple(MOVED)])))
    loop.call_soon(lambda: _say(_READY))
    await ATTACKS[name](port)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of ``tools/bench/attacks.py``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="attacks, separated by commas")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=100 * 1024, help="bytes of the good client's batches")
    parser.add_argument("--memory", default="256MiB", help="memory.limit of the broker")
    parser.add_argument("--topics", type=int, default=200, help="topics in its metadata")
    parser.add_argument("--dir", type=Path, help="where the broker's data go")
    parser.add_argument(
        "--realtime", action="store_true", help="at real-time priority, whatever else runs here"
    )
    parser.add_argument(
        "--together", action="store_true", help="the good client at the broker's real-time priority"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.realtime:
        take_realtime()  # attackers one less, the good client one more
    priority = REALTIME + 1 if options.realtime and not options.together else 0
    names = options.only.split(",") if options.only else list(ATTACKS)
    rows: list[Row] = []
    _say(
        "| attack | what it does | produce p50, ms | p99 | fetch p50, ms | p99 | resident, MiB "
        "| attackers: connections/s | MB/s sent / received | processors, theirs / the broker's |"
    )
    _say("|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        with (
            tempfile.TemporaryDirectory(dir=options.dir) as directory,
            BrokerProcess(Path(directory), [f"memory.limit={options.memory}"]) as broker,
        ):
            port = int(broker.bootstrap_servers.rpartition(":")[2])
            _prepare(port, options.topics, options.batch)
            row = compare(
                broker,
                name,
                rounds=options.rounds,
                seconds=options.seconds,
                batch_bytes=options.batch,
                priority=priority,
            )
            rows.append(row)
            _say(_line(row))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    return 0


def _prepare(port: int, topics: int, batch_bytes: int) -> None:
    """Make the topics, and have something to fetch."""
    create_topic(port)
    names = [metadata.MetadataRequestTopic(name=f"other-{number}") for number in range(topics)]
    ask = metadata.MetadataRequest(topics=names, allow_auto_topic_creation=True)
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(request(ApiKey.METADATA, 9, ask))
        exactly(sock, int.from_bytes(exactly(sock, 4), "big"))
    client = GoodClient(port, batch_bytes)
    for _ in range(300):
        with contextlib.suppress(AssertionError):
            client.once()
    client.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        give_way()
        asyncio.run(_run(sys.argv[2], int(sys.argv[3])))
    elif sys.argv[1:2] == ["control"]:
        give_way()
        _run_control(float(sys.argv[2]))
    elif sys.argv[1:2] == ["good"]:
        _run_good(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(main())
