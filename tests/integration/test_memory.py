"""I8: a broker with a memory limit takes in many times that much, and its resident size stays under it.

The whole run of the issue (20 GiB) is ``python tools/bench/memory.py``; these are short ones of the same kind.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from tests.depth import in_full
from tests.integration.conftest import ServeFactory, ServeProcess
from tests.integration.raw_client import connect, create, produce
from tests.patience import HANG_S

from penstock.wire.compression import CODEC_GZIP
from penstock.wire.records import build_batch

MIB = 1024 * 1024

BENCH = Path(__file__).parents[2] / "tools" / "bench" / "memory.py"
RUNS = {
    # large batches, consumers of all kinds, and a hundred that never take their response
    "large": ["--bytes=320MiB", "--limit=256MiB", "--request=200KiB", "--stuck=100"],
    # small ones, where what an entry costs beside its bytes counts most; with the default reserve there would be
    # room for it, even if nothing had been charged
    "small": [
        *("--bytes=72MiB", "--request=1KiB", "--depth=128", "--stuck=0", "--consumers=tail,lagging"),
        *("--limit=128MiB", "--set=memory.reserve=80MiB"),
    ],
    # hundreds of pipelining connections, all held back: they take turns, and none starves
    "crowd": [
        "--bytes=110MiB",  # all that may wait is full with half of it
        "--request=1KiB",
        "--connections=400",
        "--depth=128",
        "--stuck=0",
        "--consumers=tail",
        "--limit=320MiB",
    ],
    # a small limit
    "tight": ["--bytes=500MiB", "--limit=256MiB", "--request=64KiB", "--stuck=20"],
}


@pytest.mark.slow
@pytest.mark.parametrize("run", ["large", *in_full("small", "crowd", "tight")])
def test_resident_memory_stays_under_the_limit(run: str, tmp_path: Path) -> None:
    """Under the limit plus 10 %, with statistics that add up, while consumers lag, read cold and hold responses."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(BENCH), f"--dir={tmp_path}", f"--json={report}", "--retention=512MiB"]
    done = subprocess.run([*command, *RUNS[run]], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    result = json.loads(report.read_text())
    assert result["faults"] == []


def test_statistics_say_what_memory_is_for(broker: ServeProcess) -> None:
    """SIGUSR1 logs one line of JSON: the limit, what is used, by purpose, and what the process holds."""
    broker.signal(signal.SIGUSR1)
    line = broker.wait_for_output("penstock.statistics: ")
    statistics = json.loads(line.partition("penstock.statistics: ")[2])
    assert sum(statistics["memory"].values()) == statistics["memory_used_bytes"]
    assert statistics["memory_used_bytes"] <= statistics["memory_limit_bytes"]
    assert statistics["resident_bytes"] > 0


@pytest.mark.parametrize("codec", ["zstd", *in_full("lz4")])
def test_batches_that_inflate_to_what_no_topic_takes_leave_nothing_in_memory(
    serve: ServeFactory, codec: str
) -> None:
    """60 KB of gzip that become 60 MB, for a topic that recompresses: each refusal kept 63 MB."""
    broker = serve("memory.limit=256MiB")
    bomb = build_batch([(None, bytes(60_000_000), (), 0)], codec=CODEC_GZIP)

    async def attack() -> None:
        async with await connect(broker.bootstrap_servers) as client:
            assert await create(client, "t", compression_type=codec) == 0
            for _ in range(15):
                assert await produce(client, "t", bomb) != 0

    anyio.run(attack)
    assert broker.resident_bytes() < 256 * MIB * 1.1
