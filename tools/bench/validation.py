"""What checking each record costs the event loop: ``python tools/bench/validation.py``.

One connection produces to one partition of a broker in this process, without sockets: frames go into the
connection as the transport would put them there. The three ways to check a batch take turns, burst by burst, and what
is measured is the processor time of the loop's thread per request, until the burst is answered. Per case it prints
the median of each way, and the medians of its ratios to the header check beside it in time; only those mean anything.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec

from penstock import Broker
from penstock.config import load_config
from penstock.log.partition import Partition
from penstock.log.topic import NewTopic
from penstock.server.connection import Connection
from penstock.wire import ApiKey, encode_request, native_code
from penstock.wire.compression import CODEC_NAMES
from penstock.wire.messages import produce
from penstock.wire.records import build_batch
from penstock.wire.registry import encode_response

VERSION = 9
TOPIC = "bench"
WAYS = ("header", "native", "python")
CASES = ((1, 1024), (160, 100), (1000, 100))
BURST_BYTES = 2**20
VARIANTS = 16


class Wire:
    """The transport of a connection: takes answers, and says when all are there."""

    def __init__(self) -> None:
        self.bytes_left = 0
        self.answered = anyio.Event()
        self.resumed = anyio.Event()
        self.resumed.set()

    def expect(self, size: int) -> None:
        """So many bytes of answers."""
        self.bytes_left = size
        self.answered = anyio.Event()

    def write(self, data: Any) -> None:
        """As asyncio's."""
        self.bytes_left -= len(data)
        if self.bytes_left <= 0:
            self.answered.set()

    def writelines(self, parts: Any) -> None:
        """As asyncio's."""
        for part in parts:
            self.write(part)

    def pause_reading(self) -> None:
        """As asyncio's."""
        self.resumed = anyio.Event()

    def resume_reading(self) -> None:
        """As asyncio's."""
        self.resumed.set()

    def get_write_buffer_size(self) -> int:
        """Everything is sent at once."""
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Somebody on this host."""
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default

    def is_closing(self) -> bool:
        """Never."""
        return False

    def set_write_buffer_limits(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to do."""

    abort = close


def frames(count: int, size: int, codec: int) -> list[bytes]:
    """Produce requests, each with another batch: half of each value packs well, half doesn't."""
    random = Random(1)
    now_ms = time.time_ns() // 1_000_000
    found = []
    for number in range(VARIANTS):
        values = [random.randbytes(size // 2) + b"x" * (size - size // 2) for _ in range(count)]
        batch = build_batch(
            [(b"key", value, (), now_ms + at % 7) for at, value in enumerate(values)], codec=codec
        )
        data = produce.PartitionProduceData(index=0, records=bytes(batch))
        request = produce.ProduceRequest(
            acks=-1,
            timeout_ms=30_000,
            topic_data=[produce.TopicProduceData(name=TOPIC, partition_data=[data])],
        )
        found.append(b"".join(encode_request(ApiKey.PRODUCE, VERSION, number, "bench", request)))
    return found


def in_memory() -> str | None:
    """A folder without a disk behind it, or None."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def answer_size() -> int:
    """Of the answer to each of them."""
    answer = produce.PartitionProduceResponse(index=0, error_code=0, base_offset=0)
    topic = produce.TopicProduceResponse(name=TOPIC, partition_responses=[answer])
    return len(
        b"".join(encode_response(ApiKey.PRODUCE, VERSION, 1, produce.ProduceResponse(responses=[topic])))
    )


async def burst(connection: Connection, wire: Wire, requests: list[bytes], answer_bytes: int) -> float:
    """Microseconds of this thread per request."""
    wire.expect(len(requests) * answer_bytes)
    begin = time.thread_time_ns()
    for frame in requests:
        at, view = 0, memoryview(frame)
        while at < len(frame):
            await wire.resumed.wait()
            buffer = connection.get_buffer(-1)
            size = min(len(buffer), len(frame) - at)
            buffer[:size] = view[at : at + size]
            connection.buffer_updated(size)
            at += size
    await wire.answered.wait()
    return (time.thread_time_ns() - begin) / 1000 / len(requests)


async def run(rounds: int, only: str) -> None:
    """All cases."""
    native = native_code.walk
    ways = [way for way in WAYS if way != "native" or native is not None]
    with tempfile.TemporaryDirectory(dir=in_memory()) as folder:
        overrides = {
            "broker.data_dir": str(Path(folder)),
            "listener.bind": "127.0.0.1:0",
            "memory.limit": "2GiB",
        }
        async with Broker(load_config(overrides=overrides)) as broker:
            await broker.logs.create_topics([NewTopic(name=TOPIC, partition_count=1, configs={})])
            partition = broker.logs.partition(TOPIC, 0)
            assert isinstance(partition, Partition)
            server = broker._running.server
            config = partition.config
            print(
                f"{'records':>12} {'codec':8}" + "".join(f"{way:>12}" for way in ways) + "   against header"
            )
            for count, size in CASES:
                for codec, name in enumerate(CODEC_NAMES):
                    if only and only not in f"{count}x{size}-{name}":
                        continue
                    wire = Wire()
                    connection = Connection(server.core, server.connections, server.endpoints[0])
                    connection.connection_made(wire)  # type: ignore[arg-type]
                    sent = frames(count, size, codec)
                    depth = max(4, min(64, BURST_BYTES // len(sent[0])))
                    requests = (sent * (depth // VARIANTS + 1))[:depth]
                    answer_bytes = answer_size()
                    took: dict[str, list[float]] = {way: [] for way in ways}
                    order = Random(2)
                    for number in range(rounds + 3):
                        for way in order.sample(ways, len(ways)):
                            rules = msgspec.structs.replace(config.rules, full=way != "header")
                            partition.config = replace(config, rules=rules)
                            native_code.walk = native if way == "native" else None
                            cost = await burst(connection, wire, requests, answer_bytes)
                            if number >= 3:
                                took[way].append(cost)
                    medians = "".join(f"{statistics.median(took[way]):9.1f} us" for way in ways)
                    ratios = []
                    for way in ways[1:]:
                        pairs = zip(took[way], took["header"], strict=True)
                        ratios.append(f"{way} {statistics.median(a / b for a, b in pairs):.2f}")
                    print(f"{count:>5} x {size:4} {name:8}{medians}   {', '.join(ratios)}", flush=True)
                    connection.connection_lost(None)
    native_code.walk = native


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="bursts of each way, per case")
    parser.add_argument("--only", default="", help="cases whose name has this in it, such as 160x100-none")
    given = parser.parse_args()
    anyio.run(run, given.rounds, given.only, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
