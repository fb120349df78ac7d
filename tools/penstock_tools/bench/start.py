"""How long a broker takes from nothing to the first durable acknowledgement, in a fresh process.

    penstock bench start
    python tools/bench/start.py --rounds 5

``cold`` starts on an empty directory (it has to make its WAL file), ``warm`` on what the run before left there. Each
start is a Python process of its own that imports Penstock, enters ``Broker()``, and produces one record over a
socket, with the topic created on the way.
"""

from __future__ import annotations

__all__ = ("BUDGET_MS", "Start", "measure_starts", "median_start", "one_start", "report")

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import UnavailableError

#: Design, section 8: ``Broker()`` in process to first ack.
BUDGET_MS = 300.0


@dataclass(frozen=True, slots=True)
class Start:
    """Milliseconds: of the import, of entering the broker, and from there to the first acknowledgement."""

    import_ms: float
    start_ms: float
    first_ack_ms: float

    @property
    def broker_to_ack_ms(self) -> float:
        """What the budget is about."""
        return self.start_ms + self.first_ack_ms


async def one_start(directory: Path, sets: Sequence[str], started: float) -> Start:
    """Start here and now; ``started`` is ``perf_counter`` from before anything was imported."""
    from penstock.broker import Broker
    from penstock.config import load_config

    imported = time.perf_counter()
    overrides = {"broker.data_dir": str(directory), "listener.bind": "127.0.0.1:0"}
    async with Broker(load_config(sets=sets, overrides=overrides)) as broker:
        ready = time.perf_counter()
        await _produce_one(broker.bootstrap_servers)
        acked = time.perf_counter()
    return Start((imported - started) * 1000, (ready - imported) * 1000, (acked - ready) * 1000)


async def _produce_one(bootstrap_servers: str) -> None:
    """Have the topic made and one record stored. Raises UnavailableError when the broker refuses it."""
    import anyio

    from penstock.wire import ApiKey, decode_response, encode_request
    from penstock.wire.messages import metadata, produce
    from penstock.wire.records import build_batch

    topic = metadata.MetadataRequestTopic(name="start")
    ask = metadata.MetadataRequest(topics=[topic], allow_auto_topic_creation=True)
    records = bytes(build_batch([(None, b"first", (), time.time_ns() // 1_000_000)]))
    partition = produce.PartitionProduceData(index=0, records=records)
    data = produce.TopicProduceData(name="start", partition_data=[partition])
    write = produce.ProduceRequest(acks=-1, timeout_ms=30_000, topic_data=[data])
    host, _, port = bootstrap_servers.rpartition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:

        async def call(frame: bytes) -> bytes:
            await stream.send(frame)
            received = b""
            while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
                received += await stream.receive()
            return received[4:]

        await call(b"".join(encode_request(ApiKey.METADATA, 9, 1, "bench", ask)))
        answer = await call(b"".join(encode_request(ApiKey.PRODUCE, 9, 2, "bench", write)))
    _, response = decode_response(ApiKey.PRODUCE, 9, memoryview(answer))
    assert isinstance(response, produce.ProduceResponse)
    error = response.responses[0].partition_responses[0].error_code
    if error:
        raise UnavailableError(f"the first record was refused: error_code={error}")


_CHILD = """
import time
started = time.perf_counter()
import json, sys
from dataclasses import asdict
from pathlib import Path
import anyio
from penstock.broker import uvloop_installed
from penstock_tools.bench.start import one_start
start = anyio.run(one_start, Path(sys.argv[1]), sys.argv[2:], started, backend="asyncio",
                  backend_options={"use_uvloop": uvloop_installed()})
print(json.dumps(asdict(start)))
"""


def measure_starts(directory: Path, rounds: int, sets: Sequence[str] = ()) -> dict[str, list[Start]]:
    """``cold`` and ``warm`` starts, each in a process of its own. Raises UnavailableError when one fails.

    One start that doesn't count comes first, so that byte code is cached, as ``pip install`` leaves it.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    _start(directory / "start-0", sets, environment)
    found: dict[str, list[Start]] = {"cold": [], "warm": []}
    for number in range(1, rounds + 1):
        for starts in found.values():
            starts.append(_start(directory / f"start-{number}", sets, environment))
    return found


def _start(data: Path, sets: Sequence[str], environment: dict[str, str]) -> Start:
    command = [sys.executable, "-c", _CHILD, str(data), *sets]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise UnavailableError(f"a start failed: {result.stderr.strip().rpartition(chr(10))[2]}")
    return Start(**json.loads(result.stdout))


def median_start(starts: Sequence[Start]) -> Start:
    """The one in the middle."""
    return sorted(starts, key=lambda start: start.broker_to_ack_ms)[len(starts) // 2]


def report(found: dict[str, list[Start]]) -> str:
    """A line for each kind, with the verdict on the budget."""
    lines = [
        f"{'start':<8}{'import':>12}{'Broker()':>12}{'first ack':>12}{'Broker() to ack':>18}{'budget':>10}"
    ]
    for kind, starts in found.items():
        start = median_start(starts)
        verdict = "met" if start.broker_to_ack_ms < BUDGET_MS else "MISSED"
        lines.append(
            f"{kind:<8}{start.import_ms:>9.0f} ms{start.start_ms:>9.0f} ms{start.first_ack_ms:>9.0f} ms"
            f"{start.broker_to_ack_ms:>15.0f} ms{verdict:>10}"
        )
    return "\n".join(lines)
