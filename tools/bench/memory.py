"""Memory: a broker that takes in far more than it may hold, while consumers lag behind.

    python tools/bench/memory.py                                    # 20 GiB, 512 MiB
    python tools/bench/memory.py --bytes 2GiB --request 1KiB --dir /var/tmp --json out.json

A ``penstock serve`` process with ``memory.limit`` takes in ``--bytes`` over a few connections that keep requests
in flight. Meanwhile consumers of four kinds pull at it:

    tail       reads what was just written
    lagging    reads at a fraction of the speed, and falls behind until retention overtakes it
    cold       reads from the oldest offset on, again and again: object store and block cache
    holder     asks for large fetch responses and takes them a few KiB at a time

and ``--stuck`` connections ask for 3.5 MiB from random offsets, and never take a byte.

Resident memory (RSS, from /proc) is sampled every 20 ms, the broker's statistics are logged every second. The run
fails (exit code 1) if RSS ever exceeded the limit by more than 10 %, if the parts that the statistics name don't
add up, or if a consumer met an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from penstock.units import format_size, parse_size
from penstock.wire import ApiKey, encode_request
from penstock.wire.messages import fetch, list_offsets
from penstock.wire.registry import decode_response
from penstock_tools.bench.floor import TOPIC, Load, create_topic, produce_frame

FETCH_VERSION = 11
LIST_OFFSETS_VERSION = 1
EARLIEST, LATEST = -2, -1
OUT_OF_RANGE = 1
SLACK = 1.10
#: More than the system buffers for a loopback connection (2.7 MiB), by less than 1 MiB.
STUCK_BYTES = 7 * 2**19
SAMPLE_S = 0.02
#: Kafka's batch header: where length and the last offset's delta are.
BATCH_LENGTH_POS, BATCH_DELTA_POS, BATCH_HEADER_BYTES = 8, 23, 61


# -- the broker ----------------------------------------------------------------------------------------------


class BrokerProcess:
    """``penstock serve``; keeps what it prints, and the newest statistics."""

    def __init__(self, directory: Path, sets: list[str]) -> None:
        command = [sys.executable, "-m", "penstock", "serve", "--statistics-interval", "1"]
        for setting in [f"broker.data_dir={directory}", "listener.bind=127.0.0.1:0", *sets]:
            command += ["--set", setting]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.port = 0
        self.lines: list[str] = []
        self.statistics: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(30) or not self.port:
            raise RuntimeError("penstock serve didn't start:\n" + "".join(self.lines))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if " penstock.statistics: " in line:
                self.statistics.append(json.loads(line.partition(" penstock.statistics: ")[2]))
                continue
            self.lines.append(line)
            if line.startswith("  listening"):
                self.port = int(line.split()[1].rpartition(":")[2])
                self._ready.set()
        self._ready.set()

    @property
    def resident_bytes(self) -> int:
        """RSS now."""
        statm = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """The greatest RSS that the system ever saw (VmHWM): no sampling can miss it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.terminate()
        try:
            return self._process.wait(90)
        finally:
            self._process.kill()
            self._reader.join(10)


# -- consumers -----------------------------------------------------------------------------------------------


class Consumer(threading.Thread):
    """A raw fetch loop; ``bytes_per_s`` 0 is as fast as it goes."""

    def __init__(self, port: int, stop: threading.Event, *, name: str, bytes_per_s: float = 0) -> None:
        super().__init__(daemon=True, name=name)
        self._port = port
        self._stop_event = stop
        self._bytes_per_s = bytes_per_s
        self.received_bytes = 0
        self.errors: Counter[str] = Counter()
        self.rewinds = 0
        self._fetch_bytes = 8 * 2**20 if name == "holder" else 2**20
        self._small_receive_buffer = name == "holder"
        self._from_start = name in {"cold", "holder"}

    def run(self) -> None:
        try:
            self._consume()
        except OSError as error:
            if not self._stop_event.is_set():
                self.errors[str(error)] += 1

    def _consume(self) -> None:
        with socket.socket() as sock:
            if self._small_receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
            sock.connect(("127.0.0.1", self._port))
            sock.settimeout(60)
            offset = self.offset(sock, EARLIEST)
            while not self._stop_event.is_set():
                offset = self._fetch(sock, offset)

    def _request(self, sock: socket.socket, api_key: ApiKey, version: int, message: Any) -> Any:
        sock.sendall(b"".join(encode_request(api_key, version, 1, self.name, message)))
        (size,) = (int.from_bytes(self._receive(sock, 4), "big"),)
        return decode_response(api_key, version, self._receive(sock, size))[1]

    def _receive(self, sock: socket.socket, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        piece = 16 * 1024 if self._bytes_per_s else size
        while view:
            count = sock.recv_into(view[:piece])
            if not count:
                raise ConnectionResetError("the broker closed the connection")
            view = view[count:]
            self.received_bytes += count
            if self._bytes_per_s:
                self._stop_event.wait(count / self._bytes_per_s)
            if self._stop_event.is_set():
                raise ConnectionAbortedError("stopping")
        return data

    def offset(self, sock: socket.socket, timestamp: int) -> int:
        """The offset that the broker says for one of the special timestamps."""
        partition = list_offsets.ListOffsetsPartition(partition_index=0, timestamp=timestamp)
        topic = list_offsets.ListOffsetsTopic(name=TOPIC, partitions=[partition])
        request = list_offsets.ListOffsetsRequest(topics=[topic])
        response = self._request(sock, ApiKey.LIST_OFFSETS, LIST_OFFSETS_VERSION, request)
        offset = response.topics[0].partitions[0].offset
        assert isinstance(offset, int)
        return offset

    def _fetch(self, sock: socket.socket, offset: int) -> int:
        request = fetch_request(offset, self._fetch_bytes)
        response = self._request(sock, ApiKey.FETCH, FETCH_VERSION, request)
        found = response.responses[0].partitions[0]
        if found.error_code == OUT_OF_RANGE:  # retention was faster
            self.rewinds += 1
            return self.offset(sock, EARLIEST)
        if found.error_code:
            self.errors[f"error_code={found.error_code}"] += 1
            time.sleep(0.1)
            return offset
        after = next_offset(found.records, offset)
        if self._from_start and not self._small_receive_buffer and after == offset:
            self.rewinds += 1
            return self.offset(sock, EARLIEST)
        return after


def fetch_request(offset: int, bytes_max: int) -> fetch.FetchRequest:
    """A fetch of the one partition."""
    wanted = fetch.FetchPartition(partition=0, fetch_offset=offset, partition_max_bytes=bytes_max)
    return fetch.FetchRequest(
        max_wait_ms=200,
        min_bytes=1,
        max_bytes=bytes_max,
        topics=[fetch.FetchTopic(topic=TOPIC, partitions=[wanted])],
    )


def next_offset(records: Any, offset: int) -> int:
    """The offset after the last whole batch in ``records``."""
    view = memoryview(b"".join(records) if isinstance(records, list) else records or b"")
    position = 0
    while position + BATCH_HEADER_BYTES <= len(view):
        size = int.from_bytes(view[position + BATCH_LENGTH_POS : position + BATCH_LENGTH_POS + 4], "big") + 12
        if position + size > len(view):
            break
        base = int.from_bytes(view[position : position + 8], "big")
        delta = view[position + BATCH_DELTA_POS : position + BATCH_DELTA_POS + 4]
        offset = base + int.from_bytes(delta, "big") + 1
        position += size
    return offset


class Stuck(threading.Thread):
    """Opens connections that ask and never listen, until told to stop."""

    def __init__(self, port: int, stop: threading.Event, count: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._stop_event = stop
        self._count = count
        self.opened = 0

    def run(self) -> None:
        rng = random.Random(1)
        looker = Consumer(self._port, self._stop_event, name="stuck")
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", self._port)))
            while self.opened < self._count and not self._stop_event.wait(0.01):
                first, end = looker.offset(sock, EARLIEST), looker.offset(sock, LATEST)
                if end - first < 100:
                    continue
                deaf = stack.enter_context(socket.socket())
                deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                deaf.connect(("127.0.0.1", self._port))
                request = fetch_request(rng.randrange(first, end), STUCK_BYTES)
                deaf.sendall(b"".join(encode_request(ApiKey.FETCH, FETCH_VERSION, 1, "stuck", request)))
                self.opened += 1
            self._stop_event.wait()


# -- the run -------------------------------------------------------------------------------------------------


class Sampler(threading.Thread):
    """Takes RSS until told to stop."""

    def __init__(self, read: Callable[[], int], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._read = read
        self._stop_event = stop
        self.samples: list[int] = []

    def run(self) -> None:
        while not self._stop_event.wait(SAMPLE_S):
            with contextlib.suppress(OSError, ValueError, IndexError):
                self.samples.append(self._read())


@contextlib.contextmanager
def consumers(port: int, stop: threading.Event, kinds: list[str]) -> Iterator[list[Consumer]]:
    """Running consumers, a fresh connection each."""
    speeds = {"tail": 0.0, "lagging": 8e6, "cold": 30e6, "holder": 1e6}
    running = [Consumer(port, stop, name=kind, bytes_per_s=speeds[kind]) for kind in kinds]
    for consumer in running:
        consumer.start()
    try:
        yield running
    finally:
        stop.set()
        for consumer in running:
            consumer.join(10)


def take_in(
    port: int, total: int, request: int, connections: int, depth: int, report: Callable[[int], None]
) -> int:
    """Produce about ``total`` bytes; the bytes acknowledged."""
    frame = produce_frame(request)[0]
    load = Load(port, frame, connections, depth)
    done = 0
    try:
        while done < total:
            result = load.run(1.0)
            done += int(result.requests_per_s * len(frame))
            report(done)
    finally:
        load.close()
    return done


def run(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """One run; what it showed."""
    limit = parse_size(arguments.limit)
    request = parse_size(arguments.request)
    sets = [
        f"memory.limit={arguments.limit}",
        f"topics.retention_bytes={arguments.retention}",
        "stream.retention_interval=1s",
        "stream.delete_delay=1s",
        *arguments.sets,
    ]
    broker = BrokerProcess(directory, sets)
    stop = threading.Event()
    started = time.perf_counter()
    code: int | None = None
    try:
        create_topic(broker.port)
        idle = broker.resident_bytes
        sampler = Sampler(lambda: broker.resident_bytes, stop)
        sampler.start()

        def report(done: int) -> None:
            newest = broker.statistics[-1] if broker.statistics else {}
            parts = " ".join(f"{k}={v / 2**20:.0f}" for k, v in newest.get("memory", {}).items())
            print(
                f"{time.perf_counter() - started:6.1f} s  {done / 2**30:7.2f} GiB in  "
                f"rss {broker.resident_bytes / 2**20:6.1f} MiB  {parts}",
                flush=True,
            )

        stuck = Stuck(broker.port, stop, arguments.stuck)
        stuck.start()
        with consumers(broker.port, stop, arguments.consumers.split(",")) as pulling:
            done = take_in(
                broker.port,
                parse_size(arguments.bytes),
                request,
                arguments.connections,
                arguments.depth,
                report,
            )
        peak = broker.peak_bytes()
        elapsed = time.perf_counter() - started
    finally:
        stop.set()
        code = broker.stop()
    sampler.join(5)
    samples = sorted(sampler.samples)
    return {
        "limit_bytes": limit,
        "request_bytes": request,
        "taken_in_bytes": done,
        "seconds": round(elapsed, 1),
        "idle_rss_bytes": idle,
        "peak_rss_bytes": peak,
        "median_rss_bytes": samples[len(samples) // 2] if samples else 0,
        "rss_samples": len(samples),
        "exit_code": code,
        "stuck_connections": stuck.opened,
        "consumers": [
            {
                "kind": c.name,
                "received_bytes": c.received_bytes,
                "rewinds": c.rewinds,
                "errors": dict(c.errors),
            }
            for c in pulling
        ],
        "log": broker.lines,
        "statistics": broker.statistics,
    }


def faults(result: dict[str, Any]) -> list[str]:
    """What this run disproves; nothing if all is well."""
    found = []
    peak, limit = result["peak_rss_bytes"], result["limit_bytes"]
    if peak > limit * SLACK:
        found.append(f"resident memory went over the limit plus 10 %: peak={peak} limit={limit}")
    if result["exit_code"]:
        found.append(f"the broker ended with exit code {result['exit_code']}")
    if not result["statistics"]:
        found.append("the broker logged no statistics")
    for at in result["statistics"]:
        if sum(at["memory"].values()) != at["memory_used_bytes"]:
            found.append(f"parts don't add up to memory_used_bytes={at['memory_used_bytes']}: {at['memory']}")
            break
    for consumer in result["consumers"]:
        if consumer["errors"]:
            found.append(f"consumer {consumer['kind']} met errors: {consumer['errors']}")
        if not consumer["received_bytes"]:
            found.append(f"consumer {consumer['kind']} received nothing")
    found += [line.rstrip() for line in result["log"] if "Traceback" in line]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", default="20GiB", help="how much to take in")
    parser.add_argument("--limit", default="512MiB", help="memory.limit of the broker")
    parser.add_argument("--request", default="200KiB", help="size of a batch; one batch a request")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--depth", type=int, default=8, help="requests in flight per connection")
    parser.add_argument("--retention", default="4GiB", help="retention.bytes, which bounds the disk")
    parser.add_argument(
        "--consumers", default="tail,lagging,lagging,cold,cold,holder,holder,holder,holder", help="kinds"
    )
    parser.add_argument("--stuck", type=int, default=100, help="connections that never take their response")
    parser.add_argument(
        "--dir", type=Path, help="where the broker keeps its files (default: a temporary one)"
    )
    parser.add_argument("--set", dest="sets", action="append", default=[], help="section.key=value")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="penstock-memory-", dir=arguments.dir))
    try:
        result = run(arguments, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    result["faults"] = faults(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{format_size(result['limit_bytes'])} limit, {result['taken_in_bytes'] / 2**30:.2f} GiB in "
        f"{result['seconds']:.0f} s, peak rss {result['peak_rss_bytes'] / 2**20:.1f} MiB "
        f"({result['peak_rss_bytes'] / result['limit_bytes']:.0%}), median "
        f"{result['median_rss_bytes'] / 2**20:.1f} MiB, idle {result['idle_rss_bytes'] / 2**20:.1f} MiB"
    )
    for consumer in result["consumers"]:
        print(
            f"  {consumer['kind']:<8} {consumer['received_bytes'] / 2**20:10.1f} MiB, {consumer['rewinds']} rewinds"
        )
    for line in result["faults"]:
        print(f"  FAULT {line}")
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
